"""The native checkpoint: a safetensors file for each network, its config in the file's metadata."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minisd.autoencoder import Autoencoder
from minisd.config import (
    AutoencoderConfig,
    Defaults,
    ScheduleConfig,
    TextEncoderConfig,
    UNetConfig,
)
from minisd.schedulers import SCHEDULERS, NoiseSchedule
from minisd.text_encoder import TextEncoder
from minisd.tokenizer import Tokenizer
from minisd.unet import UNet

FORMAT = "1"
NETWORKS: dict[str, tuple[type[nn.Module], type]] = {
    "text_encoder": (TextEncoder, TextEncoderConfig),
    "unet": (UNet, UNetConfig),
    "vae": (Autoencoder, AutoencoderConfig),
}
Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it takes the place of `path` at the end."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_state(network: Network, state: Mapping[str, Tensor], source: Path | str) -> Network:
    """Put tensors into a network made on the meta device, without copying them.

    Raises ValueError with the first missing, unexpected and misshapen keys, and the source.
    """
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    missing = [f"missing {key} {wanted[key]}" for key in wanted if key not in given]
    extra = [f"unexpected {key} {given[key]}" for key in given if key not in wanted]
    shapes = [
        f"{key} is {given[key]}, expected {wanted[key]}"
        for key in wanted
        if key in given and given[key] != wanted[key]
    ]
    if missing or extra or shapes:
        lines = [
            line
            for problems in (missing, extra, shapes)
            for line in problems[:5] + [f"and {len(problems) - 5} more"] * (len(problems) > 5)
        ]
        raise ValueError(
            f"{source} does not fit a {type(network).__name__} of its config:\n  "
            + "\n  ".join(lines)
        )
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


class Uninitialised(TorchFunctionMode):
    """Leaves out what torch.nn.init does; even without memory it takes seconds, most to import."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def build(kind: type[Network], config: Any) -> Network:
    """A network without memory for its weights, for load_state to fill."""
    with torch.device("meta"), Uninitialised():
        return kind(config)


def save_network(network: nn.Module, path: Path | str) -> None:
    """Write the weights as they are, and the config into the file's metadata; all or nothing."""
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    metadata = {"minisd_format": FORMAT, "config": network.config.to_json()}
    with replacing(Path(path)) as part:
        save_file(state, part, metadata)


def stored_tensors(
    path: Path | str, dtype: torch.dtype | None, device: torch.device | str = "cpu"
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a safetensors file, floats as `dtype`; None leaves them as they are stored.

    What needs no cast stays in the file until it is used. Otherwise the file is opened anew for
    every few tensors, because what was read of it leaves the memory only when it is closed.
    """
    with safe_open(path, framework="pt") as file:
        kinds = {key: file.get_tensor(key).dtype for key in file.keys()}
    floats = {key for key, kind in kinds.items() if kind.is_floating_point}
    kept = dtype is None or all(kinds[key] == dtype for key in floats)
    keys, few = list(kinds), len(kinds) + 1 if kept else 8
    for start in range(0, len(keys), few):
        with safe_open(path, framework="pt", device=str(device)) as file:
            for key in keys[start : start + few]:
                yield key, file.get_tensor(key).to(dtype if key in floats else None)


def load_network(
    path: Path | str,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Read a file of save_network; the file's name says which network it is.

    Each tensor is cast by itself, so that few exist twice. Raises ValueError for a file that is
    damaged, foreign or of another format.
    """
    path = Path(path)
    if path.stem not in NETWORKS:
        raise ValueError(f"{path.name} is not one of {[f'{n}.safetensors' for n in NETWORKS]}")
    kind, config_kind = NETWORKS[path.stem]
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("minisd_format") != FORMAT:
            raise ValueError(
                f"{path} is no minisd checkpoint of format {FORMAT} (its metadata says "
                f"{metadata.get('minisd_format')}); convert it with `python -m weights_convert`"
            )
        state = dict(stored_tensors(path, dtype, device))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; is {path.parent} a complete model?") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    return load_state(build(kind, config_kind.from_json(metadata["config"])), state, path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(values, indent=2) + "\n", encoding="utf8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ValueError if it is missing or none."""
    try:
        values = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected a JSON object")
    return values


def save_scheduler(scheduler: NoiseSchedule, path: Path) -> None:
    write_json(path, {"class": type(scheduler).__name__, **dataclasses.asdict(scheduler.config)})


def load_scheduler(path: Path) -> NoiseSchedule:
    """Read a file of save_scheduler. Raises ValueError for a class that does not exist here."""
    values = read_json(path)
    name = values.pop("class", None)
    kinds = {kind.__name__: kind for kind in SCHEDULERS.values()}
    if name not in kinds:
        raise ValueError(f"{path} names the scheduler {name!r}, expected one of {sorted(kinds)}")
    return kinds[name](ScheduleConfig.from_json(json.dumps(values)))


def model_hash(networks: Mapping[str, nn.Module]) -> str:
    """Twelve hex digits over the names and numbers of all weights, as half precision."""
    digest = hashlib.sha256()
    for name, network in sorted(networks.items()):
        for key, value in sorted(network.state_dict().items()):
            digest.update(f"{name}.{key}".encode())
            digest.update(value.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def load_folder(folder: Path, dtype: torch.dtype | None = torch.float32) -> dict[str, Any]:
    """Everything in a native folder, by the names of the pipeline's fields.

    Raises ValueError if a file is missing or damaged.
    """
    about = read_json(folder / "pipeline.json")
    try:
        parts = {"defaults": Defaults(**about["defaults"]), "family": about["family"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'pipeline.json'} describes no model: {error!r}") from error
    networks = {name: load_network(folder / f"{name}.safetensors", dtype) for name in NETWORKS}
    return {
        **parts,
        **networks,
        "tokenizer": Tokenizer.from_file(folder / "tokenizer.json"),
        "scheduler": load_scheduler(folder / "scheduler.json"),
    }


def save_folder(parts: Mapping[str, Any], folder: Path) -> None:
    """Write what load_folder reads; pipeline.json last, so that without it nothing is there."""
    folder.mkdir(parents=True, exist_ok=True)
    networks = {name: parts[name] for name in NETWORKS}
    for name, network in networks.items():
        save_network(network, folder / f"{name}.safetensors")
    parts["tokenizer"].save(folder / "tokenizer.json")
    save_scheduler(parts["scheduler"], folder / "scheduler.json")
    about = {"family": parts["family"], "defaults": dataclasses.asdict(parts["defaults"])}
    write_json(folder / "pipeline.json", {**about, "hash": model_hash(networks)})
