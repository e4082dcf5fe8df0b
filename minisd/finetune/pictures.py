"""Pictures with captions: what fine-tuning learns from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from minisd import images
from minisd.pipeline import StableDiffusionPipeline

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ENCODED_AT_ONCE = 4  # pictures


class Captioned(NamedTuple):
    """A picture and what it shows."""

    picture: Image.Image
    caption: str


def read_folder(folder: Path | str, prompt: str | None = None) -> list[Captioned]:
    """The pictures of a folder in order of their names.

    A picture's caption is the text of name.txt beside it, or its line in metadata.jsonl
    ({"file_name": ..., "text": ...}), or `prompt`. Raises ValueError for a folder without
    pictures, a file that is none, and a picture without a caption.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder of the pictures")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} holds no pictures; expected files of {', '.join(SUFFIXES)}")
    listed = read_metadata(folder / "metadata.jsonl")
    examples = []
    for path in paths:
        beside = path.with_suffix(".txt")
        caption = listed.get(path.name, prompt)
        if beside.is_file():
            caption = beside.read_text(encoding="utf-8-sig").strip()
        if caption is None:
            raise ValueError(f"{path} has no caption; give --prompt for all, or {beside.name}")
        examples.append(Captioned(images.flatten_alpha(images.open_picture(path)), caption))
    return examples


def read_metadata(path: Path) -> dict[str, str]:
    """Captions by file name; none if there is no such file. Raises ValueError for a bad line."""
    captions = {}
    lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line or "{}")
            captions |= {values["file_name"]: str(values["text"])} if values else {}
        except (ValueError, KeyError, TypeError) as error:
            expected = 'a line {"file_name": "a.png", "text": "a caption"}'
            raise ValueError(f"{path}, line {number}: {error!r}, expected {expected}") from error
    return captions


class Latents(Dataset):
    """Batch number `step`: (mean, logvar (b, 4, h, w), b captions) of pictures encoded once.

    Every picture comes once before any comes again, in an order of the seed's. Pictures are cut
    square, or to the sides of height x width, around their middle, and resized.
    """

    @torch.no_grad()
    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        examples: Sequence[Captioned],
        batch_size: int,
        seed: int = 0,
    ):
        size = (pipe.defaults.width, pipe.defaults.height)
        fitted = [ImageOps.fit(images.flatten_alpha(e.picture), size) for e in examples]
        x = images.from_pil(fitted).to(pipe.device, pipe.dtype)  # (n, 3, h, w)
        parts = [pipe.vae.encode(some) for some in x.split(ENCODED_AT_ONCE)]
        self.mean = torch.cat([part.mean for part in parts]).float()  # (n, 4, h/8, w/8)
        self.logvar = torch.cat([part.logvar for part in parts]).float()
        self.captions = [e.caption for e in examples]
        self.batch_size, self.seed = batch_size, seed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, list[str]]:
        first = step * self.batch_size
        picked = [self.position(i) for i in range(first, first + self.batch_size)]
        return self.mean[picked], self.logvar[picked], [self.captions[i] for i in picked]

    def position(self, number: int) -> int:
        """Which picture comes at this number of the endless sequence."""
        count = len(self.captions)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number // count)
        return torch.randperm(count, generator=generator)[number % count].item()
