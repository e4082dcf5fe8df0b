"""CompVis' names: a network out of the tensors of a single file, and back.

SD 2.x keeps its text encoder under OpenCLIP's names, with q, k and v in one matrix.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minisd.autoencoder import Autoencoder
from minisd.checkpoint import NETWORKS, build, load_state
from minisd.config import AutoencoderConfig
from weights_convert import families
from weights_convert.diffusers import as_linear, modern_key
from weights_convert.families import HUGGING_FACE, OPEN_CLIP, UNET, VAE, State
from weights_convert.names import COMPVIS, DIFFUSERS, OURS, rename, table
from weights_convert.tensors import cast, read_weights

EMA = "model_ema."
PREFIXES = {"text_encoder": "cond_stage_model.", "unet": UNET, "vae": VAE}  # of either CLIP
# What files carry beside the weights: buffers of the schedule, positions 0, 1, 2, ..., the parts
# of CLIP that compare texts with pictures, what trained the autoencoder, the layer after the last.
EXTRAS = re.compile(
    r"betas|(sqrt_)?(one_minus_)?alphas_cumprod(_prev)?|log_one_minus_alphas_cumprod"
    r"|sqrt_recip(m1)?_alphas_cumprod|posterior_\w+|lvlb_weights|logvar|scale_factor|global_step"
    r"|model_ema\..+|(first_stage_model\.)?(loss|model_ema)\..+"
    r"|cond_stage_model\..*(position_ids|logit_scale|text_projection(\.weight)?|attn_mask)"
    rf"|cond_stage_model\.model\.transformer\.resblocks\.{families.OPEN_CLIP_LAYERS}\..+"
)
OPEN_CLIP_MODULES = {
    "norm1": "ln_1", "norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "attn.out": "attn.out_proj", **{f"attn.{part}": "attn.in_proj" for part in "qkv"},
}  # fmt: skip


def open_clip_key(key: str) -> str:
    """OpenCLIP's name for a tensor of the text encoder; q, k and v share one."""
    if key == "position_embedding.weight":
        return "positional_embedding"
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", key):
        module = OPEN_CLIP_MODULES[match[2]]
        dot = "_" if module == "attn.in_proj" else "."
        return f"transformer.resblocks.{match[1]}.{module}{dot}{match[3]}"
    return key.replace("final_norm", "ln_final")


def names_in_file(name: str, config: Any, clip: str) -> Callable[[str], str]:
    """A function from our name of a network's tensor to that in a single file.

    clip: what the names of the text encoder begin with, which also tells whose names they are.
    """
    if name == "text_encoder" and clip == OPEN_CLIP:
        return lambda key: OPEN_CLIP + open_clip_key(key)
    modules = table(name, config, OURS, COMPVIS)
    if name == "text_encoder":
        return lambda key: clip + rename(key, modules).removeprefix("text_model.")
    return lambda key: PREFIXES[name] + rename(key, modules)


def ema_key(key: str) -> str:
    """The name of an averaged tensor: that of the plain one without its dots."""
    return EMA + key.removeprefix("model.").replace(".", "")


def averaged(state: State, source: Path) -> dict[str, Tensor]:
    """The state with the UNet's averaged weights in place of the plain ones."""
    plain = [key for key in state if key.startswith(UNET)]
    if missing := [ema_key(key) for key in plain if ema_key(key) not in state]:
        raise ValueError(
            f"{source} has no averaged weights for {len(missing)} of the UNet's {len(plain)} "
            f"tensors, the first is {missing[0]}; open it with ema=False"
        )
    return {**state, **{key: state[ema_key(key)] for key in plain}}


def part_of(tensor: Tensor, their_key: str, key: str, shape: torch.Size) -> Tensor:
    """The tensor that we call `key`: a third of a fused one, or in another shape, or as it is."""
    fused = re.search(r"\.in_proj_(weight|bias)$", their_key)
    if fused and tensor.shape == (3 * shape[0], *shape[1:]):
        return tensor.chunk(3)["qkv".index(key.split(".")[-2])].clone()
    return as_linear(tensor, shape) if ".mid.attention." in key else tensor


