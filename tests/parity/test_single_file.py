"""Single files: the reference reads ours, and makes of a file the same model as we do."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from official import official, state_of, write
from safetensors import safe_open

import weights_convert
from minisd import StableDiffusionPipeline
from minisd.autoencoder import Autoencoder
from minisd.config import SD15
from minisd.text_encoder import TextEncoder
from minisd.unet import UNet
from parity import models

FLOOR = 1e-5
KEYS = Path(__file__).parents[3] / "shared" / "data" / "sd15_single_file.json"
KINDS = {
    "SD 1": ("sd-1", {}),
    "SD 1, deeper": ("sd-1", {"widths": (32, 64, 96), "heads": (8,) * 3, "layers_per_level": 2,
                              "attention": (True, True, False)}),
    "SD 1 for inpainting": ("sd-1", {"in_channels": 9}),
    "SD 2": ("sd-2", {}),
}  # fmt: skip


def theirs_from(path, folder, kind="StableDiffusionPipeline", **settings):
    pipe = getattr(models.diffusers, kind).from_single_file(
        str(path), config=str(folder), local_files_only=True, safety_checker=None, **settings
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def errors(ours, theirs, side=8, timesteps=(981, 1)):
    """The largest relative differences of the text embeddings, eps, decode and encode."""
    words = ours.text_encoder.config.vocab_size
    ids = torch.randint(words, (2, 77), generator=torch.Generator().manual_seed(0))
    text = ours.text_encoder(ids)
    x, t = normal(2, ours.unet.config.in_channels, side, side), torch.tensor(timesteps)
    z, image = normal(1, 4, side, side, seed=1), normal(1, 3, 8 * side, 8 * side).clamp(-1, 1)
    pairs = {
        "text": (text, theirs.text_encoder(ids).last_hidden_state),
        "eps": (ours.unet(x, t, text), theirs.unet(x, t, text).sample),
        "decode": (ours.vae.decode(z), theirs.vae.decode(z).sample),
        "encode": (ours.vae.encode(image).mean, theirs.vae.encode(image).latent_dist.mean),
    }
    return {name: models.relative_error(*pair) for name, pair in pairs.items()}


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_becomes_the_same_model_as_in_the_reference(kind, suffix, tmp_path):
    pipe = official(KINDS[kind][0], **KINDS[kind][1])
    weights_convert.save(pipe, tmp_path / "folder", "diffusers")
    path = write(state_of(pipe), tmp_path / f"model{suffix}")
    inpainting = "Inpaint" * (pipe.unet.config.in_channels == 9)
    theirs = theirs_from(path, tmp_path / "folder", f"StableDiffusion{inpainting}Pipeline")
    ours = weights_convert.open(path, tokenizer=pipe.tokenizer, prediction_type="epsilon")
    found = errors(ours, theirs)
    assert max(found.values()) < FLOOR, found


@pytest.mark.parametrize("ema", [None, False, True])
def test_averaged_weights_are_read_when_the_reference_reads_them(ema, tmp_path):
    pipe = official()
    weights_convert.save(pipe, tmp_path / "folder", "diffusers")
    path = write(state_of(pipe, ema=True), tmp_path / "model.ckpt")
    extract = {} if ema is None else {"extract_ema": ema}
    theirs = models.diffusers.UNet2DConditionModel.from_single_file(
        str(path),
        config=str(tmp_path / "folder"),
        subfolder="unet",
        local_files_only=True,
        **extract,
    )
    ours = weights_convert.open(path, tokenizer=pipe.tokenizer, ema=ema)
    inputs = normal(1, 4, 8, 8), torch.tensor([500]), normal(1, 77, 64, seed=1)
    with torch.no_grad():
        assert models.relative_error(ours.unet(*inputs), theirs(*inputs).sample) < FLOOR


@pytest.mark.parametrize("layout", ["the file", "diffusers' autoencoder"])
def test_a_lone_autoencoder_is_the_references(layout, tmp_path):
    theirs = models.reference_vae("like SD")
    config = weights_convert.diffusers_config.read_vae(theirs.config)
    theirs.save_pretrained(tmp_path / "vae")
    path = next((tmp_path / "vae").glob("*.safetensors"))
    if layout == "the file":
        pipe = official()
        pipe.vae = weights_convert.open_vae(path, config=config)
        state = weights_convert.compvis.tensors_of(pipe.networks)
        lone = {k.split(".", 1)[1]: v for k, v in state.items() if k.startswith("first_stage")}
        path = write({**lone, "loss.logvar": torch.zeros(())}, tmp_path / "vae.ckpt")
    ours = weights_convert.open_vae(path, config=config)
    z = normal(1, 4, 8, 8)
    with torch.no_grad():
        assert models.relative_error(ours.decode(z), theirs.decode(z).sample) < FLOOR


@pytest.mark.parametrize("model", ["random", "shipped"])
def test_the_reference_draws_the_same_pictures_from_our_single_file(model, pipelines, tmp_path):
    shipped = StableDiffusionPipeline.from_pretrained()
    shipped.set_progress_bar_config(disable=True)
    ours = shipped if model == "shipped" else pipelines[0]
    weights_convert.save(ours, tmp_path / "folder", "diffusers")
    weights_convert.save(ours, tmp_path / "model.safetensors", "single-file")
    theirs = theirs_from(tmp_path / "model.safetensors", tmp_path / "folder")
    settings = {"num_inference_steps": 4, "guidance_scale": 5.0, "height": 64, "width": 64}
    pictures = [
        pipe("a red boat", generator=torch.Generator().manual_seed(7), output_type=kind, **settings)
        for pipe, kind in ((ours, "pt"), (theirs, "pt"))
    ]
    mine, reference = (picture.images for picture in pictures)
    assert models.relative_error(mine, reference) < FLOOR


@pytest.fixture
def big(tmp_path):
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not KEYS.is_file(), reason="the official list of keys is not in shared/data")
def test_a_file_of_sd15s_size_has_the_official_keys_and_is_the_references_model(big):
    """Every key once, with its shape; 4 GB on disk."""
    listed = json.loads(KEYS.read_text())
    pipe = full_size()
    weights_convert.save(pipe, big / "model.safetensors", "single-file")
    weights_convert.save(pipe, big / "folder", "diffusers")
    with safe_open(big / "model.safetensors", framework="pt") as file:
        written = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}
    buffers = {key for key, shape in listed.items() if shape == [1000]}
    assert len(buffers) == 12
    assert written == {key: shape for key, shape in listed.items() if key not in buffers}
    assert len(written) == 1131
    tokenizer = pipe.tokenizer
    del pipe
    ours = weights_convert.open(big / "model.safetensors", tokenizer=tokenizer)
    found = errors(ours, theirs_from(big / "model.safetensors", big / "folder"), side=16)
    print(found)
    assert max(found.values()) < FLOOR


def full_size():
    pipe = official()
    pipe.text_encoder = models.randomise(TextEncoder(SD15.text_encoder), 1)
    pipe.unet = models.randomise(UNet(SD15.unet), 2)
    pipe.vae = models.randomise(Autoencoder(SD15.vae), 3)
    return pipe
