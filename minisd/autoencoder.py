"""The autoencoder: pictures to latents an eighth of their size, and back. [LDM 3.1]"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.attention import Attention
from minisd.config import AutoencoderConfig
from minisd.layers import Downsample, Record, ResnetBlock, Upsample, keep
from minisd.noise import Generators, draw_noise
from minisd.tiling import InParts

EPS = 1e-6  # every group norm of the autoencoder; the UNet's residual blocks have 1e-5


@dataclass(frozen=True)
class DiagonalGaussian:
    """A normal distribution for every number of the latent, independent of its neighbours.

    mean, logvar: (b, c, h, w); logvar is the natural logarithm of the variance. [VAE, Appendix B]
    """

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: Generators = None) -> Tensor:
        """mean + sigma * noise, (b, c, h, w)."""
        noise = draw_noise(self.mean.shape, generator, self.mean.device, self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def mode(self) -> Tensor:
        """The most probable latent: the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence from the standard normal distribution in nats, (b,). [VAE, Eq. 10]"""
        nats = 0.5 * (self.mean**2 + self.logvar.exp() - 1 - self.logvar)
        return nats.sum(dim=(1, 2, 3))


class ImageAttention(Attention):
    """Self-attention over all pixels of a feature map with one head, added to the map."""

    def __init__(self, width: int, groups: int):
        super().__init__(width, heads=1, qkv_bias=True)
        self.norm = nn.GroupNorm(groups, width, EPS)

    def forward(self, x: Tensor, record: Record = None) -> Tensor:
        """x: (b, c, h, w). Returns (b, c, h, w)."""
        pixels = rearrange(self.norm(x), "b c h w -> b (h w) c")
        mixed = super().forward(pixels, record=record)
        out = x + rearrange(mixed, "b (h w) c -> b c h w", h=x.shape[2])
        return keep(record, self.path, out)


class MidStage(nn.Module):
    """The coarsest resolution: the one place where distant pixels meet."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.resnet1 = ResnetBlock(width, width, groups, EPS)
        self.attention = ImageAttention(width, groups)
        self.resnet2 = ResnetBlock(width, width, groups, EPS)

    def forward(self, x: Tensor, record: Record = None) -> Tensor:
        """x: (b, c, h, w). Returns (b, c, h, w)."""
        x = self.resnet1(x, record=record)
        return self.resnet2(self.attention(x, record), record=record)


def resnets(c_in: int, width: int, depth: int, groups: int) -> nn.ModuleList:
    """`depth` residual blocks; the first changes the number of channels."""
    return nn.ModuleList(
        ResnetBlock(c_in if j == 0 else width, width, groups, EPS) for j in range(depth)
    )


class EncoderStage(nn.Module):
    """Residual blocks, then half the size (not at the last resolution)."""

    def __init__(self, c_in: int, width: int, config: AutoencoderConfig, last: bool):
        super().__init__()
        self.resnets = resnets(c_in, width, config.layers_per_level, config.norm_groups)
        self.downsample = None if last else Downsample(width, pad_end_only=True)

    def forward(self, x: Tensor, record: Record = None) -> Tensor:
        """x: (b, c_in, h, w). Returns (b, width, h/2, w/2)."""
        for resnet in self.resnets:
            x = resnet(x, record=record)
        return x if self.downsample is None else self.downsample(x, record)


class DecoderStage(nn.Module):
    """Residual blocks, one more than in the encoder, then twice the size (not at the last)."""

    def __init__(self, c_in: int, width: int, config: AutoencoderConfig, last: bool):
        super().__init__()
        self.resnets = resnets(c_in, width, config.layers_per_level + 1, config.norm_groups)
        self.upsample = None if last else Upsample(width)

    def forward(self, x: Tensor, record: Record = None) -> Tensor:
        """x: (b, c_in, h, w). Returns (b, width, 2h, 2w)."""
        for resnet in self.resnets:
            x = resnet(x, record=record)
        return x if self.upsample is None else self.upsample(x, record=record)


class Encoder(nn.Module):
    """Pictures to the mean and log-variance of their latents, before the 1x1 quant_conv."""

    path = ""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths, groups = config.widths, config.norm_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            EncoderStage(widths[max(i - 1, 0)], width, config, last=i == len(widths) - 1)
            for i, width in enumerate(widths)
        )
        self.mid = MidStage(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor, record: Record = None) -> Tensor:
        """x: (b, 3, h, w). Returns (b, 2 * latent_channels, h/8, w/8)."""
        x = keep(record, f"{self.path}.conv_in", self.conv_in(x))
        for stage in self.down:
            x = stage(x, record)
        x = self.mid(x, record)
        return keep(record, f"{self.path}.conv_out", self.conv_out(F.silu(self.norm_out(x))))


class Decoder(nn.Module):
    """Latents, after the 1x1 post_quant_conv, to pictures."""

    path = ""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        widths, groups = config.widths[::-1], config.norm_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid = MidStage(widths[0], groups)
        self.up = nn.ModuleList(
            DecoderStage(widths[max(i - 1, 0)], width, config, last=i == len(widths) - 1)
            for i, width in enumerate(widths)
        )
        self.norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.in_channels, 3, padding=1)

    def forward(self, z: Tensor, record: Record = None) -> Tensor:
        """z: (b, latent_channels, h, w). Returns (b, 3, 8h, 8w)."""
        z = z.contiguous(memory_format=torch.channels_last)  # all that follows is quicker so
        x = keep(record, f"{self.path}.conv_in", self.conv_in(z))
        x = self.mid(x, record)
        for stage in self.up:
            x = stage(x, record)
        x = self.conv_out(F.silu(self.norm_out(x))).contiguous()
        return keep(record, f"{self.path}.conv_out", x)


class Autoencoder(InParts, nn.Module):
    """Stable Diffusion's KL autoencoder; latents here are unscaled. [LDM 3.1]"""

    def __init__(self, config: AutoencoderConfig = AutoencoderConfig()):
        super().__init__()
        self.config = config
        c = config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * c, 2 * c, 1)
        self.post_quant_conv = nn.Conv2d(c, c, 1)
        self.decoder = Decoder(config)
        for path, module in self.named_modules():
            module.path = path

    def encode(self, image: Tensor, record: Record = None) -> DiagonalGaussian:
        """image: (b, 3, h, w) in [-1, 1]; h and w divisible by 8 (config.downscale).

        Returns the distribution of the latent, (b, 4, h/8, w/8). Raises ValueError for other sizes.
        """
        side = self.config.downscale
        if image.ndim != 4 or image.shape[-2] % side or image.shape[-1] % side:
            raise ValueError(
                f"the image has shape {tuple(image.shape)}, expected (b, 3, h, w) with h and w "
                f"divisible by {side}; resize or crop it"
            )

        def moments(image: Tensor) -> Tensor:
            return self.quant_conv(self.encoder(image, record))

        mean, logvar = self.in_parts(moments, image, 1, side, record).chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar.clamp(-30.0, 20.0))  # ldm: keeps exp in range

    def decode(self, z: Tensor, record: Record = None) -> Tensor:
        """z: (b, 4, h, w). Returns the picture, (b, 3, 8h, 8w), in [-1, 1] up to overshoot."""

        def picture(z: Tensor) -> Tensor:
            return self.decoder(self.post_quant_conv(z), record)

        return self.in_parts(picture, z, self.config.downscale, 1, record)

    def forward(self, image: Tensor) -> Tensor:
        """The reconstruction of image (b, 3, h, w) from the mean of its latent."""
        return self.decode(self.encode(image).mode())
