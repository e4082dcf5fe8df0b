"""Training batches of the picture-book world, drawn on the fly, each reproducible by its number."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from minisd.autoencoder import Autoencoder
from minisd.checkpoint import replacing
from minisd.picturebook import world

SHARD = 1000  # examples in one file of cached latents
OPPOSITE = {"above": "below", "below": "above", "left": "right", "right": "left"}


def to_tensor(pictures: Sequence[np.ndarray]) -> Tensor:
    """b pictures (h, w, 3) uint8 to (b, 3, h, w) uint8."""
    return rearrange(torch.from_numpy(np.stack(pictures)), "b h w c -> b c h w").contiguous()


def to_range(pictures: Tensor) -> Tensor:
    """(b, 3, h, w) uint8 to float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


class Crops(Dataset):
    """Batch number `step`: pictures (b, 3, h, w) uint8 for the autoencoder.

    The first `crop_steps` batches are four times as many quarter-size crops: as much work, four
    times as many pictures. Most crops are around a thing: that is where the detail is. One picture
    in six has other colours than the book's, so that the latents have room for new ones.
    """

    def __init__(self, batch_size: int, crop_steps: int, seed: int = 0):
        self.batch_size, self.crop_steps, self.seed = batch_size, crop_steps, seed

    def __getitem__(self, step: int) -> Tensor:
        count = self.batch_size if step >= self.crop_steps else 4 * self.batch_size
        first = step * 4 * self.batch_size
        examples = [world.example(first + i, self.seed) for i in range(count)]
        rng = np.random.default_rng((self.seed, step))
        whole = step >= self.crop_steps
        return recolored([e.image if whole else crop(e, rng) for e in examples], rng)


class Busy(Dataset):
    """Batch number `step`: whole pictures (b, 3, h, w) uint8 for the decoder, settings and groups
    of things three times as often as else: they have most edges, where the decoder errs.
    """

    def __init__(self, batch_size: int, seed: int = 0):
        self.batch_size, self.seed = batch_size, seed

    def __getitem__(self, step: int) -> Tensor:
        numbers = range(step * 3 * self.batch_size, (step + 1) * 3 * self.batch_size)
        kinds = [world.example(i, self.seed, size=8).scene.kind for i in numbers]
        chances = np.array([3.0 if kind in ("scene", "count") else 1.0 for kind in kinds])
        rng = np.random.default_rng((self.seed, step))
        chosen = rng.choice(numbers, self.batch_size, replace=False, p=chances / chances.sum())
        return recolored([world.example(int(i), self.seed).image for i in chosen], rng)


def crop(example: world.Example, rng: np.random.Generator) -> np.ndarray:
    """A quarter of the picture (h / 2, w / 2, 3): four times in five around one of its things."""
    size = len(example.image)
    side = size // 2
    corner = rng.integers(0, side + 1, 2)  # x, y
    if rng.random() < 0.8:
        thing = example.scene.things[rng.integers(len(example.scene.things))]
        corner = np.array((thing.x, thing.y)) * size - rng.uniform(0.2, 0.8, 2) * side
        corner = corner.astype(int).clip(0, side)
    x, y = corner
    return example.image[y : y + side, x : x + side]


def recolored(pictures: Sequence[np.ndarray], rng: np.random.Generator) -> Tensor:
    """Pictures (h, w, 3) as a batch (b, 3, h, w), one in six of them in other colours."""
    return to_tensor([recolor(p, rng) if rng.random() < 1 / 6 else p for p in pictures])


