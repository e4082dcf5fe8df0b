"""What the picture book can draw: things, and the settings that they stand in.

A thing is a list of layers (distance, colour) in its own coordinates, reaching from about -1 to
1; the body has the colour that the caption names, details have fixed colours.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from minisd.picturebook.canvas import (
    INK,
    PALETTE,
    Canvas,
    Color,
    box,
    disc,
    lab,
    mix,
    oval,
    poly,
    shade,
    union,
)

Layers = list[tuple[np.ndarray, Color]]  # painted first to last

CREAM, ICE = (0.97, 0.89, 0.66), (0.84, 0.92, 0.99)
BARK, LEAF, GOLD, ORANGE = (
    (0.47, 0.30, 0.17),
    (0.16, 0.53, 0.22),
    PALETTE["yellow"],
    PALETTE["orange"],
)

SKY: dict[str, tuple[Color, Color]] = {  # top of the picture, horizon
    "day": ((0.36, 0.66, 0.95), (0.70, 0.87, 0.98)),
    "night": ((0.04, 0.05, 0.20), (0.15, 0.16, 0.42)),
    "sunset": ((0.50, 0.29, 0.62), (1.0, 0.66, 0.38)),
}
GROUND: dict[str, dict[str, Color]] = {
    "meadow": {
        "day": (0.60, 0.81, 0.38),
        "night": (0.17, 0.35, 0.32),
        "sunset": (0.55, 0.60, 0.30),
    },
    "snow": {"day": (0.94, 0.96, 0.99), "night": (0.52, 0.57, 0.76), "sunset": (0.95, 0.85, 0.87)},
    "sea": {"day": (0.12, 0.52, 0.70), "night": (0.08, 0.20, 0.40), "sunset": (0.36, 0.30, 0.54)},
}
WATER, SAND = ((0.34, 0.74, 0.87), (0.07, 0.40, 0.66)), (0.89, 0.79, 0.55)
HORIZON = 0.64  # height of the horizon, from the top


def detail(c: Color) -> Color:
    """A fixed colour for windows and spots that is seen on `c`: cream, or ink on light colours."""
    return INK if lab(c)[0] > 78 else CREAM


# One function for each thing: coordinates and the named colour in, layers out.


def _star(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    kx, ky, x, y = 0.809017, 0.587785, abs(u), -v - 0.06  # fold the five points onto one
    for side in (1, -1):
        d = 2 * np.maximum(side * kx * x - ky * y, 0)
        x, y = x - d * side * kx, y + d * ky
    ex, ey = 1.1 * 0.5 * ky, 1.1 * (0.5 * kx - 1)
    return [(((y - 1.1) * ex - abs(x) * ey) / np.hypot(ex, ey), c)]


def _heart(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    x, y, h = abs(u), v - 0.12, 0.6
    o = h / 2**0.5
    return [(union((x + abs(y)) / 2**0.5 - h, disc(x, y, o, -o, h)), c)]


def _house(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    roof = poly(u, v, (0, -1), (1, -0.1), (-1, -0.1))
    return [
        (box(u, v, 0.5, -0.6, 0.15, 0.35), shade(c)),
        (box(u, v, 0, 0.42, 0.78, 0.58), c),
        (roof, shade(c)),
        (box(u, v, -0.32, 0.62, 0.2, 0.38), detail(c)),
        (box(u, v, 0.34, 0.42, 0.22, 0.22), detail(c)),
    ]


def _tree(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    x = abs(u)
    crown = union(disc(x, v, 0.42, -0.02, 0.44), disc(u, v, 0, -0.5, 0.5))
    return [(box(u, v, 0, 0.6, 0.17, 0.4), BARK), (union(crown, box(u, v, 0, 0.1, 0.4, 0.3)), c)]


def _flower(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    x, y = abs(u), v + 0.36
    petals = union(
        disc(u, y, 0, -0.4, 0.27), disc(x, y, 0.38, -0.12, 0.27), disc(x, y, 0.24, 0.32, 0.27)
    )
    heart = ORANGE if c == GOLD else GOLD
    return [
        (box(u, v, 0, 0.5, 0.09, 0.5), LEAF),
        (oval(x, v - 0.5 * x, 0.36, 0.5, 0.36, 0.15), LEAF),
        (union(petals, disc(u, y, 0, 0, 0.3)), c),
        (disc(u, y, 0, 0, 0.24), heart),
    ]


def _boat(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    hull = poly(u, v, (-1, 0.26), (1, 0.26), (0.68, 0.86), (-0.64, 0.86))
    return [
        (poly(u, v, (0, -0.92), (0.84, 0.14), (0, 0.14)), CREAM),
        (poly(u, v, (0, -0.6), (0, 0.14), (-0.68, 0.14)), CREAM),
        (box(u, v, 0, -0.3, 0.07, 0.7), BARK),
        (hull, c),
        (np.maximum(hull, v - 0.42), shade(c)),
    ]


def _fish(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    tail = np.minimum(
        poly(u, v, (0.36, 0), (1, -0.52), (0.8, 0)), poly(u, v, (0.36, 0), (0.8, 0), (1, 0.52))
    )
    return [
        (union(tail, poly(u, v, (-0.4, -0.42), (0.1, -0.78), (0.3, -0.3))), shade(c)),
        (oval(u, v, -0.18, 0, 0.8, 0.52), c),
        (disc(u, v, -0.55, -0.1, 0.17), PALETTE["white"]),
        (disc(u, v, -0.58, -0.1, 0.09), INK),
    ]


def _cloud(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    puffs = union(
        disc(u, v, -0.55, 0.06, 0.4), disc(u, v, -0.04, -0.2, 0.54), disc(u, v, 0.58, 0.04, 0.42)
    )
    return [(np.maximum(union(puffs, box(u, v, 0, 0.25, 0.6, 0.2)), v - 0.42), c)]


def _sun(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    turn = np.arctan2(v, u) * (10 / (2 * np.pi))
    rays = np.sqrt(u * u + v * v) - 0.56 - 0.92 * abs(turn - np.floor(turn) - 0.5)
    return [(rays * 0.5, mix(c, shade(c), 0.6)), (disc(u, v, 0, 0, 0.66), c)]


def _moon(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    return [(np.maximum(disc(u, v, 0, 0, 1), -disc(u, v, 0.46, -0.2, 0.8)), c)]


def _mountain(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    peak = poly(u, v, (-0.22, -1), (0.78, 1), (-1.1, 1))
    cap = v + 0.42 - 0.16 * abs((u * 2.6 + 4.1) % 2 - 1)
    behind = poly(u, v, (0.5, -0.3), (1.1, 1), (-0.1, 1))
    return [(behind, shade(c)), (np.maximum(peak, -0.08 - cap), c), (np.maximum(peak, cap), ICE)]


def _car(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    cabin = poly(u, v, (-0.42, -0.5), (0.34, -0.5), (0.66, 0.02), (-0.66, 0.02))
    body = box(u, v, 0, 0.16, 0.9, 0.12) - 0.1
    glass = np.maximum(
        poly(u, v, (-0.34, -0.36), (0.28, -0.36), (0.46, -0.02), (-0.5, -0.02)),
        0.06 - abs(u + 0.03),
    )
    wheels = disc(abs(u), v, 0.54, 0.34, 0.26)
    return [
        (union(cabin, body), c),
        (glass, ICE),
        (wheels, INK),
        (disc(abs(u), v, 0.54, 0.34, 0.11), PALETTE["gray"]),
    ]


def _balloon(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    bag = union(
        disc(u, v, 0, -0.3, 0.7), poly(u, v, (-0.6, 0.06), (0.6, 0.06), (0.22, 0.6), (-0.22, 0.6))
    )
    stripe = np.maximum(bag, oval(u, v, 0, -0.3, 0.28, 1.1))
    return [(bag, c), (stripe, shade(c)), (box(u, v, 0, 0.78, 0.26, 0.22), BARK)]


def _butterfly(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    x = abs(u)
    upper, lower = oval(x, v + 0.25 * x, 0.54, -0.22, 0.46, 0.46), disc(x, v, 0.42, 0.46, 0.34)
    return [
        (lower, shade(c)),
        (upper, c),
        (disc(x, v, 0.58, -0.38, 0.16), detail(c)),
        (oval(u, v, 0, 0.04, 0.13, 0.72), INK),
        (disc(u, v, 0, -0.62, 0.18), INK),
    ]


def _bird(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    beak = GOLD if c == ORANGE else ORANGE
    tail = poly(u, v, (0.35, 0.1), (1, -0.35), (0.96, 0.2), (0.5, 0.45))
    wing = poly(u, v, (-0.15, -0.02), (0.62, -0.02), (0.2, 0.4))
    return [
        (poly(u, v, (-0.7, -0.55), (-1.05, -0.32), (-0.7, -0.16)), beak),
        (union(tail, oval(u, v, 0.0, 0.16, 0.66, 0.48), disc(u, v, -0.46, -0.34, 0.4)), c),
        (wing, shade(c)),
        (disc(u, v, -0.52, -0.42, 0.13), PALETTE["white"]),
        (disc(u, v, -0.54, -0.42, 0.075), INK),
    ]


def _mushroom(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    cap = np.maximum(oval(u, v, 0, 0.1, 0.98, 1.0), v - 0.12)
    return [
        (box(u, v, 0, 0.5, 0.26, 0.4) - 0.06, CREAM),
        (cap, c),
        (
            np.maximum(union(disc(abs(u), v, 0.5, -0.2, 0.17), disc(u, v, 0, -0.5, 0.2)), cap),
            detail(c),
        ),
    ]


PAINTERS: dict[str, Callable[[np.ndarray, np.ndarray, Color], Layers]] = {
    "circle": lambda u, v, c: [(disc(u, v, 0, 0, 0.98), c)],
    "square": lambda u, v, c: [(box(u, v, 0, 0, 0.86, 0.86), c)],
    "triangle": lambda u, v, c: [(poly(u, v, (0, -0.95), (1.02, 0.82), (-1.02, 0.82)), c)],
    "star": _star,
    "heart": _heart,
    "ring": lambda u, v, c: [(abs(disc(u, v, 0, 0, 0.71)) - 0.27, c)],
    "house": _house,
    "tree": _tree,
    "flower": _flower,
    "boat": _boat,
    "fish": _fish,
    "cloud": _cloud,
    "sun": _sun,
    "moon": _moon,
    "mountain": _mountain,
    "car": _car,
    "balloon": _balloon,
    "butterfly": _butterfly,
    "bird": _bird,
    "mushroom": _mushroom,
}


def draw_thing(
    canvas: Canvas, object: str, color: str, x: float, y: float, radius: float
) -> np.ndarray:
    """Paint one thing centred on (x, y), in picture widths; returns its mask (n, n) bool.

    Raises ValueError for an object or a colour that is not in the book.
    """
    if object not in PAINTERS or color not in PALETTE:
        raise ValueError(
            f"cannot draw a {color} {object}: choose an object of "
            f"{', '.join(PAINTERS)} and a colour of {', '.join(PALETTE)}"
        )
    window = canvas.window(x, y, radius)
    mask = np.zeros((canvas.size, canvas.size), bool)
    for distance, paint in PAINTERS[object](window.u, window.v, PALETTE[color]):
        mask[window.rows, window.columns] |= canvas.paint(window, distance, paint) > 0.5
    return mask


def draw_setting(canvas: Canvas, setting: str, rng: np.random.Generator) -> None:
    """Paint the ground of a picture: "plain:blue", "sea-sunset", "water"; rng varies hills."""
    phase, tilt = rng.uniform(0, 6.28), rng.uniform(4, 7)
    if setting.startswith("plain:"):
        canvas.planes[:] = np.float32(PALETTE[setting[6:]])[:, None, None]
        return
    if setting == "water":
        canvas.blend(canvas.strip(), *WATER)
        _hill(canvas, 0.9, 0.015, tilt, phase, SAND)
        return
    place, time = setting.split("-")
    canvas.blend(canvas.strip(0, HORIZON + 0.06 if place != "sky" else 1), *SKY[time])
    if time == "night":
        for x in np.arange(6) / 6 + rng.uniform(0.03, 0.13, 6):
            w = canvas.window(x, rng.uniform(0.05, 0.5), 0.018)
            canvas.paint(w, disc(w.u, w.v, 0, 0, 1), (0.95, 0.95, 0.85))
    if place == "sky":
        return
    color = GROUND[place][time]
    if place == "sea":
        _hill(canvas, HORIZON, 0, 0, 0, color)
        for k, y in enumerate((0.80, 0.92)):
            _wave(canvas, y, phase + 2 * k, mix(color, (1.0, 1.0, 1.0), 0.3))
    else:
        _hill(canvas, HORIZON - 0.02, 0.04, tilt, phase + 2.5, mix(color, SKY[time][1], 0.35))
        _hill(canvas, HORIZON + 0.05, 0.025, tilt, phase, color)


def _hill(
    canvas: Canvas, top: float, height: float, waves: float, phase: float, color: Color
) -> None:
    w = canvas.strip(top - height - 0.02)
    canvas.paint(w, top + height * np.sin(w.u * waves + phase) - w.v, color)


def _wave(canvas: Canvas, y: float, phase: float, color: Color) -> None:
    w = canvas.strip(y - 0.05, y + 0.05)
    canvas.paint(w, abs(w.v - y - 0.014 * np.sin(w.u * 25 + phase)) - 0.014, color)


def contrast(a: Color, b: Color) -> float:
    """How different two colours look: their distance in Lab, lightness counted double."""
    (l_a, a_a, b_a), (l_b, a_b, b_b) = lab(a), lab(b)
    return float(np.hypot(l_a - l_b, 0.5 * np.hypot(a_a - a_b, b_a - b_b)))


@cache
def stands_out(color: str, setting: str, floating: bool = False) -> bool:
    """Whether a thing of this colour is easily seen in the setting.

    A floating thing (cloud, bird, fish) is seen against the sky or the water, any other thing
    against the lower sky and the ground.
    """
    if setting.startswith("plain:"):
        return contrast(PALETTE[color], PALETTE[setting[6:]]) >= 26
    if setting == "water":
        around = [mix(*WATER, 0.25), mix(*WATER, 0.75)]
    else:
        place, time = setting.split("-")
        around = [mix(*SKY[time], t) for t in ((0.1, 0.4, 0.7) if floating else (0.7,))]
        around += [] if floating else [GROUND[place][time]]
    return all(contrast(PALETTE[color], c) >= 20 for c in around)
