"""A word put together from letters, one merge of the tokenizer above the other."""

from collections.abc import Sequence

from matplotlib.axes import Axes

from minisd.viz.figure import QUIET, Figure, sheet, text_width
from minisd.viz.tokens import LOOKS, words

Node = tuple[float, float, str]  # x, y and the piece
LEFT, ROW = 80, 42  # pixels: for the names of the rows, and from row to row


def merge_tree(rounds: Sequence[Sequence[str]], *, alt: str, caption: str = "") -> Figure:
    """How the pieces of a word join: `rounds` are its letters, its pieces after one merge, two, ...

    The letters are at the bottom, every merge has a row of its own above them. What is left at the
    end is filled. Raises ValueError where a round is not made of the one before.
    """
    wide = max(40.0, *(text_width(piece, 10) + 14 for piece in words(rounds[0])))
    floor = ROW * len(rounds) - 14
    with sheet(max(LEFT + wide * len(rounds[0]) + 10, 420), floor + 26, alt, caption) as page:
        axes = page.picture(0, 0, page.width, page.height)
        axes.set(xlim=(0, page.width), ylim=(page.height, 0))
        axes.text(10, floor, "letters", va="center", color=QUIET)
        row = [(LEFT + wide * (i + 0.5), floor, piece) for i, piece in enumerate(rounds[0])]
        for number, pieces in enumerate(rounds[1:], 1):
            y = floor - ROW * number
            axes.text(10, y, f"merge {number}", va="center", color=QUIET)
            row = _joined(axes, row, pieces, y)
        for x, y, piece in row:
            _write(axes, x, y, piece, "text")
        return page.finish()


def _joined(axes: Axes, row: list[Node], pieces: Sequence[str], y: float) -> list[Node]:
    """The nodes after one merge; each new one is linked to its two halves, at height y."""
    left, after = iter(row), []
    for piece in pieces:
        node = next(left, (0.0, 0.0, ""))
        if node[2] != piece:
            other = next(left, (0.0, 0.0, ""))
            if node[2] + other[2] != piece:
                raise ValueError(f"{piece!r} is not made of {node[2]!r} and {other[2]!r}")
            x = (node[0] + other[0]) / 2
            for half in (node, other):
                axes.plot([half[0], x], [half[1], y], color=QUIET, linewidth=1, zorder=1)
                _write(axes, *half, "frame")
            node = (x, y, piece)
        after.append(node)
    return after


def _write(axes: Axes, x: float, y: float, piece: str, kind: str) -> None:
    fill, edge, _ = LOOKS[kind]
    box = {"boxstyle": "round,pad=0.35", "facecolor": fill, "edgecolor": edge}
    (text,) = words([piece])
    axes.text(x, y, text, ha="center", va="center", fontsize=10, bbox=box, zorder=3)
