"""The canvas of the picture book: colours, and shapes as signed distances with smooth edges.

A shape is a formula that is negative inside. Its coordinates u (to the right) and v (down) come
from a window of the canvas, so that only the pixels near a shape are ever touched.
"""

from functools import cache
from typing import NamedTuple

import numpy as np

Color = tuple[float, float, float]  # red, green, blue in [0, 1]

# Colours that a colour-blind eye confuses are a step apart in lightness, as Lab L* (in brackets):
# brown (25), red (43), green (62), orange (75), yellow (90); purple (31), blue (47); gray (51),
# turquoise (64), pink (82), white (98).
PALETTE: dict[str, Color] = {
    "red": (0.80, 0.08, 0.12),
    "orange": (1.0, 0.64, 0.16),
    "yellow": (1.0, 0.89, 0.24),
    "green": (0.18, 0.67, 0.29),
    "blue": (0.13, 0.40, 0.92),
    "purple": (0.44, 0.13, 0.58),
    "pink": (1.0, 0.72, 0.84),
    "brown": (0.36, 0.19, 0.08),
    "white": (0.98, 0.98, 0.98),
    "black": (0.07, 0.07, 0.08),
    "gray": (0.48, 0.48, 0.49),
    "turquoise": (0.05, 0.68, 0.66),
}
INK = (0.17, 0.18, 0.24)


class Window(NamedTuple):
    """A rectangle of the canvas with its own coordinates; `unit` is the length of 1 in pixels."""

    rows: slice
    columns: slice
    u: np.ndarray  # (1, w)
    v: np.ndarray  # (h, 1)
    unit: float


class Canvas:
    """A square picture of `size` pixels that shapes are painted on, later over earlier ones."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.planes = np.ones((3, size, size), np.float32)  # planar: numpy is fast on planes

    def window(self, x: float, y: float, unit: float, reach: float = 1.2) -> Window:
        """The part of the canvas within `reach * unit` of (x, y), in coordinates of `unit`."""
        n, r = self.size, reach * unit
        left, right = max(0, int((x - r) * n)), max(0, min(n, int((x + r) * n) + 1))
        top, bottom = max(0, int((y - r) * n)), max(0, min(n, int((y + r) * n) + 1))
        u = ((np.arange(left, right, dtype=np.float32) + 0.5) / n - x) / unit
        v = ((np.arange(top, bottom, dtype=np.float32) + 0.5) / n - y) / unit
        return Window(slice(top, bottom), slice(left, right), u[None], v[:, None], unit * n)

    def strip(self, top: float = 0.0, bottom: float = 1.0) -> Window:
        """Whole rows from `top` to `bottom`, in picture widths from the upper left corner."""
        rows = slice(max(0, int(top * self.size)), int(np.ceil(bottom * self.size)))
        c = (np.arange(self.size, dtype=np.float32) + 0.5) / self.size
        return Window(rows, slice(0, self.size), c[None], c[rows, None], float(self.size))

    def paint(self, window: Window, distance: np.ndarray, color: Color) -> np.ndarray:
        """Paint where `distance` (in window units) is negative; returns the coverage in [0, 1]."""
        alpha = np.clip(0.5 - distance * np.float32(window.unit), 0, 1)
        for plane, value in zip(self.planes, color, strict=True):
            part = plane[window.rows, window.columns]
            part += alpha * (np.float32(value) - part)
        return alpha

    def blend(self, window: Window, upper: Color, lower: Color) -> None:
        """Fill the window's rows with a gradient between two colours."""
        t = (window.v - window.v[0]) / max(float(window.v[-1, 0] - window.v[0, 0]), 1e-6)
        for plane, a, b in zip(self.planes, upper, lower, strict=True):
            plane[window.rows, window.columns] = a + (b - a) * t

    def image(self) -> np.ndarray:
        """The picture, (size, size, 3) uint8."""
        return np.ascontiguousarray((self.planes * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0))


# Signed distances. u: (1, w), v: (h, 1); all return (h, w), negative inside.


def disc(u: np.ndarray, v: np.ndarray, x: float, y: float, r: float) -> np.ndarray:
    """A disc."""
    return np.sqrt((u - x) ** 2 + (v - y) ** 2) - r


def oval(u: np.ndarray, v: np.ndarray, x: float, y: float, a: float, b: float) -> np.ndarray:
    """An ellipse of half-axes a and b; the distance is exact to first order at its edge."""
    x, y = (u - x) / a, (v - y) / b
    k = np.sqrt(x * x + y * y)
    return k * (k - 1) / (np.sqrt((x / a) ** 2 + (y / b) ** 2) + np.float32(1e-6))


def box(u: np.ndarray, v: np.ndarray, x: float, y: float, a: float, b: float) -> np.ndarray:
    """A rectangle of half-sides a and b."""
    return np.maximum(abs(u - x) - a, abs(v - y) - b)


def poly(u: np.ndarray, v: np.ndarray, *corners: tuple[float, float]) -> np.ndarray:
    """A convex polygon: inside means on the inner side of every edge."""
    edges = list(zip(corners, corners[1:] + corners[:1], strict=True))
    turn = np.sign(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in edges))
    result = np.float32(-9)
    for (x0, y0), (x1, y1) in edges:
        a, b = np.array([y1 - y0, x0 - x1], np.float32) * turn / np.hypot(x1 - x0, y1 - y0)
        result = np.maximum(result, a * (u - x0) + b * (v - y0))
    return result


def union(*distances: np.ndarray) -> np.ndarray:
    """Inside any of the shapes."""
    result = distances[0]
    for d in distances[1:]:
        result = np.minimum(result, d)
    return result


def mix(a: Color, b: Color, share: float) -> Color:
    """The colour that lies `share` of the way from a to b."""
    return tuple(x + share * (y - x) for x, y in zip(a, b, strict=True))


def shade(c: Color) -> Color:
    """A second tone of the same colour: deeper and a little warmer, or lighter if it is dark."""
    if lab(c)[0] < 28:
        return mix(c, PALETTE["white"], 0.25)
    warm = (0.84, 0.71, 0.64) if max(c) - min(c) > 0.1 else (0.78, 0.78, 0.80)
    return tuple(x * w for x, w in zip(c, warm, strict=True))


@cache
def lab(c: Color) -> tuple[float, float, float]:
    """sRGB in [0, 1] to CIE L*a*b* (white D65), where distance is close to what the eye sees."""
    rgb = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in c]
    xyz = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ rgb
    )
    f = [t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz / [0.9505, 1.0, 1.089]]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])
