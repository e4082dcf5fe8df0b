"""The judge of the picture book: a small network that says what a picture shows.

It learns from rendered pictures, never from those of the model that it judges. At each cell of a
16 x 16 grid it says how likely the centre of each object lies there, its colour and its radius;
and for the whole picture, the setting. [CenterNet: Objects as Points, 3]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from minisd.checkpoint import load_state
from minisd.layers import Downsample, ResnetBlock, Upsample
from minisd.picturebook import world
from minisd.picturebook.data import to_range, to_tensor

OBJECTS = (*world.OBJECTS, world.RESERVED["object"])
COLORS = (*world.COLORS, world.RESERVED["color"])
SETTINGS = (*world.SETTINGS, f"plain:{world.RESERVED['color']}")
SHIPPED = "picturebook/judge.safetensors"
GRID = 16
# An object inside another has nearly the same centre: what holds something has a grid of its own.
HOLDERS = 2
MORE_INSIDE = 0.2  # of each batch: hard to tell, and rare among the examples
SURE = 0.4  # a peak below this is no object


@dataclass(frozen=True)
class Found:
    """An object in a picture: centre and radius in picture widths, from the upper left corner."""

    object: str
    color: str
    x: float
    y: float
    radius: float
    holds: bool = False  # whether it is around another object


@dataclass(frozen=True)
class Seen:
    """What the judge sees in a picture."""

    things: tuple[Found, ...]
    setting: str


def open_judge(path: Path | None = None) -> "Judge":
    """The shipped judge, or one of the recipe's stage `judge`. Raises ValueError without one, or
    for a file of something else.
    """
    with resources.as_file(resources.files("minisd").joinpath(SHIPPED)) as shipped:
        path = path or shipped
        if not path.is_file():
            raise ValueError(
                f"{path} does not exist; train a judge with `python -m minisd.picturebook.train "
                "judge --out DIR` and give it by --judge DIR/judge.safetensors"
            )
        state = {key: value.float() for key, value in load_file(path).items()}
    return load_state(Judge(), state, path)


class Marked(Dataset):
    """Batch number `step`: pictures (b, 3, 128, 128) uint8, heat (b, 2, objects, 16, 16), marks
    (n, 6): picture, grid, row, column, colour, radius; settings (b,).
    """

    def __init__(self, batch_size: int, seed: int = 0):
        self.batch_size, self.seed = batch_size, seed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, step))
        splits = rng.choice(world.SPLITS, self.batch_size, p=(0.55, 0.2, 0.1, 0.15))
        first = step * self.batch_size
        examples = [world.example(first + i, self.seed, s) for i, s in enumerate(splits)]
        for i in np.flatnonzero(rng.random(self.batch_size) < MORE_INSIDE):
            examples[i] = something_inside(rng)
        heat = np.zeros((self.batch_size, HOLDERS, len(OBJECTS), GRID, GRID), np.float32)
        marks = []
        for i, example in enumerate(examples):
            for j, thing in enumerate(example.scene.things):
                holds = int(example.scene.relation == "inside" and j == 1)
                spot, (row, column) = peak(thing.x, thing.y)
                kind = OBJECTS.index(thing.object)
                heat[i, holds, kind] = np.maximum(heat[i, holds, kind], spot)
                color = COLORS.index(thing.color)
                marks.append((i, holds, row, column, color, thing.radius))
        settings = torch.tensor([SETTINGS.index(e.scene.setting) for e in examples])
        pictures = to_tensor([e.image for e in examples])
        return pictures, torch.from_numpy(heat), torch.tensor(marks), settings


def something_inside(rng: np.random.Generator) -> world.Example:
    """A random example with one thing inside another."""
    while (scene := world.sample_scene(rng)).relation != "inside":
        pass
    return world.Example(world.render(scene), world.caption(scene, rng), scene)


def peak(x: float, y: float) -> tuple[np.ndarray, tuple[int, int]]:
    """A bell over the grid, 1 at the cell of (x, y); and that cell's row and column."""
    column, row = (min(GRID - 1, max(0, int(at * GRID))) for at in (x, y))
    places = np.arange(GRID) + 0.5
    bell = np.exp(-((places[None] - x * GRID) ** 2 + (places[:, None] - y * GRID) ** 2))
    bell[row, column] = 1
    return bell, (row, column)


