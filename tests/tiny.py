"""A random pipeline of our own, small enough for a law a second."""

import torch

from minisd import DDIMScheduler, StableDiffusionPipeline
from minisd.autoencoder import Autoencoder
from minisd.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from minisd.pipeline import Defaults
from minisd.text_encoder import TextEncoder
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet

UNET = UNetConfig(
    widths=(16, 32), attention=(True, True), heads=(2, 4), context_width=24, norm_groups=4
)
VAE = AutoencoderConfig(widths=(8, 16, 16, 16), layers_per_level=1, norm_groups=4)


def randomise(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Every parameter random, norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        spread = 0.1 if value.ndim == 1 else value[0].numel() ** -0.5
        value.data = spread * noise + float("norm" in name and name.endswith("weight"))
    return network.eval().requires_grad_(False)


def pipeline(**parts) -> StableDiffusionPipeline:
    tokenizer = Tokenizer.train(["a red boat on the sea", "a yellow star at night"] * 3, 30)
    text = TextEncoderConfig(
        vocab_size=tokenizer.vocab_size, width=24, layers=3, heads=2, mlp_width=48
    )
    made = {
        "tokenizer": tokenizer,
        "text_encoder": randomise(TextEncoder(text), 1),
        "unet": randomise(UNet(UNET), 2),
        "vae": randomise(Autoencoder(VAE), 3),
        "scheduler": DDIMScheduler(),
        "defaults": Defaults(4, 5.0, 64, 64),
        "progress_bar": {"disable": True},
    }
    return StableDiffusionPipeline(**{**made, **parts})
