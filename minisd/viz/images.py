"""Pictures beside each other: one, a grid, a strip, a table of rows, and what two differ in."""

from collections.abc import Sequence

import numpy as np

from minisd.viz.figure import (
    QUIET,
    WIDTH,
    Figure,
    Picture,
    Sheet,
    as_pil,
    as_pils,
    line_height,
    numbers,
    sheet,
    wrap,
)

GAP, MARGIN = 8, 10  # pixels
Rows = Sequence[Sequence[Picture]]


def show(
    picture: Picture, *, alt: str, title: str = "", caption: str = "", size: int = 384
) -> Figure:
    """One picture, its longer side `size` pixels."""
    return table([[picture]], column_titles=[title], alt=alt, caption=caption, size=size)


def strip(
    pictures: Sequence[Picture],
    titles: Sequence[str] = (),
    *,
    alt: str,
    caption: str = "",
    size: int = 180,
) -> Figure:
    """Pictures in one row, from left to right, a title over each."""
    return table([as_pils(pictures)], column_titles=titles, alt=alt, caption=caption, size=size)


def grid(
    pictures: Sequence[Picture],
    titles: Sequence[str] = (),
    *,
    alt: str,
    columns: int | None = None,
    caption: str = "",
    size: int = 180,
) -> Figure:
    """Pictures row by row, a title over each; without `columns`, about as many rows as columns."""
    pils = as_pils(pictures)
    columns = columns or min(8, int(np.ceil(len(pils) ** 0.5)))
    _check_count("titles", titles, len(pils))
    cuts = range(0, len(pils), columns)
    rows = [pils[i : i + columns] for i in cuts]
    notes = [list(titles[i : i + columns]) for i in cuts] if titles else ()
    return table(rows, notes=notes, notes_above=True, alt=alt, caption=caption, size=size)


def sweep(
    rows: Rows,
    values: Sequence[float],
    name: str,
    row_titles: Sequence[str] = (),
    *,
    alt: str,
    caption: str = "",
) -> Figure:
    """What one setting does: a column for each of its values, a row for each seed or prompt."""
    titles = [f"{name} = {value:g}" for value in values]
    return table(rows, row_titles, titles, alt=alt, caption=caption)


def table(
    rows: Rows,
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    notes: Sequence[Sequence[str]] = (),
    *,
    alt: str,
    caption: str = "",
    size: int = 180,
    notes_above: bool = False,
) -> Figure:
    """Rows of pictures with a title to each row and column, and a note under each picture.

    `size` is the longer side of a picture in pixels, less where the row would not fit.
    """
    pils = [as_pils(list(row)) for row in rows]
    columns = max(map(len, pils))
    _check_count("row_titles", row_titles, len(pils))
    _check_count("column_titles", column_titles, columns)
    _check_count("rows of notes", notes, len(pils))
    left = MARGIN + (130 if any(row_titles) else 0)
    w, h = max(p.width for row in pils for p in row), max(p.height for row in pils for p in row)
    scale = min(size / max(w, h), ((WIDTH - left - MARGIN + GAP) / columns - GAP) / w)
    w, h = w * scale, h * scale
    heads = [wrap(title, w - 4) for title in column_titles]
    head = max(map(line_height, heads), default=0)
    labels = [[wrap(text, w - 4) for text in row] for row in notes]
    note = max((line_height(text) for row in labels for text in row), default=0)
    pitch = h + note + GAP + 6 * (notes_above and len(pils) > 1)
    paper = max(left + columns * (w + GAP), 240), MARGIN + head + len(pils) * pitch + 2
    with sheet(*paper, alt, caption) as page:
        for j, text in enumerate(heads):
            page.text(left + j * (w + GAP) + w / 2, MARGIN + head - 4, text, ha="center")
        for i, row in enumerate(pils):
            top = MARGIN + head + i * pitch
            _draw_row(page, row, left, top + (note if notes_above else 0), w, h)
            _draw_notes(page, labels[i] if labels else (), left, top, w, h, note, notes_above)
            name = wrap(row_titles[i], 122) if row_titles else ""
            page.text(left - 10, top + h / 2, name, ha="right", va="center")
        return page.finish()


def _draw_row(page: Sheet, row: Sequence, left: float, top: float, w: float, h: float) -> None:
    for j, picture in enumerate(row):
        how = "nearest" if picture.width < w else "antialiased"  # enlarged pixels stay squares
        page.picture(left + j * (w + GAP), top, w, h).imshow(np.asarray(picture), interpolation=how)


def _draw_notes(
    page: Sheet, texts: Sequence[str], left: float, top: float, w: float, h: float, note: float,
    above: bool,
) -> None:  # fmt: skip
    y = top + note - 4 if above else top + h + 3
    style = {"va": "bottom"} if above else {"va": "top", "color": QUIET}
    for j, text in enumerate(texts):
        page.text(left + j * (w + GAP) + w / 2, y, text, ha="center", **style)


def _check_count(name: str, given: Sequence, expected: int) -> None:
    if len(given) not in (0, expected):
        raise ValueError(f"{len(given)} {name} were given, expected {expected} or none")


def difference(
    before: Picture,
    after: Picture,
    *,
    alt: str,
    titles: Sequence[str] = ("before", "after"),
    limit: float = 0.25,
    caption: str = "",
) -> Figure:
    """Two pictures of one size and where they differ, with the PSNR.

    `limit`: the difference, of a range of 0 to 1, that is drawn brightest.
    """
    pils = [as_pil(before), as_pil(after)]
    if pils[0].size != pils[1].size:
        raise ValueError(f"the pictures have sizes {pils[0].size} and {pils[1].size}, expected one")
    a, b = (numbers(pil) / 255 for pil in pils)
    psnr = -10 * np.log10(max(((a - b) ** 2).mean(), 1e-12))
    w = 240
    h = w * a.shape[0] / a.shape[1]
    with sheet(3 * w + 2 * GAP + 2 * MARGIN + 70, h + 44, alt, caption) as page:
        panels = [page.picture(MARGIN + j * (w + GAP), 34, w, h) for j in range(3)]
        panels[0].imshow(np.asarray(pils[0]))
        panels[1].imshow(np.asarray(pils[1]))
        mapped = panels[2].imshow(np.abs(a - b).mean(axis=2), "viridis", vmin=0, vmax=limit)
        for panel, title in zip(panels, (*titles, f"difference (PSNR {psnr:.1f} dB)")):
            panel.set_title(title, fontsize=9)
        page.color_bar(mapped, MARGIN + 3 * w + 2 * GAP + 8, 34, h)
        return page.finish()
