"""Cross-attention on the picture: where each word is looked for, by word, layer and step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from minisd.tokenizer import END_OF_WORD, Tokenizer
from minisd.viz.figure import MAGNITUDE, WIDTH, Figure, Picture, as_pil, numbers, sheet, wrap

SUFFIX = "cross_attn.probabilities"
PLACE = {"extent": (0, 1, 0, 1), "aspect": "auto", "interpolation": "nearest"}  # of imshow


def word_positions(tokenizer: Tokenizer, prompt: str, word: str) -> list[int]:
    """The places of a word's pieces in the 77 tokens; START is 0. Its first occurrence counts.

    Raises ValueError if the prompt does not hold the word, or it was cut.
    """
    places: list[int] = []
    spelled = ""
    for place, piece in enumerate(tokenizer.tokens(prompt), 1):
        places.append(place)
        spelled += piece.removesuffix(END_OF_WORD)
        if piece.endswith(END_OF_WORD):
            if spelled == word.lower() and place < tokenizer.context_length - 1:
                return places
            places, spelled = [], ""
    raise ValueError(f"{word!r} is not a word of {prompt!r}, or lies past its last kept token")


def word_map(
    probabilities: Tensor,
    positions: Sequence[int],
    row: int = -1,
    shape: tuple[int, int] | None = None,
) -> Tensor:
    """How much each image token looks at these text tokens: the mean over heads, the sum over a
    word's pieces.

    probabilities: (b, heads, n, m) from a record; `row` chooses the picture: -1 is the last, in a
    guided call the one with text. `shape` is (h, w) of the layer, a square if left out.
    Returns (h, w).
    """
    looks = probabilities[row].detach().cpu().float().mean(dim=0)[:, list(positions)].sum(dim=-1)
    side = int(len(looks) ** 0.5)
    h, w = shape or (side, side)
    if h * w != len(looks):
        raise ValueError(
            f"the layer has {len(looks)} image tokens, which are not {h} x {w}; give shape=(h, w)"
        )
    return rearrange(looks, "(h w) -> h w", h=h)


def cross_layers(record: Mapping[str, Any]) -> list[str]:
    """The cross-attention layers of a record, in the order in which they ran."""
    return [path.removesuffix(".probabilities") for path in record if path.endswith(SUFFIX)]


def attention_over(
    picture: Picture,
    maps: Sequence[Tensor],
    titles: Sequence[str],
    *,
    alt: str,
    limit: float | None = None,
    caption: str = "",
) -> Figure:
    """A picture, then maps (h, w) of any size laid over it: bright where looked at, else dark.

    `limit` is the probability drawn brightest, for all panels alike; without it, each panel's own
    largest, which is written under it.
    """
    pil = as_pil(picture)
    grey, names = pil.convert("L").convert("RGB"), ["picture", *titles]
    columns, gap = min(len(names), 6), 8
    rows = -(-len(names) // columns)
    wide = min(180.0, (WIDTH - 90) / columns - gap)
    high = wide * pil.height / pil.width
    names = [wrap(name, wide - 4, 8) for name in names]
    head = 18 + 14 * max(name.count("\n") for name in names)
    pitch = head + high + 24
    with sheet(max(20 + columns * (wide + gap) + 60, 300), rows * pitch + 8, alt, caption) as page:
        for i, name in enumerate(names):
            x, y = 10 + i % columns * (wide + gap), i // columns * pitch + head
            axes = page.picture(x, y, wide, high)
            page.text(x + wide / 2, y - 4, name, ha="center", fontsize=8)
            axes.imshow(np.asarray(grey if i else pil), **PLACE)
            if i == 0:
                continue
            one = numbers(maps[i - 1])
            top = max(one.max(), 1e-12) if limit is None else limit
            mapped = axes.imshow(one, MAGNITUDE, vmin=0, vmax=top, alpha=0.72, **PLACE)
            note = f"max {one.max():.3f}"
            page.text(x + wide / 2, y + high + 3, note, ha="center", va="top", fontsize=8)
        bar = page.color_bar(mapped, 10 + columns * (wide + gap) + 4, head, high)
        if limit is None:
            bar.set_ticks([0, top], labels=["0", "max"])
        return page.finish()


def attention_words(
    picture: Picture,
    record: Mapping[str, Any],
    layer: str,
    words: Mapping[str, Sequence[int]],
    *,
    alt: str,
    row: int = -1,
    limit: float | None = None,
    caption: str = "",
) -> Figure:
    """One layer, a panel for each word (word -> its places, by word_positions)."""
    shape = layer_shape(record, layer, picture)
    maps = [word_map(_probabilities(record, layer), p, row, shape) for p in words.values()]
    return attention_over(picture, maps, list(words), alt=alt, limit=limit, caption=caption)


def attention_layers(
    picture: Picture,
    record: Mapping[str, Any],
    positions: Sequence[int],
    layers: Sequence[str] | None = None,
    *,
    alt: str,
    row: int = -1,
    limit: float | None = None,
    caption: str = "",
) -> Figure:
    """One word, a panel for each cross-attention layer: all of them unless `layers` are named."""
    layers = cross_layers(record) if layers is None else layers
    shapes = [layer_shape(record, layer, picture) for layer in layers]
    maps = [word_map(_probabilities(record, p), positions, row, s) for p, s in zip(layers, shapes)]
    titles = [f"{p.removesuffix('.block.cross_attn')} {h}x{w}" for p, (h, w) in zip(layers, shapes)]
    return attention_over(picture, maps, titles, alt=alt, limit=limit, caption=caption)


def attention_steps(
    pictures: Sequence[Picture] | Picture,
    records: Mapping[str, Mapping[str, Any]],
    layer: str,
    positions: Sequence[int],
    *,
    alt: str,
    row: int = -1,
    limit: float | None = None,
    caption: str = "",
) -> Figure:
    """One word in one layer, a panel for each step (its title -> its record)."""
    picture = pictures[-1] if isinstance(pictures, (list, tuple)) else pictures
    maps = [
        word_map(_probabilities(r, layer), positions, row, layer_shape(r, layer, picture))
        for r in records.values()
    ]
    return attention_over(picture, maps, list(records), alt=alt, limit=limit, caption=caption)


def layer_shape(record: Mapping[str, Any], layer: str, picture: Picture) -> tuple[int, int]:
    """(h, w) of an attention layer: of its own output in the record, else by the picture's form."""
    output = record.get(layer.removesuffix(".block.cross_attn"))
    if isinstance(output, torch.Tensor) and output.ndim == 4:
        return output.shape[-2], output.shape[-1]
    n, pil = _probabilities(record, layer).shape[-2], as_pil(picture)
    h = round((n * pil.height / pil.width) ** 0.5)
    return h, n // max(h, 1)


def _probabilities(record: Mapping[str, Any], layer: str) -> Tensor:
    if f"{layer}.probabilities" not in record:
        raise ValueError(f"the record has no layer {layer!r}; it has {cross_layers(record)}")
    return record[f"{layer}.probabilities"]
