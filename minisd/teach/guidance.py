"""What chapter 10 measures on pictures: prompts of one or two shapes, a judge by rules, a sweep.

The judge has learned nothing: it takes the ground from the picture's edge, what differs from it for
a thing, and compares that with the book's colours and with outlines of its shapes.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.picturebook import data, world
from minisd.picturebook.canvas import PALETTE
from minisd.picturebook.captions import article
from minisd.picturebook.scenes import HELD_OUT, HELD_OUT_RELATIONS, close
from minisd.pipeline import StableDiffusionPipeline

KINDS = ("one thing", "two things")
ASPECTS = ("colours", "shapes", "ground", "all")
SCALES = (0, 1, 2, 3, 4, 5, 7, 12, 15)
PARTS = {"early": (0, 1 / 3), "middle": (1 / 3, 2 / 3), "late": (2 / 3, 1)}  # of the steps
STRONG = (4, 15)  # scales that are used in a part of the run alone
PROMPTS, ALIKE, COPIES, STEPS = 96, 8, 3, 20  # of each kind; ALIKE prompts have COPIES pictures
EDGE = 6  # pixels along the picture's edge that show the ground
APART = 0.22  # a pixel farther than this from the ground's colour, in RGB, belongs to a thing
OUTLINE, LIKE = 24, 0.15  # side of an outline; how much of it may differ from the book's shape
LEAST = 40  # a thing has at least so many pixels
Scale = float | Callable[[float], float]


class Seen(NamedTuple):
    """What the judge sees in a picture with one thing; "" where it is not sure."""

    color: str
    shape: str
    ground: str


def scenes(things: int, count: int, seed: int = 0) -> list[world.Scene]:
    """Scenes of one shape, or of two side by side, on a plain ground; none of them held out."""
    rng, made = np.random.default_rng((10, things, seed)), []
    while len(made) < count:
        named = [(str(rng.choice(world.SHAPES)), str(rng.choice(world.COLORS))) for _ in "ab"]
        (a, color_a), (b, color_b) = named
        alike = a == b or color_a == color_b
        if alike or {*named} & {*HELD_OUT} or (a, "left", b) in HELD_OUT_RELATIONS:
            continue
        unfit = {*close(color_a), *close(color_b)}
        ground = f"plain:{rng.choice([c for c in world.COLORS if c not in unfit])}"
        y = 0.5 + rng.uniform(-0.05, 0.05, 2)
        if things == 1:
            place = 0.5 + rng.uniform(-0.05, 0.05), y[0], rng.uniform(0.2, 0.25)
            made.append(world.Scene("one", (world.Thing(a, color_a, "", *place),), ground))
            continue
        half, radius = rng.uniform(0.23, 0.25), rng.uniform(0.19, 0.21, 2)
        pair = (
            world.Thing(shape, color, "", 0.5 + side * half, y[i], radius[i])
            for i, ((shape, color), side) in enumerate(zip(named, (-1, 1)))
        )
        made.append(world.Scene("two", tuple(pair), ground, "left"))
    return made


def prompt(scene: world.Scene) -> str:
    """ "a red circle to the left of a blue star on a white background"."""
    things = " to the left of ".join(article(f"{t.color} {t.object}") for t in scene.things)
    return f"{things} on {article(scene.setting.removeprefix('plain:'))} background"


def renders(asked: Sequence[world.Scene]) -> Tensor:
    """The true pictures of scenes, (n, 3, 128, 128) in [-1, 1]."""
    return data.to_range(data.to_tensor([world.render(scene) for scene in asked]))


def nearest(color: Tensor) -> str:
    """The colour of the book that is nearest to (3,), red, green, blue in [0, 1]."""
    known = torch.tensor([PALETTE[name] for name in world.COLORS])
    return world.COLORS[int((known - color).square().sum(dim=1).argmin())]


def border(x: Tensor) -> Tensor:
    """The pixels along the upper and lower edge: (n, 3, h, w) -> (n, 3, pixels)."""
    return torch.cat([x[:, :, :EDGE], x[:, :, -EDGE:]], dim=2).flatten(2)


def parts(pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (n, 3, h, w) in [-1, 1] in the range [0, 1] and a little smoothed, the colours of
    their grounds (n, 3), and where they differ from these (n, h, w).
    """
    x = F.pad(pictures.clamp(-1, 1) / 2 + 0.5, (1, 1, 1, 1), mode="replicate")
    x = F.avg_pool2d(x, 3, stride=1)
    ground = border(x).median(dim=2).values
    return x, ground, (x - ground[:, :, None, None]).norm(dim=1) > APART


