"""Textual inversion: new words for a frozen model, each one vector or several.

The text encoder looks every token up in its table of embeddings; a new word is a new row of it.
[An Image is Worth One Word, section 3]
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from minisd.pipeline import StableDiffusionPipeline
    from minisd.text_encoder import TextEncoder


def set_table(text_encoder: "TextEncoder", table: Tensor) -> None:
    """Give the text encoder another table of embeddings, (vocabulary, d), and its size."""
    embedding = text_encoder.token_embedding
    embedding.weight = nn.Parameter(table, requires_grad=embedding.weight.requires_grad)
    embedding.num_embeddings = len(table)
    text_encoder.config = dataclasses.replace(text_encoder.config, vocab_size=len(table))


def check_new(pipe: "StableDiffusionPipeline", token: str, vectors: Tensor) -> None:
    """Raises ValueError if the vectors are for another model or the token is taken."""
    width = pipe.text_encoder.config.width
    if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != width:
        raise ValueError(
            f"the embedding of {token!r} is {tuple(vectors.shape)}, expected (n, {width}): it was "
            "made for another model"
        )
    if not isinstance(token, str) or not token.strip():
        raise ValueError(f"the token is {token!r}, expected letters, for example '<cat-toy>'")
    added = {other.lower() for other in pipe.tokenizer.added}
    known = pipe.tokenizer.backend.get_vocab()
    # One part more than there are vectors: with it in the vocabulary, the token would have it too.
    for part in [token, *(f"{token}_{i}" for i in range(1, len(vectors) + 1))]:
        if part in known or part.lower() in added:
            raise ValueError(
                f"{part!r} is in the vocabulary already; choose another name by token=, or call "
                "unload_textual_inversion() first"
            )
    base, _, number = token.rpartition("_")
    if number.isdigit() and base.lower() in added:
        raise ValueError(
            f"{token!r} would be read as a part of {base!r}; choose another name by token="
        )


def add_token(pipe: "StableDiffusionPipeline", token: str, vectors: Tensor) -> list[int]:
    """A new word for prompts; vectors: (n, d) its embedding. Returns the ids of its n parts.

    The tokenizer learns token, token_1, ..., token_(n-1) and reads the first as all of them; the
    table of embeddings gets a row for each. Raises ValueError if the token is in the vocabulary or
    the vectors are for another model.
    """
    check_new(pipe, token, vectors)
    table = pipe.text_encoder.token_embedding.weight.detach()
    ids = pipe.tokenizer.add([token, *(f"{token}_{i}" for i in range(1, len(vectors)))])
    # In between and not at the end: some models' tables have rows that no token uses.
    rows = [table[: ids[0]], vectors.detach().to(table), table[ids[0] :]]
    set_table(pipe.text_encoder, torch.cat(rows))
    return ids


def added_tokens(pipe: "StableDiffusionPipeline") -> list[str]:
    """The words that were added to a pipeline, without their further parts."""
    tokens = list(pipe.tokenizer.added)
    further = {part for token in tokens for part in pipe.tokenizer.parts(token)[1:]}
    return [token for token in tokens if token not in further]


def vectors_of(pipe: "StableDiffusionPipeline", token: str | None = None) -> tuple[str, Tensor]:
    """An added word, or the only one, and its embedding (n, d)."""
    tokens = added_tokens(pipe)
    token = tokens[0] if token is None and len(tokens) == 1 else token
    if token not in tokens:
        raise ValueError(f"no token {token!r} was added; those that were are {tokens}")
    added = pipe.tokenizer.added
    ids = [added[part] for part in pipe.tokenizer.parts(token)]
    return token, pipe.text_encoder.token_embedding.weight.detach()[ids]


def remove_tokens(
    pipe: "StableDiffusionPipeline", tokens: str | Sequence[str] | None = None
) -> None:
    """Forget added words, all of them if none is named; the model is as it was before them.

    Raises ValueError for a word that was not added.
    """
    tokens = [tokens] if isinstance(tokens, str) else tokens
    parts, added = [], pipe.tokenizer.added
    for token in added_tokens(pipe) if tokens is None else tokens:
        vectors_of(pipe, token)
        parts += pipe.tokenizer.parts(token)
    table = pipe.text_encoder.token_embedding.weight.detach()
    keep = torch.ones(len(table), dtype=torch.bool)
    keep[[added[part] for part in parts]] = False
    pipe.tokenizer.remove(parts)
    set_table(pipe.text_encoder, table[keep.to(table.device)])
