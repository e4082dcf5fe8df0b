"""Where the model runs, in which precision, and with how much memory at once."""

import ctypes
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minisd import machine
from minisd.attention import Attention

logger = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(name: str = "auto") -> torch.device:
    """The device of this name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises ValueError if there is no such device on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((kind for kind, here in available.items() if here), "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown; try auto, cpu, cuda or mps") from error
    if not available.get(device.type, True):
        raise ValueError(f"device {name!r} was asked for, but PyTorch finds none here; try cpu")
    return device


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The precision of this name; None takes half precision on CUDA and float32 elsewhere.

    Raises ValueError for float16 on a CPU, which is slower there than float32, and inexact. Warns
    of bfloat16 where this CPU has no instructions for it.
    """
    if name is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown, expected one of {sorted(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise ValueError("float16 on the CPU is slow and inexact; use float32 or bfloat16")
    if name == "bfloat16" and device.type == "cpu" and not machine.has_bfloat16("cpu"):
        logger.warning("this CPU has no instructions for bfloat16: float32 is many times as fast")
    return DTYPES[name]


def reuse_memory() -> bool:
    """Keep what tensors free for the next ones; for the whole process, so for programs.

    The C library of Linux gives every block of some megabytes back to the system and asks for it
    anew, cleared page by page: a fifth of the time to decode a picture. False elsewhere.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    own_block, kept = -3, -1  # M_MMAP_THRESHOLD: from this size on; M_TRIM_THRESHOLD: at the end
    largest = (2**30, 2**25)  # the second where the library allows no more
    return any(mallopt(own_block, size) for size in largest) and bool(mallopt(kept, 2**31 - 1))


def attentions(networks: Iterable[nn.Module]) -> list[Attention]:
    return [m for network in networks for m in network.modules() if isinstance(m, Attention)]


def choose_attention(networks: Iterable[nn.Module], method: str, instead_of: str = "") -> None:
    """Use this method of minisd.attention everywhere, or only where another one is in use."""
    for layer in attentions(networks):
        if instead_of in ("", layer.method):
            layer.method = method


def slice_attention(network: nn.Module, slice_size: str | int = "auto") -> None:
    """Attention by its formula, for `slice_size` heads of one picture at a time.

    "auto" takes half of a layer's heads, "max" (the most slices) one head. Raises ValueError for
    a size that some layer does not have.
    """
    layers = attentions([network])
    most = min(layer.heads for layer in layers)
    if slice_size not in ("auto", "max", *range(1, most + 1)):
        raise ValueError(
            f"slice_size is {slice_size!r}, expected 'auto', 'max' or a number of heads from 1 "
            f"to {most}"
        )
    for layer in layers:
        named = {"auto": max(layer.heads // 2, 1), "max": 1}
        layer.method, layer.slice_size = "sliced", named.get(slice_size, slice_size)


class Offload:
    """Lends the accelerator to one network at a time; the others wait in main memory.

    PyTorch calls a forward pre-hook before a module works. The autoencoder is not called itself:
    its work begins at its encoder, or at the convolution before its decoder.
    """

    def __init__(self, networks: Mapping[str, nn.Module], device: torch.device):
        self.networks, self.device = tuple(networks.values()), device
        self.hooks = []
        for name, network in networks.items():
            begins = [network.encoder, network.post_quant_conv] if name == "vae" else [network]
            for module in begins:
                hook = module.register_forward_pre_hook(partial(self.bring, network))
                self.hooks.append(hook)
        self.rest()

    def bring(self, network: nn.Module, *_: Any) -> None:
        """The hook: this network to the accelerator, the one before it away."""
        if network is not self.at_work:
            self.rest()
            network.to(self.device)
            self.at_work = network

    def rest(self) -> None:
        """All networks to main memory."""
        for network in self.networks:
            network.to("cpu")
        self.at_work: nn.Module | None = None

    def end(self) -> None:
        self.rest()
        for hook in self.hooks:
            hook.remove()


@dataclass
class Peak:
    """Bytes in use: `start` before the work, `highest` at most during it."""

    start: int
    highest: int = 0

    @property
    def above(self) -> int:
        """What the work took beyond what was there, such as the weights."""
        return self.highest - self.start


@contextmanager
def measure_peak(device: torch.device | str = "cpu") -> Iterator[Peak]:
    """The most memory in use at once while the block runs; the Peak is complete after it.

    CUDA: what PyTorch has allocated there. CPU: what the process has in main memory, which counts
    files that were mapped and memory that was freed but not given back: for a figure to keep, use
    a fresh process. Raises ValueError where the system does not tell (all but Linux, for a CPU).
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        peak = Peak(torch.cuda.memory_allocated(device))
        yield peak
        peak.highest = torch.cuda.max_memory_allocated(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the highest mark down to now
        peak = Peak(resident("VmRSS"))
    except OSError as error:
        raise ValueError(f"this system does not tell the peak of a process: {error}") from error
    yield peak
    peak.highest = resident("VmHWM")


def resident(name: str) -> int:
    """Bytes of this process in main memory: VmRSS now, VmHWM at most. [proc(5)]"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
