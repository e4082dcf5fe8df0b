"""Chapter 09: cross-attention and attention maps."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.config import PICTUREBOOK, SD15
from minisd.picturebook.measures import auc
from minisd.teach.checks import Exercise, Wrong, as_numbers, call, compare, seeded, sentences
from minisd.unet import SpatialTransformer, UNet

CELLS, HEADS, TOKENS = 64 * 64, SD15.unet.heads[0], SD15.text_encoder.context_length
CROSS, OWN = HEADS * CELLS * TOKENS, HEADS * CELLS * CELLS  # numbers of SD's finest level


def counted(answer: Any) -> str:
    """The check of 09.1."""
    if not isinstance(answer, (list, tuple)) or len(answer) != 2:
        return "give two numbers: (of the cross-attention, of the self-attention)"
    cross, own = (int(value) for value in answer)
    if (cross, own) == (OWN, CROSS):
        return "these are the right two, the wrong way round: first the cross-attention's"
    for name, given, right, known in (
        ("cross-attention", cross, CROSS, {
            CROSS // HEADS: "this is one head; every head has probabilities of its own",
            HEADS * TOKENS * TOKENS: "tokens do not look at tokens here; every cell looks at them",
            HEADS * CELLS: "each cell has a probability for every token",
            HEADS * 64 * TOKENS: "the latents have 64 x 64 cells, not 64",
            HEADS * 512 * 512 * TOKENS: "the cells are those of the latents; the UNet sees no "
            "pixels",
            HEADS * CELLS * 768: "768 is the width of a token's vector; a probability belongs to "
            "the token as a whole",
        }),
        ("self-attention", own, OWN, {
            OWN // HEADS: "this is one head; every head has probabilities of its own",
            CROSS: "in self-attention the cells look at each other, not at the text",
            HEADS * CELLS: "each cell has a probability for every cell",
            HEADS * 64 * 64: "there are 64 x 64 cells that look, and as many to look at",
        }),
    ):  # fmt: skip
        if given != right:
            other = "heads x cells that look x what they can look at"
            return f"{name}: {known.get(given, other)}"
    return ""


def masked(answer: Any) -> str:
    """The check of 09.2."""
    draw = seeded(9)
    q, k, v = (2 * torch.randn(2, 3, size, 4, generator=draw) for size in (5, 7, 7))
    keep = torch.tensor([True, False, True, True, False, True, True])
    scores = q @ k.mT
    root = q.shape[-1] ** -0.5

    def hidden(values: Tensor, mask: Tensor = keep) -> Tensor:
        return values.masked_fill(~mask, float("-inf"))

    p = (scores * root).softmax(-1)
    right = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[None])
    given = call(answer, q, k, v, keep)
    if (numbers := as_numbers(given)) is not None and numbers.isnan().any():
        return (
            "it holds nan: a softmax of nothing but -inf. Does it run over the tokens, dim=-1, and "
            "does keep hide tokens and not cells?"
        )
    return compare(given, right, {
        "keep is not used: hidden tokens are still looked at": p @ v,
        "keep is the wrong way round: True may be looked at, False is hidden":
            hidden(scores * root, ~keep).softmax(-1) @ v,
        "the hidden tokens' scores are set to 0; exp(0) is 1, so they still count: use -inf":
            (scores * root * keep).softmax(-1) @ v,
        "the probabilities are set to 0 after the softmax, so that the rest no longer sums to 1":
            (p * keep) @ v,
        "the scale is missing: divide the scores by sqrt(d)": hidden(scores).softmax(-1) @ v,
        "the scores are divided by d, not by its square root":
            hidden(scores * root**2).softmax(-1) @ v,
        "the scale is that of all heads together; d is the width of one head":
            hidden(scores * (q.shape[1] * q.shape[-1]) ** -0.5).softmax(-1) @ v,
        "softmax runs over the cells; every cell's probabilities over the tokens sum to 1":
            ((scores * root).softmax(-2) * keep) @ v,
        "softmax is missing": (scores * root * keep) @ v,
        "these are the probabilities; the mean of the values is still to be taken":
            hidden(scores * root).softmax(-1),
        "the keys are taken for the values": hidden(scores * root).softmax(-1) @ k,
    })  # fmt: skip


def area(answer: Any) -> str:
    """The check of 09.3."""
    draw = seeded(90)
    mask = torch.rand(6, 6, generator=draw) < 0.4
    mask[0, 0], mask[5, 5] = True, False
    scores = (10 * torch.rand(6, 6, generator=draw) + 4 * mask).round() / 10  # with ties
    inside, outside = scores[mask], scores[~mask]
    difference = inside[:, None] - outside
    above, equal = (difference > 0).float().mean(), (difference == 0).float().mean()
    right = torch.tensor(auc(scores, mask))
    said = compare(call(answer, scores, mask), right, {
        "ties do not count at all; they count half": above,
        "ties count fully; they count half": above + equal,
        "the wrong way round: how often is a number inside larger than one outside?": 1 - right,
        "these are the wins as a number; divide by how many pairs there are":
            (above + equal / 2) * difference.numel(),
        "this is the difference of the two means; how often, not how much":
            inside.mean() - outside.mean(),
        "this is the share of the sum that lies inside": inside.sum() / scores.sum(),
        "this compares with the mean of the outside; compare with every number outside":
            (inside > outside.mean()).float().mean(),
        "this counts cells on the right side of a threshold; the AUC needs no threshold":
            ((scores > scores.mean()) == mask).float().mean(),
    })  # fmt: skip
    if said:
        return said
    corner = torch.eye(2) > 0
    for scores, value in ((torch.zeros(2, 2), 0.5), (torch.eye(2), 1.0)):
        given = as_numbers(call(answer, scores, corner))
        if given is None or (given - value).abs() > 1e-4:
            return f"the map {scores.tolist()} should have {value} with the mask [[1, 0], [0, 1]]"
    return ""


def layers() -> list[str]:
    """The text attention blocks of the shipped model's UNet, in its own order."""
    with torch.device("meta"):
        unet = UNet(PICTUREBOOK.unet)
    return [p for p, m in unet.named_modules() if isinstance(m, SpatialTransformer)]


