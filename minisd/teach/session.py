"""The first cell of every notebook: what this machine has, and a model at hand.

On a machine without minisd, such as a fresh Colab session, this cell goes before it:

    import importlib.util
    if importlib.util.find_spec("minisd") is None:
        !git clone --depth 1 REPOSITORY minisd-course && pip install -q ./minisd-course
        %cd minisd-course/notebooks

It does nothing where minisd is installed, and leaves the PyTorch that is there as it is.
"""

import os
import platform
import random
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from minisd import memory
from minisd.machine import torch_advice, weights_note
from minisd.pipeline import StableDiffusionPipeline

MOST_THREADS = 8  # more only wait for each other in networks as small as the shipped one
# How far float32 results may differ from the CPU's: GPUs add up in another order.
TOLERANCE = {"cpu": 1e-5, "cuda": 1e-3, "mps": 1e-3}


class Session:
    """What a notebook needs: `.pipe` (loaded when first asked for), `.device`, `.fast`,
    `.tolerance` of comparisons on this device, `.seed`.
    """

    def __init__(
        self, chapter: int, weights: Path | str | None, device: torch.device, seed: int, fast: bool
    ):
        self.chapter, self.weights, self.device = chapter, weights, device
        self.seed, self.fast = seed, fast
        self.tolerance = TOLERANCE.get(device.type, 1e-3)

    @cached_property
    def pipe(self) -> StableDiffusionPipeline:
        """The model, in float32. Raises ValueError if there is none."""
        if self.weights is not None and Path(self.weights).is_file():
            pipe = StableDiffusionPipeline.from_single_file(self.weights)
        else:
            pipe = StableDiffusionPipeline.from_pretrained(self.weights)
        pipe.set_progress_bar_config(disable=self.weights is None)  # the shipped one needs no bar
        return pipe.to(self.device)

    def generator(self, seed: int | None = None) -> torch.Generator:
        """A new source of random numbers: the same seed, the same numbers, on every device."""
        return torch.Generator().manual_seed(self.seed if seed is None else seed)

    def __repr__(self) -> str:
        return f"Session(chapter={self.chapter}, device={self.device}, fast={self.fast})"


def setup(
    chapter: int, weights: Path | str | None = None, device: str = "cpu", seed: int = 0
) -> Session:
    """Look at the machine, set the seed and the threads, print one line; advice if needed.

    weights: a model to use in place of the shipped one, in any form that weights_convert opens.
    device: "cpu", "auto", "cuda" or "mps".
    The environment variable MINISD_FAST=1 sets `.fast`: fewer steps, the same code.
    """
    fast = os.environ.get("MINISD_FAST", "0") not in ("", "0")
    where = memory.pick_device(device)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.set_num_threads(min(torch.get_num_threads(), MOST_THREADS))
    model, advice = weights_note(weights)
    print(
        f"minisd, chapter {chapter:02d}: Python {platform.python_version()}, "
        f"PyTorch {torch.__version__.split('+')[0]} on {where}, {model}, seed {seed}, "
        f"{torch.get_num_threads()} thread(s){', fast mode' if fast else ''}"
    )
    for line in filter(None, (advice, torch_advice(torch.__version__))):
        print(f"  ! {line}")
    return Session(chapter, weights, where, seed, fast)
