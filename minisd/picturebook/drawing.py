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

Layers = list[tuple[np.ndarray, Color]]               # painted first to last

CREAM, ICE = (.97, .89, .66), (.84, .92, .99)
BARK, LEAF, GOLD, ORANGE = (.47, .30, .17), (.16, .53, .22), PALETTE["yellow"], PALETTE["orange"]

SKY: dict[str, tuple[Color, Color]] = {               # top of the picture, horizon
    "day": ((.36, .66, .95), (.70, .87, .98)),
    "night": ((.04, .05, .20), (.15, .16, .42)),
    "sunset": ((.50, .29, .62), (1., .66, .38)),
}
GROUND: dict[str, dict[str, Color]] = {
    "meadow": {"day": (.60, .81, .38), "night": (.17, .35, .32), "sunset": (.55, .60, .30)},
    "snow": {"day": (.94, .96, .99), "night": (.52, .57, .76), "sunset": (.95, .85, .87)},
    "sea": {"day": (.12, .52, .70), "night": (.08, .20, .40), "sunset": (.36, .30, .54)},
}
WATER, SAND = ((.34, .74, .87), (.07, .40, .66)), (.89, .79, .55)
HORIZON = .64                                         # height of the horizon, from the top


def detail(c: Color) -> Color:
    """A fixed colour for windows and spots that is seen on `c`: cream, or ink on light colours."""
    return INK if lab(c)[0] > 78 else CREAM


# One function for each thing: coordinates and the named colour in, layers out.