def outline(mask: Tensor) -> Tensor:
    """A mask (h, w), cut out and brought to one size: (24, 24)."""
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    cut = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return F.interpolate(cut[None, None].float(), (OUTLINE, OUTLINE), mode="area")[0, 0]


@cache
def outlines() -> Tensor:
    """The outline of each shape of the book, (shapes, 24, 24)."""
    things = [world.Thing(shape, "black", "", 0.5, 0.5, 0.35) for shape in world.SHAPES]
    drawn = renders([world.Scene("one", (thing,), "plain:white") for thing in things])
    return torch.stack([outline(mask) for mask in parts(drawn)[2]])


def see(pictures: Tensor) -> list[Seen]:
    """What the judge sees in pictures with one thing each, (n, 3, h, w) in [-1, 1]."""
    seen = []
    for x, ground, mask in zip(*parts(pictures)):
        color = shape = ""
        if mask.sum() >= LEAST:
            color = nearest(x[:, mask].median(dim=1).values)
            differs = (outlines() - outline(mask)).abs().mean(dim=(1, 2))
            shape = world.SHAPES[int(differs.argmin())] if differs.min() < LIKE else ""
        seen.append(Seen(color, shape, nearest(ground)))
    return seen


def marks(pictures: Tensor, asked: Sequence[world.Scene]) -> Tensor:
    """What is right: (n, 4) bool, a column for each of ASPECTS. Of two things, each half of the
    picture is looked at by itself. pictures: (n, 3, h, w) in [-1, 1].
    """
    found = []
    for scene, picture in zip(asked, pictures):
        seen = see(torch.stack(picture.chunk(len(scene.things), dim=2)))
        color = all(a.color == thing.color for a, thing in zip(seen, scene.things))
        shape = all(a.shape == thing.object for a, thing in zip(seen, scene.things))
        ground = all(f"plain:{a.ground}" == scene.setting for a in seen)
        found.append([color, shape, ground, color and shape and ground])
    return torch.tensor(found)


def ground_error(pictures: Tensor, asked: Sequence[world.Scene]) -> Tensor:
    """How far the pixels along the edge are from the colour that was asked for, (n,): the root of
    the mean square, of a range of 1. Patches count as well as a tint.
    """
    wanted = torch.tensor([PALETTE[scene.setting.removeprefix("plain:")] for scene in asked])
    away = border(pictures.clamp(-1, 1) / 2 + 0.5) - wanted[:, :, None]
    return away.square().mean(dim=(1, 2)).sqrt()


def distances(pictures: Tensor, copies: int = COPIES) -> Tensor:
    """The mean distance between the pictures of each prompt, (prompts,): the root of the mean
    square, of a range of 1. pictures: (prompts * copies, ...), those of a prompt together.
    """
    groups = (pictures.clamp(-1, 1) / 2).unflatten(0, (-1, copies)).flatten(2)
    apart = torch.cdist(groups, groups) / groups.shape[-1] ** 0.5
    return apart.sum(dim=(1, 2)) / (copies * (copies - 1))


def colorfulness(pictures: Tensor) -> float:
    """How far from grey the pixels are: the mean of the largest minus the smallest of red, green
    and blue, of a range of 1.
    """
    x = pictures.clamp(-1, 1) / 2
    return (x.amax(dim=1) - x.amin(dim=1)).mean().item()


def wilson(right: Tensor) -> tuple[float, float]:
    """The 95 % interval of a share, from (n,) bool: never of width zero, even if all are right.

    [Wilson, Probable Inference, 1927]
    """
    n, z = len(right), 1.96
    share, extra = right.float().mean().item(), z**2 / n
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * (share * (1 - share) / n + extra / (4 * n)) ** 0.5
    return min(share, middle - half), max(share, middle + half)  # the ends may round past it


def bootstrap(values: Tensor, draws: int = 2000) -> tuple[float, float]:
    """The 95 % interval of a mean, from (n,): the means of as many, drawn anew many times."""
    generator = torch.Generator().manual_seed(0)
    picked = torch.randint(len(values), (draws, len(values)), generator=generator)
    low, high = values[picked].mean(dim=1).quantile(torch.tensor([0.025, 0.975]))
    return low.item(), high.item()


