"""The JSON files of a diffusers folder: their settings to our configs, and back."""

from collections.abc import Mapping
from typing import Any

from minisd.config import AutoencoderConfig, TextEncoderConfig, UNetConfig
from minisd.schedulers import NoiseSchedule

Json = Mapping[str, Any]
VERSION = "0.42.0"  # the release whose folder is written here

# Settings that have one meaning here; a file may leave them out, but not ask for another.
# upcast_attention is read over: SD 2.1 asks by it for float32 scores in half precision, where
# q k^T can pass float16's 65504. The fused kernel gives them anyway, in the reference's as in ours.
UNET_FIXED = {
    "center_input_sample": (False,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "only_cross_attention": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "norm_eps": (1e-5,),
    "transformer_layers_per_block": (1,),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "num_attention_heads": (None,),
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "addition_embed_type": (None,),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
}
VAE_FIXED = {
    "act_fn": ("silu", "swish"),
    "shift_factor": (None,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    "mid_block_add_attention": (True,),
}
CLIP_FIXED = {"layer_norm_eps": (1e-5,), "model_type": ("clip_text_model",)}
SCHEDULE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule",
                 "prediction_type", "steps_offset")  # fmt: skip
CLIPPING = ("clip_sample", "clip_sample_range", "rescale_betas_zero_snr")
SCHEDULER_KEYS = {
    "DDIMScheduler": ("set_alpha_to_one", *CLIPPING),
    "DDPMScheduler": CLIPPING,
    "PNDMScheduler": ("set_alpha_to_one", "skip_prk_steps"),
    "EulerDiscreteScheduler": ("use_karras_sigmas", "final_sigmas_type", "rescale_betas_zero_snr"),
    "EulerAncestralDiscreteScheduler": ("rescale_betas_zero_snr",),
    "HeunDiscreteScheduler": ("use_karras_sigmas", "clip_sample", "clip_sample_range"),
    "DPMSolverMultistepScheduler": (
        "use_karras_sigmas", "final_sigmas_type", "algorithm_type", "solver_order",
        "lower_order_final", "euler_at_final", "rescale_betas_zero_snr",
    ),
    "LCMScheduler": (
        "set_alpha_to_one", "original_inference_steps", "timestep_scaling", *CLIPPING
    ),
}  # fmt: skip
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInpaintPipelineLegacy",
)


