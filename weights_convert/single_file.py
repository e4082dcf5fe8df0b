"""Single files: a whole model in one .safetensors or .ckpt under CompVis' names, in and out.

A file that is written here says in its metadata what the layout has no place for: the sizes that
shapes do not tell, the scheduler, the defaults, the tokenizer. Other programs pass over that.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from torch import nn

from minisd.autoencoder import Autoencoder
from minisd.checkpoint import NETWORKS, replacing
from minisd.config import Defaults, ModelConfig, ScheduleConfig
from minisd.schedulers import SCHEDULERS, DDIMScheduler, NoiseSchedule, PNDMScheduler
from minisd.tokenizer import END, Tokenizer
from weights_convert import families
from weights_convert.compvis import (
    EMA,
    EXTRAS,
    PREFIXES,
    averaged,
    names_in_file,
    read_network,
    tensors_of,
)
from weights_convert.diffusers import check_fit
from weights_convert.families import State
from weights_convert.tensors import read_weights
from weights_convert.tokenizer_source import beside, find_tokenizer

logger = logging.getLogger(__name__)
NOTE = "minisd"  # the entry of the metadata


def read_file(
    path: Path,
    dtype: torch.dtype | None,
    tokenizer: Tokenizer | Path | str | None = None,
    vae: Autoencoder | None = None,
    ema: bool | None = None,
    prediction_type: str | None = None,
    config: ModelConfig | None = None,
) -> dict[str, Any]:
    """Everything in a single file, by the names of the pipeline's fields.

    What is not given here is as the file notes it or as its shapes tell; see weights_convert.open.
    Raises ValueError for a file that is damaged, incomplete or of another family.
    """
    state, metadata = read_weights(path)
    if "minisd_format" in metadata:
        raise ValueError(f"{path} is one network of a minisd folder; open the folder")
    families.refuse_others(state, path)
    if ema:
        state = averaged(state, path)
    elif ema is None and any(key.startswith(EMA) for key in state):
        logger.info("%s holds averaged weights too; ema=True reads them", path)
    note = read_note(metadata, path)
    sizes, noted_tokenizer = (note.pop(name, None) for name in ("config", "tokenizer"))
    parts = read_networks(state, path, dtype, config or sizes, {} if vae is None else {"vae": vae})
    family = "sd-2" if parts["unet"].config.context_width == 1024 else "sd-1"
    tokenizer = noted_tokenizer if tokenizer is None else tokenizer
    if not isinstance(tokenizer, Tokenizer):
        place = beside(path) if tokenizer is None else tokenizer
        length = parts["text_encoder"].config.context_length
        tokenizer = find_tokenizer(place, "!" if family == "sd-2" else END, length)
    parts["tokenizer"] = tokenizer
    check_fit(parts, path)
    if note:
        return {**parts, **note, "scheduler": predicting(note["scheduler"], prediction_type)}
    return {**parts, **official(parts, family, config, prediction_type)}


def read_networks(
    state: State,
    source: Path,
    dtype: torch.dtype | None,
    sizes: ModelConfig | None,
    given: Mapping[str, nn.Module],
) -> dict[str, Any]:
    """The networks by name, those that are not `given` from the file."""
    parts: dict[str, Any] = dict(given)
    for name in (name for name in NETWORKS if name not in given):
        size = getattr(sizes, name) if sizes else families.infer(name, state, source)
        families.check_counts(size, state, source)
        theirs = names_in_file(name, size, families.clip_prefix(state))
        parts[name] = read_network(name, size, state, theirs, source, dtype, PREFIXES[name])
    families.check_channels(parts, source)
    unused = [k for k in state if not k.startswith(tuple(PREFIXES.values()))]
    if unused := [key for key in unused if not EXTRAS.fullmatch(key)]:
        logger.info("%s holds %d tensors of no network: %s", source, len(unused), unused[:5])
    return parts


def predicting(scheduler: NoiseSchedule, prediction_type: str | None) -> NoiseSchedule:
    if prediction_type is None:
        return scheduler
    return type(scheduler)(dataclasses.replace(scheduler.config, prediction_type=prediction_type))


def official(
    parts: Mapping[str, Any], family: str, config: ModelConfig | None, prediction_type: str | None
) -> dict[str, Any]:
    """The scheduler and the defaults of the official models of a family.

    SD 2.x comes in two kinds of the same shapes: the UNet is asked which it is. Official folders
    name PNDM where eps is predicted, and DDIM and 768 pixels where v is.
    """
    schedule = config.schedule if config else ScheduleConfig()
    unet, vae = parts["unet"], parts["vae"]
    if prediction_type is None and config is None and family == "sd-2":
        if unet.config.in_channels == vae.config.latent_channels:
            context = parts["text_encoder"](parts["tokenizer"](""))
            prediction_type = families.ask_prediction_type(unet, context)
            logger.info("the UNet answers like one that predicts %s", prediction_type)
    kind = prediction_type or schedule.prediction_type
    schedule = dataclasses.replace(schedule, prediction_type=kind)
    scheduler = PNDMScheduler(schedule) if kind == "epsilon" else DDIMScheduler(schedule)
    side = (96 if family == "sd-2" and kind == "v_prediction" else 64) * vae.config.downscale
    defaults = Defaults(height=side, width=side)
    return {"scheduler": scheduler, "defaults": defaults, "family": family}


def write_file(parts: Mapping[str, Any], path: Path) -> None:
    """Write a pipeline, by the names of its fields, into a .safetensors, whole or not at all.

    Raises ValueError for another kind of name, and if the file exists.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is to be a single file; give a name that ends in .safetensors")
    if path.exists():
        raise ValueError(f"{path} exists; remove it or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = tensors_of({name: parts[name] for name in NETWORKS})
    with replacing(path) as part:
        save_file(state, part, {"format": "pt", NOTE: write_note(parts)})


def write_note(parts: Mapping[str, Any]) -> str:
    """What read_note reads, as JSON for the file's metadata."""
    scheduler = parts["scheduler"]
    return json.dumps(
        {
            "config": {name: dataclasses.asdict(parts[name].config) for name in NETWORKS},
            "scheduler": [type(scheduler).__name__, dataclasses.asdict(scheduler.config)],
            "defaults": dataclasses.asdict(parts["defaults"]),
            "family": parts["family"],
            "tokenizer": parts["tokenizer"].backend.to_str(),
        }
    )


def read_note(metadata: Mapping[str, str], source: Path) -> dict[str, Any]:
    """What write_note wrote, {} for other files. Raises ValueError if it is damaged."""
    if NOTE not in metadata:
        return {}
    try:
        note = json.loads(metadata[NOTE])
        kinds = {kind.__name__: kind for kind in SCHEDULERS.values()}
        kind, schedule = note["scheduler"]
        config = {
            name: size.from_json(json.dumps(note["config"][name]))
            for name, (_, size) in NETWORKS.items()
        }
        return {
            "config": ModelConfig(**config),
            "scheduler": kinds[kind](ScheduleConfig.from_json(json.dumps(schedule))),
            "defaults": Defaults(**note["defaults"]),
            "family": str(note["family"]),
            "tokenizer": Tokenizer(tokenizers.Tokenizer.from_str(note["tokenizer"])),
        }
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ValueError(f"{source}: its metadata's {NOTE!r} is damaged: {error!r}") from error
