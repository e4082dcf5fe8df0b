"""Three small autoencoders that keep more or fewer numbers, each grown out of the one before."""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.autoencoder import Autoencoder
from minisd.config import AutoencoderConfig
from minisd.layers import Downsample, ResnetBlock, Upsample
from minisd.picturebook import data, world
from minisd.training import TrainConfig, descend

FACTORS, WIDTHS = (4, 8, 16), (8, 16, 32, 32, 32)
SIDE, CROP = 64, 32  # pixels
KL_WEIGHT = 1e-4  # of the mean KL divergence of one number
PLAN = TrainConfig(1500, 8, 2e-3, warmup_steps=50, decay_fraction=0.6)


def pictures(count: int, seed: int = 0) -> Tensor:
    """Small pictures of the picture book, (count, 3, 64, 64) in [-1, 1]."""
    drawn = [world.example(i, seed, size=SIDE).image for i in range(count)]
    return data.to_range(data.to_tensor(drawn))


def small(f: int, smaller: Autoencoder | None = None) -> Autoencoder:
    """The library's autoencoder with few channels, f pixels to a side of a latent's cell.

    The residual blocks begin by adding nothing and the resampling by keeping pixels as they are,
    which saves most of the training. With the network of f / 2 as `smaller`, all of its layers are
    taken over, and the new level is inside. Raises ValueError for another f than 4, 8, 16.
    """
    if f not in FACTORS:
        raise ValueError(f"f is {f}, expected one of {FACTORS}")
    levels = f.bit_length()
    config = AutoencoderConfig(widths=WIDTHS[:levels], layers_per_level=1, norm_groups=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = Autoencoder(config)
    for layer in vae.modules():
        if isinstance(layer, ResnetBlock):
            nn.init.zeros_(layer.conv2.weight)
            nn.init.zeros_(layer.conv2.bias)
        elif isinstance(layer, (Downsample, Upsample)):
            nn.init.dirac_(layer.weight)
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        vae.quant_conv.bias[config.latent_channels :] = -4.0  # little noise before it is learned
    if smaller is not None:
        vae.load_state_dict(one_level_in(smaller.state_dict()), strict=False)
    return vae


def one_level_in(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names that they have in a network with one level more.

    The encoder counts its levels from the picture, the decoder from the latent.
    """
    return {
        re.sub(r"(?<=^decoder\.up\.)\d+", lambda m: str(int(m[0]) + 1), name): weight
        for name, weight in weights.items()
    }


def crops(book: Tensor, generator: torch.Generator) -> Tensor:
    """A batch of pictures, the same part of each: (8, 3, 32, 32)."""
    picked = torch.randint(len(book), (PLAN.batch_size,), generator=generator)
    y, x = torch.randint(SIDE - CROP + 1, (2,), generator=generator).tolist()
    return book[picked, :, y : y + CROP, x : x + CROP]


def train(f: int, smaller: Autoencoder | None = None, plan: TrainConfig = PLAN) -> dict[str, Any]:
    """Train the network of `small`, for train_or_load: "weights" in half precision, "errors"."""
    vae, book, errors = small(f, smaller), pictures(1000), []
    optimizer = torch.optim.AdamW(vae.parameters(), weight_decay=plan.weight_decay)
    generator = torch.Generator().manual_seed(plan.seed)
    for step in range(plan.steps):
        x = crops(book, generator)
        posterior = vae.encode(x)
        error = F.mse_loss(vae.decode(posterior.sample(generator)), x)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        descend(vae, error + KL_WEIGHT * kl, optimizer, plan.rate(step), f"step {step} of f = {f}")
        errors.append(error.item())
    return {"weights": {name: w.half() for name, w in vae.state_dict().items()}, "errors": errors}


def load(f: int, result: dict[str, Any]) -> Autoencoder:
    """The network that `train` trained, at rest."""
    vae = small(f)
    vae.load_state_dict(result["weights"])
    return vae.eval().requires_grad_(False)
