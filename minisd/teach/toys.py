"""Two models small enough to train while you wait: on points in the plane, on tiny pictures."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.config import UNetConfig
from minisd.layers import Record, timestep_embedding
from minisd.picturebook import data, scenes, world
from minisd.schedulers import DDIMScheduler, NoiseSchedule
from minisd.training import (
    TrainConfig,
    descend,
    noise_prediction_loss,
    step_generator,
    update_average,
)
from minisd.unet import UNet

Moment = tuple[int, float, nn.Module]  # of a training: steps made, the loss, the average model
ARMS, SIDE, SHAPES = 3, 16, ("circle", "square", "triangle", "heart")
MOMENTS = (250, 750, 2000)  # training steps of which the weights are kept
PICTURES = TrainConfig(2000, 32, 4e-3, warmup_steps=50, decay_fraction=0.5, ema_decay=0.99)
POINTS = TrainConfig(3000, 512, 3e-3, warmup_steps=50, decay_fraction=0.5, ema_decay=0.99)
TINY = UNetConfig(
    in_channels=3, out_channels=3, widths=(16, 32, 48), layers_per_level=1, attention=(False,) * 3,
    heads=(4,) * 3, context_width=1, norm_groups=4,
)  # fmt: skip


def points(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points of about variance 1 on three arms: (count, 2), and on which arm each is, (count,)."""
    arm = torch.randint(ARMS, (count,), generator=generator)
    along = torch.rand(count, generator=generator)
    angle = 2 * torch.pi * arm / ARMS + 2.2 * along
    line = (0.38 + 1.9 * along)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return line + 0.06 * torch.randn(count, 2, generator=generator), arm


class PointMLP(nn.Module):
    """A noise predictor for points; where there are classes, it may be told one."""

    def __init__(self, classes: int = 0, width: int = 128):
        super().__init__()
        self.enter = nn.Linear(2, width)
        self.time = nn.Linear(32, width)
        self.label = nn.Embedding(classes + 1, width)  # the last one means: no class
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.leave = nn.Linear(width, 2)

    def forward(self, x_t: Tensor, t: Tensor | float, label: Tensor | None = None) -> Tensor:
        """x_t: (b, 2), t: a timestep or one for each point (b,), label: (b,). Returns (b, 2)."""
        t = torch.as_tensor(t).expand(len(x_t))
        if label is None:
            label = torch.full((len(x_t),), self.label.num_embeddings - 1)
        x = self.enter(x_t) + self.time(timestep_embedding(t, 32)) + self.label(label)
        for layer in self.layers:
            x = x + layer(F.silu(x))
        return self.leave(F.silu(x))


def pictures(count: int, seed: int = 0) -> Tensor:
    """Pictures of one coloured shape on a plain ground, (count, 3, 16, 16) in [-1, 1]."""
    rng = np.random.default_rng(seed)
    return data.to_range(data.to_tensor([world.render(scene(rng), SIDE) for _ in range(count)]))


def scene(rng: np.random.Generator) -> world.Scene:
    """One shape, large and near the middle, in two colours that differ enough."""
    color = str(rng.choice(world.COLORS))
    ground = str(rng.choice([c for c in world.COLORS if c not in scenes.close(color)]))
    x, y = rng.uniform(0.45, 0.55, 2).tolist()
    thing = world.Thing(str(rng.choice(SHAPES)), color, "", x, y, rng.uniform(0.32, 0.38))
    return world.Scene("one", (thing,), f"plain:{ground}")


class PixelUNet(UNet):
    """The library's UNet for 16 x 16 pixels in place of latents; all the text it gets is a zero."""

    def __init__(self):
        super().__init__(TINY)

    def forward(
        self, x_t: Tensor, t: Tensor | float, context: Any = None, record: Record = None
    ) -> Tensor:
        """x_t: (b, 3, h, w), t: a timestep or one for each picture (b,). Returns (b, 3, h, w)."""
        return super().forward(x_t, t, x_t.new_zeros(len(x_t), 1, 1), record)


def seeded(network: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A new network, with the same first weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network()


def training(
    model: nn.Module, batch: Callable[[int], Tensor], config: TrainConfig
) -> Iterator[Moment]:
    """Train on x_0 = batch(step), by the library's loss; the average is that of the weights."""
    schedule, average = NoiseSchedule(), copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay)
    for step in range(config.steps):
        generator = step_generator(config.seed, step, torch.device("cpu"))
        loss = noise_prediction_loss(model, schedule, batch(step), None, generator, snr_gamma=None)
        descend(model, loss, optimizer, config.rate(step), f"step {step}")
        update_average(average, model, config.ema_decay, step)
        yield step + 1, loss.item(), average


def picture_training() -> Iterator[Moment]:
    """The training of the tiny UNet: new pictures at every step."""
    batch = PICTURES.batch_size
    return training(seeded(PixelUNet), lambda step: pictures(batch, seed=step), PICTURES)


def point_training() -> Iterator[Moment]:
    """The training of the MLP, without classes: new points at every step."""
    draw = torch.Generator().manual_seed(POINTS.seed)
    return training(seeded(PointMLP), lambda step: points(POINTS.batch_size, draw)[0], POINTS)


def train(steps: Iterator[Moment], keep: Sequence[int] = MOMENTS) -> dict[str, Any]:
    """All of it, for train_or_load: "losses", and "weights" after each number of steps in `keep`"""
    losses, weights = [], {}
    for step, loss, average in steps:
        losses.append(loss)
        if step in keep:
            weights[step] = {name: w.half() for name, w in average.state_dict().items()}
    return {"losses": losses, "weights": weights}


@torch.no_grad()
def generate(model: nn.Module, x_T: Tensor, steps: int = 50) -> Tensor:
    """From noise x_T to samples, both (b, ...), by DDIM. Chapter 04 takes it apart."""
    scheduler, x_t = DDIMScheduler(), x_T
    for span in scheduler.plan(steps):
        x_t, _ = scheduler.step(model(x_t, span.t), span, x_t)
    return x_t