def _star(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    kx, ky, x, y = .809017, .587785, abs(u), -v - .06           # fold the five points onto one
    for side in (1, -1):
        d = 2 * np.maximum(side * kx * x - ky * y, 0)
        x, y = x - d * side * kx, y + d * ky
    ex, ey = 1.1 * .5 * ky, 1.1 * (.5 * kx - 1)
    return [(((y - 1.1) * ex - abs(x) * ey) / np.hypot(ex, ey), c)]


def _heart(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    x, y, h = abs(u), v - .12, .6
    o = h / 2 ** .5
    return [(union((x + abs(y)) / 2 ** .5 - h, disc(x, y, o, -o, h)), c)]


def _house(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    roof = poly(u, v, (0, -1), (1, -.1), (-1, -.1))
    return [(box(u, v, .5, -.6, .15, .35), shade(c)), (box(u, v, 0, .42, .78, .58), c),
            (roof, shade(c)), (box(u, v, -.32, .62, .2, .38), detail(c)),
            (box(u, v, .34, .42, .22, .22), detail(c))]


def _tree(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    x = abs(u)
    crown = union(disc(x, v, .42, -.02, .44), disc(u, v, 0, -.5, .5))
    return [(box(u, v, 0, .6, .17, .4), BARK), (union(crown, box(u, v, 0, .1, .4, .3)), c)]


def _flower(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    x, y = abs(u), v + .36
    petals = union(disc(u, y, 0, -.4, .27), disc(x, y, .38, -.12, .27), disc(x, y, .24, .32, .27))
    heart = ORANGE if c == GOLD else GOLD
    return [(box(u, v, 0, .5, .09, .5), LEAF), (oval(x, v - .5 * x, .36, .5, .36, .15), LEAF),
            (union(petals, disc(u, y, 0, 0, .3)), c), (disc(u, y, 0, 0, .24), heart)]


def _boat(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    hull = poly(u, v, (-1, .26), (1, .26), (.68, .86), (-.64, .86))
    return [(poly(u, v, (0, -.92), (.84, .14), (0, .14)), CREAM),
            (poly(u, v, (0, -.6), (0, .14), (-.68, .14)), CREAM),
            (box(u, v, 0, -.3, .07, .7), BARK), (hull, c),
            (np.maximum(hull, v - .42), shade(c))]


def _fish(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    tail = np.minimum(poly(u, v, (.36, 0), (1, -.52), (.8, 0)),
                      poly(u, v, (.36, 0), (.8, 0), (1, .52)))
    return [(union(tail, poly(u, v, (-.4, -.42), (.1, -.78), (.3, -.3))), shade(c)),
            (oval(u, v, -.18, 0, .8, .52), c), (disc(u, v, -.55, -.1, .17), PALETTE["white"]),
            (disc(u, v, -.58, -.1, .09), INK)]


def _cloud(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    puffs = union(disc(u, v, -.55, .06, .4), disc(u, v, -.04, -.2, .54), disc(u, v, .58, .04, .42))
    return [(np.maximum(union(puffs, box(u, v, 0, .25, .6, .2)), v - .42), c)]


def _sun(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    turn = np.arctan2(v, u) * (10 / (2 * np.pi))
    rays = np.sqrt(u * u + v * v) - .56 - .92 * abs(turn - np.floor(turn) - .5)
    return [(rays * .5, mix(c, shade(c), .6)), (disc(u, v, 0, 0, .66), c)]


def _moon(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    return [(np.maximum(disc(u, v, 0, 0, 1), -disc(u, v, .46, -.2, .8)), c)]


def _mountain(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    peak = poly(u, v, (-.22, -1), (.78, 1), (-1.1, 1))
    cap = v + .42 - .16 * abs((u * 2.6 + 4.1) % 2 - 1)
    behind = poly(u, v, (.5, -.3), (1.1, 1), (-.1, 1))
    return [(behind, shade(c)), (np.maximum(peak, -.08 - cap), c), (np.maximum(peak, cap), ICE)]


def _car(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    cabin = poly(u, v, (-.42, -.5), (.34, -.5), (.66, .02), (-.66, .02))
    body = box(u, v, 0, .16, .9, .12) - .1
    glass = np.maximum(poly(u, v, (-.34, -.36), (.28, -.36), (.46, -.02), (-.5, -.02)),
                       .06 - abs(u + .03))
    wheels = disc(abs(u), v, .54, .34, .26)
    return [(union(cabin, body), c), (glass, ICE), (wheels, INK),
            (disc(abs(u), v, .54, .34, .11), PALETTE["gray"])]


def _balloon(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    bag = union(disc(u, v, 0, -.3, .7), poly(u, v, (-.6, .06), (.6, .06), (.22, .6), (-.22, .6)))
    stripe = np.maximum(bag, oval(u, v, 0, -.3, .28, 1.1))
    return [(bag, c), (stripe, shade(c)), (box(u, v, 0, .78, .26, .22), BARK)]


def _butterfly(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    x = abs(u)
    upper, lower = oval(x, v + .25 * x, .54, -.22, .46, .46), disc(x, v, .42, .46, .34)
    return [(lower, shade(c)), (upper, c), (disc(x, v, .58, -.38, .16), detail(c)),
            (oval(u, v, 0, .04, .13, .72), INK), (disc(u, v, 0, -.62, .18), INK)]


def _bird(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    beak = GOLD if c == ORANGE else ORANGE
    tail = poly(u, v, (.35, .1), (1, -.35), (.96, .2), (.5, .45))
    wing = poly(u, v, (-.15, -.02), (.62, -.02), (.2, .4))
    return [(poly(u, v, (-.7, -.55), (-1.05, -.32), (-.7, -.16)), beak),
            (union(tail, oval(u, v, .0, .16, .66, .48), disc(u, v, -.46, -.34, .4)), c),
            (wing, shade(c)), (disc(u, v, -.52, -.42, .13), PALETTE["white"]),
            (disc(u, v, -.54, -.42, .075), INK)]


def _mushroom(u: np.ndarray, v: np.ndarray, c: Color) -> Layers:
    cap = np.maximum(oval(u, v, 0, .1, .98, 1.), v - .12)
    return [(box(u, v, 0, .5, .26, .4) - .06, CREAM), (cap, c),
            (np.maximum(union(disc(abs(u), v, .5, -.2, .17), disc(u, v, 0, -.5, .2)), cap),
             detail(c))]


PAINTERS: dict[str, Callable[[np.ndarray, np.ndarray, Color], Layers]] = {
    "circle": lambda u, v, c: [(disc(u, v, 0, 0, .98), c)],
    "square": lambda u, v, c: [(box(u, v, 0, 0, .86, .86), c)],
    "triangle": lambda u, v, c: [(poly(u, v, (0, -.95), (1.02, .82), (-1.02, .82)), c)],
    "star": _star, "heart": _heart,
    "ring": lambda u, v, c: [(abs(disc(u, v, 0, 0, .71)) - .27, c)],
    "house": _house, "tree": _tree, "flower": _flower, "boat": _boat, "fish": _fish,
    "cloud": _cloud, "sun": _sun, "moon": _moon, "mountain": _mountain, "car": _car,
    "balloon": _balloon, "butterfly": _butterfly, "bird": _bird, "mushroom": _mushroom,
}


def draw_thing(canvas: Canvas, object: str, color: str, x: float, y: float,
               radius: float) -> np.ndarray:
    """Paint one thing centred on (x, y), in picture widths; returns its mask (n, n) bool.

    Raises ValueError for an object or a colour that is not in the book.
    """
    if object not in PAINTERS or color not in PALETTE:
        raise ValueError(f"cannot draw a {color} {object}: choose an object of "
                         f"{', '.join(PAINTERS)} and a colour of {', '.join(PALETTE)}")
    window = canvas.window(x, y, radius)
    mask = np.zeros((canvas.size, canvas.size), bool)
    for distance, paint in PAINTERS[object](window.u, window.v, PALETTE[color]):
        mask[window.rows, window.columns] |= canvas.paint(window, distance, paint) > .5
    return mask


def draw_setting(canvas: Canvas, setting: str, rng: np.random.Generator) -> None:
    """Paint the ground of a picture: "plain:blue", "sea-sunset", "water"; rng varies hills."""
    phase, tilt = rng.uniform(0, 6.28), rng.uniform(4, 7)
    if setting.startswith("plain:"):
        canvas.planes[:] = np.float32(PALETTE[setting[6:]])[:, None, None]
        return
    if setting == "water":
        canvas.blend(canvas.strip(), *WATER)
        _hill(canvas, .9, .015, tilt, phase, SAND)
        return
    place, time = setting.split("-")
    canvas.blend(canvas.strip(0, HORIZON + .06 if place != "sky" else 1), *SKY[time])
    if time == "night":
        for x in np.arange(6) / 6 + rng.uniform(.03, .13, 6):
            w = canvas.window(x, rng.uniform(.05, .5), .018)
            canvas.paint(w, disc(w.u, w.v, 0, 0, 1), (.95, .95, .85))
    if place == "sky":
        return
    color = GROUND[place][time]
    if place == "sea":
        _hill(canvas, HORIZON, 0, 0, 0, color)
        for k, y in enumerate((.80, .92)):
            _wave(canvas, y, phase + 2 * k, mix(color, (1., 1., 1.), .3))
    else:
        _hill(canvas, HORIZON - .02, .04, tilt, phase + 2.5, mix(color, SKY[time][1], .35))
        _hill(canvas, HORIZON + .05, .025, tilt, phase, color)


def _hill(canvas: Canvas, top: float, height: float, waves: float, phase: float,
          color: Color) -> None:
    w = canvas.strip(top - height - .02)
    canvas.paint(w, top + height * np.sin(w.u * waves + phase) - w.v, color)


def _wave(canvas: Canvas, y: float, phase: float, color: Color) -> None:
    w = canvas.strip(y - .05, y + .05)
    canvas.paint(w, abs(w.v - y - .014 * np.sin(w.u * 25 + phase)) - .014, color)


def contrast(a: Color, b: Color) -> float:
    """How different two colours look: their distance in Lab, lightness counted double."""
    (l_a, a_a, b_a), (l_b, a_b, b_b) = lab(a), lab(b)
    return float(np.hypot(l_a - l_b, .5 * np.hypot(a_a - a_b, b_a - b_b)))


@cache
def stands_out(color: str, setting: str, floating: bool = False) -> bool:
    """Whether a thing of this colour is easily seen in the setting.

    A floating thing (cloud, bird, fish) is seen against the sky or the water, any other thing
    against the lower sky and the ground.
    """
    if setting.startswith("plain:"):
        return contrast(PALETTE[color], PALETTE[setting[6:]]) >= 26
    if setting == "water":
        around = [mix(*WATER, .25), mix(*WATER, .75)]
    else:
        place, time = setting.split("-")
        around = [mix(*SKY[time], t) for t in ((.1, .4, .7) if floating else (.7,))]
        around += [] if floating else [GROUND[place][time]]
    return all(contrast(PALETTE[color], c) >= 20 for c in around)
