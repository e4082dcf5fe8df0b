"""All pages of the course, and how their links find each other."""

import posixpath
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

import minisd
from minisd.teach import page

TEXTS = (".md", ".py", ".toml", ".txt")  # files that become pages when a notebook links to them
PICTURES = (".png", ".gif", ".jpg", ".jpeg", ".svg")
HIDDEN = ("solutions", "instructor")  # folders of the course that are not for every reader
CONTENTS = "The course"


class Pages:
    """The pages of a course, written into `folder`; `targets` says which file becomes which page.

    course: the folder of the notebooks; what they link to is looked up in the folder above it.
    Raises ValueError if it holds none.
    """

    def __init__(self, course: Path, folder: Path, solutions: bool = False):
        course = course.resolve()
        self.root, self.course, self.folder = course.parent, course.name, folder
        self.contents = f"{self.course}/README.md"
        self.listed = f"{self.course}/solutions/README.md"  # made up: the solutions' contents
        self.chapters = self.notebooks(course)
        self.solved = self.notebooks(course / "solutions") if solutions else []
        if not self.chapters or not (self.root / self.contents).is_file():
            raise ValueError(f"{course} is no course: no README.md with notebooks NN_topic.ipynb")
        self.targets = {self.contents: "index.html"}
        for path in (*self.chapters, *self.solved):
            self.targets[path] = path.removeprefix(f"{self.course}/").replace(".ipynb", ".html")
        if self.solved:
            self.targets[self.listed] = "solutions/index.html"
        self.texts: list[str] = []

    def notebooks(self, folder: Path) -> list[str]:
        found = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
        return [path.relative_to(self.root).as_posix() for path in found]

    def write(self) -> None:
        """All pages. Raises ValueError, with the file's name, for one that cannot be shown."""
        shutil.copy(page.THEME / "style.css", self.folder)
        titles: dict[str, str] = {}
        for row in (self.chapters, self.solved):
            for path in row:
                with naming(path):
                    titles[path] = page.title_of(page.read(self.root / path))
            for path in row:
                self.write_notebook(path, titles, row)
        body = self.markdown(self.contents, self.text(self.contents))
        self.put(self.contents, body, CONTENTS)
        if self.solved:
            items = [f"- [{titles[path]}]({posixpath.basename(path)})" for path in self.solved]
            listed = "\n".join(["# Solutions", "", *items])
            self.put(self.listed, self.markdown(self.listed, listed), "Solutions")
        for path in self.texts:
            self.write_text(path)

    def write_notebook(self, path: str, titles: dict[str, str], row: Sequence[str]) -> None:
        place = (self.folder / self.targets[path]).parent
        with naming(path):
            node = page.read(self.root / path)
            body = page.notebook(node, lambda url: self.link(path, url), place)
        here = row.index(path)
        ways = {"prev": row[here - 1] if here else None, "next": (*row, None)[here + 1]}
        self.put(path, body, titles[path], {k: (p, titles[p]) for k, p in ways.items() if p})

    def write_text(self, path: str) -> None:
        """A file that a notebook links to. Its own links lead to pages that are there anyway."""
        if path.endswith(".md"):
            body = self.markdown(path, self.text(path), follow=False)
        else:
            body = page.source(path, self.text(path))
        self.put(path, body, path)

    def text(self, path: str) -> str:
        return (self.root / path).read_text(encoding="utf8")

    def markdown(self, path: str, text: str, follow: bool = True) -> str:
        with naming(path):
            return page.markdown(text, lambda url: self.link(path, url, follow))

    def put(
        self, path: str, body: str, title: str, ways: dict[str, tuple[str, str]] | None = None
    ) -> None:
        """Write a page. ways: prev and next -> (file, title)."""
        target = self.targets[path]
        top = "../" * target.count("/")
        links = {k: (top + self.targets[p], name) for k, (p, name) in (ways or {}).items()}
        if path != self.contents:
            links["up"] = top + "index.html", CONTENTS
        ordered = [(kind, *links[kind]) for kind in ("prev", "up", "next") if kind in links]
        place = self.folder / target
        place.parent.mkdir(parents=True, exist_ok=True)
        with naming(path):
            html = page.framed(body, title, ordered, top=top, version=minisd.__version__)
        place.write_text(html, encoding="utf8")

    def link(self, path: str, url: str, follow: bool = True) -> str | None:
        """Where a link that stands in the file `path` leads on the site; None if nowhere."""
        if "://" in url or url.startswith(("#", "mailto:")):
            return url
        name, _, fragment = unquote(url).partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
        if f"{file}/README.md" in self.targets:  # a folder
            file = f"{file}/README.md"
        if file not in self.targets and not self.admit(file, follow):
            return None
        if file in self.texts and not file.endswith(".md"):
            fragment = fragment.partition("-")[0]  # of lines L3-L9 the first
        way = posixpath.relpath(self.targets[file], posixpath.dirname(self.targets[path]) or ".")
        return quote(way) + (f"#{fragment}" if fragment else "")

    def admit(self, file: str, follow: bool) -> bool:
        """Give a file of the repository a place on the site, if it may have one."""
        hidden = file.startswith(tuple(f"{self.course}/{name}/" for name in HIDDEN))
        suffix = posixpath.splitext(file)[1].lower()
        if hidden or file.startswith("..") or not (self.root / file).is_file():
            return False
        if suffix in PICTURES:
            self.targets[file] = f"files/{file}"
            place = self.folder / self.targets[file]
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.root / file, place)
            return True
        if suffix in TEXTS and follow:
            self.targets[file] = f"files/{file}.html"
            self.texts.append(file)
            return True
        return False


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Puts the file's name before what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
