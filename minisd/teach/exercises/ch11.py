"""Chapter 11: the full pipeline."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from minisd import images
from minisd.autoencoder import Autoencoder
from minisd.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from minisd.pipeline import StableDiffusionPipeline
from minisd.schedulers import DDIMScheduler
from minisd.teach.checks import Exercise, call, compare, sentences
from minisd.text_encoder import TextEncoder
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet

STEPS, SCALE = 4, 3.0


@cache
def toy() -> StableDiffusionPipeline:
    """A pipeline of random weights and few of them: what a loop computes does not depend on it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        tokenizer = Tokenizer.train(["a red boat"], merges=4)
        text = TextEncoderConfig(tokenizer.vocab_size, width=16, layers=1, heads=2, mlp_width=32)
        unet = UNetConfig(
            widths=(16, 32), layers_per_level=1, attention=(True, False), heads=(2, 2),
            context_width=16, norm_groups=8,
        )  # fmt: skip
        vae = AutoencoderConfig(widths=(8, 8, 8, 8), layers_per_level=1, norm_groups=4)
        networks = TextEncoder(text), UNet(unet), Autoencoder(vae)
    frozen = [network.eval().requires_grad_(False) for network in networks]
    return StableDiffusionPipeline(tokenizer, *frozen, DDIMScheduler())


def calls(answer: Any) -> str:
    given = tuple(int(n) for n in answer)
    return {
        (20, 40): "",
        (40, 40): "both predictions of a step are made in one call, on a batch of two",
        (40, 20): "the other way round: every call evaluates two predictions",
        (20, 20): "with guidance, every step needs two predictions: with text and without",
        (1, 20): "the UNet is called once in every step",
        (21, 42): "the text encoder and the decoder run too, but they are not the UNet",
    }.get(given, "give a pair (calls, evaluations): 20 steps, each with text and without")


def guide(answer: Any) -> str:
    g = torch.Generator().manual_seed(11)
    u, c = torch.randn(2, 1, 4, 4, 4, generator=g)
    w = 5.0
    return compare(call(answer, u, c, w), u + w * (c - u), {
        "the start is wrong: one goes from the prediction without text, so that w = 1 gives the "
        "one with text": c + w * (c - u),
        "with and without text are swapped": c + w * (u - c),
        "the direction is wrong: it points away from the text": u - w * (c - u),
        "the difference is missing: only what the text changes is multiplied by w": u + w * c,
        "the start is missing: add the difference to the prediction without text": w * (c - u),
        "w is not used: this is the prediction with text, w = 1": c,
        "this is a mean of the two; guidance goes on past the prediction with text": (u + c) / 2,
    })  # fmt: skip


def run(pipe: StableDiffusionPipeline, x_T: Tensor, cond: Tensor, uncond: Tensor,
        mistake: str = "") -> Tensor:  # fmt: skip
    """The loop with one mistake in it, to be recognised by its result."""
    plan = pipe.scheduler.plan(STEPS)
    if mistake == "order":
        plan = plan[::-1]
    first, x_t, x_0 = pipe.predict(x_T, plan[0], cond, uncond, SCALE), x_T, x_T
    for span in plan[:1] if mistake == "one" else plan:
        if mistake == "swap":
            eps = pipe.predict(x_t, span, uncond, cond, SCALE)
        else:
            eps = pipe.predict(x_t, span, cond, uncond, 1.0 if mistake == "free" else SCALE)
        eps = first if mistake == "stale" else eps
        x_prev, x_0 = pipe.scheduler.step(eps, span, x_t)
        x_t = x_t - eps if mistake == "literal" else x_prev
    return x_0 if mistake == "x_0" else x_t


