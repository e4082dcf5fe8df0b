"""Which model a single file holds, and every size of it, from the shapes of its tensors.

File names tell nothing. What shapes do not tell is as in the official models: normalisation in
groups of 32 channels, SD 1.x's 8 heads, SD 2.x's heads of 64 channels.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minisd.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from weights_convert.names import PREFIXES

State = Mapping[str, Tensor]
HUGGING_FACE, UNET, VAE = (PREFIXES[name] for name in ("text_encoder", "unet", "vae"))
OPEN_CLIP = "cond_stage_model.model."
HEAD_WIDTH = 64  # CLIP's in every size, and SD 2.x's
OPEN_CLIP_LAYERS = 23  # SD 2.x reads the output of the last but one of OpenCLIP's 24
CHANNELS = {5: "depth-to-image model", 7: "upscaler", 8: "InstructPix2Pix model"}
LORA = "a LoRA: open the model it is for, then pipe.load_lora_weights"
EMBEDDING = "a textual inversion: open a model, then pipe.load_textual_inversion"
AUTOENCODER = "an autoencoder alone: open a model with vae=, or weights_convert.open_vae"
COMPONENT = "alone, a file out of a diffusers folder: open that whole folder"
OTHERS = (  # keys that only such a file has, and what it seems to be; the first that fits
    (r"lora_(up|down|A|B|unet|te)|\.lora\.|\.hada_w|\.lokr_w", LORA),
    (r"^control_model\.|^controlnet_|^zero_convs\.|^input_hint_block\.", "a ControlNet"),
    (r"motion_modules\.", "an AnimateDiff model"),
    (r"^conditioner\.embedders\.", "a Stable Diffusion XL model"),
    (r"(^|\.)joint_blocks\.", "a Stable Diffusion 3 model"),
    (r"(^|\.)(double_blocks|single_transformer_blocks)\.", "a Flux model"),
    (r"^low_scale_model\.|diffusion_model\.label_emb\.", "an upscaler or an unCLIP model"),
)
ALONE = (  # the same for files without CompVis' UNet
    (r"^emb_params$|^<.*>$", EMBEDDING),
    (r"^(down_blocks|up_blocks)\.\d+\.(resnets|attentions)", f"a UNet {COMPONENT}"),
    (r"^(time_embed|input_blocks)\.", "a UNet alone: open the checkpoint that it is from"),
    (r"^(first_stage_model\.)?(encoder|decoder)\.(conv_in|mid|up|down)", AUTOENCODER),
    (r"^(text_model\.)?(encoder\.layers|embeddings)\.", f"a text encoder {COMPONENT}"),
)


def refuse_others(state: State, source: object) -> None:
    """Raises ValueError, and names what it seems to be, for any other file of weights."""
    for pattern, kind in OTHERS if f"{UNET}out.2.weight" in state else OTHERS + ALONE:
        if any(map(re.compile(pattern).search, state)):
            raise ValueError(f"{source} seems to be {kind}; expected Stable Diffusion 1.x or 2.x")
    if not any(key.startswith(UNET) for key in state):
        raise ValueError(
            f"{source} is no Stable Diffusion 1.x or 2.x: no tensor of its {len(state)} is called "
            f"{UNET}..., the first are {list(itertools.islice(state, 3))}"
        )


def shape(state: State, key: str, axes: int) -> tuple[int, ...]:
    """Raises ValueError if there is no tensor of this name with that many axes."""
    if key not in state or state[key].ndim != axes:
        found = f"has shape {tuple(state[key].shape)}" if key in state else "is missing"
        raise ValueError(f"{key} {found}, expected {axes} axes; it tells the sizes of the model")
    return tuple(state[key].shape)


def heads_of(width: int) -> int:
    if width < HEAD_WIDTH or width % HEAD_WIDTH:
        raise ValueError(
            f"width {width} is not divisible into heads of {HEAD_WIDTH} as in the official "
            "models, and shapes do not tell heads; give config="
        )
    return width // HEAD_WIDTH


def text_encoder_config(state: State) -> TextEncoderConfig:
    """From CLIP's tensors under the names of Hugging Face (SD 1.x) or OpenCLIP (SD 2.x)."""
    if is_open_clip(state):
        token, place = f"{OPEN_CLIP}token_embedding.weight", f"{OPEN_CLIP}positional_embedding"
        layer, mlp = OPEN_CLIP + "transformer.resblocks.{}.ln_1.weight", "mlp.c_fc.weight"
    else:
        model = clip_prefix(state)
        token = f"{model}embeddings.token_embedding.weight"
        place = f"{model}embeddings.position_embedding.weight"
        layer, mlp = model + "encoder.layers.{}.layer_norm1.weight", "mlp.fc1.weight"
    vocab, width = shape(state, token, 2)
    layers = next(i for i in itertools.count() if layer.format(i) not in state)
    first = layer.format(0).removesuffix(layer.rpartition("}.")[2])
    return TextEncoderConfig(
        vocab_size=vocab,
        context_length=shape(state, place, 2)[0],
        width=width,
        layers=min(layers, OPEN_CLIP_LAYERS) if is_open_clip(state) else layers,
        heads=heads_of(width),
        mlp_width=shape(state, first + mlp, 2)[0],
        activation="gelu" if is_open_clip(state) else "quick_gelu",
    )


