"""The UNet: from a noisy latent, a timestep and a text, the noise that was added."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.attention import Attention
from minisd.config import UNetConfig
from minisd.layers import (
    Downsample,
    Record,
    ResnetBlock,
    Upsample,
    keep,
    timestep_embedding,
)


class TimeEmbedding(nn.Module):
    """The timestep as a vector that every residual block reads."""

    def __init__(self, width: int, time_width: int):
        super().__init__()
        self.width = width
        self.fc1 = nn.Linear(width, time_width)
        self.fc2 = nn.Linear(time_width, time_width)

    def forward(self, t: Tensor) -> Tensor:
        """t: (b,). Returns (b, time_width)."""
        waves = timestep_embedding(t, self.width).to(self.fc1.weight.dtype)
        return self.fc2(F.silu(self.fc1(waves)))


class GEGLU(nn.Module):
    """The feed-forward layer: one half of the features gates the other. [GLU Variants, Eq. 6]"""

    def __init__(self, width: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, n, d). Returns (b, n, d)."""
        up, gate = self.gate_up(x).chunk(2, dim=-1)
        return self.down(up * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; each added to its input."""

    def __init__(self, width: int, heads: int, context_width: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.self_attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        self.cross_attn = Attention(width, heads, context_width)
        self.norm3 = nn.LayerNorm(width, eps=1e-5)
        self.ff = GEGLU(width)

    def forward(self, x: Tensor, context: Tensor, record: Record = None) -> Tensor:
        """x: (b, n, d), context: (b, m, context_width). Returns (b, n, d)."""
        # A sum lies in memory as its first part does: x, a turned map, would slow the norms down.
        x = self.self_attn(self.norm1(x), record=record) + x
        x = self.cross_attn(self.norm2(x), context, record) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    """A transformer block over the pixels of a feature map, added to the map. [LDM 3.3]"""

    path = ""

    def __init__(self, width: int, heads: int, config: UNetConfig):
        super().__init__()
        self.linear = config.linear_projection
        self.norm = nn.GroupNorm(config.norm_groups, width, eps=1e-6)  # 1e-6 here, 1e-5 elsewhere
        self.proj_in = nn.Linear(width, width) if self.linear else nn.Conv2d(width, width, 1)
        self.block = TransformerBlock(width, heads, config.context_width)
        self.proj_out = nn.Linear(width, width) if self.linear else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, context: Tensor, record: Record = None) -> Tensor:
        """x: (b, c, h, w), context: (b, m, context_width). Returns (b, c, h, w)."""
        to_map = {"pattern": "b (h w) c -> b c h w", "h": x.shape[2], "w": x.shape[3]}
        h = self.norm(x)
        if self.linear:
            h = self.proj_in(rearrange(h, "b c h w -> b (h w) c"))
            h = rearrange(self.proj_out(self.block(h, context, record)), **to_map)
        else:
            h = rearrange(self.proj_in(h), "b c h w -> b (h w) c")
            h = self.proj_out(rearrange(self.block(h, context, record), **to_map))
        return keep(record, self.path, x + h)


def transformers(config: UNetConfig, level: int, count: int) -> nn.ModuleList:
    """`count` spatial transformers for a level with attention, none for a level without."""
    if not config.attention[level]:
        return nn.ModuleList()
    width, heads = config.widths[level], config.heads[level]
    return nn.ModuleList(SpatialTransformer(width, heads, config) for _ in range(count))


def unet_resnet(config: UNetConfig, c_in: int, c_out: int) -> ResnetBlock:
    return ResnetBlock(c_in, c_out, config.norm_groups, eps=1e-5, time_width=config.time_width)


class DownStage(nn.Module):
    """One resolution on the way down. Returns the features and what the way up will need."""

    def __init__(self, config: UNetConfig, level: int):
        super().__init__()
        width, depth = config.widths[level], config.layers_per_level
        c_in = config.widths[max(level - 1, 0)]
        self.resnets = nn.ModuleList(
            unet_resnet(config, c_in if j == 0 else width, width) for j in range(depth)
        )
        self.attentions = transformers(config, level, depth)
        last = level == len(config.widths) - 1
        self.downsample = None if last else Downsample(width)

    def forward(
        self, x: Tensor, time: Tensor, context: Tensor, record: Record = None
    ) -> tuple[Tensor, list[Tensor]]:
        """x: (b, c_in, h, w). Returns (b, c, h/2, w/2) and the skips, finest first."""
        skips = []
        for j, resnet in enumerate(self.resnets):
            x = resnet(x, time, record)
            if self.attentions:
                x = self.attentions[j](x, context, record)
            skips.append(x)
        if self.downsample is not None:
            x = self.downsample(x, record)
            skips.append(x)
        return x, skips


class MidStage(nn.Module):
    """The coarsest resolution, between the way down and the way up."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        width, heads = config.widths[-1], config.heads[-1]
        self.resnet1 = unet_resnet(config, width, width)
        self.attention = SpatialTransformer(width, heads, config)
        self.resnet2 = unet_resnet(config, width, width)

    def forward(self, x: Tensor, time: Tensor, context: Tensor, record: Record = None) -> Tensor:
        """x: (b, c, h, w). Returns (b, c, h, w)."""
        x = self.resnet1(x, time, record)
        x = self.attention(x, context, record)
        return self.resnet2(x, time, record)


class UpStage(nn.Module):
    """One resolution on the way up: every block reads the features and the skip made last."""

    def __init__(self, config: UNetConfig, level: int):
        super().__init__()
        widths, depth = config.widths, config.layers_per_level + 1
        from_below = widths[min(level + 1, len(widths) - 1)]
        from_down = [widths[level]] * (depth - 1) + [widths[max(level - 1, 0)]]
        self.resnets = nn.ModuleList(
            unet_resnet(config, (from_below if j == 0 else widths[level]) + c_skip, widths[level])
            for j, c_skip in enumerate(from_down)
        )
        self.attentions = transformers(config, level, depth)
        self.upsample = None if level == 0 else Upsample(widths[level])

    def forward(
        self, x: Tensor, time: Tensor, context: Tensor, skips: list[Tensor], record: Record = None
    ) -> tuple[Tensor, list[Tensor]]:
        """x: (b, c_in, h, w). Returns (b, c, 2h, 2w) and the skips that remain."""
        depth = len(self.resnets)
        skips, mine = skips[:-depth], skips[-depth:]
        for j, resnet in enumerate(self.resnets):
            skip = keep(record, f"{resnet.path}.skip", mine[-1 - j])
            x = resnet(torch.cat([x, skip], dim=1), time, record)
            if self.attentions:
                x = self.attentions[j](x, context, record)
        if self.upsample is not None:
            size = skips[-1].shape[-2:]  # an odd side would not be 2h
            x = self.upsample(x, size, record)
        return x, skips


class UNet(nn.Module):
    """Stable Diffusion's noise predictor eps(x_t, t, text). [LDM 3.3; Imagen calls it U-Net]

    Down through the resolutions, across, and up again; every block of the way up also reads the
    output of its counterpart on the way down (12 concatenations in SD 1.x).
    """

    def __init__(self, config: UNetConfig = UNetConfig()):
        super().__init__()
        self.config = config
        levels = range(len(config.widths))
        self.time_embed = TimeEmbedding(config.widths[0], config.time_width)
        self.conv_in = nn.Conv2d(config.in_channels, config.widths[0], 3, padding=1)
        self.down = nn.ModuleList(DownStage(config, level) for level in levels)
        self.mid = MidStage(config)
        self.up = nn.ModuleList(UpStage(config, level) for level in reversed(levels))
        self.norm_out = nn.GroupNorm(config.norm_groups, config.widths[0], eps=1e-5)
        self.conv_out = nn.Conv2d(config.widths[0], config.out_channels, 3, padding=1)
        for path, module in self.named_modules():
            module.path = path

    def forward(
        self, x_t: Tensor, t: Tensor | float, context: Tensor, record: Record = None
    ) -> Tensor:
        """x_t: (b, in_channels, h, w) noisy latents, t: a timestep 0..999 or one for each picture
        (b,), context: (b, m, context_width) text. Returns (b, out_channels, h, w).

        With `record`, the output of every block and of the first and last layer, the skips of the
        way up and the attention probabilities are written to it, keyed by module path.
        """
        t = torch.as_tensor(t, device=x_t.device).expand(x_t.shape[0])
        time = self.time_embed(t)  # (b, time_width)
        x = keep(record, "conv_in", self.conv_in(x_t))  # (b, widths[0], h, w)
        skips = [x]
        for stage in self.down:
            x, made = stage(x, time, context, record)
            skips = skips + made
        x = self.mid(x, time, context, record)
        for stage in self.up:
            x, skips = stage(x, time, context, skips, record)
        return keep(record, "conv_out", self.conv_out(F.silu(self.norm_out(x))))
