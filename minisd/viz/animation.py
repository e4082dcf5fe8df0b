"""Pictures in motion, and always the film strip beside them: nothing is told by motion alone."""

import base64
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from minisd.images import grid
from minisd.viz.figure import Figure, Picture, as_pils, require_alt
from minisd.viz.images import table

MAX_FRAMES = 25  # a notebook of many pictures stays small
STRIP = 8  # pictures on the film strip


@dataclass(frozen=True, repr=False)
class Animation:
    """A GIF that plays three times and stops at its last picture, and its film strip."""

    gif: bytes
    strip: Figure
    alt: str
    caption: str = ""

    def save(self, path: Path | str) -> None:
        """Write the GIF; all of it or nothing."""
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            part.write_bytes(self.gif)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"Animation: {self.alt}"

    def _repr_html_(self) -> str:
        source = base64.b64encode(self.gif).decode()
        alt = html.escape(self.alt, quote=True)
        return f'<img src="data:image/gif;base64,{source}" alt="{alt}">'

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        display(HTML(self._repr_html_()), self.strip)


def animation(
    frames: Sequence[Picture | Sequence[Picture]],
    titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    *,
    alt: str,
    caption: str = "",
    size: int = 256,
    seconds: float = 0.2,
) -> Animation:
    """Play pictures, `seconds` each; a strip of up to 8 of them, with titles, stays in view.

    A frame may be several pictures: they play side by side, and each has a row of the strip, named
    by `row_titles`. `size` is the longer side of one picture in pixels. Of more than 25 frames 25
    are kept, evenly, and the caption says so.
    """
    require_alt(alt)
    if len(titles) not in (0, len(frames)):
        raise ValueError(f"{len(titles)} titles were given for {len(frames)} frames")
    kept = _evenly(len(frames), MAX_FRAMES)
    shots = [[_sized(picture, size) for picture in as_pils(frames[i])] for i in kept]
    if len(set(map(len, shots))) != 1:
        raise ValueError(f"the frames have {[len(s) for s in shots]} pictures, expected one number")
    pils = [grid(shot, len(shot)) for shot in shots]
    if len(kept) < len(frames):
        caption = f"{caption} ({len(kept)} of {len(frames)} frames)".strip()
    buffer = BytesIO()
    durations = [round(1000 * seconds)] * (len(pils) - 1) + [1500]
    pils[0].save(buffer, "GIF", save_all=True, append_images=pils[1:], duration=durations, loop=2)

    shown = _evenly(len(pils), STRIP)
    names = [titles[kept[i]] if titles else f"frame {kept[i] + 1}" for i in shown]
    rows = [[shots[i][j] for i in shown] for j in range(len(shots[0]))]
    strip = table(rows, row_titles, names, alt=f"Film strip: {alt}", caption=caption)
    return Animation(buffer.getvalue(), strip, alt, caption)


def _evenly(count: int, most: int) -> list[int]:
    """At most `most` numbers from 0 to count - 1, the first and the last among them."""
    return [round(i) for i in np.linspace(0, count - 1, min(count, most))]


def _sized(picture: Image.Image, size: int) -> Image.Image:
    scale = size / max(picture.size)
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), method)