def read_network(
    name: str,
    config: Any,
    state: State,
    theirs: Callable[[str], str],
    source: Path,
    dtype: torch.dtype | None,
    prefix: str,
) -> nn.Module:
    """One network out of the tensors that begin with `prefix`. theirs: our name to the file's.

    Raises ValueError with the first missing, unexpected and misshapen tensors under both names.
    """
    network = build(NETWORKS[name][0], config)
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    names = {key: theirs(key) for key in wanted}
    held = [key for key in wanted if names[key] in state]
    found = {key: part_of(state[names[key]], names[key], key, wanted[key]) for key in held}
    known = set(names.values())
    missing = [f"missing {names[k]} {tuple(wanted[k])}, here {k}" for k in wanted if k not in found]
    strange = [
        f"unexpected {key} {tuple(value.shape)}"
        for key, value in state.items()
        if key.startswith(prefix) and key not in known and not EXTRAS.fullmatch(key)
    ]
    shapes = [
        f"{names[k]} is {tuple(value.shape)}, expected {tuple(wanted[k])}, here {k}"
        for k, value in found.items()
        if value.shape != wanted[k]
    ]
    if missing or strange or shapes:
        lines = [line for some in (missing, strange, shapes) for line in first_five(some)]
        kind = type(network).__name__
        raise ValueError(f"{source} does not fit a {kind} of its sizes:\n  " + "\n  ".join(lines))
    return load_state(
        network, {k: cast(found[k], dtype, f"{source}: {names[k]}") for k in wanted}, source
    )


def first_five(lines: list[str]) -> list[str]:
    return lines[:5] + [f"and {len(lines) - 5} more"] * (len(lines) > 5)


def read_vae(
    path: Path, dtype: torch.dtype | None, config: AutoencoderConfig | None = None
) -> Autoencoder:
    """The autoencoder of a file under CompVis', diffusers' or our names, or of a whole checkpoint.

    Raises ValueError if there is none, or one of another family.
    """
    state, metadata = read_weights(path)
    prefix = VAE if any(key.startswith(VAE) for key in state) else ""
    dialect = COMPVIS
    if "minisd_format" in metadata:
        dialect, config = OURS, AutoencoderConfig.from_json(metadata.get("config", "{}"))
    elif any(key.startswith(f"{prefix}encoder.down_blocks.") for key in state):
        dialect, state = DIFFUSERS, {modern_key(key, "vae"): state[key] for key in state}
    config = config or families.infer("vae", state, path, prefix)
    families.check_counts(config, state, path)
    modules = table("vae", config, OURS, dialect)
    return read_network(
        "vae", config, state, lambda key: prefix + rename(key, modules), path, dtype, prefix
    )


def tensors_of(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of the three networks under the names of a single file."""
    gelu = networks["text_encoder"].config.activation == "gelu"
    clip = OPEN_CLIP if gelu else f"{HUGGING_FACE}text_model."
    found: dict[str, list[Tensor]] = {}
    for name in NETWORKS:
        theirs = names_in_file(name, networks[name].config, clip)
        for key, value in networks[name].state_dict().items():
            if name == "vae" and ".mid.attention." in key and value.ndim == 2:
                value = value[:, :, None, None]  # a 1x1 convolution in CompVis
            found.setdefault(theirs(key), []).append(value.detach().cpu())
    # OpenCLIP's q, k and v came under one name, in this order.
    state = {key: v[0].contiguous() if len(v) == 1 else torch.cat(v) for key, v in found.items()}
    if not gelu:
        positions = torch.arange(networks["text_encoder"].config.context_length)
        state[f"{clip}embeddings.position_ids"] = positions[None]  # (1, 77), which some look for
    return state
