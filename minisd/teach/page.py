"""One page of the course as HTML: text, formulas as MathML, code in colours, pictures as files."""

import base64
import html
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from jinja2 import Environment, FileSystemLoader
from math_core import LatexError, LatexToMathML
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound

PICTURES = "pictures"  # a folder beside the page
SHOWN = ("image/png", "text/html", "text/markdown", "text/plain")  # what the theme can show
THEME = Path(__file__).with_name("theme")
FRAME = Environment(loader=FileSystemLoader(THEME), autoescape=True).get_template("frame.html.j2")
FORMULAS = LatexToMathML(fancy_error=False)
LOADED = re.compile(  # by the browser itself, unlike a link
    r"""<(?!a\b)\w+\b[^>]*\b(?:src|href|data|srcset)\s*=\s*["']?\s*(?:https?:)?//[^"'\s>]*""", re.I
)
# A prime as a superscript is raised twice: the glyph itself stands high already.
PRIME = re.compile(
    r"<msup>(<mi>[^<]*</mi>|<mover[^>]*><mi>[^<]*</mi><mo[^>]*>[^<]*</mo></mover>)"
    "<mo>(\N{PRIME}|\N{DOUBLE PRIME})</mo></msup>"
)
PRIME_AND_INDEX = re.compile(
    r"<msubsup>(<mi>[^<]*</mi>)(<m(?:i|n|text)>[^<]*</m(?:i|n|text)>)"
    "<mo>(\N{PRIME}|\N{DOUBLE PRIME})</mo></msubsup>"
)
INLINE = r"<math>(?:(?!</math>).)*</math>"
CLINGING = re.compile(rf"\(?{INLINE}[.,;:!?)]+|\({INLINE}", re.S)
INLINE_PICTURE = re.compile(r'src="data:image/(gif|png|jpeg|webp);base64,([^"]+)"')
Link = Callable[[str], str | None]  # as written, to what it is on the site; None: not there


class Renderer(IPythonRenderer):
    """Markdown as Jupyter reads it; links go through `link_to`, formulas become MathML."""

    def __init__(self, link_to: Link):
        super().__init__(escape=False, exclude_anchor_links=True)
        self.link_to, self.slugs = link_to, {}

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        """With the id that GitHub would give it, so that links to headings arrive."""
        words = re.sub(r"[^\w\- ]", "", html.unescape(re.sub(r"<[^>]+>", "", text)).lower())
        slug = words.strip().replace(" ", "-")
        self.slugs[slug] = again = self.slugs.get(slug, -1) + 1
        name = f"{slug}-{again}" if again else slug
        return f'<h{level} id="{name}">{text}</h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        target = self.link_to(url)
        return super().link(text, target, title) if target is not None else text

    def image(self, text: str, url: str, title: str | None = None) -> str:
        target = self.link_to(url)
        picture = super().image(text, target or "", title)
        return f'<span class="figure">{picture}</span>' if target is not None else text

    def codespan(self, text: str) -> str:
        """No line ends at the hyphens of an option, where a reader would not see what it is."""
        words = html.escape(text, quote=False).split(" ")
        whole = [f'<span class="whole">{word}</span>' if "-" in word and len(word) < 32 else word
                 for word in words]  # fmt: skip
        return f"<code>{' '.join(whole)}</code>"

    def table(self, text: str) -> str:
        """In a box that scrolls; a head of empty cells is left out."""
        body = re.sub(r"<thead>\s*<tr>\s*(<th[^>]*></th>\s*)+</tr>\s*</thead>", "", text)
        kind = "table" if body == text else "table facts"
        return f'<div class="{kind}"><table>{body}</table></div>\n'

    def inline_math(self, body: str) -> str:
        return formula(body, block=False)

    def block_math(self, body: str) -> str:
        return f'<span class="formula">{formula(body, block=True)}</span>'

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")


def formula(latex: str, block: bool) -> str:
    """MathML, which browsers draw by themselves. Raises ValueError for LaTeX that is not known."""
    try:
        made = FORMULAS.convert_with_local_state(latex.strip(), displaystyle=block)
    except LatexError as error:
        raise ValueError(f"the formula ${latex.strip()}$ cannot be read: {error}") from error
    made = PRIME.sub(r'<mrow>\1<mo lspace="0" rspace="0">\2</mo></mrow>', made)
    return PRIME_AND_INDEX.sub(
        r'<msub><mrow>\1<mo lspace="0" rspace="0">\3</mo></mrow>\2</msub>', made
    )


