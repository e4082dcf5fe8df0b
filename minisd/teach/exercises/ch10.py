"""Chapter 10: classifier-free guidance."""

from typing import Any

import torch
from torch import Tensor

from minisd.teach.checks import Exercise, Wrong, call, compare, number, seeded, sentences

EXACT = 1e-5


def guided(answer: Any) -> str:
    """The check of 10.1."""
    u, c = torch.randn(2, 2, 4, 4, 4, generator=seeded(10))
    w, d = 4.0, c - u
    hint = compare(call(answer, u, c, w), u + w * d, {
        "that is the paper's formula, whose w is ours minus 1; here w = 1 is the prediction with "
        "text alone": u + (w + 1) * d,
        "the two are swapped: the line starts without text and goes towards the one with text":
            c - w * d,
        "the start is missing: eps_u + ...": w * d,
        "the sign is wrong: this goes away from the prediction with text": u - w * d,
        "w is not used: this is always the prediction with text": c,
        "the difference is missing: w times (eps_c - eps_u), not w times eps_c": u + w * c,
        "the prediction without text is missing: w times eps_c alone is only longer": w * c,
        "the sum is divided by 1 + w, a weighted mean; guidance goes beyond both":
            (u + w * c) / (1 + w),
        "eps_u is taken once from w eps_c; for w = 1 eps_c has to be left: (1 - w) eps_u + w eps_c":
            w * c - u,
    }, EXACT, "what has to come out at w = 1, and at w = 0?")  # fmt: skip
    for other in (0.0, 1.0, 7.5):
        if not hint and compare(call(answer, u, c, other), u + other * d, {}, EXACT):
            hint = f"right for w = 4, but not for w = {other:g}: is w a fixed number somewhere?"
    return hint


class Counted:
    """In the place of a UNet: its output depends on everything it is given, row by row."""

    def __init__(self):
        self.rows: list[int] = []

    def __call__(self, x_t: Tensor, t: Any, context: Tensor, record: Any = None) -> Tensor:
        if len(x_t) != len(context):
            raise Wrong(f"x_t has {len(x_t)} rows and the context {len(context)}; double both")
        self.rows.append(len(x_t))
        text = context.mean(dim=(1, 2)).reshape(-1, 1, 1, 1)
        return torch.tanh(x_t * (1 + text) + text + torch.as_tensor(t) / 1000)


def both(answer: Any) -> str:
    """The check of 10.2."""
    g, t, unet = seeded(102), 500, Counted()
    x_t = torch.randn(3, 4, 4, 4, generator=g)
    cond, uncond = 2 * torch.randn(2, 3, 7, 5, generator=g)
    given = call(answer, unet, x_t, t, cond, uncond)
    asked = list(unet.rows)
    u, c = unet(x_t, t, uncond), unet(x_t, t, cond)
    if isinstance(given, Tensor) and len(given) == 6:
        return "it returns the doubled batch as it is; cut it in two: both.chunk(2)"
    turned = unet(x_t.repeat_interleave(2, dim=0), t, torch.cat([uncond, cond])).chunk(2)
    hint = compare(given, torch.stack([u, c]), {
        "the pair is the wrong way round: (eps_u, eps_c), without text first":
            torch.stack([c, u]),
        "both are the prediction with text": torch.stack([c, c]),
        "both are the prediction without text": torch.stack([u, u]),
        "repeat_interleave puts the copies next to each other, so that pictures get the texts of "
        "others: torch.cat([x_t, x_t])": torch.stack(turned),
        "the guided prediction is already in it; return the two": torch.stack([u, u + c]),
        "the second of the pair is their difference; return eps_c": torch.stack([u, c - u]),
    }, EXACT)  # fmt: skip
    if not hint and asked != [6]:
        hint = (
            f"the numbers are right, with {len(asked)} calls; make it one, of a batch twice as "
            "long: torch.cat"
        )
    return hint


def smallest(answer: Any) -> str:
    """The check of 10.4."""
    scales = [7, 1, 12, 2, 4, 5]  # in any order
    shares = [0.85, 0.4, 0.6, 0.75, 0.85, 0.95]
    right = torch.stack([torch.arange(20) < round(20 * share) for share in shares])
    given = call(answer, scales, right, 0.75)
    return compare(given, torch.tensor(2.0), {
        "at least `wanted`: a share that is just reached counts too": 4,
        "that is the first of the list that reaches it; the scales come in any order": 7,
        "that is the scale with the largest share; a smaller one reaches `wanted` as well": 5,
        "that is the number of the row; return its scale": 3,
        "that is the share; return the scale that has it": (0.75, 0.95),
        "that is the smallest of all scales; its share has to be at least `wanted`": 1,
        "that is the largest scale; the smallest that reaches `wanted` is asked for": 12,
        "that is a count of pictures; return the scale": (15, 19),
    }, EXACT, "print the share of each scale first")  # fmt: skip


EXERCISES = {
    "10.1": Exercise(
        "fill-in",
        "write guided(eps_u, eps_c, w): on the line from the prediction without text through the "
        "one with text, w times as far",
        guided,
        "w = 0 is without text, w = 1 with it, and beyond lies guidance",
    ),
    "10.2": Exercise(
        "fill-in",
        "write both(unet, x_t, t, cond, uncond): the pair (eps_u, eps_c) by one call of the "
        "network, on a doubled batch",
        both,
        "one call, twice as many evaluations, the same numbers",
    ),
    "10.3": Exercise(
        "predict",
        "30 steps, guided in 10 of them: how many evaluations of the network for one picture?",
        number(40, 0.4, {
            "that is guidance in every step": 60,
            "those are the calls; a guided call evaluates the network twice": 30,
            "the steps without guidance count too, once each": 20,
            "that is the other way round: 20 guided steps and 10 without": 50,
            "those are the guided calls alone": 10,
        }, "count the steps with guidance twice, and the others once"),
        "10 twice and 20 once: a third less than with guidance everywhere",
    ),
    "10.4": Exercise(
        "fill-in",
        "write smallest(scales, right, wanted): the smallest scale at which at least that share of "
        "the pictures is right",
        smallest,
        "now ask it about the real measurement",
    ),
    "10.5": Exercise(
        "open",
        "which scale would you give this model as its default, and by which of the figures?",
        sentences(),
        "to compare: the smallest scale whose accuracy is as good as the best, within the error "
        "bars; beyond it the pictures only lose variety, and at last their ground",
    ),
}  # fmt: skip