def refuse_others(values: Json, fixed: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises ValueError for a setting that would need code which does not exist here."""
    for name, allowed in fixed.items():
        value = values.get(name, allowed[0])
        if value not in allowed and not (
            isinstance(value, (list, tuple)) and set(value) <= set(allowed)
        ):
            raise ValueError(
                f"{name} is {value!r}, expected {allowed[0]!r}; only models with the "
                "architecture of Stable Diffusion 1.x and 2.x can be read"
            )


def per_level(value: Any, levels: int) -> tuple[Any, ...]:
    """One number for all levels, or a list with one for each."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels


def uniform_depth(value: int | list[int]) -> int:
    depths = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(depths) != 1:
        raise ValueError(f"layers_per_block is {value}, expected one number")
    return depths.pop()


def unet_attention(values: Json, levels: int) -> tuple[bool, ...]:
    """Which levels have attention, from the kinds of the blocks, finest first."""
    kinds = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    mirror = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
    down = values.get("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
    up = values.get("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
    unknown = (set(down) - set(kinds)) | (set(up) - set(mirror))
    attention = tuple(kinds.get(kind) for kind in down)
    if unknown or len(down) != levels or attention != tuple(mirror.get(k) for k in up[::-1]):
        raise ValueError(
            f"the down blocks are {list(down)} and the up blocks {list(up)}, expected {levels} "
            f"of {sorted(kinds)} and their mirror image of {sorted(mirror)}"
        )
    return attention


def read_unet(values: Json) -> UNetConfig:
    """unet/config.json. What it calls attention_head_dim is the number of heads, as SD 1.x's 8
    says: 320 channels in 8 heads. [diffusers#2011]
    """
    refuse_others(values, UNET_FIXED)
    widths = tuple(values.get("block_out_channels", (320, 640, 1280, 1280)))
    return UNetConfig(
        in_channels=values.get("in_channels", 4),
        out_channels=values.get("out_channels", 4),
        widths=widths,
        layers_per_level=uniform_depth(values.get("layers_per_block", 2)),
        attention=unet_attention(values, len(widths)),
        heads=per_level(values.get("attention_head_dim", 8), len(widths)),
        context_width=values.get("cross_attention_dim", 1280),
        norm_groups=values.get("norm_num_groups", 32),
        linear_projection=values.get("use_linear_projection", False),
    )


def write_unet(config: UNetConfig, sample_size: int | list[int]) -> dict[str, Any]:
    """config.json of the network as diffusers has it."""
    down = ["CrossAttnDownBlock2D" if here else "DownBlock2D" for here in config.attention]
    up = ["CrossAttnUpBlock2D" if here else "UpBlock2D" for here in config.attention[::-1]]
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": VERSION,
        "sample_size": sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.layers_per_level,
        "down_block_types": down,
        "up_block_types": up,
        "attention_head_dim": config.heads,
        "cross_attention_dim": config.context_width,
        "norm_num_groups": config.norm_groups,
        "use_linear_projection": config.linear_projection,
        **{name: UNET_FIXED[name][0] for name in ("flip_sin_to_cos", "freq_shift", "norm_eps")},
    }


def read_vae(values: Json) -> AutoencoderConfig:
    """vae/config.json; an old one says nothing of the scale, which was always 0.18215."""
    refuse_others(values, VAE_FIXED)
    widths = tuple(values.get("block_out_channels", (64,)))
    down = values.get("down_block_types", ["DownEncoderBlock2D"])
    up = values.get("up_block_types", ["UpDecoderBlock2D"])
    kinds = (["DownEncoderBlock2D"] * len(widths), ["UpDecoderBlock2D"] * len(widths))
    channels = (values.get("in_channels", 3), values.get("out_channels", 3))
    if (list(down), list(up)) != kinds or channels[0] != channels[1]:
        raise ValueError(
            f"the blocks are {list(down)}, {list(up)} for channels {channels}, expected "
            f"{len(widths)} DownEncoderBlock2D and UpDecoderBlock2D, as many channels out as in"
        )
    return AutoencoderConfig(
        in_channels=channels[0],
        latent_channels=values.get("latent_channels", 4),
        widths=widths,
        layers_per_level=values.get("layers_per_block", 1),
        norm_groups=values.get("norm_num_groups", 32),
        scaling_factor=values.get("scaling_factor", 0.18215),  # LDM: 1 / std of the latents
    )


def write_vae(config: AutoencoderConfig, sample_size: int) -> dict[str, Any]:
    """config.json of the network as diffusers has it."""
    levels = len(config.widths)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": VERSION,
        "sample_size": sample_size,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.layers_per_level,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": config.scaling_factor,
        "act_fn": "silu",
    }


def read_text_encoder(values: Json) -> TextEncoderConfig:
    """text_encoder/config.json; what it leaves out is as in transformers' CLIPTextConfig."""
    refuse_others(values, CLIP_FIXED)
    return TextEncoderConfig(
        vocab_size=values.get("vocab_size", 49408),
        context_length=values.get("max_position_embeddings", 77),
        width=values.get("hidden_size", 512),
        layers=values.get("num_hidden_layers", 12),
        heads=values.get("num_attention_heads", 8),
        mlp_width=values.get("intermediate_size", 2048),
        activation=values.get("hidden_act", "quick_gelu"),
    )


def write_text_encoder(config: TextEncoderConfig, ids: tuple[int, int, int]) -> dict[str, Any]:
    """ids: of the start, end and padding tokens."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": config.activation,
        "layer_norm_eps": 1e-5,
        "projection_dim": config.width,
        **dict(zip(("bos_token_id", "eos_token_id", "pad_token_id"), ids)),
    }


def write_scheduler(scheduler: NoiseSchedule) -> dict[str, Any]:
    """scheduler_config.json with every key that its class in diffusers knows, and clip_sample.

    Stable Diffusion's own file has that too, for a class that does not know it: whoever goes on to
    DDIM would clip latents otherwise, which is that class's default there and here.
    """
    name = type(scheduler).__name__
    return {
        "_class_name": name,
        "_diffusers_version": VERSION,
        "clip_sample": scheduler.config.clip_sample,
        **{key: getattr(scheduler.config, key) for key in SCHEDULE_KEYS + SCHEDULER_KEYS[name]},
        "timestep_spacing": scheduler.config.timestep_spacing or scheduler.default_spacing,
    }


def write_model_index(scheduler: NoiseSchedule) -> dict[str, Any]:
    """model_index.json: which class reads which subfolder."""
    nothing = [None, None]
    return {
        "_class_name": PIPELINES[0],
        "_diffusers_version": VERSION,
        "feature_extractor": nothing,
        "image_encoder": nothing,
        "requires_safety_checker": False,
        "safety_checker": nothing,
        "scheduler": ["diffusers", type(scheduler).__name__],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