class Judge(nn.Module):
    """Pictures (b, 3, 128, 128) in [-1, 1] to a grid of answers and the setting."""

    def __init__(self) -> None:
        super().__init__()
        self.stem1 = nn.Conv2d(3, 24, 5, stride=2, padding=2)
        self.stem2 = nn.Conv2d(24, 48, 3, stride=2, padding=1)
        self.fine = ResnetBlock(48, 48, groups=6, eps=1e-5)
        self.to_grid = Downsample(48)
        self.grid = ResnetBlock(48, 96, groups=6, eps=1e-5)
        self.to_coarse = Downsample(96)
        self.coarse1 = ResnetBlock(96, 128, groups=8, eps=1e-5)
        self.coarse2 = ResnetBlock(128, 128, groups=8, eps=1e-5)
        self.back = Upsample(128)
        self.joined = ResnetBlock(96 + 128, 96, groups=8, eps=1e-5)
        self.answers = nn.Conv2d(96, HOLDERS * (len(OBJECTS) + len(COLORS) + 1), 1)
        self.setting = nn.Linear(128, len(SETTINGS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x: (b, 3, 128, 128). Returns logits of objects (b, 2, objects, 16, 16) and of colours
        (b, 2, colours, 16, 16), radii (b, 2, 16, 16), logits of settings (b, settings).
        """
        x = self.stem2(F.silu(self.stem1(x)))  # (b, 48, 32, 32)
        x = self.grid(self.to_grid(self.fine(x)))  # (b, 96, 16, 16)
        low = self.coarse2(self.coarse1(self.to_coarse(x)))  # (b, 128, 8, 8)
        x = self.joined(torch.cat([x, self.back(low)], dim=1))
        answers = rearrange(self.answers(F.silu(x)), "b (g k) h w -> b g k h w", g=HOLDERS)
        objects, colors, radii = answers.float().split([len(OBJECTS), len(COLORS), 1], dim=2)
        return objects, colors, radii[:, :, 0], self.setting(low.mean(dim=(2, 3))).float()


def judge_loss(
    judge: nn.Module, batch: Any, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch of Marked: focal for the centres [CenterNet, Eq. 1], cross-entropy for
    colours and settings, distance for the radii.
    """
    device = next(judge.parameters()).device
    pictures, heat, marks, settings = (part.to(device) for part in batch)
    objects, colors, radii, setting = judge(spoil(to_range(pictures), generator))
    p = objects.sigmoid().clamp(1e-4, 1 - 1e-4)
    hit = -((1 - p) ** 2) * p.log() * (heat == 1)
    miss = -((1 - heat) ** 4) * p**2 * (1 - p).log() * (heat < 1)
    at = marks[:, :4].long().unbind(dim=1)
    picture, grid, row, column = at
    color = F.cross_entropy(colors[picture, grid, :, row, column], marks[:, 4].long())
    radius = F.l1_loss(radii[at], marks[:, 5])
    centres = (hit.sum() + miss.sum()) / len(marks)
    place = F.cross_entropy(setting, settings)
    parts = {"centres": centres, "color": color, "radius": radius, "setting": place}
    loss = centres + color + 5 * radius + 0.5 * place
    return loss, {name: value.item() for name, value in parts.items()}


def spoil(x: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures blurred by some amount, and a little noise: samples are not as crisp as
    renders. x: (b, 3, h, w).
    """
    draw = torch.rand(2, len(x), 1, 1, 1, generator=generator, device=x.device)
    share = draw[0] * (draw[1] < 0.5)
    x = x + share * (F.avg_pool2d(x, 5, stride=1, padding=2, count_include_pad=False) - x)
    return x + 0.03 * torch.randn(x.shape, generator=generator, device=x.device)


@torch.no_grad()
def look(judge: Judge, pictures: Tensor) -> list[Seen]:
    """What the judge sees. pictures: (b, 3, 128, 128) in [-1, 1]."""
    seen = []
    for batch in pictures.split(64):
        objects, colors, radii, setting = judge(batch)
        best, kind = objects.sigmoid().max(dim=2)  # (b, 2, 16, 16)
        peaks = (best == F.max_pool2d(best, 3, stride=1, padding=1)) & (best > SURE)
        for i in range(len(batch)):
            spots = [tuple(spot) for spot in peaks[i].nonzero().tolist()]
            things = tuple(
                Found(
                    OBJECTS[kind[i][s]], COLORS[colors[i, s[0], :, s[1], s[2]].argmax()],
                    (s[2] + 0.5) / GRID, (s[1] + 0.5) / GRID, radii[i][s].item(), s[0] == 1,
                )
                for s in spots
            )  # fmt: skip
            seen.append(Seen(things, SETTINGS[setting[i].argmax()]))
    return seen


def pictures_of(examples: Sequence[world.Example]) -> Tensor:
    """The pictures of examples as the judge wants them, (b, 3, h, w) in [-1, 1]."""
    return to_range(to_tensor([example.image for example in examples]))
