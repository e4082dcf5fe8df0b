"""What every figure shares: a sheet laid out in pixels, and a PNG that carries its own alt text."""

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure as Drawing
from matplotlib.font_manager import findfont
from PIL import Image, ImageFont
from torch import Tensor

from minisd.images import flatten_alpha, save_png, to_pil

DPI = 100
WIDTH = 900  # pixels; no figure is wider
SMALL = 100_000  # bytes; a figure below it needs no smaller copy
INK, QUIET, FAINT = "#222222", "#5c5c5c", "#d9d9d9"
MAGNITUDE, SIGNED = "viridis", "RdBu_r"  # red above zero, white at zero, blue below
# Okabe and Ito, Color Universal Design (2008): told apart with every kind of colour vision.
CATEGORIES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2)), (0, (1, 3)), (0, (8, 3)))
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
Picture = Image.Image | np.ndarray | Tensor


@dataclass(frozen=True, repr=False)
class Figure:
    """A finished figure. A notebook shows a small copy of the PNG with its alt text; `save` writes
    the PNG as it is to a file.
    """

    png: bytes
    alt: str
    caption: str = ""

    @property
    def image(self) -> Image.Image:
        return Image.open(BytesIO(self.png)).convert("RGB")

    def save(self, path: Path | str) -> None:
        """Write the PNG, with the alt text inside; all of it or nothing."""
        save_png(self.image, path, {"alt": self.alt, "caption": self.caption})

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        png = base64.b64encode(small_copy(self.png)).decode()
        return {"image/png": png, "text/plain": repr(self)}, {"image/png": {"alt": self.alt}}


def small_copy(png: bytes) -> bytes:
    """The same picture in fewer bytes: in 256 dithered colours where that spares a third or more.

    A sheet of noisy pictures is a third of its size so, and a notebook of many stays readable on
    the web. White paper stays white, and what is small already stays exact.
    """
    full = Image.open(BytesIO(png)).convert("RGB")
    few = full.quantize(palette=full.quantize(255), dither=Image.Dither.FLOYDSTEINBERG)
    paper = (np.asarray(full) == 255).all(axis=2)
    palette = few.getpalette()[: 3 * 255]  # of fewer colours it is shorter
    few.putpalette(palette + [255] * (3 * 256 - len(palette)))
    few.paste(255, mask=Image.fromarray(paper))
    exact, dithered = BytesIO(), BytesIO()
    full.save(exact, "PNG", dpi=(DPI, DPI))
    few.save(dithered, "PNG", dpi=(DPI, DPI))
    spares = 3 * len(dithered.getvalue()) <= 2 * len(exact.getvalue()) >= 2 * SMALL
    return (dithered if spares else exact).getvalue()


def require_alt(alt: str) -> str:
    """Raises ValueError unless there is a text for those who cannot see the figure."""
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(
            "alt is empty; say in a sentence what the figure shows, for readers who cannot see it: "
            'alt="a red boat, its four latent channels and the reconstruction"'
        )
    return alt.strip()


@cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont("DejaVu Sans"), size * DPI / 72)


def text_width(text: str, size: float = 9) -> float:
    """How wide a line of `size` points is, in pixels."""
    return _font(size).getlength(text)


def wrap(text: str, width: float, size: float = 9) -> str:
    """Break a text into lines of at most `width` pixels; formulas in $ are left whole."""
    if "$" in text:
        return text
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and text_width(longer, size) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return "\n".join(lines)


def line_height(text: str, size: float = 9) -> int:
    """The height in pixels of a text of one or more lines; 0 for none."""
    return round((text.count("\n") + 1) * size * DPI / 72 * 1.3) if text else 0


class Sheet:
    """White paper of a size in pixels; places count from its top left corner."""

    def __init__(self, width: float, height: float, alt: str, caption: str):
        self.alt, self.caption = require_alt(alt), caption
        self.width = min(round(width), WIDTH)
        text = wrap(caption, 0.96 * self.width - 20)  # matplotlib draws a little wider
        foot = line_height(text) + 12 if text else 0
        self.height = round(height) + foot
        self.drawing = Drawing(figsize=(self.width / DPI, self.height / DPI), dpi=DPI)
        self.text(10, self.height - foot + 2, text, color=QUIET, va="top", linespacing=1.25)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """A plot whose frame has its top left corner at (x, y)."""
        w, h = self.width, self.height
        return self.drawing.add_axes((x / w, 1 - (y + height) / h, width / w, height / h))

    def picture(self, x: float, y: float, width: float, height: float) -> Axes:
        """Axes without a frame, for imshow."""
        axes = self.axes(x, y, width, height)
        axes.set_axis_off()
        return axes

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        self.drawing.text(x / self.width, 1 - y / self.height, text, **style)

    def color_bar(
        self, mapped: Any, x: float, y: float, height: float, label: str = ""
    ) -> Colorbar:
        """The scale of an imshow, 12 pixels wide; leave some 60 pixels to its right."""
        bar = self.drawing.colorbar(mapped, cax=self.axes(x, y, 12, height))
        bar.outline.set_visible(False)
        bar.ax.grid(False)
        bar.set_label(label)
        return bar

    def finish(self) -> Figure:
        buffer = BytesIO()
        self.drawing.savefig(buffer, format="png", dpi=DPI, facecolor="white")
        return Figure(buffer.getvalue(), self.alt, self.caption)


@contextmanager
def sheet(width: float, height: float, alt: str, caption: str = "") -> Iterator[Sheet]:
    """A sheet in our style; the reader's own settings of matplotlib stay as they are."""
    with matplotlib.style.context(["default", STYLE]):
        yield Sheet(width, height, alt, caption)


def numbers(values: Any) -> np.ndarray:
    """A tensor, array or list as a float array of its own."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().float().numpy()
    return np.array(values, dtype=np.float64)


def as_pil(picture: Picture) -> Image.Image:
    """One picture as RGB: PIL; a tensor (c, h, w) in [-1, 1]; an array (h, w[, c]), uint8 or in
    [0, 1]. One channel is grey. Raises ValueError for another shape.
    """
    if isinstance(picture, Image.Image):
        return flatten_alpha(picture)
    if isinstance(picture, Tensor):
        x = picture.detach()
        x = x[None] if x.ndim == 2 else x
        if x.ndim != 3 or x.shape[0] not in (1, 3):
            raise ValueError(
                f"a picture has shape {tuple(x.shape)}, expected (3, h, w) in [-1, 1]; "
                "decode latents first, or draw them by viz.latent_channels"
            )
        return to_pil(x[None].expand(1, 3, *x.shape[1:]))[0]
    array = np.asarray(picture)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(f"a picture has shape {array.shape}, expected an array (h, w, 3)")
    array = array if array.dtype == np.uint8 else (array.clip(0, 1) * 255).round().astype("uint8")
    return flatten_alpha(Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array))


def as_pils(pictures: Picture | Sequence[Picture]) -> list[Image.Image]:
    """One picture, a batch or a list of pictures as a list. Raises ValueError if there is none."""
    batch = isinstance(pictures, (Tensor, np.ndarray)) and pictures.ndim == 4
    several = batch or isinstance(pictures, (list, tuple))
    found = [as_pil(picture) for picture in pictures] if several else [as_pil(pictures)]
    if not found:
        raise ValueError("no picture was given, expected at least one")
    return found
