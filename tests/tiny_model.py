"""A model as small as the classes allow, for what is saved, loaded and drawn in many tests."""

import torch

from minisd import DDIMScheduler, StableDiffusionPipeline
from minisd.autoencoder import Autoencoder
from minisd.config import AutoencoderConfig, ScheduleConfig, TextEncoderConfig, UNetConfig
from minisd.pipeline import Defaults
from minisd.text_encoder import TextEncoder
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet

SENTENCES = ["a red boat at sunset", "a blue bird over a green house by the sea"]


def tiny_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """Random weights; pictures of 32 x 32 in 3 steps."""
    tokenizer = Tokenizer.train(SENTENCES, merges=20)
    torch.manual_seed(seed)
    text_config = TextEncoderConfig(
        vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2, mlp_width=32
    )
    unet_config = UNetConfig(
        widths=(16, 32), layers_per_level=1, attention=(True, False), heads=(2, 2),
        context_width=16, norm_groups=8,
    )  # fmt: skip
    vae_config = AutoencoderConfig(widths=(8, 8, 8, 8), layers_per_level=1, norm_groups=4)
    return StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=TextEncoder(text_config).eval().requires_grad_(False),
        unet=UNet(unet_config).eval().requires_grad_(False),
        vae=Autoencoder(vae_config).eval().requires_grad_(False),
        scheduler=DDIMScheduler(ScheduleConfig()),
        defaults=Defaults(num_inference_steps=3, guidance_scale=4.0, height=32, width=32),
        family="picture-book",
        progress_bar={"disable": True},
    )
