"""The course as pages: whole, linked, readable without a network and without eyes."""

import base64
import re
import struct
import tomllib
import zlib
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("math_core", reason="pages need math-core: tests/requirements.txt brings it")

from minisd.teach import page, site

ROOT = Path(__file__).parent.parent
COURSE = ROOT / "notebooks"
NOTEBOOKS = [*sorted(COURSE.glob("[0-9]*.ipynb")), *sorted(COURSE.glob("solutions/*.ipynb"))]


def png(width, height):
    """A grey picture, byte by byte."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress((b"\0" + b"\x80" * width) * height)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PICTURE = base64.b64encode(png(30, 20)).decode()


def text(source, name):
    return nbformat.v4.new_markdown_cell(source, id=name)


def shown(data, name, **metadata):
    output = nbformat.v4.new_output("execute_result", data, metadata=metadata, execution_count=1)
    return nbformat.v4.new_code_cell("show(1 < 2)", id=name, outputs=[output])


def figure(alt="A grey <field>", name="01-a-figure"):
    data = {"image/png": PICTURE, "text/plain": "Figure"}
    return shown(data, name, **({"image/png": {"alt": alt}} if alt else {}))


ONE = [
    text("# 01 · One\n\n| | |\n|---|---|\n| You need | $x_t$, $\\bar\\alpha$ |", "01-title"),
    figure(),
    text("## Two roads\n\n$$\\boxed{\\frac{1}{2} = \\mathbb E\\,x}$$", "01-b"),
    text("## Two roads\n\nto [two](02_two.ipynb), to [it](solutions/01_one.ipynb)", "01-c"),
    text("See [code](../lib/one.py#L2-L3), [no file](../none.py), [out](https://a.org/b)", "01-d"),
    shown({"text/html": f'<img src="data:image/gif;base64,{PICTURE}" alt="moves">'}, "01-e"),
    shown({"text/markdown": "[lib/one.py, line 2](../lib/one.py#L2)"}, "01-f"),
]  # fmt: skip
CONTENTS = """# The course

