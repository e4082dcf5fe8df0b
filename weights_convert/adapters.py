"""LoRA files: read under diffusers', peft's and kohya's names, written under diffusers'."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from minisd.checkpoint import read_json, replacing
from minisd.lora import LoRA, adaptable
from weights_convert import hub
from weights_convert.names import DIFFUSERS, OURS, table
from weights_convert.tensors import read_weights

WEIGHT_NAME = "pytorch_lora_weights.safetensors"  # as diffusers calls it
KOHYA = {"text_encoder": ("lora_te_", "lora_te1_"), "unet": ("lora_unet_",)}
LORA = r"[._]lora(?:_linear_layer)?"  # q.lora_A, q.lora.down, q_lora.down, q.lora_linear_layer.down
MATRIX = re.compile(rf"(.+?){LORA}[._](A|B|down|up)(?:\.[^.]+)?\.weight")
ALPHA = re.compile(rf"(.+?)(?:{LORA})?\.alpha")
ROLES = {"down": "A", "up": "B"}
Source = Mapping[str, Tensor] | Path | str
Networks = Mapping[str, nn.Module]


def spellings(network: str, theirs: str) -> Iterator[str]:
    """Every name that LoRA files have for the module that diffusers calls `theirs`."""
    yield from (prefix + theirs.replace(".", "_") for prefix in KOHYA[network])
    old = re.sub(r"(attn[12])\.(to_\w+?)(\.0)?$", r"\1.processor.\2", theirs)
    old = re.sub(r"self_attn\.(\w+)_proj$", r"self_attn.to_\1", old)
    for long in (theirs, old):
        for name in (long, long.removeprefix("text_model.")):
            yield from (f"{network}.{name}", f"base_model.model.{name}", name)


def known_modules(networks: Networks) -> dict[str, tuple[str, str]]:
    """Every spelling of a module to (our path, diffusers' name)."""
    return {
        spelling: (f"{network}.{ours}", theirs)
        for network in KOHYA
        for theirs, ours in table(network, networks[network].config, DIFFUSERS, OURS).items()
        for spelling in spellings(network, theirs)
    }


def read_lora(source: Source, weight_name: str | None, networks: Networks) -> dict[str, LoRA]:
    """The adapter in a file, a folder or a state dict, by our names of the layers it is for.

    Raises ValueError with the first keys that do not fit if it is damaged or for another model.
    """
    state, config, origin = open_state(source, weight_name)
    modules, layers = known_modules(networks), adaptable(networks)
    found, unknown = {}, []
    for key, value in state.items():
        match = MATRIX.fullmatch(key) or ALPHA.fullmatch(key)
        path, theirs = modules.get(match[1], (None, None)) if match else (None, None)
        if path not in layers:
            unknown.append(key)
            continue
        role = ROLES.get(match[2], match[2]) if match.re is MATRIX else "alpha"
        found.setdefault(path, {"theirs": theirs})[role] = (key, value)
    if unknown or not found:
        more = [f"and {len(unknown) - 5} more"] * (len(unknown) > 5)
        listed = f"{', '.join(unknown[:5] + more)} (of {len(state)}) fit no layer of it"
        raise ValueError(f"{origin} is no LoRA for this model: {listed}")
    return {
        path: build(layers[path], parts, config.get(path.split(".")[0], {}), origin)
        for path, parts in found.items()
    }


def build(layer: nn.Module, parts: dict[str, Any], config: dict[str, Any], origin: str) -> LoRA:
    """One layer's adapter. Raises ValueError if a matrix is missing or of another shape."""
    for role in ("A", "B"):
        if role not in parts:
            raise ValueError(f"{origin} lacks matrix {role} of {parts['theirs']}")
    rank = max(1, parts["A"][1].shape[:1].numel())
    told = configured_alpha(config, parts["theirs"], rank)
    lora = LoRA(layer, rank, float(parts["alpha"][1]) if "alpha" in parts else told)
    for role, mine in (("A", lora.A), ("B", lora.B)):
        key, value = parts[role]
        if trimmed(value.shape) != trimmed(mine.shape):
            shapes = f"{key} is {tuple(value.shape)}, expected {tuple(mine.shape)}"
            raise ValueError(f"{origin} was made for another model: {shapes}")
        mine.data = value.reshape(mine.shape).to(layer.weight.device, layer.weight.dtype)
    return lora.requires_grad_(False)


def trimmed(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without the 1 x 1 that a convolution has and a linear layer has not."""
    return tuple(shape[:2]) if set(shape[2:]) <= {1} else tuple(shape)


def configured_alpha(config: dict[str, Any], theirs: str, rank: int) -> float | None:
    """What peft's settings say of a layer; None if there are none: then B A is not scaled."""
    alpha = config.get("lora_alpha")
    for pattern, value in config.get("alpha_pattern", {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern.removeprefix('^')})", theirs):
            alpha = value
    rescaled = alpha is not None and config.get("use_rslora")  # alpha / sqrt(r), not alpha / r
    return alpha * rank**0.5 if rescaled else alpha


def open_state(source: Source, weight_name: str | None) -> tuple[dict[str, Tensor], dict, str]:
    """(tensors, peft's settings for each network, what to call the source in errors)."""
    if isinstance(source, Mapping):
        return dict(source), {}, "the state dict"
    peft = ("adapter_model.safetensors", "adapter_config.json")
    path = hub.find(source, [weight_name] if weight_name else [WEIGHT_NAME, *peft])
    if path.is_dir():
        path = hub.choose_file(path, weight_name, [WEIGHT_NAME], [".safetensors"])
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a LoRA's file or folder")
    try:
        state, metadata = read_weights(path)
        metadata = json.loads(metadata.get("lora_adapter_metadata") or "{}")
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no LoRA file: {error}") from error
    beside = path.with_name("adapter_config.json")  # peft's own folder: one network's adapter
    if path.name == "adapter_model.safetensors" and beside.is_file():
        return state, dict.fromkeys(KOHYA, read_json(beside)), str(path)
    config = {name: {} for name in KOHYA}
    for key, value in metadata.items():  # such as unet.lora_alpha
        config.setdefault(key.split(".")[0], {})[key.partition(".")[2]] = value
    return state, config, str(path)


def write_lora(loras: Mapping[str, LoRA], networks: Networks, path: Path | str) -> None:
    """Write an adapter for diffusers; alpha / r goes into B, so that no reader can miss it."""
    names, state = dict(known_modules(networks).values()), {}
    for module, lora in loras.items():
        theirs = f"{module.split('.')[0]}.{names[module]}"
        state[f"{theirs}.lora_A.weight"] = lora.A.detach().cpu().contiguous()
        state[f"{theirs}.lora_B.weight"] = (lora.factor * lora.B.detach()).cpu().contiguous()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(path)) as part:
        save_file(state, part, {"format": "pt"})
