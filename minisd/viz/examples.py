"""What a noise predictor with text is given and what it should answer: a row for each example."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from minisd.viz.figure import QUIET, SIGNED, WIDTH, Figure, Sheet, numbers, sheet, wrap

STEP, BAR = 70, 58  # pixels: the column of the amounts, and for the scale
GAP, TOP, FOOT = 14, 44, 30  # pixels: between columns, above all rows, below each


def text_examples(
    timesteps: Sequence[float],
    latents: Tensor,
    contexts: Tensor,
    captions: Sequence[str],
    answers: Mapping[str, Tensor],
    *,
    alt: str,
    title: str = "noisy latents",
    size: int = 120,
    limit: float = 3.0,
    caption: str = "",
) -> Figure:
    """Amount, noisy latents, text, and each of `answers` (title -> latents), side by side.

    latents, answers: (b, c, h, w), the channels in a square of `size` pixels, less where a row
    would not fit; contexts: (b, m, d), a line for each token. Red is above zero, blue below, the
    scale ends at `limit`. Raises ValueError if there are not b of each.
    """
    b, columns = len(latents), {title: latents, "text": contexts, **answers}
    for name, given in (("timesteps", timesteps), ("captions", captions), *columns.items()):
        if len(given) != b:
            raise ValueError(f"{len(given)} {name} were given for {b} latents, expected as many")
    room = WIDTH - STEP - BAR - GAP * len(columns)
    side = min(size, room / (len(columns) + 1))  # the text is twice as wide
    width = STEP + side * (len(columns) + 1) + GAP * len(columns) + BAR
    with sheet(width, TOP + b * (side + FOOT), alt, caption) as page:
        page.text(STEP / 2, TOP - 8, "amount t", ha="center")
        for i, t in enumerate(timesteps):
            page.text(STEP / 2, TOP + i * (side + FOOT) + side / 2, f"{t:g}", ha="center")
        x = STEP
        for name, values in columns.items():
            said = captions if name == "text" else ()
            wide = (1 + bool(said)) * side
            page.text(x + wide / 2, TOP - 8, wrap(name, wide), ha="center")
            mapped = _column(page, values, said, (x, wide, side), limit)
            x += wide + GAP
        page.color_bar(mapped, x, TOP, side)
        return page.finish()


def _column(
    page: Sheet,
    values: Tensor,
    captions: Sequence[str],
    place: tuple[float, float, float],
    limit: float,
) -> Any:
    """One field below the other, at (x, width, height); a text has its caption under it."""
    x, wide, high = place
    for i, one in enumerate(values):
        y = TOP + i * (high + FOOT)
        mapped = _square(page, one[None] if captions else one, (x, y, wide, high), limit)
        if captions:
            text = wrap(captions[i], wide + GAP, 7)
            style = {"va": "top", "fontsize": 7, "color": QUIET, "linespacing": 1.15}
            page.text(x + wide / 2, y + high + 3, text, ha="center", **style)
    return mapped


def _square(
    page: Sheet, maps: Tensor, field: tuple[float, float, float, float], limit: float
) -> Any:
    """The maps (c, h, w) in rows and columns of a field (x, y, width, height) in pixels."""
    x, y, wide, high = field
    columns = math.ceil(len(maps) ** 0.5)
    rows, space = math.ceil(len(maps) / columns), 2 * (len(maps) > 1)
    w, h = wide / columns, high / rows
    style = {"vmin": -limit, "vmax": limit, "aspect": "auto", "interpolation": "nearest"}
    for i, one in enumerate(numbers(maps)):
        place = x + i % columns * w, y + i // columns * h, w - space, h - space
        mapped = page.picture(*place).imshow(one, SIGNED, **style)
    return mapped
