"""Scenes of the picture book, drawn at random: what is in a picture, how large and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from minisd.picturebook.canvas import PALETTE
from minisd.picturebook.captions import FLYING, PHRASES, USUAL, settings_of, suits
from minisd.picturebook.drawing import stands_out

COLORS = tuple(PHRASES["colours"])
SHAPES = tuple(PHRASES["shapes"])
THINGS = tuple(PHRASES["things"])
OBJECTS = SHAPES + THINGS
SETTINGS = (
    *(f"plain:{c}" for c in COLORS),
    "water",
    *(f"{p}-{t}" for p in ("meadow", "snow", "sea", "sky") for t in ("day", "night", "sunset")),
)
RELATIONS = ("above", "below", "left", "right", "inside", "beside", "and")
CONTAINERS = ("circle", "square", "heart")

# Never drawn in training, to see later whether the model has learnt to combine.
HELD_OUT = (
    ("circle", "purple"),
    ("square", "pink"),
    ("triangle", "orange"),
    ("star", "green"),
    ("heart", "blue"),
    ("ring", "red"),
    ("house", "purple"),
    ("tree", "pink"),
    ("boat", "yellow"),
    ("fish", "green"),
    ("flower", "blue"),
    ("car", "brown"),
    ("balloon", "orange"),
)
HELD_OUT_RELATIONS = (
    ("circle", "above", "square"),
    ("heart", "left", "star"),
    ("triangle", "inside", "circle"),
)
# Drawn only on request (split "reserved"): what the book does not know yet and can be taught.
RESERVED = {"object": "mushroom", "color": "turquoise"}
SPLITS = ("train", "held_out", "held_out_relation", "reserved")

RADIUS = {"small": (0.135, 0.155), "": (0.20, 0.25), "large": (0.32, 0.37)}
HORIZON_LINE = 0.8  # where things stand on the ground
SKY_COMPANY = {
    "day": ("sun", "cloud", "bird", "balloon"),
    "night": ("moon", "moon", "cloud"),
    "sunset": ("sun", "cloud", "bird", "balloon"),
}
FOOT = {"car": 0.6, "boat": 0.62}  # how far below its centre a thing stands


@dataclass(frozen=True)
class Thing:
    """One object: centre (x, y) and radius in picture widths from the upper left corner."""

    object: str
    color: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """What a picture shows. things[0] stands in `relation` to things[1]; nearest things first."""

    kind: str  # "one", "two", "count" or "scene"
    things: tuple[Thing, ...]
    setting: str  # "plain:blue", "sea-sunset", "water"
    relation: str = ""
    place: str = ""  # "top", "bottom left", ... of a lone object
    seed: int = 0  # of the setting's decoration


T = TypeVar("T")
Named = tuple[str, str]  # an object and its colour


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _color(
    rng: np.random.Generator, object: str, avoid: Sequence[str] = (), setting: str = ""
) -> str | None:
    """A colour for an object, its usual ones half of the time, never a held-out pair."""
    options = [
        c
        for c in COLORS
        if c not in avoid
        and (object, c) not in HELD_OUT
        and (not setting or suits(object, c, setting))
    ]
    usual = [c for c in USUAL.get(object, ()) if c in options and object in THINGS]
    if not options:
        return None
    return _pick(rng, usual if usual and rng.random() < 0.5 else options)


def _object(rng: np.random.Generator, things: float) -> str:
    return _pick(rng, THINGS if rng.random() < things else SHAPES)


def close(color: str) -> list[str]:
    """The colours that `color` does not stand out against, itself included."""
    return [c for c in PALETTE if not stands_out(c, f"plain:{color}")]


def _ground(rng: np.random.Generator, *colors: str) -> str:
    """A plain setting in a colour of its own, white oftenest."""
    options = [c for c in COLORS if not any(c in close(k) for k in colors)]
    return "plain:" + (
        "white" if "white" in options and rng.random() < 0.35 else _pick(rng, options)
    )


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _one(rng: np.random.Generator, wanted: Named | None) -> Scene:
    object = wanted[0] if wanted else _object(rng, 0.45)
    color = wanted[1] if wanted else _color(rng, object)
    size = _pick(rng, ("small", "", "", "large"))
    radius = rng.uniform(*RADIUS[size])
    place = "" if size == "large" or rng.random() < 0.6 else _pick(rng, tuple(PHRASES["positions"]))
    reach = 0.46 - radius
    dx = ("right" in place) - ("left" in place)
    dy = ("bottom" in place) - ("top" in place)
    x, y = (0.5 + d * reach + rng.uniform(-0.03, 0.03) for d in (dx, dy))
    thing = Thing(object, color, size, x, y, radius)
    return Scene("one", (thing,), _ground(rng, color), place=place, seed=_seed(rng))


def _two(rng: np.random.Generator, wanted: Named | None) -> Scene:
    """Two objects in a relation, the order of the two and the relation drawn independently."""
    relation = _pick(rng, RELATIONS)
    if relation == "inside":
        return _inside(rng, wanted)
    first = wanted or _named(rng)
    second = _named(rng, first)
    pair = (first, second) if rng.random() < 0.5 else (second, first)
    sizes = _pick(
        rng,
        (("", ""), ("", ""), ("", "small"), ("small", ""), ("small", "large"), ("large", "small")),
    )
    limits = {"small": RADIUS["small"], "": (0.19, 0.21), "large": (0.25, 0.27)}
    radii = [rng.uniform(*limits[s]) for s in sizes]
    upright = relation in ("above", "below")
    forward = relation in ("above", "left") or (
        relation in ("beside", "and") and rng.random() < 0.5
    )
    gap = rng.uniform(0.03, 0.05) if relation == "beside" else rng.uniform(0.04, 0.1)
    start = 0.5 - (sum(radii) + gap / 2)
    centres = (start + radii[0], start + 2 * radii[0] + gap + radii[1])
    if not forward:
        centres = (1 - centres[0], 1 - centres[1])
    things = []
    for (object, color), size, along, radius in zip(pair, sizes, centres, radii, strict=True):
        across = 0.5 + rng.uniform(-0.05, 0.05)
        x, y = (across, along) if upright else (along, across)
        things.append(Thing(object, color, size, x, y, radius))
    return Scene(
        "two", tuple(things), _ground(rng, pair[0][1], pair[1][1]), relation, seed=_seed(rng)
    )


def _named(rng: np.random.Generator, other: Named | None = None, things: float = 0.3) -> Named:
    """An object and a colour, the colour mostly and the pair always different from the other."""
    object = _object(rng, things)
    same = other is not None and object != other[0] and rng.random() < 0.1
    return object, _color(rng, object, () if other is None or same else (other[1],))


def _inside(rng: np.random.Generator, wanted: Named | None) -> Scene:
    inner = wanted or _named(rng)
    container = _pick(rng, CONTAINERS)
    color = _color(rng, container, close(inner[1]))
    x, y = rng.uniform(0.47, 0.53), rng.uniform(0.47, 0.53)
    radius = rng.uniform(0.38, 0.43)
    things = (
        Thing(
            *inner,
            "",
            x,
            y - (0.05 * radius if container == "heart" else 0),
            rng.uniform(0.4, 0.46) * radius,
        ),
        Thing(container, color, "", x, y, radius),
    )
    return Scene("two", things, _ground(rng, color), "inside", seed=_seed(rng))


def _count(rng: np.random.Generator, wanted: Named | None) -> Scene:
    """Two to four of the same, side by side, in a triangle or in a square."""
    object, color = wanted or _named(rng, things=0.55)
    n = int(rng.integers(2, 5))
    radius = rng.uniform(0.14, 0.16) + 0.04 * (n == 2)
    centres = {
        2: ((0.27, 0.5), (0.73, 0.5)),
        3: ((0.26, 0.7), (0.5, 0.3), (0.74, 0.7)),
        4: ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)),
    }[n]
    things = tuple(
        Thing(object, color, "", x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03), radius)
        for x, y in centres
    )
    return Scene("count", things, _ground(rng, color), seed=_seed(rng))


def _scene(rng: np.random.Generator, wanted: Named | None) -> Scene:
    """A thing where it belongs, often with a second thing beside it or in the sky above."""
    object = wanted[0] if wanted else _pick(rng, (*THINGS, "star", "heart"))
    settings = [s for s in settings_of(object) if not wanted or suits(*wanted, s)]
    if not settings:
        return _one(rng, wanted)
    setting = _pick(rng, settings)
    color = wanted[1] if wanted else _color(rng, object, setting=setting)
    if color is None:
        return _scene(rng, wanted)
    company = _pick(rng, ("", "", "beside", "sky"))
    if object in FLYING and company == "sky":
        company = "beside"
    return _stage(rng, (object, color), setting, company)


def _stage(rng: np.random.Generator, named: Named, setting: str, company: str) -> Scene:
    """Give the things of a setting their places."""
    object, color = named
    time = setting.partition("-")[2]
    if company == "sky" and setting != "water":
        others, home = SKY_COMPANY[time], f"sky-{time}"
    else:
        others, home = (
            [
                o
                for o in THINGS
                if setting in settings_of(o) and (o in FLYING) == (object in FLYING)
            ],
            setting,
        )
    second = _pick(rng, others)
    hue = _color(rng, second, (color,), home) if company else None
    side = _pick(rng, (-1, 1))
    size = "" if company and home == setting else _pick(rng, ("small", "", "", "large"))
    if hue is None or (second == object and object in ("sun", "moon")):
        x = 0.5 + rng.uniform(-0.1, 0.1)
        return Scene("scene", (_stand(rng, named, size, x, setting),), setting, seed=_seed(rng))
    if home != setting:
        main = _stand(rng, named, size, 0.5 - 0.13 * side, setting)
        high = Thing(
            second, hue, "", 0.5 + 0.3 * side, rng.uniform(0.19, 0.23), rng.uniform(0.135, 0.15)
        )
        return Scene("scene", (main, high), setting, "below", seed=_seed(rng))
    pair = (
        _stand(rng, named, size, 0.5 - 0.24 * side, setting, 0.2),
        _stand(rng, (second, hue), size, 0.5 + 0.24 * side, setting, 0.2),
    )
    relation = _pick(rng, ("left" if side > 0 else "right", "beside", "and"))
    return Scene("scene", pair, setting, relation, seed=_seed(rng))


def _stand(
    rng: np.random.Generator, named: Named, size: str, x: float, setting: str, largest: float = 0.34
) -> Thing:
    """A thing on the ground of a setting, or in its air or water."""
    radius = min(rng.uniform(*RADIUS[size]), largest)
    if named[0] in FLYING or setting == "water":
        y = (
            rng.uniform(0.44, 0.56)
            if setting.startswith(("water", "sky"))
            else rng.uniform(0.3, 0.42)
        )
        y = max(y, radius + 0.03)
    else:
        y = HORIZON_LINE + rng.uniform(0, 0.05) - FOOT.get(named[0], 1.0) * radius
    return Thing(*named, size, float(np.clip(x, radius + 0.03, 0.97 - radius)), y, radius)


def _wanted(rng: np.random.Generator, split: str) -> Named | None:
    if split == "held_out":
        return _pick(rng, HELD_OUT)
    if split == "reserved" and rng.random() < 0.5:
        return RESERVED["object"], _pick(rng, COLORS)
    if split == "reserved":
        return _object(rng, 0.5), RESERVED["color"]
    return None


def _held_out_relation(scene: Scene) -> bool:
    """Whether the scene shows a held-out relation, in either way of saying it."""
    if scene.kind != "two":
        return False
    a, b = (t.object for t in scene.things)
    turned = {"below": (b, "above", a), "right": (b, "left", a)}
    return turned.get(scene.relation, (a, scene.relation, b)) in HELD_OUT_RELATIONS


def sample_scene(rng: np.random.Generator, split: str = "train") -> Scene:
    """Draw one scene.

    split: "train" has nothing held out or reserved; "held_out" always has a held-out object and
    colour, "held_out_relation" a held-out relation, "reserved" the reserved object or colour.
    Raises ValueError for any other split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    wanted = _wanted(rng, split)
    while True:
        kinds = (_two,) if split == "held_out_relation" else (_one, _two, _count, _scene)
        chances = (1.0,) if len(kinds) == 1 else (0.22, 0.45, 0.06, 0.27)
        scene = kinds[int(rng.choice(len(kinds), p=chances))](rng, wanted)
        if _held_out_relation(scene) == (split == "held_out_relation"):
            return scene
