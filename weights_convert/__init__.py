"""Official formats in and out: open anything, save as anything."""

import re
from pathlib import Path

import torch

from minisd.pipeline import Defaults, StableDiffusionPipeline
from minisd.tokenizer import Tokenizer
from weights_convert import diffusers, hub
from weights_convert.folders import new_folder

LAYOUTS = ("minisd", "diffusers", "single-file")
__all__ = ["LAYOUTS", "open", "save"]


def open(
    source: Path | str,
    *,
    torch_dtype: torch.dtype = torch.float32,
    variant: str | None = None,
    tokenizer: Tokenizer | Path | str | None = None,
) -> StableDiffusionPipeline:
    """A pipeline from a native folder, a diffusers folder, or a hub id like "owner/name".

    variant: "fp16" reads the files that say so in their names. tokenizer: one to use in place of
    the source's, or the folder of one. Raises ValueError for anything else or damaged.
    """
    folder = locate(source, variant)
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        tokenizer = open_tokenizer(Path(tokenizer))
    if (folder / "pipeline.json").is_file():
        pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch_dtype)
        pipe.tokenizer = tokenizer or pipe.tokenizer
        return pipe
    parts = diffusers.read_folder(folder, torch_dtype, variant, tokenizer)
    height, width = (side * parts["vae"].config.downscale for side in parts.pop("sample_size"))
    family = "sd-2" if parts["unet"].config.context_width == 1024 else "sd-1"
    return StableDiffusionPipeline(
        **parts, defaults=Defaults(height=height, width=width), family=family
    )


def locate(source: Path | str, variant: str | None = None) -> Path:
    """The folder of a source, downloaded if it is a hub id. Raises ValueError if there is none."""
    folder = Path(source)
    if folder.is_file():
        raise ValueError(f"{source} is a file; single files cannot be opened yet, only folders")
    if folder.is_dir():
        if any((folder / name).is_file() for name in ("pipeline.json", "model_index.json")):
            return folder
        raise ValueError(
            f"{source} has neither pipeline.json nor model_index.json; give a model's top folder"
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise ValueError(f"{source} does not exist and is no hub id (owner/name)")
    return hub.download(str(source), variant)


def open_tokenizer(folder: Path) -> Tokenizer:
    """From a folder with CLIP's tables, or with a `tokenizer` folder in it."""
    inside = folder / "tokenizer"
    return diffusers.read_tokenizer(inside if inside.is_dir() else folder, context_length=77)


def save(pipe: StableDiffusionPipeline, path: Path | str, layout: str = "minisd") -> None:
    """Write a pipeline into a new folder, whole or not at all.

    layout: "minisd" or "diffusers". Raises ValueError for another, and if the folder is not empty.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}, expected one of {LAYOUTS}")
    if layout == "single-file":
        raise ValueError("the layout 'single-file' cannot be written yet; use 'diffusers'")
    with new_folder(path) as part:
        if layout == "minisd":
            pipe.save_pretrained(part)
        else:
            size = (pipe.defaults.height, pipe.defaults.width)
            diffusers.write_folder(pipe.networks, pipe.tokenizer, pipe.scheduler, size, part)
