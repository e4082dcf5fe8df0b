"""Random tiny models of the reference implementations, and the same models as ours.

Every parameter is random, norms and biases too: zeros and ones would hide wrong wiring.
"""

import warnings

import pytest
import torch

import weights_convert
from minisd.tokenizer import Tokenizer

diffusers = pytest.importorskip("diffusers", reason="the parity tests need tests/requirements.txt")
transformers = pytest.importorskip("transformers")
diffusers.utils.logging.set_verbosity_error()
transformers.utils.logging.set_verbosity_error()

CROSS, PLAIN = "CrossAttn", ""


def unet_settings(widths, attention, **more):
    down = [f"{CROSS if here else PLAIN}DownBlock2D" for here in attention]
    up = [f"{CROSS if here else PLAIN}UpBlock2D" for here in reversed(attention)]
    return {"block_out_channels": widths, "down_block_types": down, "up_block_types": up,
            "sample_size": 8, **more}  # fmt: skip


UNETS = {
    "like SD 1": unet_settings(
        (32, 64, 64), (True, True, False), attention_head_dim=4, cross_attention_dim=24,
        norm_num_groups=8,
    ),
    "like SD 2, heads per level": unet_settings(
        (32, 64), (True, True), attention_head_dim=[2, 4], cross_attention_dim=40,
        norm_num_groups=16, use_linear_projection=True,
    ),
    "one level, deep, nine channels in": unet_settings(
        (24,), (True,), layers_per_block=3, attention_head_dim=3, cross_attention_dim=16,
        norm_num_groups=4, in_channels=9,
    ),
    "attention in the middle levels": unet_settings(
        (16, 48, 32, 64), (False, True, True, False), layers_per_block=1,
        attention_head_dim=[1, 2, 4, 8], cross_attention_dim=32, norm_num_groups=2,
    ),
    "one group, no attention but mid": unet_settings(
        (16, 32), (False, False), attention_head_dim=2, cross_attention_dim=8, norm_num_groups=1,
        out_channels=3, use_linear_projection=True,
    ),
}  # fmt: skip


def vae_settings(widths, **more):
    levels = len(widths)
    return {"block_out_channels": widths, "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels, **more}  # fmt: skip


VAES = {
    "like SD": vae_settings((16, 32, 32, 32), layers_per_block=2, norm_num_groups=8),
    "two levels": vae_settings((24, 48), layers_per_block=1, norm_num_groups=4),
    "one level, deep": vae_settings((32,), layers_per_block=3, norm_num_groups=32),
    "wider latents": vae_settings(
        (8, 16, 8), layers_per_block=1, norm_num_groups=2, latent_channels=6, scaling_factor=0.5
    ),
}
CLIPS = {
    "like SD 1": (96, 32, 3, 4, 64, "quick_gelu"),
    "like SD 2": (120, 48, 4, 6, 192, "gelu"),
    "two layers, one head": (64, 24, 2, 1, 30, "quick_gelu"),
    "many heads": (77, 64, 3, 16, 100, "gelu"),
}


def randomise(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights of the usual size, biases of 0.1, norm factors around 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            value.data = 1 + 0.2 * noise
        elif value.ndim == 1:
            value.data = 0.1 * noise
        elif "embedding" in name and "time" not in name:
            value.data = 0.3 * noise
        else:
            value.data = noise / value[0].numel() ** 0.5
    return module.eval().requires_grad_(False)


def reference_unet(name: str, seed: int = 0, **more):
    return randomise(diffusers.UNet2DConditionModel(**{**UNETS[name], **more}), seed)


def reference_vae(name: str, seed: int = 1):
    return randomise(diffusers.AutoencoderKL(**VAES[name], sample_size=32), seed)


def reference_clip(name: str, seed: int = 2, **more):
    vocab, width, layers, heads, mlp, activation = CLIPS[name]
    sizes = {"vocab_size": vocab, "hidden_size": width, "num_hidden_layers": layers,
             "num_attention_heads": heads, "intermediate_size": mlp, "hidden_act": activation,
             "bos_token_id": vocab - 2, "eos_token_id": vocab - 1, **more}  # fmt: skip
    return randomise(transformers.CLIPTextModel(transformers.CLIPTextConfig(**sizes)), seed)


def convert(theirs: torch.nn.Module, network: str, folder):
    """The reference's model as ours, by way of a folder as the reference writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(folder / network)
    return weights_convert.diffusers.read_network(folder / network, torch.float32, None)


def tiny_tokenizer() -> Tokenizer:
    texts = ["a red boat on the sea at sunset", "a photograph of an astronaut riding a horse"] * 3
    return Tokenizer.train(texts, merges=60)


def reference_scheduler(kind: str = "DDIMScheduler", **more):
    """A scheduler with Stable Diffusion's settings."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
                "clip_sample": False, "steps_offset": 1, "timestep_spacing": "leading"}  # fmt: skip
    if kind == "DDIMScheduler":
        settings["set_alpha_to_one"] = False
    return getattr(diffusers, kind)(**{**settings, **more})


def reference_pipeline(tables):
    """A whole random pipeline of the reference; `tables` is a folder with tokenizer files."""
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tables)
    vocab = len(tokenizer)
    clip = reference_clip(
        "like SD 1", vocab_size=vocab, bos_token_id=vocab - 2, eos_token_id=vocab - 1
    )
    unet = reference_unet("like SD 1", cross_attention_dim=clip.config.hidden_size)
    pipe = diffusers.StableDiffusionPipeline(
        vae=reference_vae("like SD"), text_encoder=clip, tokenizer=tokenizer, unet=unet,
        scheduler=reference_scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    # Releases of transformers since 5 have no text_model, which the pipeline's clip_skip reads.
    if not hasattr(clip, "text_model"):
        clip.__dict__["text_model"] = clip
    return pipe


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference over the largest value."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
