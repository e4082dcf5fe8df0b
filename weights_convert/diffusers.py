"""The folders of diffusers: three networks, a tokenizer and a scheduler, in and out.

Read are the keys and shapes of every release, written those of today.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from minisd.checkpoint import NETWORKS, build, load_state, read_json, stored_tensors
from minisd.config import Defaults
from minisd.schedulers import SCHEDULERS, DDIMScheduler, DDPMScheduler, NoiseSchedule
from minisd.tokenizer import END, START, Tokenizer
from weights_convert import diffusers_config as configs
from weights_convert.names import DIFFUSERS, OURS, rename, table
from weights_convert.tensors import cast, read_weights
from weights_convert.tokenizer_source import find_tokenizer

logger = logging.getLogger(__name__)
READ_CONFIG = {
    "text_encoder": configs.read_text_encoder,
    "unet": configs.read_unet,
    "vae": configs.read_vae,
}
STEMS = {
    "text_encoder": {".safetensors": "model", ".bin": "pytorch_model"},
    "unet": dict.fromkeys((".safetensors", ".bin"), "diffusion_pytorch_model"),
    "vae": dict.fromkeys((".safetensors", ".bin"), "diffusion_pytorch_model"),
}
NOTE = "minisd.json"  # what diffusers' own files have no place for; it reads over this one
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_folder(
    folder: Path, dtype: torch.dtype | None, variant: str | None, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """Everything in a diffusers folder, by the names of the pipeline's fields.

    dtype: None leaves the weights as they are stored. Raises ValueError if a part is missing,
    damaged or of another architecture.
    """
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in configs.PIPELINES:
        raise ValueError(f"{folder} holds a {kind}, expected one of {configs.PIPELINES}")
    parts = {name: read_network(folder / name, dtype, variant) for name in NETWORKS}
    length = parts["text_encoder"].config.context_length
    parts["tokenizer"] = tokenizer or find_tokenizer(folder / "tokenizer", None, length)
    parts["scheduler"] = read_scheduler(folder / "scheduler" / "scheduler_config.json")
    check_fit(parts, folder)
    if any(index.get("safety_checker") or []):
        say_what_is_not_run()
    return {**parts, **read_defaults(folder, parts)}


@cache
def say_what_is_not_run() -> None:
    """One line a process about the filter that official folders carry."""
    logger.warning(
        "this model's folder carries a safety checker, which minisd does not run: "
        "what the model draws is shown as it is"
    )


def read_defaults(folder: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own defaults and family: as write_folder noted them, or as official models."""
    if (folder / NOTE).is_file():
        about = read_json(folder / NOTE)
        try:
            return {"defaults": Defaults(**about["defaults"]), "family": about["family"]}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / NOTE} describes no model: {error!r}") from error
    size = read_json(folder / "unet" / "config.json").get("sample_size") or 64
    scale = parts["vae"].config.downscale
    height, width = (side * scale for side in configs.per_level(size, 2))
    family = "sd-2" if parts["unet"].config.context_width == 1024 else "sd-1"
    return {"defaults": Defaults(height=height, width=width), "family": family}


def check_fit(parts: Mapping[str, Any], source: Path | str) -> None:
    """Raises ValueError if the parts of a pipeline do not belong together."""
    words, known = parts["tokenizer"].vocab_size, parts["text_encoder"].config.vocab_size
    if words > known:
        raise ValueError(
            f"{source}: the tokenizer has {words} tokens and the text encoder knows {known}; "
            "give the tokenizer that belongs to the model"
        )
    width, expected = parts["text_encoder"].config.width, parts["unet"].config.context_width
    if width != expected:
        raise ValueError(
            f"{source}: the text encoder gives {width} features and the UNet reads {expected}; "
            "they are parts of different models"
        )


def read_network(folder: Path, dtype: torch.dtype | None, variant: str | None) -> nn.Module:
    """One network from its subfolder, which is named after it."""
    kind = NETWORKS[folder.name][0]
    source = folder / "config.json"
    try:
        config = READ_CONFIG[folder.name](read_json(source))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error
    modules = table(folder.name, config, DIFFUSERS, OURS)
    network = build(kind, config)
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    state = {}
    for path in weight_files(folder, variant):
        for their_key, tensor in read_tensors(path, dtype):
            if their_key.endswith("position_ids"):  # 0, 1, 2, ...: stored by old releases
                continue
            key = rename(modern_key(their_key, folder.name), modules)
            if folder.name == "vae" and ".attention." in key:
                tensor = as_linear(tensor, shapes.get(key))
            state[key] = cast(tensor, dtype, f"{path}: {their_key}")
    return load_state(network, state, folder)


def modern_key(key: str, network: str) -> str:
    """A key as today's release names it."""
    if network == "text_encoder" and not key.startswith("text_model."):
        return f"text_model.{key}"  # the prefix comes and goes with the releases
    if network == "vae" and ".attentions." in key:
        before, name, leaf = key.rsplit(".", 2)
        return f"{before}.{OLD_ATTENTION.get(name, name)}.{leaf}"
    return key