def read(path: Path) -> NotebookNode:
    """Raises ValueError for what is no notebook."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises whatever its readers meet
        raise ValueError(f"not a notebook ({type(error).__name__})") from error


def title_of(node: NotebookNode) -> str:
    """The first heading of a notebook."""
    texts = [cell.source for cell in node.cells if cell.cell_type == "markdown"]
    found = re.search(r"^# (.+)$", "\n".join(texts), re.M)
    return found[1].strip() if found else "Untitled"


def reader(link_to: Link) -> Callable[[str], str]:
    """Markdown to HTML, for the texts of one page: no two headings get the same id.

    Brackets and full stops stay on the line of the formula that they belong to.
    """
    parser = MarkdownWithMath(renderer=Renderer(link_to))
    return lambda text: CLINGING.sub(r'<span class="whole">\g<0></span>', parser.render(text))


def markdown(source: str, link_to: Link) -> str:
    """The HTML of a text that is a page by itself."""
    return reader(link_to)(source)


def notebook(node: NotebookNode, link_to: Link, folder: Path) -> str:
    """The HTML of a notebook's cells; their pictures are written into `folder` / "pictures".

    Raises ValueError for a picture without alt text.
    """
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(node.cells, 1):
        cell.setdefault("id", f"cell-{number}")
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
        for i, output in enumerate(cell.get("outputs", [])):
            output.data = {kind: x for kind, x in output.get("data", {}).items() if kind in SHOWN}
            place_pictures(f"{cell.id}-{i}" if i else cell.id, output, folder)
    exporter = HTMLExporter(template_name=THEME.name, extra_template_basedirs=[str(THEME.parent)])
    exporter.register_filter("markdown2html", reader(link_to))
    return exporter.from_notebook_node(node)[0]


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs in which what was printed in one go is one again, however it arrived."""
    kept: list[NotebookNode] = []
    for output in outputs:
        last = kept[-1] if kept else {}
        if output.get("name") and output.name == last.get("name"):
            last.text += output.text
        else:
            kept.append(output)
    return kept


def place_pictures(name: str, output: NotebookNode, folder: Path) -> None:
    """Write an output's pictures as files of this name, and put down in it where they are."""
    data = output.data
    if "image/png" in data:
        content = base64.b64decode(data["image/png"])
        alt = output.metadata.get("image/png", {}).get("alt", "")
        if not alt:
            raise ValueError(f"the picture {name} has no alt text")
        width, height = struct.unpack(">II", content[16:24])  # PNG: the first chunk's numbers
        file = f"{PICTURES}/{name}.png"
        (folder / file).write_bytes(content)
        output.metadata.picture = NotebookNode(file=file, width=width, height=height, alt=alt)

    def to_file(match: re.Match) -> str:
        file = f"{PICTURES}/{name}.{match[1]}"
        (folder / file).write_bytes(base64.b64decode(match[2]))
        return f'src="{file}"'

    if "text/html" in data:
        shown = INLINE_PICTURE.sub(to_file, data["text/html"])
        data["text/html"] = re.sub(r"<img[^>]*>", r'<div class="figure">\g<0></div>', shown)


def source(name: str, text: str) -> str:
    """The HTML of a file of code; line 12 has the id "L12"."""
    try:
        lexer = get_lexer_for_filename(name)
    except ClassNotFound:
        lexer = get_lexer_for_filename("a.txt")
    lines = HtmlFormatter(nowrap=True)
    shown = highlight(text, lexer, lines).splitlines()
    numbered = "".join(
        f'<span class="line" id="L{i}"><a href="#L{i}">{i}</a>{line}\n</span>'
        for i, line in enumerate(shown, 1)
    )
    return f'<h1>{html.escape(name)}</h1>\n<div class="code source"><pre>{numbered}</pre></div>\n'


def framed(body: str, title: str, ways: list[tuple[str, str, str]], **more: str) -> str:
    """A whole page. ways: (prev | up | next, address, name). more: `top`, the way to the style
    sheet's folder, and `version`. Raises ValueError if something in it would come from elsewhere.
    """
    if found := LOADED.search(body):
        raise ValueError(f"it would load something from elsewhere: {found[0]}")
    headings = re.findall(r'<h([12]) id="([^"]+)">(.*?)</h\1>', body, re.S)
    plain = [(i, html.unescape(re.sub(r"<[^>]+>", "", text))) for _, i, text in headings[1:]]
    return FRAME.render(body=Safe(body), title=title, ways=ways, headings=plain, **more)


class Safe(str):
    """HTML that is put in as it is."""

    def __html__(self) -> str:
        return self