@torch.no_grad()
def loop(answer: Any) -> str:
    pipe, g = toy(), torch.Generator().manual_seed(111)
    x_T = torch.randn(1, 4, 4, 4, generator=g)
    cond, uncond = torch.randn(2, 1, 77, 16, generator=g)
    given = call(answer, pipe, x_T, cond, uncond, STEPS, SCALE)
    *_, last = pipe.denoise(x_T, cond, uncond, STEPS, SCALE)
    mistakes = {
        "guidance is missing: the prediction without text is not used": "free",
        "cond and uncond are swapped: the loop runs away from the text": "swap",
        "the order is wrong: the plan begins at the noisiest timestep": "order",
        "the noise was predicted once, before the loop; predict it anew in every step": "stale",
        "the loop stops after its first step": "one",
        "noise is subtracted literally; pipe.scheduler.step scales it": "literal",
        "that is the predicted x_0 of the last step; step returns (x_prev, x_0)": "x_0",
    }
    wrong = {hint: run(pipe, x_T, cond, uncond, name) for hint, name in mistakes.items()}
    return compare(given, last.x_prev, wrong | {"the noise came back unchanged": x_T}, 1e-5)


@torch.no_grad()
def picture(answer: Any) -> str:
    pipe, g = toy(), torch.Generator().manual_seed(1111)
    z = torch.randn(1, 4, 2, 3, generator=g)  # not square: height and width cannot be confused
    factor = pipe.vae.config.scaling_factor
    decoded = pipe.vae.decode(z / factor) * 1.5
    decode, pipe = pipe.vae.decode, _LoudVae(pipe)
    right = torch.from_numpy(images.to_numpy(decoded))
    as_rows = {
        "the latents are not unscaled: divide them by pipe.vae.config.scaling_factor first":
            images.to_numpy(decode(z) * 1.5),
        "the latents are multiplied by the scaling factor; they are to be divided":
            images.to_numpy(decode(z * factor) * 1.5),
        "the decoder's numbers lie in [-1, 1]; halve them and add 1/2": decoded.permute(0, 2, 3, 1),
        "they are cut off at 0 but never shifted: [-1, 1] becomes [0, 1] by x / 2 + 1/2":
            decoded.clamp(0, 1).permute(0, 2, 3, 1),
        "some numbers lie outside [0, 1]; cut them off":
            (decoded / 2 + 0.5).permute(0, 2, 3, 1),
        "the channels come last in a picture: (b, h, w, 3)": (decoded / 2 + 0.5).clamp(0, 1),
        "height and width are swapped": right.transpose(1, 2),
    }  # fmt: skip
    return compare(call(answer, pipe, z), right, as_rows, 1e-5)


class _LoudVae:
    """The toy pipeline with a decoder that overshoots [-1, 1], as a trained one does at edges."""

    def __init__(self, pipe: StableDiffusionPipeline):
        self.pipe, self.vae, self.config = pipe, self, pipe.vae.config

    def decode(self, z: Tensor) -> Tensor:
        return self.pipe.vae.decode(z) * 1.5

    def decode_latents(self, latents: Tensor) -> Tensor:
        return self.decode(latents / self.config.scaling_factor)


EXERCISES = {
    "11.1": Exercise(
        "predict",
        "20 steps with guidance: how many (calls, evaluations) of the UNet? Give the pair",
        calls,
        "20 calls on a doubled batch, 40 evaluations; encoder and decoder run once",
    ),
    "11.2": Exercise(
        "fill-in",
        "write guide(uncond, cond, w): the guided prediction",
        guide,
        "w = 0 is without text, w = 1 with it, and beyond 1 it goes on",
    ),
    "11.3": Exercise(
        "fill-in",
        "write loop(pipe, x_T, cond, uncond, n, w) from pipe.scheduler.plan(n), pipe.unet and "
        "pipe.scheduler.step(eps, span, x_t): the final latents",
        loop,
        "equal to the pipeline's own latents",
    ),
    "11.4": Exercise(
        "fill-in",
        "write picture(pipe, latents): scaled latents to pixels (b, h, w, 3) in [0, 1]",
        picture,
        "unscaled, decoded, shifted, cut off, channels last",
    ),
    "11.5": Exercise(
        "open",
        "leave out one thing at a time (guidance, 1 / scaling factor, the last step, the order of "
        "the timesteps): how can each be told from its picture?",
        sentences(),
        "to compare: without guidance a plausible picture of something else; without unscaling "
        "flat grey; without the last step faint grain; in the wrong order noise",
    ),
}
