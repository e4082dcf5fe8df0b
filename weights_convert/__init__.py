"""Official formats in and out: open anything, save as anything."""

import warnings
from pathlib import Path
from typing import Any

import torch

from minisd.autoencoder import Autoencoder
from minisd.checkpoint import load_folder, load_network
from minisd.config import AutoencoderConfig, ModelConfig
from minisd.pipeline import StableDiffusionPipeline
from minisd.tokenizer import Tokenizer
from weights_convert import compvis, diffusers, hub, single_file
from weights_convert.folders import new_folder, require_space
from weights_convert.tokenizer_source import find_tokenizer

LAYOUTS = ("minisd", "diffusers", "single-file")
__all__ = ["LAYOUTS", "open", "open_vae", "save"]
# `python -m weights_convert.names` runs a module that is imported here already; that is harmless.
warnings.filterwarnings("ignore", "'weights_convert.names' found in sys.modules", RuntimeWarning)


def open(
    source: Path | str,
    *,
    torch_dtype: torch.dtype | None = torch.float32,
    variant: str | None = None,
    tokenizer: Tokenizer | Path | str | None = None,
    vae: Autoencoder | Path | str | None = None,
    ema: bool | None = None,
    prediction_type: str | None = None,
    config: ModelConfig | None = None,
) -> StableDiffusionPipeline:
    """A pipeline from a native folder, a diffusers folder, a hub id like "owner/name", or a single
    file with CompVis' names, .safetensors or .ckpt.

    torch_dtype: None leaves the weights as they are stored.
    variant: "fp16" reads the files that say so in their names. tokenizer: one to use in place of
    the source's, or where find_tokenizer finds it; a single file that was not written here has
    none and gets the one that lies beside it, or else CLIP's from the hub. vae: an autoencoder in
    place of the source's, or where open_vae finds it.

    For single files alone: ema says whether the UNet's averaged weights are read, of a file that
    has both. None reads the plain ones, as diffusers and most programs do: averages that merging
    or fine-tuning left in a file are those of another model. Of the official full files, the
    averages draw better. prediction_type: "epsilon" or "v_prediction"; left out, a UNet of SD 2.x
    is run once to see which. config: the sizes, where heads and norm groups are not as in the
    official models. Raises ValueError for anything else or damaged.
    """
    place = locate(source, variant)
    if vae is not None and not isinstance(vae, Autoencoder):
        vae = open_vae(vae, torch_dtype=torch_dtype)
    of_files = (ema, prediction_type, config)
    if place.is_file():
        parts = single_file.read_file(place, torch_dtype, tokenizer, vae, *of_files)
    elif of_files != (None, None, None):
        raise ValueError(f"{source} is a folder; ema, prediction_type, config are for single files")
    else:
        parts = read_folder(place, torch_dtype, variant, tokenizer)
    return StableDiffusionPipeline(**{**parts, "vae": vae or parts["vae"]})


def read_folder(
    folder: Path,
    dtype: torch.dtype | None,
    variant: str | None,
    tokenizer: Tokenizer | Path | str | None,
) -> dict[str, Any]:
    """Everything in a native or a diffusers folder, by the names of the pipeline's fields."""
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        tokenizer = find_tokenizer(tokenizer)
    if not (folder / "pipeline.json").is_file():
        return diffusers.read_folder(folder, dtype, variant, tokenizer)
    parts = load_folder(folder, dtype)
    return {**parts, "tokenizer": tokenizer or parts["tokenizer"]}


def open_vae(
    path: Path | str,
    *,
    torch_dtype: torch.dtype | None = torch.float32,
    config: AutoencoderConfig | None = None,
) -> Autoencoder:
    """The autoencoder of a file under CompVis', diffusers' or our names, of a checkpoint, or of a
    model's folder: `pipe.vae = weights_convert.open_vae(path)`.

    config: its sizes, where the norm groups are not the official 32. Raises ValueError if there is
    none.
    """
    if not Path(path).is_dir():
        return compvis.read_vae(Path(path), torch_dtype, config)
    if (Path(path) / "vae.safetensors").is_file():
        return load_network(Path(path) / "vae.safetensors", torch_dtype)
    return diffusers.read_network(Path(path) / "vae", torch_dtype, variant=None)


def locate(source: Path | str, variant: str | None = None) -> Path:
    """A source's folder or file, downloaded if it is a hub id. Raises ValueError without one."""
    folder = Path(source)
    if folder.is_file():
        return folder
    if folder.is_dir():
        if any((folder / name).is_file() for name in ("pipeline.json", "model_index.json")):
            return folder
        raise ValueError(
            f"{source} has neither pipeline.json nor model_index.json; give a model's top folder"
        )
    if not hub.is_id(source):
        raise ValueError(f"{source} does not exist and is no hub id (owner/name)")
    return hub.download(str(source), variant)


def save(pipe: StableDiffusionPipeline, path: Path | str, layout: str = "minisd") -> None:
    """Write a pipeline into a new folder, or a new .safetensors file, whole or not at all.

    layout: "minisd" and "diffusers" are folders, "single-file" has CompVis' names. Raises
    ValueError for another layout, if there is something at `path` already, and before anything is
    written if the disk has too little room.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}, expected one of {LAYOUTS}")
    require_space(path, bytes_on_disk(pipe))
    if layout == "single-file":
        return single_file.write_file(vars(pipe), Path(path))
    with new_folder(path) as part:
        if layout == "minisd":
            pipe.save_pretrained(part)
        else:
            diffusers.write_folder(vars(pipe), part)


def bytes_on_disk(pipe: StableDiffusionPipeline) -> int:
    """What the weights take up, and some room for names, configs and the tokenizer."""
    weights = [value for network in pipe.networks.values() for value in network.parameters()]
    return sum(value.nbytes for value in weights) + 4_000_000
