"""Stable Diffusion 1.5 at its own size, with random weights, from a folder of the reference."""

import gc
import shutil

import pytest
import torch

from parity import models
from weights_convert.diffusers import read_network

pytestmark = pytest.mark.slow
FLOOR = 1e-5
UNET = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
VAE = models.vae_settings((128, 256, 512, 512), layers_per_block=2, sample_size=512)
CLIP = {"vocab_size": 49408, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072}  # fmt: skip


def saved(theirs, folder):
    """The reference's model randomised and written; the file is read, not this object."""
    models.randomise(theirs, 0).save_pretrained(folder)
    return theirs


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    shutil.rmtree(tmp_path)
    gc.collect()


@torch.no_grad()
def test_the_unet_of_sd15_agrees(folder):
    theirs = saved(models.diffusers.UNet2DConditionModel(**UNET), folder / "unet")
    inputs = normal(2, 4, 32, 32), torch.tensor([981, 1]), normal(2, 77, 768, seed=1)
    reference = theirs(*inputs).sample
    del theirs
    ours = read_network(folder / "unet", torch.float32, None)
    assert sum(p.numel() for p in ours.parameters()) == 859_520_964
    error = models.relative_error(ours(*inputs), reference)
    print(f"unet {error:.1e}")
    assert error < FLOOR


@torch.no_grad()
def test_the_autoencoder_of_sd15_agrees(folder):
    theirs = saved(models.diffusers.AutoencoderKL(**VAE), folder / "vae")
    ours = read_network(folder / "vae", torch.float32, None)
    z, image = normal(1, 4, 16, 16), normal(1, 3, 128, 128).clamp(-1, 1)
    errors = [
        models.relative_error(ours.decode(z), theirs.decode(z).sample),
        models.relative_error(ours.encode(image).mean, theirs.encode(image).latent_dist.mean),
    ]
    print("vae", errors)
    assert max(errors) < FLOOR


@torch.no_grad()
def test_the_text_encoder_of_sd15_agrees(folder):
    config = models.transformers.CLIPTextConfig(**CLIP)
    theirs = saved(models.transformers.CLIPTextModel(config), folder / "text_encoder")
    ours = read_network(folder / "text_encoder", torch.float32, None)
    ids = torch.randint(49408, (2, 77), generator=torch.Generator().manual_seed(0))
    error = models.relative_error(ours(ids), theirs(ids).last_hidden_state)
    print(f"text encoder {error:.1e}")
    assert error < FLOOR
