"""Training: the noise-prediction loss, and one loop that can be stopped at any moment."""

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
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
    error = (unet(x_t, t, context).float() - target).square().mean(dim=(1, 2, 3))  # (b,)
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


def save_state(path: Path, **state: Any) -> None:
    with replacing(path) as part:
        torch.save(state, part)


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
    save. `on_save(average, step)` may draw pictures.
    """
    device, folder = torch.device(device), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(device).train().requires_grad_(True)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    start = resume(folder / "state.pt", model, average, optimizer, device)
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, config.steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
    )
    began, sums, count = time.perf_counter(), {}, 0
    bar = tqdm(loader, initial=start, total=config.steps, desc=folder.name, mininterval=5)
    for step, batch in enumerate(bar, start):
        for group in optimizer.param_groups:
            group["lr"] = config.rate(step)
        generator = step_generator(config.seed, step, device)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            value, numbers = loss(model, batch, generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"the gradient is not finite at step {step} of {folder}")
        optimizer.step()
        update_average(average, model, config.ema_decay, step)

        count += 1
        for name, number in {"loss": value.item(), **numbers}.items():
            sums[name] = sums.get(name, 0.0) + number
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            means = {name: total / count for name, total in sums.items()}
            bar.set_postfix({name: f"{mean:.4f}" for name, mean in means.items()})
            seconds = round(time.perf_counter() - began, 1)
            line = {"step": step + 1, "seconds": seconds, **means}
            save_state(
                folder / "state.pt",
                step=step + 1,
                model=model.state_dict(),
                average=average.state_dict(),
                optimizer=optimizer.state_dict(),
            )
            with open(folder / "log.jsonl", "a", encoding="utf8") as log:
                log.write(json.dumps(line) + "\n")
            sums, count = {}, 0
            if on_save is not None:
                on_save(average.eval(), step + 1)
    return average.eval()


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
