"""Training: the noise-prediction loss, and one loop that can be stopped at any moment.

Under torchrun the loop runs in several processes: each takes every world-th batch, and their
gradients are averaged, so that N processes train as one with N times the batch.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from minisd.checkpoint import replacing
from minisd.schedulers import NoiseSchedule
from minisd.unet import UNet

Loss = Callable[[nn.Module, Any, torch.Generator], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast. The rate warms up, stays, and falls to zero over the last part, so
    that a run can be extended without having been planned for it.
    """

    steps: int
    batch_size: int
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay_fraction: float = 0.3
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    seed: int = 0
    save_every: int = 200

    def rate(self, step: int) -> float:
        """The learning rate at a step, 0 <= step < steps."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        left = (self.steps - step) / max(1, self.steps * self.decay_fraction)
        return self.learning_rate * warm * min(1.0, left)


def noise_prediction_loss(
    unet: UNet,
    schedule: NoiseSchedule,
    x_0: Tensor,
    context: Tensor,
    generator: torch.Generator | None = None,
    snr_gamma: float | None = 5.0,
) -> Tensor:
    """Add noise at random timesteps, predict it, compare: the mean squared error. [DDPM Eq. 14]

    x_0: (b, 4, h, w) scaled latents, context: (b, 77, d). `snr_gamma` weights each timestep by
    min(snr, gamma) / snr, so that nearly clean ones do not rule [Min-SNR, Eq. 8]; None weights all
    alike. For a model of v_prediction the target is v.
    """
    steps = schedule.config.num_train_timesteps
    t = torch.randint(0, steps, (len(x_0),), generator=generator, device=x_0.device)
    eps = torch.randn(x_0.shape, generator=generator, device=x_0.device)
    x_t = schedule.add_noise(x_0, eps, t)
    target = {"epsilon": eps, "sample": x_0}.get(schedule.config.prediction_type)
    target = schedule.velocity(x_0, eps, t) if target is None else target
    error = (unet(x_t, t, context).float() - target).square().flatten(1).mean(dim=1)  # (b,)
    if snr_gamma is None:
        return error.mean()
    snr = schedule.snr().to(x_0.device)[t]
    floor = snr + 1 if schedule.config.prediction_type == "v_prediction" else snr
    return (error * snr.clamp(max=snr_gamma) / floor).mean()


def drop_captions(captions: Sequence[str], share: float, generator: torch.Generator) -> list[str]:
    """Each caption made empty with probability `share`, so that the model learns eps without text.

    [Classifier-Free Diffusion Guidance, Algorithm 1]
    """
    dropped = torch.rand(len(captions), generator=generator, device=generator.device) < share
    return ["" if drop else caption for caption, drop in zip(captions, dropped.tolist())]


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the running average of the weights towards the model's: faster at the beginning."""
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The randomness of one training step: the same after a restart."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + step)


class Objective(nn.Module):
    """The loss as a module, which is what DistributedDataParallel wants to wrap."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return self.loss(self.model, batch, generator)


def rank_and_world() -> tuple[int, int]:
    """The number of this process and how many there are: 0 and 1 where it is alone."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def train(
    model: nn.Module,
    loss: Loss,
    batches: Dataset,
    config: TrainConfig,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    workers: int = 1,
    on_save: Callable[[nn.Module, int], None] | None = None,
) -> nn.Module:
    """Minimise loss(model, batches[step], generator); returns the average of the weights (EMA).

    The state is written to folder/state.pt every `save_every` steps; a run that was killed goes on
    from there, with the same numbers as if it had not been. folder/log.jsonl gets a line for each
    save. `on_save(average, step)` may draw pictures. Of several processes, number r of w takes the
    batches r, r + w, ..., and number 0 alone writes.
    """
    device, folder = torch.device(device), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rank, world = rank_and_world()
    model.to(device).train().requires_grad_(True)
    objective = Objective(model, loss)
    if world > 1:
        objective = DistributedDataParallel(objective)  # from here on all have the same weights
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,  # all weights in one go
    )
    start = resume(folder / "state.pt", model, average, optimizer, device)
    loader = DataLoader(
        batches, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None,
        sampler=range(start * world + rank, config.steps * world, world),
    )  # fmt: skip
    log = Log(folder / "log.jsonl")
    bar = tqdm(
        loader, initial=start, total=config.steps, desc=folder.name, mininterval=5, disable=rank > 0
    )
    for step, batch in enumerate(bar, start):
        generator = step_generator(config.seed, step * world + rank, device)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            value, numbers = objective(batch, generator)
        descend(model, value, optimizer, config.rate(step), f"step {step} of {folder}")
        update_average(average, model, config.ema_decay, step)
        if rank > 0:
            continue
        log.add(loss=value.item(), **numbers)
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            save(folder / "state.pt", step + 1, model, average, optimizer)
            bar.set_postfix(log.write(step + 1))
            if on_save is not None:
                on_save(average.eval(), step + 1)
    return average.eval()


def descend(
    model: nn.Module, loss: Tensor, optimizer: torch.optim.Optimizer, rate: float, where: str
) -> None:
    """One step down the gradient, its norm cut at 1. Raises FloatingPointError if it is broken."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    if not torch.isfinite(norm):
        raise FloatingPointError(f"the gradient is not finite at {where}")
    optimizer.step()


class Log:
    """Means of numbers between saves, a line of JSON each."""

    def __init__(self, path: Path):
        self.path = path
        self.began, self.began_work = time.perf_counter(), time.process_time()
        self.rows: list[dict[str, float]] = []

    def add(self, **numbers: float) -> None:
        self.rows.append(numbers)

    def write(self, step: int) -> dict[str, str]:
        """Append the means since the last line; returns them as text."""
        count = len(self.rows)
        means = {name: sum(row[name] for row in self.rows) / count for name in self.rows[0]}
        seconds = round(time.perf_counter() - self.began, 1)
        work = round(time.process_time() - self.began_work, 1)  # of all threads, not of workers
        line = {"step": step, "seconds": seconds, "cpu_seconds": work, **means}
        with open(self.path, "a", encoding="utf8") as file:
            file.write(json.dumps(line) + "\n")
        self.rows = []
        return {name: f"{mean:.4f}" for name, mean in means.items()}


def save(
    path: Path, step: int, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write what `resume` reads; whole or not at all."""
    parts = {"model": model, "average": average, "optimizer": optimizer}
    with replacing(path) as part:
        torch.save({"step": step, **{name: p.state_dict() for name, p in parts.items()}}, part)


def resume(
    path: Path,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> int:
    """Fill model, average and optimizer from a saved state, if there is one; returns its step."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def decibels(mean_squared_error: float, span: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB; `span` is the range of the values, 2 for [-1, 1]."""
    return 10 * math.log10(span**2 / max(mean_squared_error, 1e-12))
