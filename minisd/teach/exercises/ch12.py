"""Chapter 12: image-to-image, inpainting, outpainting."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minisd.schedulers import DDIMScheduler, NoiseSchedule, Span
from minisd.teach.checks import Exercise, call, compare, seeded, sentences

# What image_to_image might return at strength 0, and why it does not; "" for what it does.
RETURNS = {
    "original": "the picture never reaches the loop as pixels: it is encoded first, and what comes "
    "back has to be decoded",
    "noise": "noise is added to the level of the first step that is run, and no step is run",
    "prompt": "the prompt speaks in the steps of the loop, and no step is run",
    "error": "0 is allowed: it asks for none of the steps, which is less than one but no mistake",
    "autoencoder": "",
}
# (steps, strength): whole and broken products, all steps, none, and one that floats miss by a hair.
CASES = ((50, 0.8), (30, 0.33), (20, 0.58), (7, 0.5), (10, 1.0), (10, 0.05), (4, 0.25), (100, 0.29))


def returned(answer: Any) -> str:
    """The check of 12.1."""
    if answer not in RETURNS:
        return f"{answer!r:.40} is none of the answers; they are {', '.join(RETURNS)}"
    return RETURNS[answer]


def start_index(answer: Any) -> str:
    """The check of 12.2."""
    given = [call(answer, n, strength) for n, strength in CASES]

    def each(rule: Callable[[int, float], float]) -> Tensor:
        return torch.tensor([float(rule(n, s)) for n, s in CASES])

    return compare(torch.tensor([float(i) for i in given]), each(lambda n, s: n - int(n * s)), {
        "that is how many steps are run; the index counts those that are skipped":
            each(lambda n, s: int(n * s)),
        "the product is rounded to the nearest; cut it off, as int does":
            each(lambda n, s: n - round(n * s)),
        "the product is rounded up; cut it off, as int does":
            each(lambda n, s: n - math.ceil(n * s)),
        "you cut off the steps that are skipped; cut off those that are run, int(n * strength), "
        "and skip the rest": each(lambda n, s: int(n * (1 - s))),
        "one too many: the first step that is run is skipped":
            each(lambda n, s: n - int(n * s) + 1),
        "one too few: the index counts from 0, so that strength 1 starts at index 0":
            each(lambda n, s: n - int(n * s) - 1),
        "strength 1 starts at index 0, and you skip a step there":
            each(lambda n, s: max(1, n - int(n * s))),
        "where not one step is left to run, the index is n, the end of the plan":
            each(lambda n, s: min(n - 1, n - int(n * s))),
        "that is a timestep; the index counts steps of the plan": each(lambda n, s: 1000 * s),
        "the index is a whole number: cut off n * strength": each(lambda n, s: n - n * s),
    }, tolerance=1e-5)  # fmt: skip


def at_level(x_0: Tensor, noise: Tensor, alpha_bar: float) -> Tensor:
    return alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * noise


Known = Callable[[Span, bool], Tensor]


def keep(answer: Any) -> str:
    """Checks one step in the middle of a run, and the last."""
    g, plan = seeded(123), DDIMScheduler(NoiseSchedule().config).plan(10)
    x_prev, x_0, noise = torch.randn(3, 2, 4, 4, 6, generator=g)
    cells = torch.zeros(2, 1, 4, 6)
    cells[0, :, 1:3, 2:5] = cells[1, :, 2:, :2] = 1
    moments = (plan[4], False), (plan[9], True)
    given = [call(answer, x_prev, x_0, noise, cells, *moment) for moment in moments]
    if not all(isinstance(x, Tensor) and x.shape == x_0.shape for x in given):
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in given]
        return f"it returns {shapes[0]}, expected latents {tuple(x_0.shape)}"

    def known(span: Span, last: bool) -> Tensor:
        return x_0 if last else at_level(x_0, noise, span.alpha_bar_prev)

    def at(level: str, ends_clean: bool = True) -> Known:
        return lambda s, last: (
            x_0 if last and ends_clean else at_level(x_0, noise, getattr(s, level))
        )

    def both(known: Known, old: Tensor = 1 - cells, new: Tensor = cells) -> Tensor:
        return torch.cat([old * known(*moment) + new * x_prev for moment in moments])

    return compare(torch.cat(given), both(known), {
        "the mask is the wrong way round: what is 1 is drawn, what is 0 is kept":
            both(known, old=cells, new=1 - cells),
        "the picture is put back clean in every step: noise it to the level just reached, or the "
        "model sees a picture of two noise levels": both(lambda s, last: x_0),
        "the picture is noised to the level before the step; x_prev is at alpha_bar_prev already":
            both(at("alpha_bar")),
        "after the last step the picture is put back clean, without noise":
            both(at("alpha_bar_prev", ends_clean=False)),
        "the old level, and noise even after the last step": both(at("alpha_bar", False)),
        "the step's own latents are missing where the mask is 1": both(known, new=0 * cells),
        "the picture is added everywhere; outside the mask alone, times (1 - cells)":
            both(known, old=torch.ones_like(cells)),
        "the step's latents stay outside the mask too: times cells":
            both(known, new=torch.ones_like(cells)),
        "nothing is put back: the picture is missing where the mask is 0":
            torch.cat([x_prev, x_prev]),
        "the noise is at full strength: it needs the factor sqrt(1 - alpha_bar_prev)":
            both(lambda s, last: x_0 if last else s.alpha_bar_prev**0.5 * x_0 + noise),
        "the square roots are missing": both(lambda s, last: x_0 if last else (
            s.alpha_bar_prev * x_0 + (1 - s.alpha_bar_prev) * noise)),
        "outside the mask is noise alone: where is the picture?":
            both(lambda s, last: x_0 if last else (1 - s.alpha_bar_prev) ** 0.5 * noise),
    }, tolerance=1e-5)  # fmt: skip


def kept_error(answer: Any) -> str:
    """The check of 12.4."""
    g = seeded(124)
    before, after = torch.rand(2, 1, 3, 16, 24, generator=g) * 2 - 1
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., 3:12, 5:20] = 1
    off, kept = after - before, (1 - mask).expand_as(before)
    right = (off.abs() * kept).sum() / kept.sum()
    return compare(call(answer, before, after, mask), right, {
        "that is the difference inside the mask; what is kept is where the mask is 0":
            (off.abs() * mask).sum() / (3 * mask.sum()),
        "that is the mean over the whole picture; leave out what is masked": off.abs().mean(),
        "the masked pixels count as right: divide by the number of kept ones only":
            (off.abs() * kept).mean(),
        "the mask has one channel and the picture three: the sum is over three times as many "
        "numbers as the mask has zeros": (off.abs() * kept).sum() / (1 - mask).sum(),
        "the differences cancel: take their absolute values first": (off * kept).sum() / kept.sum(),
        "that is the mean square; the mean absolute difference is asked for":
            (off.square() * kept).sum() / kept.sum(),
        "that is the largest difference; the mean is asked for": (off.abs() * kept).max(),
        "that is the sum; divide by how many numbers are kept": (off.abs() * kept).sum(),
    })  # fmt: skip


EXERCISES = {
    "12.1": Exercise(
        "predict",
        f"what does image_to_image return at strength 0? One of {', '.join(RETURNS)}",
        returned,
        "no step is run, so that encoder and decoder are all that touches the picture",
    ),
    "12.2": Exercise(
        "fill-in",
        "write start_index(n, strength): the index, in a plan of n steps, of the first that is run",
        start_index,
        "int(n * strength) steps are run, the last of the plan",
    ),
    "12.3": Exercise(
        "fill-in",
        "write keep(x_prev, x_0, noise, cells, span, last): the latents after a step, with the "
        "picture put back where cells is 0",
        keep,
        "the same noise level inside and outside, and clean at the end",
    ),
    "12.4": Exercise(
        "fill-in",
        "write kept_error(before, after, mask): the mean absolute difference where the mask is 0",
        kept_error,
        "a test for every inpainting program that promises to leave the rest alone",
    ),
    "12.5": Exercise(
        "open",
        "the red circle is to turn blue and keep its shape: which strength do you choose, and why?",
        sentences(),
        "to compare: the lowest strength at which the colour has changed in every seed; below it "
        "old and new colour mix, and with each step more the noise hides more of shape and place",
    ),
}
