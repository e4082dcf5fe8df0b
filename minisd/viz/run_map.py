"""One run of the pipeline as a map: what each part was given, what it made, and the loop."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from minisd.viz.figure import (
    INK,
    QUIET,
    SIGNED,
    Figure,
    Picture,
    Sheet,
    as_pil,
    line_height,
    numbers,
    sheet,
    wrap,
)
from minisd.viz.module_tree import COLORS

ROAD, NOISE = 106, 264  # pixels from the top: the road from prompt to picture, the random latents
SIDE, PART = 124, (88, 68)  # pixels: a tensor's longer side, a part's box
# From left to right: the prompt, the text encoder, its text, the UNet, its latents, the decoder.
WORDS, ENCODER, TEXT, UNET, LATENTS, DECODER, PICTURE = 12, 112, 222, 376, 496, 646, 756


def run_map(
    prompt: str,
    embedding: Tensor,
    noise: Tensor,
    latents: Tensor,
    picture: Picture,
    *,
    steps: int,
    alt: str,
    limit: float = 3.0,
    caption: str = "",
) -> Figure:
    """From the prompt to the picture: three parts as boxes, and the tensors between them.

    embedding: (m, d) the text's vectors. noise, latents: (c, h, w) before and after the loop, their
    channels side by side as signed maps. `steps`: how often the loop goes round. `limit`: the end
    of the maps' scale.
    """
    with sheet(900, NOISE + 92, alt, caption) as page:
        axes = page.picture(0, 0, page.width, page.height)
        axes.set(xlim=(0, page.width), ylim=(page.height, 0))
        words = wrap(prompt, 84, 10)
        page.text(WORDS, ROAD, words, va="center", fontsize=10, style="italic")
        below = ROAD + line_height(words, 10) / 2 + 5
        page.text(WORDS, below, f"{len(embedding)} tokens", color=QUIET, va="top")
        _part(axes, ENCODER, COLORS["text_encoder"], "text\nencoder")
        _part(axes, UNET, COLORS["unet"], "UNet and\nscheduler")
        _part(axes, DECODER, COLORS["vae"], "decoder")
        style = {"cmap": SIGNED, "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
        _map(page, TEXT, ROAD, "1  text embedding", numbers(embedding), embedding.shape, SIDE,
             **style)  # fmt: skip
        for x, y, title, z in (
            (TEXT, NOISE, "2  random latents", noise),
            (LATENTS, ROAD, "3  processed latents", latents),
        ):
            _map(page, x, y, title, mosaic(z), z.shape, **style)
        drawn = np.asarray(as_pil(picture))
        _map(page, PICTURE, ROAD, "picture", drawn, (3, *drawn.shape[:2]))
        _arrows(axes, steps)
        return page.finish()


def mosaic(latents: Tensor) -> np.ndarray:
    """Channels (c, h, w) as one map, in rows of two with a line of nan between."""
    maps = numbers(latents)
    c, h, w = maps.shape
    whole = np.full((-(-c // 2) * (h + 1) - 1, 2 * w + 1), np.nan)
    for i, one in enumerate(maps):
        y, x = i // 2 * (h + 1), i % 2 * (w + 1)
        whole[y : y + h, x : x + w] = one
    return whole


def _map(
    page: Sheet, x: float, y: float, title: str, values: np.ndarray, shape: tuple[int, ...],
    high: float | None = None, **style: object,
) -> None:  # fmt: skip
    """A tensor with its middle at height y, `high` pixels or in its own proportions; over it a
    title, and under it the shape.
    """
    rows, columns = values.shape[:2]
    scale = SIDE / max(rows, columns)
    w, h = (SIDE, high) if high else (columns * scale, rows * scale)
    left = x + (SIDE - w) / 2
    page.picture(left, y - h / 2, w, h).imshow(values, aspect="auto", **style)
    page.text(x + SIDE / 2, y - h / 2 - 6, title, ha="center")
    label = " x ".join(map(str, shape))
    page.text(x + SIDE / 2, y + h / 2 + 5, label, ha="center", va="top", color=QUIET)


def _part(axes: Axes, x: float, color: str, name: str) -> None:
    w, h = PART
    place = (x, ROAD - h / 2), w, h
    style = {"boxstyle": "round,pad=0,rounding_size=6", "linewidth": 1}
    axes.add_patch(FancyBboxPatch(*place, facecolor=color, alpha=0.4, edgecolor="none", **style))
    axes.add_patch(FancyBboxPatch(*place, facecolor="none", edgecolor=QUIET, **style))
    axes.text(x + w / 2, ROAD, name, ha="center", va="center", color=INK, fontweight="bold",
              linespacing=1.4)  # fmt: skip


def _arrows(axes: Axes, steps: int) -> None:
    """Along the road, from the noise into the loop, and round the loop."""
    style = {"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11}
    width, high = PART[0], PART[1] / 2
    ends = (
        (ENCODER - 17, ENCODER), (ENCODER + width, TEXT), (TEXT + SIDE, UNET),
        (UNET + width, LATENTS), (LATENTS + SIDE, DECODER), (DECODER + width, PICTURE),
    )  # fmt: skip
    for start, end in ends:
        axes.annotate("", (end - 3, ROAD), (start + 3, ROAD), arrowprops=style)
    x, line = UNET + width / 2, {"color": INK, "linewidth": 1.2}
    axes.plot((TEXT + SIDE + 4, x), (NOISE, NOISE), **line)
    axes.annotate("", (x, ROAD + high + 2), (x, NOISE), arrowprops=style)
    left, right, top = x - 28, x + 28, ROAD - high - 28
    axes.plot((right, right, left), (ROAD - high - 2, top, top), **line)
    axes.annotate("", (left, ROAD - high - 2), (left, top), arrowprops=style)
    axes.text(x, top - 6, f"{steps} times", ha="center", color=INK)