def measured(answer: Any) -> str:
    """The check of 09.4: a number for each block; which is largest depends on the model."""
    if not isinstance(answer, dict) or not answer:
        return "give a dictionary: the path of a text attention block, how far the picture moved"
    known = layers()
    if unknown := [name for name in answer if name not in known]:
        return f"{unknown[0]!r} is not a text attention block; they are {', '.join(known)}"
    if missing := [name for name in known if name not in answer]:
        return f"{missing[0]} is still missing"
    values = as_numbers(list(answer.values()))
    if values is None or values.ndim != 1 or not values.isfinite().all():
        raise Wrong("each block has one number: how far the picture moved")
    if values.min() < 0:
        return "a distance is never below 0: take the root of the mean squared difference"
    if values.max() < 1e-4:
        return "nothing moved at all: does the block really get the second text?"
    if values.max() - values.min() < 1e-6:
        return "all are equal: set back one block's halves before the next has its turn"
    return ""


EXERCISES = {
    "09.1": Exercise(
        "predict",
        "SD 1.x, a picture of 512 x 512, the finest level (64 x 64 cells, 8 heads): how many "
        "probabilities does one cross-attention have, and one self-attention? A pair of numbers",
        counted,
        "the text costs little: 77 places to look at, and not 4096",
    ),
    "09.2": Exercise(
        "fill-in",
        "write attention(q, k, v, keep): q (b, heads, n, d), k and v (b, heads, m, d), keep (m,) "
        "of True and False; returns (b, heads, n, d)",
        masked,
        "the same numbers as F.scaled_dot_product_attention with this mask",
    ),
    "09.3": Exercise(
        "fill-in",
        "write my_auc(scores, mask), two tensors of one shape, mask of True and False: how often "
        "a number inside is larger than one outside, ties counting half",
        area,
        "and no threshold was needed for it",
    ),
    "09.4": Exercise(
        "open",
        "which text attention block carries the colour? A dictionary of all of them: path -> how "
        "far the picture moves when this block alone reads the other text",
        measured,
        "to compare: look at your largest, at where it stands (down, mid or up), and at all blocks "
        "together: is the whole more than any of its parts?",
    ),
    "09.5": Exercise(
        "open",
        "some tokens are hidden from the picture: what did you expect, what do the pictures show, "
        "why?",
        sentences(),
        "to compare: what a token says is also written, by the text encoder's own attention, in "
        "every token after it, in END and in the padding; hiding one row takes away one copy",
    ),
}