def as_linear(tensor: Tensor, shape: torch.Size | None) -> Tensor:
    """A 1x1 convolution's weights (c, c, 1, 1) as those of the equal linear layer, (c, c)."""
    if shape is not None and tensor.shape == (*shape, 1, 1):
        return tensor.reshape(shape)
    return tensor


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The file or shards of a network, safetensors before .bin.

    Raises ValueError, and names what is there, if there are none of this variant.
    """
    for suffix, stem in STEMS[folder.name].items():
        single = folder / (f"{stem}.{variant}{suffix}" if variant else f"{stem}{suffix}")
        if single.is_file():
            return [single]
        middle = f".{variant}" if variant else ""
        index = folder / f"{stem}{suffix}.index{middle}.json"
        if index.is_file():
            return shards(index)
    suffixes = tuple(STEMS[folder.name])
    here = sorted(path.name for path in folder.glob("*") if path.name.endswith(suffixes))
    raise ValueError(
        f"{folder} has no weights of variant {variant!r}, expected a file like "
        f"{STEMS[folder.name]['.safetensors']}.safetensors; it has {here or 'none at all'}"
        + (", which variant='fp16' would read" if any(".fp16." in name for name in here) else "")
    )


def shards(index: Path) -> list[Path]:
    """The files that an index names. Raises ValueError if one is missing or elsewhere."""
    names = read_json(index).get("weight_map", {}).values()
    paths = [index.parent / name for name in dict.fromkeys(names)]
    for path in paths:
        if path.parent != index.parent or not path.is_file():
            raise ValueError(f"{index} names the file {path.name}, which is not beside it")
    return paths


def read_tensors(path: Path, dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file one after the other. Raises ValueError if it is damaged."""
    state, _ = read_weights(path)  # which has a word for every kind of damage
    if path.suffix == ".bin":
        yield from state.items()
        return
    del state  # stored_tensors casts with less memory; until here nothing but the header was read
    try:
        yield from stored_tensors(path, dtype)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no weights file: {error}") from error


def read_scheduler(path: Path) -> NoiseSchedule:
    """The scheduler of the folder; for a class that does not exist here, DDIM on its schedule."""
    values = read_json(path)
    name = values.get("_class_name")
    kinds = {kind.__name__: kind for kind in SCHEDULERS.values()}
    if name not in kinds:
        logger.info("%s names %s, which is not here; DDIMScheduler takes its place", path, name)
    kind = kinds.get(name, DDIMScheduler)
    try:
        if kind is DDPMScheduler:
            configs.refuse_others(values, {"variance_type": ("fixed_small",)})
        return kind.from_config(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def write_folder(parts: Mapping[str, Any], folder: Path) -> None:
    """Write a pipeline, by the names of its fields, so that diffusers opens it.

    folder: an empty one.
    """
    networks = {name: parts[name] for name in NETWORKS}
    tokenizer, scheduler, defaults = (parts[n] for n in ("tokenizer", "scheduler", "defaults"))
    write_json(folder / "model_index.json", configs.write_model_index(scheduler))
    write_json(folder / "scheduler" / "scheduler_config.json", configs.write_scheduler(scheduler))
    write_tokenizer(tokenizer, folder / "tokenizer")
    unet, vae, text_encoder = (networks[name].config for name in ("unet", "vae", "text_encoder"))
    size = (defaults.height, defaults.width)
    sides = [side // vae.downscale for side in size]
    sample_size = sides[0] if sides[0] == sides[1] else sides
    ids = (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id)
    described = {
        "unet": configs.write_unet(unet, sample_size),
        "vae": configs.write_vae(vae, max(size)),
        "text_encoder": configs.write_text_encoder(text_encoder, ids),
    }
    for name, network in networks.items():
        write_json(folder / name / "config.json", described[name])
        modules = table(name, network.config, OURS, DIFFUSERS)
        state = {rename(k, modules): v.detach() for k, v in network.state_dict().items()}
        state = {key: value.cpu().contiguous() for key, value in state.items()}
        path = folder / name / f"{STEMS[name]['.safetensors']}.safetensors"
        save_file(state, path, {"format": "pt"})
    about = {"family": parts["family"], "defaults": dataclasses.asdict(defaults)}
    write_json(folder / NOTE, about)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(values, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf8")


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """CLIP's two tables, the special tokens and the learned ones."""
    vocab, merges = tokenizer.tables()
    if tokenizer.added:
        write_json(folder / "added_tokens.json", tokenizer.added)
    write_json(folder / "vocab.json", dict(sorted(vocab.items(), key=lambda item: item[1])))
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf8")
    pad = next(piece for piece, i in vocab.items() if i == tokenizer.pad_id)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    write_json(folder / "special_tokens_map.json", special)
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.context_length}
    write_json(folder / "tokenizer_config.json", {**about, **special})