def is_open_clip(state: State) -> bool:
    return any(key.startswith(OPEN_CLIP) for key in state)


def clip_prefix(state: State) -> str:
    """What the text encoder's names begin with; some programs leave `text_model.` out."""
    if is_open_clip(state):
        return OPEN_CLIP
    short = f"{HUGGING_FACE}embeddings.token_embedding.weight" in state
    return HUGGING_FACE if short else f"{HUGGING_FACE}text_model."


def unet_config(state: State) -> UNetConfig:
    """From CompVis' blocks, which are numbered through all levels; a downsample ends a level."""
    levels: list[list[tuple[int, bool]]] = [[]]  # of each block: its width, and if it has attention
    for n in itertools.count(1):
        block = f"{UNET}input_blocks.{n}"
        if f"{block}.0.op.weight" in state:
            levels.append([])
        elif f"{block}.0.out_layers.3.weight" in state:
            width = shape(state, f"{block}.0.out_layers.3.weight", 4)[0]
            levels[-1].append((width, f"{block}.1.norm.weight" in state))
        else:
            break
    if not all(levels):
        raise ValueError(f"a level of {UNET}input_blocks has no blocks: its tensors are missing")
    widths = tuple(level[0][0] for level in levels)
    middle = f"{UNET}middle_block.1"
    linear = f"{middle}.proj_in.weight" in state and state[f"{middle}.proj_in.weight"].ndim == 2
    return UNetConfig(
        in_channels=shape(state, f"{UNET}input_blocks.0.0.weight", 4)[1],
        out_channels=shape(state, f"{UNET}out.2.weight", 4)[0],
        widths=widths,
        layers_per_level=len(levels[0]),
        attention=tuple(level[0][1] for level in levels),
        heads=tuple(heads_of(width) if linear else 8 for width in widths),
        context_width=shape(state, f"{middle}.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        linear_projection=linear,
    )


def vae_config(state: State, prefix: str = VAE) -> AutoencoderConfig:
    """From the tensors of an autoencoder under CompVis' or diffusers' names.

    The scaling factor is SD 1.x's and 2.x's; SD XL's autoencoder has the same shapes and another.
    """
    if f"{prefix}quant_conv.weight" not in state and f"{prefix}encoder.conv_in.weight" in state:
        raise ValueError("it has no quant_conv: it seems to be an autoencoder of another family")
    theirs = f"{prefix}encoder.down_blocks.0.resnets.0.conv1.weight" in state
    block = prefix + ("encoder.down_blocks.{}.resnets.{}" if theirs else "encoder.down.{}.block.{}")
    key = block + ".conv1.weight"
    levels = next(i for i in itertools.count() if key.format(i, 0) not in state)
    return AutoencoderConfig(
        in_channels=shape(state, f"{prefix}encoder.conv_in.weight", 4)[1],
        latent_channels=shape(state, f"{prefix}quant_conv.weight", 4)[0] // 2,
        widths=tuple(shape(state, key.format(i, 0), 4)[0] for i in range(levels)),
        layers_per_level=next(j for j in itertools.count() if key.format(0, j) not in state),
    )


CONFIGS = {"text_encoder": text_encoder_config, "unet": unet_config, "vae": vae_config}


def infer(network: str, state: State, source: object, *prefix: str) -> Any:
    """The config of a network. Raises ValueError if the tensors that tell it are not there."""
    if network == "vae" and not prefix and not any(key.startswith(VAE) for key in state):
        raise ValueError(f"{source} has no autoencoder ({VAE}...); give one by vae=")
    try:
        return CONFIGS[network](state, *prefix)
    except ValueError as error:
        raise ValueError(f"{source}: the sizes of its {network} cannot be told: {error}") from error


def check_counts(config: Any, state: State, source: object) -> None:
    """Raises ValueError if a config, which may be a file's own, has more layers than tensors."""
    values = dataclasses.asdict(config)
    counts = [
        values.get("layers", 0),
        values.get("layers_per_level", 0),
        len(values.get("widths", ())),
    ]
    if max(counts) > len(state):
        raise ValueError(f"{source} has {len(state)} tensors, too few for {max(counts)} layers")


def check_channels(parts: Mapping[str, Any], source: object) -> None:
    """Raises ValueError for a UNet that reads more than latents, or a mask and a masked picture."""
    given, latent = parts["unet"].config.in_channels, parts["vae"].config.latent_channels
    if given not in (latent, 2 * latent + 1):
        kind = f", as of a {CHANNELS[given]}" if given in CHANNELS else ""
        raise ValueError(
            f"{source} has a UNet with {given} input channels{kind}; expected {latent}, or "
            f"{2 * latent + 1} of an inpainting model"
        )


@torch.no_grad()
def ask_prediction_type(unet: nn.Module, context: Tensor) -> str:
    """What a UNet was trained to predict, which no shape tells: "epsilon" or "v_prediction".

    At t = 999 its input is noise alone. A good eps is then that input itself, and a good v
    (Progressive Distillation, Appendix D: alpha eps - sigma x_0) has next to none of it.
    context: (1, 77, d) of the empty text.
    """
    side = 2 ** (len(unet.config.widths) - 1) * 4
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, unet.config.in_channels, side, side, generator=generator)
    output = unet(noise.to(context.dtype), 999, context).float()
    share = (output * noise).sum() / noise.square().sum()
    return "epsilon" if share > 0.5 else "v_prediction"
