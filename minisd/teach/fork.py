"""Points on a fork, for chapter 10: two classes that share a stem, and the exact prediction.

Each class is a chain of many small normal distributions, so that at every timestep its density is
known, and with it the noise that a perfect network would predict.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minisd.schedulers import NoiseSchedule
from minisd.training import TrainConfig

CAPTIONS = ("left", "right", "")  # the empty one says nothing; a point is left or right
SPREAD, PLACES = 0.12, 60  # the width of a tine, and the normal distributions along it
DOUBTFUL = 0.9  # a point whose own class is less likely than this could belong to either
ASTRAY = 3 * SPREAD  # farther from the middle of a tine than hardly any point of it
PLAN = TrainConfig(1500, 256, 3e-3, warmup_steps=50, decay_fraction=0.5)
SD = NoiseSchedule()


def middle(along: Tensor, caption: str) -> Tensor:
    """The middle line of a tine: `along` (n,) from 0, the foot of the stem, to 1. Returns (n, 2).

    Raises ValueError for a caption that names no tine.
    """
    if caption not in CAPTIONS[:2]:
        raise ValueError(f"the caption is {caption!r}, expected 'left' or 'right'")
    side = -1 if caption == "left" else 1
    return torch.stack([1.25 * side * along**2, 2.5 * along - 1.4], dim=1)


def points(count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """Points of the fork (count, 2), each with its caption."""
    along = torch.rand(count, generator=generator)
    right = torch.rand(count, generator=generator) < 0.5
    line = torch.where(right[:, None], middle(along, "right"), middle(along, "left"))
    noise = torch.randn(count, 2, generator=generator)
    return line + SPREAD * noise, [CAPTIONS[i] for i in right.int().tolist()]


def labels(captions: Sequence[str]) -> Tensor:
    """The captions as numbers (n,), as toys.PointMLP(classes=2) reads them; 2 is the empty one."""
    return torch.tensor([CAPTIONS.index(caption) for caption in captions])


def _parts(x_t: Tensor, t: float, caption: str) -> tuple[Tensor, Tensor, float]:
    """From each point to the centre of each normal distribution of the class at t (n, parts, 2),
    the logarithm of its density there (n, parts), and its variance.
    """
    alpha_bar = SD.alphas_bar[int(t)]
    along = (torch.arange(PLACES) + 0.5) / PLACES
    chosen = [caption] if caption else CAPTIONS[:2]
    centres = alpha_bar.sqrt() * torch.cat([middle(along, one) for one in chosen])
    variance = (alpha_bar * SPREAD**2 + 1 - alpha_bar).item()
    away = x_t[:, None] - centres
    logs = -away.square().sum(dim=2) / (2 * variance)
    return away, logs - torch.log(torch.tensor(2 * torch.pi * variance * len(centres))), variance


def log_density(x_t: Tensor, t: float, caption: str = "") -> Tensor:
    """log p(x_t | caption) at timestep t, without a caption log p(x_t). x_t: (n, 2) -> (n,)."""
    return _parts(x_t, t, caption)[1].logsumexp(dim=1)


def exact_eps(x_t: Tensor, t: float, caption: str = "") -> Tensor:
    """What a perfect network predicts: -sqrt(1 - alpha_bar) times the gradient of log_density.

    x_t: (n, 2). Returns (n, 2). [Score-Based Generative Modeling through SDEs, 3]
    """
    away, logs, variance = _parts(x_t, t, caption)
    towards = (logs.softmax(dim=1)[:, :, None] * away).sum(dim=1) / variance
    return (1 - SD.alphas_bar[int(t)]).sqrt() * towards


def certainty(x: Tensor, caption: str) -> Tensor:
    """p(caption | x) of clean points (n, 2), by Bayes' rule: (n,), from 0 to 1."""
    other = CAPTIONS[1 - CAPTIONS.index(caption)]
    return (log_density(x, 0, caption) - log_density(x, 0, other)).sigmoid()


def doubtful(x: Tensor, caption: str) -> float:
    """The share of points that could belong to either class."""
    return (certainty(x, caption) < DOUBTFUL).float().mean().item()


def astray(x: Tensor, caption: str) -> float:
    """The share of points that lie where hardly any point of the class lies."""
    line = middle(torch.linspace(0, 1, 400), caption)
    return (torch.cdist(x, line).min(dim=1).values > ASTRAY).float().mean().item()


def tilted(x: Tensor, caption: str, w: float, generator: torch.Generator) -> Tensor:
    """As many points of a class, drawn from them anew with the weights p(caption | x)^(w - 1):
    the density p(x) p(caption | x)^w.
    """
    weights = (w - 1) * certainty(x, caption).clamp(min=1e-12).log()
    return x[torch.multinomial(weights.softmax(dim=0), len(x), True, generator=generator)]
