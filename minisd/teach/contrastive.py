"""The small CLIP of chapter 07: pictures of one thing in one colour, captions that say which.

The captions, "a red boat", never mention the ground: what a caption leaves out is no help in
telling pictures apart.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.config import TextEncoderConfig
from minisd.picturebook import data, scenes, world
from minisd.picturebook.captions import PHRASES, article
from minisd.picturebook.clip import CLIP, ImageEncoder, contrastive_loss
from minisd.tokenizer import Tokenizer
from minisd.training import TrainConfig, descend

OBJECTS = (
    "circle", "square", "triangle", "star", "heart", "ring", "house", "tree", "flower", "boat",
    "fish", "moon", "car", "bird",
)  # fmt: skip
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
GROUNDS = ("white", "gray", "black")
SIDE = 32  # pixels
ALL = tuple(product(OBJECTS, COLORS))
HELD_OUT = tuple(named for named in ALL if named in world.HELD_OUT)  # never trained on
BOOK = tuple(named for named in ALL if named not in HELD_OUT)
EACH = 40  # pictures of each of them in the book
PLAN = TrainConfig(500, 64, 4e-3, warmup_steps=20, decay_fraction=0.5)
SWEEP = replace(PLAN, steps=300)
SIZES, SEEDS = (4, 8, 16, 32, 64), (0, 1, 2)

Named = tuple[str, str]  # an object and its colour
Album = tuple[Tensor, list[list[str]]]  # pictures (n, each, 3, 32, 32), n x each captions
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of images, texts, scale


def draw(named: Named, rng: np.random.Generator) -> np.ndarray:
    """A picture of the thing, large, near the middle, on a ground that it stands out from."""
    object, color = named
    grounds = [ground for ground in GROUNDS if ground not in scenes.close(color)]
    x, y = rng.uniform(0.38, 0.62, 2).tolist()
    thing = world.Thing(object, color, "", x, y, rng.uniform(0.28, 0.36))
    return world.render(world.Scene("one", (thing,), f"plain:{rng.choice(grounds)}"), SIDE)


def caption(named: Named, rng: np.random.Generator) -> str:
    """Colour and thing in one of their names: "a purple circle", "a violet disc"."""
    object, color = named
    nouns = (PHRASES["shapes"] | PHRASES["things"])[object]
    return article(f"{rng.choice(PHRASES['colours'][color])} {rng.choice(nouns)}")


def prompt(named: Named) -> str:
    """Colour and thing in their usual names: "a purple circle"."""
    return article(f"{named[1]} {named[0]}")


def album(names: Sequence[Named], each: int, seed: int) -> Album:
    """`each` pictures of every name with a caption to each; pictures in [-1, 1]."""
    rng = np.random.default_rng(seed)
    drawn = [draw(named, rng) for named in names for _ in range(each)]
    said = [[caption(named, rng) for _ in range(each)] for named in names]
    return data.to_range(data.to_tensor(drawn)).unflatten(0, (len(names), each)), said


def learn_tokens(captions: Sequence[Sequence[str]]) -> Tokenizer:
    """A tokenizer that has seen these captions only; their words are one token each."""
    return Tokenizer.train([text for texts in captions for text in texts], merges=254)


def small(tokenizer: Tokenizer, seed: int = 0) -> CLIP:
    """The library's CLIP in a small size, for 32 x 32 pixels, all weights random."""
    config = TextEncoderConfig(tokenizer.vocab_size, 77, 64, 2, 4, 256)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = CLIP(config)
        clip.image = ImageEncoder(config.width, channels=(3, 32, 64, 96), side=SIDE)
    return clip


def mixed_up(count: int, share: float, generator: torch.Generator) -> Tensor:
    """Which caption each of `count` pictures gets, where `share` of them get another's: (count,)"""
    order = torch.arange(count)
    chosen = torch.randperm(count, generator=generator)[: round(share * count)]
    order[chosen] = chosen.roll(1)
    return order


def training(
    clip: CLIP, tokenizer: Tokenizer, book: Album, plan: TrainConfig = PLAN,
    loss: Loss = contrastive_loss, wrong: float = 0.0,
) -> Iterator[float]:  # fmt: skip
    """Teach pictures and captions to find each other; yields the loss of every step.

    No two pictures of a batch show the same. `wrong`: the share of captions that are mixed up.
    """
    pictures, said = book
    ids = torch.stack([tokenizer(texts) for texts in said])  # (n, each, 77)
    optimizer = torch.optim.AdamW(clip.parameters(), weight_decay=plan.weight_decay)
    generator = torch.Generator().manual_seed(plan.seed)
    for step in range(plan.steps):
        named = torch.randperm(len(pictures), generator=generator)[: plan.batch_size]
        view = torch.randint(pictures.shape[1], (len(named),), generator=generator)
        told = ids[named, view][mixed_up(len(named), wrong, generator)]
        images = clip.embed_image(pictures[named, view])
        texts = clip.embed_text(told, tokenizer.end_id)
        value = loss(images, texts, clip.scale)
        descend(clip, value, optimizer, plan.rate(step), f"step {step}")
        yield value.item()


@torch.no_grad()
def answers(clip: CLIP, tokenizer: Tokenizer, pictures: Tensor) -> list[Named]:
    """Zero-shot: the one of all 126 prompts whose vector is nearest to each of b pictures."""
    texts = clip.embed_text(tokenizer([prompt(named) for named in ALL]), tokenizer.end_id)
    return [ALL[i] for i in (clip.embed_image(pictures) @ texts.T).argmax(dim=1).tolist()]


def right(given: Sequence[Named], names: Sequence[Named]) -> Tensor:
    """The share of right answers for each of n names, from their n x each answers: (n,)."""
    each = len(given) // len(names)
    true = [named for named in names for _ in range(each)]
    hits = torch.tensor([a == b for a, b in zip(given, true, strict=True)])
    return F.avg_pool1d(hits.float()[None], each)[0]


def sweep(
    sizes: Sequence[int] = SIZES, seeds: Sequence[int] = SEEDS, plan: TrainConfig = SWEEP,
    each: int = EACH,
) -> list[dict[str, Any]]:  # fmt: skip
    """Batch sizes, with as many steps and with as many pictures in all, for train_or_load.

    The learning rate goes with the root of the batch size. A row has "size", "steps", and
    "accuracy", the share of unseen pictures whose thing and colour are both right, for each seed.
    """
    book, exam = album(BOOK, each, seed=0), album(ALL, 4, seed=1)[0].flatten(0, 1)
    tokenizer, rows = learn_tokens(book[1]), []
    for size in sizes:
        for steps in sorted({plan.steps, plan.steps * plan.batch_size // size}):
            rate = plan.learning_rate * (size / plan.batch_size) ** 0.5
            own = replace(plan, steps=steps, batch_size=size, learning_rate=rate)
            found = []
            for seed in seeds:
                clip = small(tokenizer, seed)
                for _ in training(clip, tokenizer, book, replace(own, seed=seed)):
                    pass
                found.append(right(answers(clip, tokenizer, exam), ALL).mean().item())
            rows.append({"size": size, "steps": steps, "accuracy": found})
    return rows
