"""Where the recipe trains, on what, and how long."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minisd import machine
from minisd.memory import pick_device, pick_dtype
from minisd.training import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """Where, on what and how long. steps, batch_size and learning_rate None are the stage's own;
    precision None is bfloat16 where the device computes in it, else float32.
    """

    out: Path
    start: Path | None = None
    device: str = "auto"
    precision: str | None = None
    threads: int | None = None
    workers: int = 1
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    examples: int = 40_000
    seed: int = 0

    def plan(self, steps: int, batch_size: int, rate: float, **others: Any) -> TrainConfig:
        """The stage's own numbers, unless the caller gave others."""
        steps, batch_size = self.steps or steps, self.batch_size or batch_size
        rate = self.learning_rate or rate
        return TrainConfig(steps, batch_size, rate, seed=self.seed, **others)

    def part(self, name: str) -> Path:
        """The file of an earlier stage: in `out`, or in `start` where `out` has none."""
        here = self.out / name
        return here if self.start is None or here.exists() else self.start / name

    def where(self) -> dict[str, Any]:
        """The arguments of `train` that say what it runs on."""
        torch.set_num_threads(self.threads or os.cpu_count() or 1)
        device = pick_device(self.device)
        name = self.precision or ("bfloat16" if machine.has_bfloat16(device.type) else "float32")
        precision = pick_dtype(name, device)
        return {"device": device, "precision": precision, "workers": self.workers}