def recolor(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Red, green and blue in another order, each brighter or darker by a gamma of its own."""
    channels = picture[..., rng.permutation(3)] / 255
    return (255 * channels ** rng.uniform(0.5, 2, 3) + 0.5).astype(np.uint8)


def hard_negative(scene: world.Scene, rng: np.random.Generator) -> world.Scene:
    """A scene of nearly the same words: another object, colours swapped, relation turned round, or
    a new colour.
    """
    things = scene.things
    if rng.random() < 1 / 3:
        others = [o for o in world.OBJECTS if all(o != thing.object for thing in things)]
        old, new = things[rng.integers(len(things))].object, others[rng.integers(len(others))]
        renamed = [dataclasses.replace(t, object=new) if t.object == old else t for t in things]
        return dataclasses.replace(scene, things=tuple(renamed))
    colors = [thing.color for thing in things]
    if scene.kind in ("two", "scene") and len(set(colors)) == 2 and len(things) == 2:
        if scene.relation in OPPOSITE and rng.random() < 0.5:
            return dataclasses.replace(scene, relation=OPPOSITE[scene.relation])
        if len({thing.object for thing in things}) == 2 or scene.relation in OPPOSITE:
            colors = colors[::-1]
    if colors == [thing.color for thing in things]:
        others = [color for color in world.COLORS if color not in colors]
        colors[0] = others[rng.integers(len(others))]
        colors = [colors[0]] * len(colors) if scene.kind == "count" else colors
    recolored = tuple(dataclasses.replace(t, color=c) for t, c in zip(things, colors))
    return dataclasses.replace(scene, things=recolored)


class Pairs(Dataset):
    """Batch number `step`: (pictures (b, 3, size, size) uint8, b captions, b wrong captions)."""

    def __init__(self, batch_size: int, size: int, seed: int = 0, split: str = "train"):
        self.batch_size, self.size, self.seed, self.split = batch_size, size, seed, split

    def __getitem__(self, step: int) -> tuple[Tensor, list[str], list[str]]:
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
        examples = [world.example(i, self.seed, self.split, self.size) for i in numbers]
        rng = np.random.default_rng((self.seed, step))
        wrong = [world.caption(hard_negative(e.scene, rng), rng) for e in examples]
        return to_tensor([e.image for e in examples]), [e.caption for e in examples], wrong


class Latents(Dataset):
    """Batch number `step`: (mean, logvar (b, 4, h, w), b captions) of pictures encoded once."""

    def __init__(self, folder: Path, batch_size: int, seed: int = 0):
        shards = sorted(folder.glob("*.safetensors"))
        if not shards:
            raise ValueError(f"{folder} holds no cached latents; run the stage `latents` first")
        files = [load_file(shard) for shard in shards]
        self.mean = torch.cat([file["mean"] for file in files])
        self.logvar = torch.cat([file["logvar"] for file in files])
        self.captions = [c for s in shards for c in json.loads(s.with_suffix(".json").read_text())]
        self.batch_size, self.seed = batch_size, seed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, list[str]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        picked = torch.randint(len(self.mean), (self.batch_size,), generator=generator)
        captions = [self.captions[i] for i in picked.tolist()]
        return self.mean[picked].float(), self.logvar[picked].float(), captions


class Rendered(Dataset):
    """Shard number i of SHARD examples: (pictures uint8, captions)."""

    def __init__(self, seed: int = 0):
        self.seed = seed

    def __getitem__(self, shard: int) -> tuple[Tensor, list[str]]:
        numbers = range(shard * SHARD, (shard + 1) * SHARD)
        examples = [world.example(i, self.seed) for i in numbers]
        return to_tensor([e.image for e in examples]), [e.caption for e in examples]


@torch.no_grad()
def cache_latents(
    vae: Autoencoder, pictures: Tensor, captions: list[str], path: Path, device: torch.device
) -> None:
    """Encode one shard of pictures (n, 3, h, w) uint8 and write it; whole or not at all."""
    posteriors = [
        vae.encode(to_range(batch.to(device)).to(next(vae.parameters()).dtype))
        for batch in pictures.split(50)
    ]
    stored = {
        "mean": torch.cat([p.mean for p in posteriors]).half().cpu(),
        "logvar": torch.cat([p.logvar for p in posteriors]).half().cpu(),
    }
    with replacing(path.with_suffix(".json")) as part:
        part.write_text(json.dumps(captions), encoding="utf8")
    with replacing(path) as part:
        save_file(stored, part)
