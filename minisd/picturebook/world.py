"""The picture-book world: pictures of random scenes, with masks and captions, without end."""

from dataclasses import dataclass
from numbers import Integral

import numpy as np

from minisd.picturebook.canvas import Canvas
from minisd.picturebook.captions import caption
from minisd.picturebook.drawing import draw_setting, draw_thing
from minisd.picturebook.scenes import (
    COLORS,
    HELD_OUT,
    HELD_OUT_RELATIONS,
    OBJECTS,
    RELATIONS,
    RESERVED,
    SETTINGS,
    SHAPES,
    SPLITS,
    THINGS,
    Scene,
    Thing,
    sample_scene,
)

__all__ = [
    "COLORS",
    "HELD_OUT",
    "HELD_OUT_RELATIONS",
    "IMAGE_SIZE",
    "OBJECTS",
    "RELATIONS",
    "RESERVED",
    "SETTINGS",
    "SHAPES",
    "SPLITS",
    "THINGS",
    "Example",
    "Scene",
    "Thing",
    "caption",
    "example",
    "masks",
    "render",
    "sample_scene",
]

IMAGE_SIZE = 128  # pixels


@dataclass(frozen=True)
class Example:
    """A picture (size, size, 3) uint8 with its caption and the scene behind both."""

    image: np.ndarray
    caption: str
    scene: Scene


def _draw(scene: Scene, size: int) -> tuple[Canvas, np.ndarray]:
    """Paint the setting, then the things from the farthest (the last) to the nearest."""
    if scene.setting not in SETTINGS and scene.setting != f"plain:{RESERVED['color']}":
        raise ValueError(f"setting {scene.setting!r} is not one of {', '.join(SETTINGS)}")
    canvas = Canvas(size)
    draw_setting(canvas, scene.setting, np.random.default_rng(scene.seed))
    seen = np.zeros((len(scene.things), size, size), bool)
    for i in reversed(range(len(scene.things))):
        t = scene.things[i]
        seen[i] = draw_thing(canvas, t.object, t.color, t.x, t.y, t.radius)
        seen[i + 1 :] &= ~seen[i]
    return canvas, seen


def render(scene: Scene, size: int = IMAGE_SIZE) -> np.ndarray:
    """The picture of a scene, (size, size, 3) uint8; the same scene gives the same picture."""
    return _draw(scene, size)[0].image()


def masks(scene: Scene, size: int = IMAGE_SIZE) -> np.ndarray:
    """Where each thing is seen, (n_things, size, size) bool; things[0] hides those behind it."""
    return _draw(scene, size)[1]


def example(index: int, seed: int = 0, split: str = "train", size: int = IMAGE_SIZE) -> Example:
    """Example `index` of an endless set, the same for the same (seed, split, index) anywhere.

    Raises ValueError for an unknown split, and unless index and seed are whole numbers from 0 on.
    """
    for name, value in (("index", index), ("seed", seed)):
        if not isinstance(value, Integral) or value < 0:
            raise ValueError(
                f"{name} is {value!r:.60}, expected a whole number from 0 on: examples are asked "
                "for by number, and each brings its words along, example(0).caption"
            )
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    scene = sample_scene(rng, split)
    return Example(render(scene, size), caption(scene, rng), scene)
