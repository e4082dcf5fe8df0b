"""The parts that the UNet and the autoencoder share."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Record = dict[str, Any] | None


def keep(record: Record, path: str, value: Tensor) -> Tensor:
    """The value, which also goes into the record if there is one."""
    if record is not None:
        record[path] = value
    return value


def timestep_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sines and cosines of t at `width / 2` frequencies. [Attention Is All You Need, 3.5; ldm/util]

    t: (b,) timesteps 0..999, whole or fractional. Returns (b, width) float32: first all cosines,
    then all sines, of t * max_period^(-i / half).
    """
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * exponent)  # (b, half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, twice, added to the input. The timestep, if any, shifts the middle."""

    path = ""

    def __init__(
        self, c_in: int, c_out: int, groups: int, eps: float, time_width: int | None = None
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_proj = None if time_width is None else nn.Linear(time_width, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = None if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, time: Tensor | None = None, record: Record = None) -> Tensor:
        """x: (b, c_in, h, w), time: (b, time_width). Returns (b, c_out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_proj is not None:
            h = h + self.time_proj(F.silu(time))[:, :, None, None]  # one shift for each channel
        h = self.conv2(F.silu(self.norm2(h)))
        return keep(record, self.path, h + (x if self.shortcut is None else self.shortcut(x)))


class Downsample(nn.Conv2d):
    """A stride-2 convolution.

    `pad_end_only` pads right and bottom alone, as the autoencoder was trained; padding on all sides
    would give the same shape, and features shifted by a pixel.
    """

    path = ""

    def __init__(self, width: int, pad_end_only: bool = False):
        super().__init__(width, width, 3, stride=2, padding=0 if pad_end_only else 1)
        self.pad_end_only = pad_end_only

    def forward(self, x: Tensor, record: Record = None) -> Tensor:
        """x: (b, c, h, w). Returns (b, c, h/2, w/2), odd sides rounded up (down if end-only)."""
        x = super().forward(F.pad(x, (0, 1, 0, 1)) if self.pad_end_only else x)
        return keep(record, self.path, x)


class Upsample(nn.Conv2d):
    """Repeat the nearest pixel, then convolve."""

    path = ""

    def __init__(self, width: int):
        super().__init__(width, width, 3, padding=1)

    def forward(
        self, x: Tensor, size: tuple[int, int] | None = None, record: Record = None
    ) -> Tensor:
        """x: (b, c, h, w). Returns (b, c, *size), without a size twice h and w."""
        if size is None:
            size = (2 * x.shape[-2], 2 * x.shape[-1])
        x = super().forward(F.interpolate(x, size=size, mode="nearest"))
        return keep(record, self.path, x)