@torch.no_grad()
def run(
    pipe: StableDiffusionPipeline, x_t: Tensor, cond: Tensor, uncond: Tensor, scale: Scale,
    steps: int = STEPS,
) -> Tensor:  # fmt: skip
    """Noise x_t (b, 4, h, w) to latents, guided by any scale, 0 included, or by a function from the
    share of the steps that are done, 0 to 1, to the scale. For schedulers without a memory.
    """
    for i, span in enumerate(pipe.scheduler.plan(steps)):
        w = scale(i / steps) if callable(scale) else scale
        if w in (0, 1):  # one of the two predictions is not needed
            eps = pipe.unet(x_t, span.t, cond if w == 1 else uncond)
        else:
            both = pipe.unet(torch.cat([x_t, x_t]), span.t, torch.cat([uncond, cond]))
            eps_u, eps_c = both.chunk(2)
            eps = eps_u + w * (eps_c - eps_u)
        x_t, _ = pipe.scheduler.step(eps, span, x_t)
    return x_t


def only(part: str, scale: float) -> Callable[[float], float]:
    """Guidance in one part of the run, "early", "middle" or "late", and 1 in the others."""
    first, last = PARTS[part]
    return lambda done: scale if first <= done < last else 1


def draw(
    pipe: StableDiffusionPipeline, asked: Sequence[world.Scene], scale: Scale, first: int = 0,
    steps: int = STEPS,
) -> Tensor:  # fmt: skip
    """Latents of a picture of each scene's prompt, number i from seed first + i."""
    cond, uncond = pipe.encode_prompt([prompt(scene) for scene in asked])
    side = pipe.defaults.height // pipe.vae.config.downscale
    shape = (1, pipe.unet.config.in_channels, side, side)
    seeds = [torch.Generator().manual_seed(first + i) for i in range(len(asked))]
    x_T = torch.cat([torch.randn(shape, generator=seed) for seed in seeds]).to(cond)
    return run(pipe, x_T, cond, uncond, scale, steps)


def measured(
    pipe: StableDiffusionPipeline, asked: Sequence[world.Scene], scale: Scale, alike: int = 0,
    steps: int = STEPS,
) -> dict[str, Any]:  # fmt: skip
    """What the sweep keeps of one scale: "marks" of a picture of each prompt, "distances" of the
    first `alike` prompts, "ground" errors, and of all latents and pictures "std" and
    "colorfulness". "few" are the first latents.
    """
    latents = draw(pipe, asked, scale, steps=steps)
    x = pipe.decode_latents(latents)
    more = [scene for scene in asked[:alike] for _ in range(COPIES - 1)]
    row: dict[str, Any] = {"marks": marks(x, asked), "ground": ground_error(x, asked)}
    if more:
        others = pipe.decode_latents(draw(pipe, more, scale, len(asked), steps))
        groups = torch.cat([x[:alike, None], others.unflatten(0, (alike, -1))], dim=1)
        row["distances"] = distances(groups.flatten(0, 1))
    row |= {"std": latents.std().item(), "colorfulness": colorfulness(x)}
    return {**row, "few": latents[:4].half()}


def sweep(
    pipe: StableDiffusionPipeline, prompts: int = PROMPTS, alike: int = ALIKE,
    scales: Sequence[int] = SCALES, steps: int = STEPS,
) -> list[dict[str, Any]]:  # fmt: skip
    """Every scale, and strong ones in a part of the run alone, for train_or_load: a row for each
    of them and each kind of prompt, with "kind", "scale", "part" and what `measured` says.

    The same prompts and seeds in all rows. A part of the run gets half of the prompts.
    """
    rows = []
    for things, kind in enumerate(KINDS, 1):
        asked = scenes(things, prompts)
        for scale in scales:
            found = measured(pipe, asked, scale, alike, steps)
            rows.append({"kind": kind, "scale": scale, "part": "all", **found})
        for scale in STRONG:
            for part in PARTS:
                found = measured(pipe, asked[: prompts // 2], only(part, scale), steps=steps)
                rows.append({"kind": kind, "scale": scale, "part": part, **found})
    return rows
