"""Tiny models whose sizes shapes tell as they do the official ones', and their single files."""

import dataclasses

import torch
from safetensors.torch import save_file
from tiny import randomise

from minisd import DDIMScheduler, StableDiffusionPipeline
from minisd.autoencoder import Autoencoder
from minisd.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from minisd.text_encoder import TextEncoder
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet
from weights_convert.compvis import ema_key, tensors_of
from weights_convert.families import UNET as PREFIX

UNET = UNetConfig(widths=(32, 64), layers_per_level=1, attention=(True, False), heads=(8, 8),
                  context_width=64)  # fmt: skip
UNET_2 = UNetConfig(widths=(64, 128), layers_per_level=1, attention=(True, False), heads=(1, 2),
                    context_width=1024, linear_projection=True)  # fmt: skip
VAE = AutoencoderConfig(widths=(32, 64), layers_per_level=1)
# What the official file has beside weights: 12 buffers of the schedule.
BUFFERS = """betas alphas_cumprod alphas_cumprod_prev sqrt_alphas_cumprod
sqrt_one_minus_alphas_cumprod log_one_minus_alphas_cumprod sqrt_recip_alphas_cumprod
sqrt_recipm1_alphas_cumprod posterior_variance posterior_log_variance_clipped
posterior_mean_coef1 posterior_mean_coef2""".split()


def official(family: str = "sd-1", **unet) -> StableDiffusionPipeline:
    """A random tiny model of SD 1.x or 2.x; `unet` replaces sizes of the UNet."""
    tokenizer = Tokenizer.train(["a red boat on the sea", "a yellow star at night"] * 3, 30)
    second = family == "sd-2"
    width, heads, activation = (1024, 16, "gelu") if second else (64, 1, "quick_gelu")
    text = TextEncoderConfig(tokenizer.vocab_size, width=width, layers=2, heads=heads,
                             mlp_width=96, activation=activation)  # fmt: skip
    sizes = dataclasses.replace(UNET_2 if second else UNET, **unet)
    return StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=randomise(TextEncoder(text), 1),
        unet=randomise(UNet(sizes), 2),
        vae=randomise(Autoencoder(VAE), 3),
        scheduler=DDIMScheduler(),
        family=family,
        progress_bar={"disable": True},
    )


def state_of(pipe: StableDiffusionPipeline, ema: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of an official file: extras too, and averages of the UNet, here negatives."""
    state = tensors_of(pipe.networks)
    state |= {name: torch.ones(1000) for name in BUFFERS}
    state["cond_stage_model.logit_scale"] = torch.tensor(4.6)
    if ema:
        plain = {key: value for key, value in state.items() if key.startswith(PREFIX)}
        state |= {ema_key(key): -value for key, value in plain.items()}
        state |= {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(9)}
    return state


def write(state, path, wrapped=True, **more):
    """A .safetensors or a .ckpt, by the name, without a note of ours."""
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path, **more)
    else:
        torch.save({"state_dict": state, "global_step": 3} if wrapped else state, path, **more)
    return path
