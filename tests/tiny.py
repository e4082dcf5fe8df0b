"""A random pipeline of our own, small enough for a law a second."""

import dataclasses

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


def pipeline(seed: int = 0, **parts) -> StableDiffusionPipeline:
    """Random weights; pictures of 64 x 64 in 4 steps. `parts` replace what is made here."""
    tokenizer = Tokenizer.train(["a red boat on the sea", "a yellow star at night"] * 3, 30)
    text = TextEncoderConfig(
        vocab_size=tokenizer.vocab_size, width=24, layers=3, heads=2, mlp_width=48
    )
    made = {
        "tokenizer": tokenizer,
        "text_encoder": randomise(TextEncoder(text), 3 * seed + 1),
        "unet": randomise(UNet(UNET), 3 * seed + 2),
        "vae": randomise(Autoencoder(VAE), 3 * seed + 3),
        "scheduler": DDIMScheduler(),
        "defaults": Defaults(4, 5.0, 64, 64),
        "progress_bar": {"disable": True},
    }
    return StableDiffusionPipeline(**{**made, **parts})


def inpainting() -> StableDiffusionPipeline:
    """A tiny random model made for inpainting: its UNet sees 9 channels."""
    pipe = picture_book()
    torch.manual_seed(1)
    config = dataclasses.replace(pipe.unet.config, in_channels=9)
    pipe.unet = UNet(config).eval().requires_grad_(False)
    return pipe


def picture_book(seed: int = 0) -> StableDiffusionPipeline:
    """What passes for the shipped model; pictures of 32 x 32 in 3 steps."""
    defaults = Defaults(num_inference_steps=3, guidance_scale=4.0, height=32, width=32)
    return pipeline(seed, defaults=defaults, family="picture-book")
