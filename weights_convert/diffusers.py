"""The folders of diffusers: three networks, a tokenizer and a scheduler, in and out.

Read are the keys and shapes of every release, written those of today.
"""

import json
import logging
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minisd.checkpoint import NETWORKS, build, load_state, read_json
from minisd.schedulers import SCHEDULERS, DDIMScheduler, DDPMScheduler, NoiseSchedule
from minisd.tokenizer import END, START, Tokenizer
from weights_convert import diffusers_config as configs
from weights_convert.names import DIFFUSERS, OURS, rename, table

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
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_folder(
    folder: Path, dtype: torch.dtype, variant: str | None, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """The parts of a pipeline by name, and the side of its latents as `sample_size`.

    Raises ValueError if a part is missing, damaged or of another architecture.
    """
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in configs.PIPELINES:
        raise ValueError(f"{folder} holds a {kind}, expected one of {configs.PIPELINES}")
    parts = {name: read_network(folder / name, dtype, variant) for name in NETWORKS}
    length = parts["text_encoder"].config.context_length
    parts["tokenizer"] = tokenizer or read_tokenizer(folder / "tokenizer", length)
    parts["scheduler"] = read_scheduler(folder / "scheduler" / "scheduler_config.json")
    check_fit(parts, folder)
    size = read_json(folder / "unet" / "config.json").get("sample_size") or 64
    return {**parts, "sample_size": configs.per_level(size, 2)}


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


def read_network(folder: Path, dtype: torch.dtype, variant: str | None) -> nn.Module:
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
        for their_key, tensor in read_tensors(path):
            if their_key.endswith("position_ids"):  # 0, 1, 2, ...: stored by old releases
                continue
            key = rename(modern_key(their_key, folder.name), modules)
            if folder.name == "vae" and ".attention." in key:
                tensor = as_linear(tensor, shapes.get(key))
            state[key] = tensor.to(dtype)
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


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file one after the other. Raises ValueError if it is damaged."""
    try:
        if path.suffix == ".bin":  # a pickle, of which only tensors are read
            state = torch.load(path, map_location="cpu", weights_only=True)
            yield from state.items()
            return
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                yield key, file.get_tensor(key)
    except (
        SafetensorError,
        pickle.UnpicklingError,
        OSError,
        RuntimeError,
        EOFError,
        AttributeError,
    ) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is damaged or no weights file: {reason}") from error


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


def read_tokenizer(folder: Path, context_length: int) -> Tokenizer:
    """From tokenizer.json, or from vocab.json and merges.txt. Raises ValueError without either."""
    vocab, merges = read_tables(folder)
    return Tokenizer.from_tables(vocab, merges, context_length, pad_token(folder))


def read_tables(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    both = (folder / "vocab.json", folder / "merges.txt")
    if (folder / "tokenizer.json").is_file():
        model = read_json(folder / "tokenizer.json").get("model", {})
        vocab, pairs = model.get("vocab"), model.get("merges")
        if not vocab or not pairs:
            raise ValueError(f"{folder / 'tokenizer.json'} holds no byte-pair tables like CLIP's")
    elif all(path.is_file() for path in both):
        vocab = read_json(both[0])
        lines = both[1].read_text(encoding="utf8").splitlines()
        pairs = [line for line in lines if line and not line.startswith("#version")]
    else:
        raise ValueError(
            f"{folder} has neither tokenizer.json nor vocab.json and merges.txt; "
            "fetch them, or give a tokenizer"
        )
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]
    if wrong := [pair for pair in merges if len(pair) != 2]:
        raise ValueError(f"{folder}: the merge {wrong[0]} is not a pair of pieces")
    return vocab, [(left, right) for left, right in merges]


def pad_token(folder: Path) -> str:
    """What fills a short text up: END for SD 1.x, "!" for SD 2.x."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            token = read_json(folder / name).get("pad_token")
            if token is not None:
                return token["content"] if isinstance(token, dict) else token
    return END


def write_folder(
    networks: Mapping[str, nn.Module],
    tokenizer: Tokenizer,
    scheduler: NoiseSchedule,
    size: tuple[int, int],
    folder: Path,
) -> None:
    """Write a pipeline into an empty folder, so that diffusers opens it. size: height, width."""
    write_json(folder / "model_index.json", configs.write_model_index(scheduler))
    write_json(folder / "scheduler" / "scheduler_config.json", configs.write_scheduler(scheduler))
    write_tokenizer(tokenizer, folder / "tokenizer")
    unet, vae, text_encoder = (networks[name].config for name in ("unet", "vae", "text_encoder"))
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


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(values, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf8")


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """CLIP's two tables and the special tokens."""
    vocab, merges = tokenizer.tables()
    write_json(folder / "vocab.json", dict(sorted(vocab.items(), key=lambda item: item[1])))
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf8")
    pad = next(piece for piece, i in vocab.items() if i == tokenizer.pad_id)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    write_json(folder / "special_tokens_map.json", special)
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.context_length}
    write_json(folder / "tokenizer_config.json", {**about, **special})
