"""Text as the model sees it: pieces, vectors, what is alike, and who may look at whom."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.patches import FancyBboxPatch

from minisd.tokenizer import END_OF_WORD, Tokenizer
from minisd.viz.figure import (
    CATEGORIES,
    INK,
    MAGNITUDE,
    QUIET,
    SIGNED,
    WIDTH,
    Figure,
    Sheet,
    numbers,
    sheet,
    text_width,
)

Box = tuple[str, str, str]  # what is written in it, the number under it, its kind
LOOKS = {  # kind: fill, edge, line
    "frame": ("#e6e6e6", QUIET, "-"),
    "text": ("#d6e9f5", CATEGORIES[0], "-"),
    "cut": ("#ffffff", CATEGORIES[3], "--"),
}


def words(labels: Sequence[str]) -> list[str]:
    """Labels in which an open box stands for the tokenizer's mark of a word's end."""
    return [label.replace(END_OF_WORD, "\N{OPEN BOX}") for label in labels]


def token_boxes(tokenizer: Tokenizer, text: str) -> list[Box]:
    """The 77 places of the context, padding in one box, and after them what was cut."""
    pieces, room = tokenizer.tokens(text), tokenizer.context_length - 2
    ids = tokenizer(text)[0].tolist()
    kept = [(piece, str(i), "text") for piece, i in zip(words(pieces[:room]), ids[1:])]
    padding = room - len(kept)
    boxes = [("start", str(ids[0]), "frame"), *kept, ("end", str(tokenizer.end_id), "frame")]
    boxes += [(f"padding x {padding}", str(tokenizer.pad_id), "frame")] if padding else []
    gone = [(piece, "cut", "cut") for piece in words(pieces[room:])]
    return boxes + gone


def token_strip(tokenizer: Tokenizer, text: str, *, alt: str, caption: str = "") -> Figure:
    """A box for each token with its id; an open box ends a word; what was cut is dashed."""
    boxes, x, y, placed = token_boxes(tokenizer, text), 10.0, 10.0, []
    for box in boxes:
        width = max(text_width(box[0], 10), text_width(box[1], 8)) + 16
        if x + width > WIDTH - 10:
            x, y = 10.0, y + 58
        placed.append((x, y, width, box))
        x += width + 6
    wide = WIDTH if y > 10 else max(x + 4, 300)
    with sheet(wide, y + 60, alt, caption) as page:
        axes = page.picture(0, 0, page.width, page.height)
        axes.set(xlim=(0, page.width), ylim=(page.height, 0))
        for x, y, width, (piece, number, kind) in placed:
            fill, edge, line = LOOKS[kind]
            style = "round,pad=0,rounding_size=5"
            shape = {"facecolor": fill, "edgecolor": edge, "linestyle": line, "boxstyle": style}
            axes.add_patch(FancyBboxPatch((x, y), width, 26, linewidth=1.2, **shape))
            page.text(x + width / 2, y + 13, piece, ha="center", va="center", fontsize=10)
            page.text(x + width / 2, y + 30, number, ha="center", va="top", fontsize=8, color=QUIET)
        return page.finish()


def heat(
    matrix: Any,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    *,
    alt: str,
    signed: bool = False,
    limits: tuple[float, float] | None = None,
    write: str = "",
    row_name: str = "",
    column_name: str = "",
    size: int = 420,
    caption: str = "",
) -> Figure:
    """A matrix (rows, columns) as colours; `write` (as "{:.2f}") puts the numbers in.

    Signed values are centred at zero; `limits` fixes the ends of the scale.
    """
    values, row_labels, column_labels = numbers(matrix), words(row_labels), words(column_labels)
    if values.ndim != 2:
        raise ValueError(f"the matrix has shape {values.shape}, expected (rows, columns)")
    top = np.abs(values).max()
    limits = limits or ((-top, top) if signed else (values.min(), values.max()))
    left = 30 + max([text_width(label) for label in row_labels], default=24) + 18 * bool(row_name)
    widest = max([text_width(label) for label in column_labels], default=0)
    wide, high = _extent(values.shape, WIDTH - left - 90, size, 16 * len(row_labels) or 60)
    turned = widest > wide / values.shape[1] - 4  # the labels do not fit side by side
    foot = (widest if turned else 12) + 24 + 18 * bool(column_name)
    with sheet(left + wide + 90, 14 + high + foot, alt, caption) as page:
        axes = page.axes(left, 14, wide, high)
        mapped = axes.imshow(values, SIGNED if signed else MAGNITUDE, vmin=limits[0],
                             vmax=limits[1], aspect="auto", interpolation="nearest")  # fmt: skip
        axes.grid(False)
        axes.set(xlabel=column_name, ylabel=row_name)
        _label(axes.xaxis, column_labels, values.shape[1], rotation=90 if turned else 0)
        _label(axes.yaxis, row_labels, values.shape[0])
        if write:
            _write(axes, values, write, mapped)
        page.color_bar(mapped, left + wide + 14, 14, high)
        return page.finish()


def _extent(shape: tuple[int, int], room: float, size: int, least: int) -> tuple[float, float]:
    """Width and height of a matrix in pixels: cells about square, rows high enough for labels."""
    wide = min(room, size * max(1.0, min(2.0, shape[1] / shape[0])))
    return wide, max(least, min(size, wide * shape[0] / shape[1]))


def _label(axis: Any, labels: Sequence[str], count: int, **style: Any) -> None:
    if len(labels) not in (0, count):
        raise ValueError(f"{len(labels)} labels were given for {count} rows or columns")
    if labels:
        axis.set_ticks(range(count), labels, color=INK, **style)
        axis.set_tick_params(length=0)


def _write(axes: Any, values: np.ndarray, form: str, mapped: Any) -> None:
    for (i, j), value in np.ndenumerate(values):
        red, green, blue, _ = mapped.cmap(mapped.norm(value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55  # ITU-R BT.601 luma
        text = form.format(value)
        text = text if float(text) else text.lstrip("-")  # no minus before a zero
        color = "white" if dark else INK
        axes.text(j, i, text, ha="center", va="center", color=color, fontsize=8)


def embedding_heat(
    embedding: Any, labels: Sequence[str] = (), *, alt: str, limit: float = 3.0, caption: str = ""
) -> Figure:
    """The vectors of the tokens (m, d), one row each; `limit` is the end of the scale."""
    return heat(embedding, labels, alt=alt, signed=True, limits=(-limit, limit), caption=caption,
                row_name="" if labels else "token", column_name="feature")  # fmt: skip


def similarity(
    vectors: Any,
    labels: Sequence[str],
    *,
    alt: str,
    limits: tuple[float, float] = (-1.0, 1.0),
    caption: str = "",
) -> Figure:
    """The cosine between every two of n vectors (n, d), written in where there are up to 12.

    Other `limits` than -1 and 1 leave the signed scale, whose white would no longer be zero.
    """
    v = numbers(vectors)
    v = v / np.linalg.norm(v, axis=1, keepdims=True)
    signed = limits[0] == -limits[1]
    columns = list(labels)
    if max(map(text_width, columns)) > 90:  # long ones are written once, at the rows, with a number
        columns = [str(i) for i in range(1, len(v) + 1)]
        labels = [f"{label}   {i}" for label, i in zip(labels, columns)]
    return heat(v @ v.T, labels, columns, alt=alt, signed=signed, limits=limits,
                write="{:.2f}" if len(v) <= 12 else "", caption=caption)  # fmt: skip


def causal_mask(labels: Sequence[str], *, alt: str, caption: str = "") -> Figure:
    """Who may look at whom in the text encoder: a token sees itself and those before it."""
    labels, n = words(labels), len(labels)
    cell = min(38, 560 / n)
    left = 40 + max(text_width(label) for label in labels)
    with sheet(left + n * cell + 170, left + n * cell + 10, alt, caption) as page:
        axes = page.axes(left, left - 20, n * cell, n * cell)
        axes.imshow(np.tri(n), "cividis", vmin=-0.4, vmax=1.2, interpolation="nearest")
        axes.set_xticks(np.arange(n + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(n + 1) - 0.5, minor=True)
        axes.grid(False, which="major")
        axes.grid(True, which="minor", color="white", linewidth=min(1.5, cell / 16))
        axes.tick_params(which="both", length=0, labelcolor=INK)
        axes.xaxis.tick_top()
        some = slice(None, None, -(-15 // int(cell)))  # only as many labels as there is room for
        axes.set_xticks(range(n)[some], labels[some], rotation=90)
        axes.set_yticks(range(n)[some], labels[some])
        for spine in axes.spines.values():
            spine.set_visible(False)
        _mask_key(page, left + n * cell + 16, left)
        return page.finish()


def attention_heads(
    probabilities: Any, labels: Sequence[str], *, alt: str, caption: str = ""
) -> Figure:
    """A panel for each head of self-attention: how much a token (row) looks at each (column).

    probabilities: (heads, n, n), each row sums to 1. The columns have the order of the rows.
    """
    maps, labels = numbers(probabilities), words(labels)
    if maps.ndim != 3 or maps.shape[1:] != (len(labels), len(labels)):
        raise ValueError(f"{maps.shape} given, expected (heads, n, n) and {len(labels)} labels")
    left = 20 + max(map(text_width, labels))
    columns = min(len(maps), 5)
    side = min(200, (WIDTH - 70 - left) / columns - 8)
    rows, pitch = -(-len(maps) // columns), side + 30
    with sheet(left + columns * (side + 8) + 70, rows * pitch + 8, alt, caption) as page:
        for i, one in enumerate(maps):
            x, y = left + i % columns * (side + 8), i // columns * pitch + 24
            axes = page.axes(x, y, side, side)
            mapped = axes.imshow(one, MAGNITUDE, vmin=0, vmax=1, interpolation="nearest")
            axes.grid(False)
            page.text(x + side / 2, y - 5, f"head {i + 1}", ha="center")
            _label(axes.yaxis, [] if i % columns else labels, len(labels))
            axes.set_xticks([])
            if i % columns:
                axes.set_yticks([])
        page.color_bar(mapped, left + columns * (side + 8) + 6, 24, side)
        return page.finish()


def _mask_key(page: Sheet, x: float, y: float) -> None:
    swatch = page.picture(x, y, 16, 48)
    swatch.imshow([[1.0], [0.0]], "cividis", vmin=-0.4, vmax=1.2, aspect="auto")
    swatch.axhline(0.5, color="white", linewidth=1.5)
    page.text(x + 24, y + 12, "row sees column", va="center")
    page.text(x + 24, y + 36, "hidden", va="center")