[One](01_one.ipynb), [two](02_two.ipynb), [solved](solutions), [how](../README.md#a-picture)

## A
## B
## C
"""


def write(path, cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.fixture
def course(tmp_path):
    """A course of two chapters, one solution, one file of code."""
    folder = tmp_path / "repository" / "notebooks"
    write(folder / "01_one.ipynb", ONE)
    write(folder / "02_two.ipynb", [text("# 02 · Two", "02-title")])
    write(folder / "solutions" / "01_one.ipynb", [text("# 01 · One: solutions", "01-title")])
    (folder / "README.md").write_text(CONTENTS, encoding="utf8")
    (folder.parent / "README.md").write_text("# All\n\n## A picture\n\n[x](lib/two.py)\n")
    (folder.parent / "lib").mkdir()
    (folder.parent / "lib" / "one.py").write_text('"""One."""\n\nx = "<b>"\n')
    (folder.parent / "lib" / "two.py").write_text("y = 2\n")
    return folder


def made(course, *more):
    folder = course.parent.parent / "pages"
    assert site.main([str(folder), "--course", str(course), *more]) == 0
    return folder


class Reader(HTMLParser):  # every tag of a page with its attributes
    def __init__(self, path):
        super().__init__()
        self.tags = []
        self.feed(path.read_text(encoding="utf8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def ids(self):
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]


def lost(folder):
    """What leads nowhere on all pages, or is loaded from elsewhere."""
    found = []
    for path in folder.rglob("*.html"):
        for tag, attributes in Reader(path).tags:
            url = attributes.get("href") or attributes.get("src")
            if url is None or (tag == "a" and url.startswith("https://")):
                continue
            name, _, fragment = url.partition("#")
            target = (path.parent / name) if name else path
            whole = target.is_file() and (not fragment or fragment in Reader(target).ids())
            found += [] if whole else [(path.name, tag, url)]
    return found


@pytest.mark.parametrize("more", [[], ["--solutions"]])
def test_every_link_leads_to_a_page_and_nothing_comes_from_elsewhere(course, more):
    folder = made(course, *more)
    assert lost(folder) == []
    for path in folder.rglob("*.html"):
        tags = {tag for tag, _ in Reader(path).tags}
        assert tags.isdisjoint({"script", "iframe", "object", "embed"})
    assert not re.search(r"url\(|@import", (folder / "style.css").read_text(encoding="utf8"))


def test_solutions_are_there_when_asked_for_and_never_linked_otherwise(course):
    folder = made(course)
    assert not (folder / "solutions").exists()
    assert "to it</p>" in (folder / "01_one.html").read_text(encoding="utf8")
    folder = made(course, "--solutions")
    links = {
        a["href"] for name in ("01_one.html", "index.html") for a in Reader(folder / name).all("a")
    }
    assert {"solutions/01_one.html", "solutions/index.html"} <= links


def test_chapters_lead_forwards_backwards_and_to_the_contents(course):
    folder = made(course)
    one, two = (Reader(folder / name).all("a") for name in ("01_one.html", "02_two.html"))
    assert [(a["href"], a.get("rel")) for a in one[1:3]] == [
        ("index.html", None), ("02_two.html", "next")]  # fmt: skip
    assert [(a["href"], a.get("rel")) for a in two[1:3]] == [
        ("01_one.html", "prev"), ("index.html", None)]  # fmt: skip
    assert one[0]["href"] == "#text"  # past the ways to other pages


def test_formulas_are_mathml(course):
    html = (made(course) / "01_one.html").read_text(encoding="utf8")
    assert html.count("<math") == 3
    assert '<math display="block"><menclose' in html
    assert "\N{MATHEMATICAL DOUBLE-STRUCK CAPITAL E}" in html
    assert not re.search(r"[$]|\\frac", html)


def test_pictures_are_files_with_their_alt_text_and_size(course):
    folder = made(course)
    still, moving = Reader(folder / "01_one.html").all("img")
    assert (still["alt"], still["width"], still["height"]) == ("A grey <field>", "30", "20")
    assert (folder / still["src"]).read_bytes() == png(30, 20)
    assert (moving["alt"], moving["src"]) == ("moves", "pictures/01-e.gif")


def test_code_outputs_and_ids_of_cells_are_there(course):
    path = made(course) / "01_one.html"
    html, ids = path.read_text(encoding="utf8"), Reader(path).ids()
    assert {"01-title", "01-a-figure", "two-roads", "two-roads-1"} <= set(ids)
    assert len(ids) == len(set(ids))
    assert "&lt;" in re.sub(r"<[^>]+>", "", html).partition("show")[2][:40]


def test_a_prime_is_raised_once_and_a_full_stop_stays_beside_its_formula():
    html = page.markdown("At ($x_{t'}$), $\\bar\\alpha'$ and $x'_\\text{model}$. ($t$ is", str)
    assert "sup>" not in html
    assert html.count("\N{PRIME}") == 3
    whole = re.findall(r'<span class="whole">(.*?)<math>.*?</math>(.*?)</span>', html)
    assert whole == [("(", "),"), ("", "."), ("(", "")]
    assert html.count("</math> and ") == 1


def test_an_option_is_not_divided_at_its_hyphens():
    html = page.markdown("`python -m minisd --words`, `a - b`, `<x-y>`", str)
    assert '<span class="whole">--words</span>' in html
    assert ">&lt;x-y&gt;</span>" in html
    assert html.count("</span>") == html.count("<span") == 4
    assert "<code>a <span" in html


def test_what_was_printed_in_one_go_is_shown_as_one():
    outputs = [nbformat.v4.new_output("stream", name="stdout", text=f"{i}\n") for i in range(3)]
    (one,) = page.joined(outputs)
    assert one.text == "0\n1\n2\n"
    error = nbformat.v4.new_output("stream", name="stderr")
    assert len(page.joined([*outputs, error, *outputs])) == 3


def test_a_table_without_a_head_has_none_and_a_long_page_has_a_list_of_headings(course):
    folder = made(course)
    one, contents = Reader(folder / "01_one.html"), Reader(folder / "index.html")
    assert (len(one.all("table")), one.all("thead"), one.all("details")) == (1, [], [])
    assert contents.all("details")


def test_a_file_that_a_chapter_links_to_is_a_page_with_its_lines(course):
    folder = made(course)
    links = [a["href"] for a in Reader(folder / "01_one.html").all("a")]
    assert links.count("files/lib/one.py.html#L2") == 2
    html = (folder / "files/lib/one.py.html").read_text(encoding="utf8")
    assert "&lt;b&gt;" in html
    assert "no file" in (folder / "01_one.html").read_text(encoding="utf8")
    assert (folder / "files/README.md.html").is_file()
    assert not (folder / "files/lib/two.py.html").exists()  # linked to from there alone


@pytest.mark.parametrize(("cell", "said"), [
    (text("$\\nonsense{x}$", "01-x"), "cannot be read"),
    (figure(alt="", name="01-x"), "no alt text"),
    (text("![x](https://a.org/x.png)", "01-x"), "from elsewhere"),
    (shown({"text/html": "<script src='//a.org/x.js'></script>"}, "01-x"), "from elsewhere"),
])  # fmt: skip
def test_what_cannot_be_shown_is_one_line_with_the_notebook_and_changes_nothing(
    course, capsys, cell, said
):
    folder = made(course)
    before = (folder / "01_one.html").read_bytes()
    write(course / "01_one.ipynb", [*ONE, cell])
    assert site.main([str(folder), "--course", str(course)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert said in error
    assert "notebooks/01_one.ipynb" in error
    assert (folder / "01_one.html").read_bytes() == before
    assert sorted(p.name for p in folder.parent.iterdir()) == ["pages", "repository"]


def test_pages_replace_pages_and_nothing_else(course, capsys):
    folder = made(course, "--solutions")
    assert not (made(course) / "solutions").exists()
    (folder / "mine.txt").write_text("mine")
    assert site.main([str(folder), "--course", str(course)]) == 2
    assert "mine.txt" in capsys.readouterr().err
    assert (folder / "mine.txt").read_text() == "mine"
    (other := folder.parent / "other").mkdir()
    (other / "index.html").write_text("another's")
    assert site.main([str(other), "--course", str(course)]) == 2
    assert (other / "index.html").read_text() == "another's"
    assert site.main([str(other / "index.html"), "--course", str(course)]) == 2
    assert "is a file" in capsys.readouterr().err


def test_no_course_and_no_package_are_one_line(tmp_path, capsys, monkeypatch):
    assert site.main([str(tmp_path / "pages"), "--course", str(tmp_path)]) == 2
    assert "is no course" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(site, "NEEDED", {"not_there": "this-package"})
    with pytest.raises(SystemExit):
        site.main([str(tmp_path / "pages")])
    assert "pip install this-package" in capsys.readouterr().err


def test_what_the_error_says_to_install_is_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))
    extra = project["project"]["optional-dependencies"]["site"]
    assert site.NEEDED["math_core"].strip('"') in extra
    assert "teach/theme/*" in project["tool"]["setuptools"]["package-data"]["minisd"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(COURSE).as_posix())
def test_the_courses_texts_can_be_shown(path):
    for cell in page.read(path).cells:
        if cell.cell_type == "markdown":
            assert "$" not in re.sub(r"<code>.*?</code>", "", page.markdown(cell.source, str)), (
                cell.id
            )


def test_a_chapter_of_the_course_has_all_its_pictures(tmp_path):
    node = page.read(NOTEBOOKS[0])
    outputs = [output for cell in node.cells for output in cell.get("outputs", [])]
    stored = sum("image/png" in output.get("data", {}) for output in outputs)
    (tmp_path / "one.html").write_text(page.notebook(node, str, tmp_path), encoding="utf8")
    images = Reader(tmp_path / "one.html").all("img")
    still = [image for image in images if image["src"].endswith(".png")]
    assert len(still) == stored > 0
    assert all(image["alt"].strip() and (tmp_path / image["src"]).is_file() for image in images)
