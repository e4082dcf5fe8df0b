"""What the evaluation measures: pictures by the judge, latents, words and their maps by themselves.

Every number is over unseen examples of the world, none selected; the same every time.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.picturebook import world
from minisd.picturebook.captions import PHRASES, article
from minisd.picturebook.clip import CLIP
from minisd.picturebook.data import Pairs, to_range
from minisd.picturebook.judge import Judge, look, pictures_of
from minisd.picturebook.marking import ASPECTS, mark
from minisd.picturebook.measures import auc, ssim
from minisd.pipeline import StableDiffusionPipeline
from minisd.training import decibels
from minisd.viz.attention import cross_layers, word_map, word_positions

SEED = 7  # of the examples that prompts are taken from; no stage trains on it
ROWS = {  # title: kind of scene, split
    "one object, seen": ("one", "train"),
    "one object, held out": ("one", "held_out"),
    "two objects, seen": ("two", "train"),
    "two objects, one held out": ("two", "held_out"),
    "two objects, relation held out": ("two", "held_out_relation"),
    "in a setting": ("scene", "train"),
    "two to four alike": ("count", "train"),
}


def choose(kind: str, split: str, count: int) -> list[world.Example]:
    """The first `count` unseen examples of a kind and split."""
    found, i = [], 0
    while len(found) < count:
        example = world.example(i, SEED, split)
        found += [example] * (example.scene.kind == kind)
        i += 1
    return found


def draw(
    pipe: StableDiffusionPipeline,
    examples: Sequence[world.Example],
    batch: int = 50,
    **settings: Any,
) -> Tensor:
    """A picture for each caption, number i from seed i; (n, 3, h, w) in [-1, 1]."""
    quiet, made = dataclasses.replace(pipe, progress_bar={"disable": True}), []
    for i in range(0, len(examples), batch):
        part = examples[i : i + batch]
        seeds = [torch.Generator().manual_seed(i + j) for j in range(len(part))]
        captions = [example.caption for example in part]
        made.append(quiet(captions, generator=seeds, output_type="pt", **settings).images)
    return torch.cat(made).float().cpu() * 2 - 1


def marks(
    judge: Judge, pictures: Tensor, examples: Sequence[world.Example]
) -> tuple[dict[str, float], list[bool]]:
    """The share of right pictures by aspect, and which are right in all."""
    given = [mark(e.scene, seen) for e, seen in zip(examples, look(judge, pictures))]
    asked = {a: [m[a] for m in given if a in m] for a in ASPECTS}
    shares = {a: float(np.mean(values)) for a, values in asked.items() if values}
    return {**shares, "count": len(given)}, asked["all"]


@torch.no_grad()
def reconstruct(vae: Any, pictures: Tensor) -> Tensor:
    """Pictures (n, 3, h, w) through the autoencoder, by the mean of the posterior."""
    return torch.cat([vae(part) for part in pictures.split(32)])


def autoencoder(vae: Any, count: int) -> dict[str, float]:
    """PSNR of the mean squared error of all, and mean SSIM."""
    pictures = pictures_of([world.example(i, SEED) for i in range(count)])
    out = reconstruct(vae, pictures).clamp(-1, 1)
    mse = F.mse_loss(out, pictures).item()
    return {"psnr": decibels(mse), "ssim": ssim(out, pictures).mean().item(), "count": count}


@torch.no_grad()
def retrieval(clip: CLIP, tokenizer: Any, size: int, among: int = 256) -> dict[str, float]:
    """The right caption among those of `among` unseen pictures, and above a hard wrong one."""
    pictures, captions, wrong = Pairs(among, size, SEED)[0]
    seen = clip.embed_image(to_range(pictures))
    own, other = (
        clip.embed_text(tokenizer(texts), tokenizer.end_id) for texts in (captions, wrong)
    )
    scores = seen @ own.T
    found = (scores.argmax(dim=1) == torch.arange(among)).float().mean().item()
    above = (scores.diagonal() > (seen * other).sum(dim=1)).float().mean().item()
    return {"found": found, "above the wrong": above, "among": among}


@torch.no_grad()
def zero_shot(clip: CLIP, tokenizer: Any, size: int, count: int) -> dict[str, float]:
    """Name the object and its colour by the nearest of all captions "a red circle"."""
    names = [(o, c) for o in world.OBJECTS for c in world.COLORS]
    captions = [article(f"{color} {object}") for object, color in names]
    texts = clip.embed_text(tokenizer(captions), tokenizer.end_id)
    right = np.zeros((count, 2))
    for i, example in enumerate(choose("one", "train", count)):
        picture = to_range(torch.from_numpy(world.render(example.scene, size)).permute(2, 0, 1))
        best = names[(clip.embed_image(picture[None]) @ texts.T).argmax()]
        thing = example.scene.things[0]
        right[i] = best[0] == thing.object, best[1] == thing.color
    return {"object": right[:, 0].mean(), "color": right[:, 1].mean(), "count": count}


def diversity(pictures: Tensor, copies: int) -> float:
    """Mean distance (RMS, of a range of 1) between pictures of one prompt from different seeds;
    pictures: (prompts * copies, 3, h, w), those of a prompt together.
    """
    groups = (pictures / 2).unflatten(0, (-1, copies)).flatten(2)  # (prompts, copies, numbers)
    distances = torch.cdist(groups, groups) / groups.shape[-1] ** 0.5
    return (distances.sum() / (len(groups) * copies * (copies - 1))).item()


def plain_caption(scene: world.Scene) -> str:
    """A caption that names every thing by its own word: "a red circle above a blue star"."""
    first, second = (article(f"{t.color} {t.object}") for t in scene.things[:2])
    relation = PHRASES["relations"][scene.relation][0]
    color = scene.setting.removeprefix("plain:")
    return f"{first} {relation} {second} on {article(color)} background"


def word_maps(
    pipe: StableDiffusionPipeline, count: int, timesteps: Sequence[int] = (200, 400, 600)
) -> dict[str, dict[str, float]]:
    """How well each cross-attention layer's map of an object word, and of its colour, finds the
    object: mean AUC against the true mask of noised renders; layer -> {"object", "color"}.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for example in choose("two", "train", count):
        things = example.scene.things
        if things[0].object == things[1].object or things[0].color == things[1].color:
            continue
        for t in timesteps:
            for layer, kind, value in _maps_of(pipe, example, t):
                found.setdefault(layer, {}).setdefault(kind, []).append(value)
    return {
        layer: {kind: float(np.mean(values)) for kind, values in kinds.items()}
        for layer, kinds in found.items()
    }


@torch.no_grad()
def _maps_of(
    pipe: StableDiffusionPipeline, example: world.Example, t: int
) -> Iterator[tuple[str, str, float]]:
    caption = plain_caption(example.scene)
    generator = torch.Generator().manual_seed(t)
    x_0 = pipe.encode_image(pictures_of([example]), generator)
    eps = torch.randn(x_0.shape, generator=generator)
    record: dict[str, Any] = {}
    cond, _ = pipe.encode_prompt(caption)
    pipe.unet(pipe.scheduler.add_noise(x_0, eps, torch.tensor([t])), t, cond, record)
    masks = torch.from_numpy(world.masks(example.scene)).float()
    for layer in cross_layers(record):
        probabilities = record[f"{layer}.probabilities"]
        side = int(probabilities.shape[-2] ** 0.5)
        small = F.adaptive_avg_pool2d(masks, side) > 0.5  # (things, side, side)
        for thing, mask in zip(example.scene.things, small):
            for kind, word in (("object", thing.object), ("color", thing.color)):
                places = word_positions(pipe.tokenizer, caption, word)
                if mask.any() and not mask.all():
                    yield layer, kind, auc(word_map(probabilities, places), mask)
