"""Chapter 11: the full pipeline."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from minisd import images
from minisd.autoencoder import Autoencoder
from minisd.config import AutoencoderConfig, Defaults, TextEncoderConfig, UNetConfig
from minisd.noise import draw_noise
from minisd.pipeline import StableDiffusionPipeline
from minisd.schedulers import DDIMScheduler
from minisd.teach.checks import Exercise, call, compare, draws, seeded, sentences
from minisd.text_encoder import TextEncoder
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet

STEPS, SCALE = 4, 3.0
DEFAULTS = Defaults(STEPS, SCALE, height=32, width=32)
FAULTS = {  # of the autopsy: the name of a fault, and how it shows
    "text": "without the prompt comes a picture, but not of what was asked for",
    "once": "one prediction from pure noise is a blurred mean of many pictures, smooth and vague",
    "literal": "subtracted without a scale, too much noise goes: hard patches in loud colours",
    "short": "what was not denoised stays grain, with the picture already behind it",
    "scale": "latents that are too small lose contrast: everything is there, and pale",
    "shift": "where [-1, 1] is taken for [0, 1], all that is darker than middle grey is black",
    "colours": "red and blue change places, and every shape stays as it was",
}
NO_SEED = "it gives other pictures every time: each needs a generator, set to its seed"
PATIENTS = dict(zip("ABCDEFG", ("shift", "once", "text", "colours", "short", "scale", "literal")))


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
        vae = AutoencoderConfig(
            widths=(8, 8, 8, 8), layers_per_level=1, norm_groups=4, scaling_factor=0.4
        )  # not Stable Diffusion's factor, so that it has to be read
        networks = TextEncoder(text), UNet(unet), Autoencoder(vae)
    frozen = [network.eval().requires_grad_(False) for network in networks]
    return StableDiffusionPipeline(
        tokenizer, *frozen, DDIMScheduler(), DEFAULTS, progress_bar={"disable": True}
    )


def run(pipe: StableDiffusionPipeline, x_T: Tensor, cond: Tensor, uncond: Tensor,
        mistake: str = "", n: int = STEPS, scale: float = SCALE) -> Tensor:  # fmt: skip
    """The loop with one mistake in it, to be recognised by its result."""
    plan = pipe.scheduler.plan(n)
    plan = {"order": plan[::-1], "one": plan[:1], "short": plan[: 2 * n // 3]}.get(mistake, plan)
    texts = {"swap": (uncond, cond), "text": (uncond, uncond)}.get(mistake, (cond, uncond))
    scale = {"free": 1.0, "over": scale + 1}.get(mistake, scale)
    first, x_t, x_0 = pipe.predict(x_T, plan[0], *texts, scale), x_T, x_T
    for span in plan:
        eps = first if mistake == "once" else pipe.predict(x_t, span, *texts, scale)
        x_prev, x_0 = pipe.scheduler.step(eps, span, x_t)
        x_t = {"literal": x_t - eps, "fed": x_0, "stays": x_T}.get(mistake, x_prev)
    return {"x_0": x_0, "stays": x_prev}.get(mistake, x_t)


@torch.no_grad()
def loop(answer: Any) -> str:
    """The check of 11.1."""
    pipe, g = toy(), seeded(111)
    x_T = torch.randn(1, 4, 4, 4, generator=g)
    cond, uncond = torch.randn(2, 1, 77, 16, generator=g)
    given = call(answer, pipe, x_T, cond, uncond, STEPS, SCALE)
    *_, last = pipe.denoise(x_T, cond, uncond, STEPS, SCALE)
    mistakes = {
        "guidance is missing: the prediction without text is not used": "free",
        "the prompt is not used: cond is missing": "text",
        "cond and uncond are swapped: the loop runs away from the text": "swap",
        "the order is wrong: the plan begins at the noisiest timestep": "order",
        "the noise was predicted once, before the loop; predict it anew in every step": "once",
        "the loop stops after its first step": "one",
        "noise is subtracted literally; pipe.scheduler.step scales it": "literal",
        "that is the predicted x_0 of the last step; step returns (x_prev, x_0)": "x_0",
        "x_0 goes into the next step; it is x_prev that goes on": "fed",
        "every step begins at x_T again; the next one takes what this one returned": "stays",
        "guidance goes w times from the prediction without text, not from the one with it: "
        "without + w * (with - without)": "over",
    }
    wrong = {hint: run(pipe, x_T, cond, uncond, name) for hint, name in mistakes.items()}
    wrong |= {"the noise came back unchanged": x_T}
    advice = "try n = 1: one prediction, one step; then pipe.denoise(x_T, cond, uncond, 1, w)"
    return compare(given, last.x_prev, wrong, 1e-5, advice)


@torch.no_grad()
def picture(answer: Any) -> str:
    """The check of 11.2."""
    pipe, g = toy(), seeded(1111)
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
        "0.18215 is Stable Diffusion's factor; read the model's own, "
        "pipe.vae.config.scaling_factor": images.to_numpy(decode(z / 0.18215) * 1.5),
        "cut off before the shift, at 0: all that was below 0 is middle grey now; shift first":
            (decoded.clamp(0, 1) / 2 + 0.5).permute(0, 2, 3, 1),
        "these are bytes, 0 to 255; leave the numbers in [0, 1]":
            (right * 255, (right * 255).round(), (right * 255).floor()),
    }  # fmt: skip
    advice = "print the smallest and the largest number after every line"
    return compare(call(answer, pipe, z), right, as_rows, 1e-5, advice)


class _LoudVae:
    """The toy pipeline with a decoder that overshoots [-1, 1], as a trained one does at edges."""

    def __init__(self, pipe: StableDiffusionPipeline):
        self.pipe, self.vae, self.config = pipe, self, pipe.vae.config

    def decode(self, z: Tensor) -> Tensor:
        return self.pipe.vae.decode(z) * 1.5

    def decode_latents(self, latents: Tensor) -> Tensor:
        return self.decode(latents / self.config.scaling_factor)


class _Counted:
    """A pipeline that notes what each of its calls was told."""

    def __init__(self, pipe: StableDiffusionPipeline):
        self.pipe, self.calls = pipe, []

    def __call__(self, *given: Any, **settings: Any) -> Any:
        self.calls.append(settings)
        return self.pipe(*given, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)


@torch.no_grad()
def batch(answer: Any) -> str:
    """The check of 11.3."""
    pipe, prompts, seeds = toy(), ["a red boat", "a boat", "red"], [3, 1, 2]
    counted = _Counted(pipe)

    def latents(prompts: list[str], seeds: list[int], **settings: Any) -> Tensor:
        own = [torch.Generator().manual_seed(seed) for seed in seeds]
        given = own[0] if len(own) == 1 else own
        return pipe(prompts, generator=given, output_type="latent", **settings).images

    right = torch.cat([latents([p], [s]) for p, s in zip(prompts, seeds)])
    given = call(answer, counted, prompts, seeds)
    calls = counted.calls[:]
    hint = compare(given, right, {
        "one generator draws for the whole batch, so that only the first picture is as it would be "
        "alone; give the pipeline a list, one generator for each": latents(prompts, seeds[:1]),
        "all pictures start from the same noise: each has a seed of its own":
            latents(prompts, seeds[:1] * 3),
        "all pictures have the first prompt": latents(prompts[:1] * 3, seeds),
        "the seeds are sorted; a seed belongs to the prompt in its place":
            latents(prompts, sorted(seeds)),
        "the last comes first: keep the order of the prompts": right.flip(0),
        "the seeds come in the opposite order; a seed belongs to the prompt in its place":
            latents(prompts, seeds[::-1]),
        "the pictures are counted for seeds: use the seeds that are given":
            latents(prompts, [0, 1, 2]),
        "the guidance is not the pipeline's own: leave it out":
            latents(prompts, seeds, guidance_scale=1.0),
    }, advice="compare row by row with pipe([prompts[i]], generator=...)")  # fmt: skip
    if hint and any("num_inference_steps" in settings for settings in calls):
        return "the number of steps is not the pipeline's own: leave it out"
    if hint:
        return NO_SEED if draws(answer, counted, prompts, seeds) else hint
    if len(calls) > 1:
        return f"the right latents, but in {len(calls)} calls; give one call the whole lists"
    return ""


@torch.no_grad()
def patients(
    pipe: StableDiffusionPipeline, prompt: str, seed: int, n: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """A picture (3, h, w) in [-1, 1] and, by letter, what becomes of it by one fault each."""
    cond, uncond = pipe.encode_prompt(prompt)
    channels, side = pipe.unet.config.in_channels, pipe.vae.config.downscale
    shape = 1, channels, pipe.defaults.height // side, pipe.defaults.width // side
    x_T = draw_noise(shape, torch.Generator().manual_seed(seed), pipe.device, pipe.dtype)

    def drawn(mistake: str = "") -> Tensor:
        return run(pipe, x_T, cond, uncond, mistake, n, pipe.defaults.guidance_scale)

    latents = drawn()
    healthy = pipe.decode_latents(latents)[0]
    made = {fault: pipe.decode_latents(drawn(fault))[0]
            for fault in ("text", "once", "literal", "short")}  # fmt: skip
    made["scale"] = pipe.vae.decode(latents)[0]
    made["shift"] = 2 * healthy.clamp(0, 1) - 1
    made["colours"] = healthy.flip(0)
    return healthy, {letter: made[fault] for letter, fault in PATIENTS.items()}


def autopsy(answer: Any) -> str:
    """The check of 11.4."""
    if not isinstance(answer, dict):
        return 'give a dictionary, a fault for each letter: {"A": "short", "B": ...}'
    if missing := [letter for letter in PATIENTS if not answer.get(letter)]:
        return f"no fault is given for {', '.join(missing)}"
    if unknown := [name for name in answer.values() if name not in FAULTS]:
        return f"{unknown[0]!r} is no name of a fault; they are {', '.join(FAULTS)}"
    wrong = [letter for letter, fault in PATIENTS.items() if answer[letter] != fault]
    if not wrong:
        return ""
    claimed = answer[wrong[0]]
    count = len(PATIENTS) - len(wrong)
    return f"{count} of 7 are right. {wrong[0]} is not {claimed!r}: {FAULTS[claimed]}"


EXERCISES = {
    "11.1": Exercise(
        "fill-in",
        "write loop(pipe, x_T, cond, uncond, n, w) from pipe.scheduler.plan(n), pipe.unet and "
        "pipe.scheduler.step(eps, span, x_t): the final latents",
        loop,
        "equal to the pipeline's own latents",
    ),
    "11.2": Exercise(
        "fill-in",
        "write to_pixels(pipe, latents): scaled latents to pixels (b, h, w, 3) in [0, 1]",
        picture,
        "unscaled, decoded, shifted, cut off, channels last",
    ),
    "11.3": Exercise(
        "fill-in",
        "write batch(pipe, prompts, seeds): the final latents (b, 4, h/8, w/8) of one call of the "
        "pipeline, each picture as its prompt and its seed would give it alone",
        batch,
        "in company as alone: the same pictures",
    ),
    "11.4": Exercise(
        "predict",
        "seven pipelines, one fault in each: name the fault of every letter, as "
        '{"A": "short", "B": ...}',
        autopsy,
        "each fault has its own look, and names the line of code to read first",
    ),
    "11.5": Exercise(
        "open",
        "break one thing more, of your own choosing: what did you expect, what does the picture "
        "show, and why?",
        sentences(),
        "to compare: with the two texts exchanged, guidance leads away from the prompt, and the "
        "picture is of anything but what was asked for",
    ),
}
