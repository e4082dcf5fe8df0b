"""Prompts whose words have weights, and which may be longer than the text encoder reads.

The syntax is that of AUTOMATIC1111's web UI: (red:1.3) counts 1.3 times, (red) 1.1 times, [red]
1 / 1.1 times; brackets in brackets multiply; \\( \\) \\[ \\] are plain brackets. A prompt of over
75 tokens is read in parts, and the UNet's cross-attention sees them all, one after the other.

    cond, uncond = prompts.encode(pipe, "a (red:1.3) boat", "blurry")
    pipe(prompt_embeds=cond, negative_prompt_embeds=uncond)

The pipeline itself takes brackets for text, as diffusers does.
"""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minisd.arguments import texts
from minisd.tokenizer import Tokenizer

if TYPE_CHECKING:
    from minisd.pipeline import StableDiffusionPipeline

Chunk = tuple[list[int], list[float]]  # 77 ids and their weights
MORE, LESS = 1.1, 1 / 1.1  # the web UI's weights of (red) and [red]
# An escaped bracket, a weight with its closing bracket, text without any, one other character.
SIGNS = re.compile(r"\\([()\[\]\\])|:\s*([-+]?(?:\d+\.?\d*|\.\d+))\s*\)|[^\\()\[\]:]+|.")


def pair(
    prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """b prompts, and for each its negative prompt, the empty text if none is given.

    Raises ValueError if there is no prompt, the numbers differ or something is no text.
    """
    prompts = texts("the prompt", prompt)
    negatives = "" if negative_prompt is None else negative_prompt
    single = isinstance(negatives, str)
    negatives = texts("the negative prompt", negatives) * (len(prompts) if single else 1)
    if not prompts or len(prompts) != len(negatives):
        raise ValueError(
            f"{len(prompts)} prompts and {len(negatives)} negative prompts given, expected "
            "at least one prompt, and one negative prompt for all or for each"
        )
    return prompts, negatives


def parse(prompt: str) -> list[tuple[str, float]]:
    """Texts and their weights: "a (red:1.3) boat" is ("a ", 1), ("red", 1.3), (" boat", 1).

    A bracket that nothing closes reaches to the end; one that closes nothing is text.
    """
    pieces: list[tuple[str, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # how many pieces are before each

    def close(bracket: str, weight: float) -> None:
        start = opened[bracket].pop()
        pieces[start:] = [(text, before * weight) for text, before in pieces[start:]]

    for sign in SIGNS.finditer(prompt):
        mark, (escaped, number) = sign[0], sign.groups()
        if mark in opened:
            opened[mark].append(len(pieces))
        elif number and opened["("]:
            close("(", float(number))
        elif mark == ")" and opened["("]:
            close("(", MORE)
        elif mark == "]" and opened["["]:
            close("[", LESS)
        else:
            pieces.append((escaped or mark, 1.0))
    for bracket, weight in (("(", MORE), ("[", LESS)):
        while opened[bracket]:
            close(bracket, weight)
    joined = groupby(pieces, key=lambda piece: piece[1])
    return [("".join(text for text, _ in group), weight) for weight, group in joined]


def chunks(tokenizer: Tokenizer, prompt: str) -> list[Chunk]:
    """The ids and weights of a prompt, 77 of each for every 75 tokens, at least once.

    Each chunk has its own START, END and padding, of weight 1. Unlike the web UI, which prefers to
    divide at a comma, the 76th token always begins the second chunk.
    """
    tokens = [(i, weight) for text, weight in parse(prompt) for i in tokenizer.ids(text)]
    room, found = tokenizer.context_length - 2, []
    for at in range(0, max(1, len(tokens)), room):
        ids = [i for i, _ in tokens[at : at + room]]
        weights = [weight for _, weight in tokens[at : at + room]]
        rest = room - len(ids)
        framed = [tokenizer.start_id, *ids, tokenizer.end_id, *[tokenizer.pad_id] * rest]
        found.append((framed, [1.0, *weights, *[1.0] * (1 + rest)]))
    return found


@torch.no_grad()
def encode(
    pipe: "StableDiffusionPipeline",
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None = None,
    clip_skip: int | None = None,
) -> tuple[Tensor, Tensor]:
    """b prompts to (cond, uncond), (b, k * 77, d) each, for prompt_embeds, negative_prompt_embeds.

    k is the number of chunks of the longest text; shorter ones are filled up with empty chunks. A
    token's embedding is multiplied by its weight, and nothing else changes: weights of 1 are exact.
    The web UI then multiplies the whole by its mean before over its mean after; this is left out,
    as the web UI can leave it out ("No norm"): the text encoder ends in a layer norm, so this mean
    is close to zero and the factor an accident. Raises ValueError as pipe.encode_prompt does.
    """
    prompts, negatives = pair(prompt, negative_prompt)
    found = [chunks(pipe.tokenizer, text) for text in prompts + negatives]
    k = max(len(parts) for parts in found)
    found = [parts + chunks(pipe.tokenizer, "") * (k - len(parts)) for parts in found]

    def encode_all(texts: list[list[Chunk]], skip: int) -> Tensor:
        encoded = []
        for parts in zip(*texts):  # chunk by chunk, each as the pipeline would encode it
            ids = torch.tensor([ids for ids, _ in parts], device=pipe.device)  # (b, 77)
            embeddings = pipe.text_encoder(ids, skip)  # (b, 77, d)
            weights = torch.tensor([w for _, w in parts]).to(embeddings)
            encoded.append(embeddings * weights[..., None])
        return torch.cat(encoded, dim=1)  # (b, k * 77, d)

    # As in the pipeline, only the positive prompt skips layers.
    b = len(prompts)
    return encode_all(found[:b], clip_skip or 0), encode_all(found[b:], 0)
