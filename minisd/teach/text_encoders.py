"""Small text encoders, each beside an image encoder: how many of a caption's colours get through.

The pictures show two shapes in two colours, the captions are "a red circle and a blue square".
"""

from collections.abc import Sequence
from itertools import combinations, permutations, product
from typing import Any

import torch
from torch import Tensor, nn

from minisd.config import TextEncoderConfig
from minisd.picturebook import data, world
from minisd.picturebook.clip import CLIP, contrastive_loss
from minisd.training import TrainConfig, descend

COLORS = ("red", "yellow", "green", "blue", "white", "black")
SHAPES = ("circle", "square", "triangle", "heart")
WORDS = ("<start>", "<end>", "a", "and", *COLORS, *SHAPES)  # every word is a token
SIDE = 24  # pixels
EACH = 20  # pictures of every scene
END = WORDS.index("<end>")
WIDTHS, LAYERS, SEEDS = (8, 16, 32, 64), (1, 2), (0, 1)
PLAN = TrainConfig(600, 96, 3e-3, warmup_steps=30, decay_fraction=0.5)

Named = tuple[str, str]  # a colour and a shape
Pair = tuple[Named, Named]


def scenes() -> tuple[list[Pair], list[Pair]]:
    """Every two shapes in two colours: four in five for training, one in five for the exam."""
    book, exam = [], []
    for row, (s1, s2) in enumerate(combinations(SHAPES, 2)):
        for place, (c1, c2) in enumerate(permutations(COLORS, 2)):
            kept = exam if (row + place) % 5 == 0 else book  # other colours for other shapes
            kept.append(((c1, s1), (c2, s2)))
    return book, exam


def captions(pairs: Sequence[Pair]) -> Tensor:
    """Token ids of "a red circle and a blue square", START and END around: (b, 9)."""
    texts = [f"<start> a {c1} {s1} and a {c2} {s2} <end>" for (c1, s1), (c2, s2) in pairs]
    return torch.tensor([[WORDS.index(word) for word in text.split()] for text in texts])


def draw(pair: Pair, generator: torch.Generator) -> world.Scene:
    """The two shapes on grey, side by side in either order."""
    jitter = (torch.rand(6, generator=generator) - 0.5).tolist()
    sides = (0.28, 0.72) if jitter[0] > 0 else (0.72, 0.28)
    things = tuple(
        world.Thing(shape, color, "", x + 0.06 * j[0], 0.5 + 0.3 * j[1], 0.2)
        for (color, shape), x, j in zip(pair, sides, (jitter[1:3], jitter[3:5]))
    )
    return world.Scene("two", things, "plain:gray")


def pictures(pairs: Sequence[Pair], each: int, seed: int) -> Tensor:
    """`each` pictures of every pair: (pairs, each, 3, 24, 24) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [world.render(draw(p, generator), SIDE) for p in pairs for _ in range(each)]
    return data.to_range(data.to_tensor(drawn)).unflatten(0, (len(pairs), each))


class ImageEncoder(nn.Module):
    """Three convolutions: pictures (b, 3, 24, 24) in [-1, 1] to vectors (b, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(3, 24, 3, 2, 1), nn.SiLU(), nn.Conv2d(24, 48, 3, 2, 1), nn.SiLU(),
            nn.Conv2d(48, 64, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(64 * 9, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, 3, 24, 24). Returns (b, width)."""
        return self.convs(x)


def small(width: int, layers: int, seed: int = 0) -> CLIP:
    """CLIP with the library's text encoder at this size, all weights random."""
    config = TextEncoderConfig(len(WORDS), 9, width, layers, max(1, width // 8), 4 * width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = CLIP(config)
        clip.image, clip.text_projection = ImageEncoder(64), nn.Linear(width, 64, bias=False)
    return clip


def train(clip: CLIP, frozen: bool, book: Tensor, plan: TrainConfig = PLAN) -> CLIP:
    """Teach pictures and captions to find each other; chapter 07 takes it apart.

    book: (pairs, each, 3, 24, 24). `frozen` leaves the text encoder's weights random: then only a
    linear layer behind it and the image encoder learn.
    """
    pairs = scenes()[0]
    ids, turned = captions(pairs), captions([(b, a) for a, b in pairs])
    clip.text.requires_grad_(not frozen)
    learning = [p for p in clip.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, weight_decay=plan.weight_decay)
    generator = torch.Generator().manual_seed(plan.seed)
    for step in range(plan.steps):
        picked = torch.randperm(len(book), generator=generator)[: plan.batch_size]
        view = torch.randint(book.shape[1], (len(picked),), generator=generator)
        other_way = torch.rand(len(picked), 1, generator=generator) < 0.5
        said = torch.where(other_way, turned[picked], ids[picked])
        images, texts = clip.embed_image(book[picked, view]), clip.embed_text(said, END)
        loss = contrastive_loss(images, texts, clip.scale)
        descend(clip, loss, optimizer, plan.rate(step), f"step {step}")
    return clip.eval().requires_grad_(False)


@torch.no_grad()
def colors_found(clip: CLIP, pairs: Sequence[Pair], shown: Tensor) -> tuple[float, float]:
    """Which caption fits a picture best, among those of its two shapes in any two colours?

    shown: (pairs, each, 3, 24, 24). Returns the share of pictures with each colour at its shape,
    and the share with the right two colours, at whichever shape; by chance 1 / 30 and 1 / 15.
    """
    ways, bound, named = list(permutations(COLORS, 2)), 0, 0
    for ((c1, s1), (c2, s2)), views in zip(pairs, shown):
        texts = clip.embed_text(captions([((a, s1), (b, s2)) for a, b in ways]), END)
        for i in (clip.embed_image(views) @ texts.T).argmax(dim=1).tolist():
            bound += ways[i] == (c1, c2)
            named += set(ways[i]) == {c1, c2}
    count = shown.shape[0] * shown.shape[1]
    return bound / count, named / count


def compare(
    widths: Sequence[int] = WIDTHS, layers: Sequence[int] = LAYERS, plan: TrainConfig = PLAN
) -> list[dict[str, Any]]:
    """Every size, with its text encoder frozen and trained, for train_or_load: a row for each.

    A row has the size, "parameters" of the text encoder, "bound" and "named", one for each seed.
    """
    (book, exam), rows = scenes(), []
    seen, unseen = pictures(book, EACH, seed=0), pictures(exam, EACH, seed=1)
    for frozen, depth, width in product((True, False), layers, widths):
        made = [train(small(width, depth, seed), frozen, seen, plan) for seed in SEEDS]
        found = [colors_found(clip, exam, unseen) for clip in made]
        rows.append({
            "frozen": frozen, "layers": depth, "width": width,
            "parameters": sum(p.numel() for p in made[0].text.parameters()),
            "bound": [bound for bound, _ in found], "named": [named for _, named in found],
        })  # fmt: skip
    return rows
