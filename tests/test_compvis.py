"""Single files: sizes from shapes, every spelling of the names, and back again."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from official import BUFFERS, official, state_of, write
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import pipeline

import weights_convert
from minisd import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline
from minisd.checkpoint import NETWORKS, build
from minisd.config import SD15, SD21, ModelConfig
from weights_convert import families
from weights_convert.compvis import EXTRAS, PREFIXES, names_in_file, read_network, tensors_of
from weights_convert.names import DIFFUSERS, OURS, rename, table

KEYS = Path(__file__).parents[2] / "shared" / "data" / "sd15_single_file.json"
CLIP = "cond_stage_model.transformer.text_model."


@pytest.fixture(scope="module")
def pipe():
    return official()


@pytest.fixture(scope="module")
def second():
    return official("sd-2")


def reopen(state, path, pipe, **settings):
    write(state, path)
    return weights_convert.open(path, tokenizer=pipe.tokenizer, **settings)


def zeros(config, clip=CLIP):
    """A file of a model's shapes that takes up no memory."""
    state = {}
    for name, (kind, _) in NETWORKS.items():
        size = getattr(config, name)
        theirs = names_in_file(name, size, clip)
        for key, value in build(kind, size).state_dict().items():
            shape = list(value.shape)
            if "in_proj" in theirs(key):
                shape[0] *= 3
            state[theirs(key)] = torch.zeros(()).expand(shape)
    return state


# ---- sizes ----


@pytest.mark.parametrize(("clip", "config"), [
    (CLIP, SD15), (families.OPEN_CLIP, SD21),
    (CLIP, dataclasses.replace(SD15, unet=dataclasses.replace(SD15.unet, in_channels=9))),
    (families.HUGGING_FACE, SD15),
], ids=["SD 1", "SD 2", "inpainting", "without text_model"])  # fmt: skip
def test_shapes_tell_the_sizes_of_official_models(clip, config):
    state = zeros(config, clip)
    for name in NETWORKS:
        assert families.infer(name, state, "file") == getattr(config, name)


@pytest.mark.parametrize("unet", [
    {"widths": (32,), "attention": (True,), "heads": (8,), "layers_per_level": 3},
    {"widths": (64, 32, 96), "attention": (False, True, True), "heads": (8,) * 3},
    {"widths": (64, 128), "attention": (False, False), "heads": (1, 2), "linear_projection": True,
     "out_channels": 8, "context_width": 48},
])  # fmt: skip
def test_shapes_tell_the_sizes_of_other_unets(unet):
    size = dataclasses.replace(SD15.unet, **unet)
    assert families.unet_config(zeros(dataclasses.replace(SD15, unet=size))) == size


@pytest.mark.parametrize("vae", [
    {"widths": (32,), "layers_per_level": 3}, {"widths": (32, 64, 32), "latent_channels": 6},
    {"widths": (64, 64), "layers_per_level": 1, "in_channels": 1},
])  # fmt: skip
@pytest.mark.parametrize("dialect", ["CompVis", "diffusers"])
def test_shapes_tell_the_sizes_of_other_autoencoders(vae, dialect):
    size = dataclasses.replace(SD15.vae, **vae)
    if dialect == "CompVis":
        assert families.vae_config(zeros(dataclasses.replace(SD15, vae=size))) == size
        return
    modules = table("vae", size, OURS, DIFFUSERS)
    state = build(NETWORKS["vae"][0], size).state_dict()
    assert families.vae_config({rename(k, modules): v for k, v in state.items()}, "") == size


@pytest.mark.skipif(not KEYS.is_file(), reason="the official list of keys is not in shared/data")
def test_every_key_of_the_official_file_is_a_weight_or_a_known_extra():
    """Each of the 1,143 exactly once: 1,130 weights, the positions, 12 buffers of the schedule."""
    listed = json.loads(KEYS.read_text())
    state = {key: torch.zeros(()).expand(shape) for key, shape in listed.items()}
    weights = []
    for name, prefix in PREFIXES.items():
        size = families.infer(name, state, "file")
        theirs = names_in_file(name, size, families.clip_prefix(state))
        network = read_network(name, size, state, theirs, Path("file"), None, prefix)
        weights += map(theirs, network.state_dict())
    extras = [key for key in listed if EXTRAS.fullmatch(key)]
    assert (len(weights), len(extras)) == (1130, 13)
    assert sorted(weights + extras) == sorted(listed)
    positions = f"{CLIP}embeddings.position_ids"
    assert len({*extras} - {*BUFFERS, positions, "log_one_minus_alphas_cumprod"}) == 0


# ---- in ----


@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt", "misnamed.bin", "no_suffix"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_every_container_is_read(pipe, tmp_path, name, wrapped):
    write(state_of(pipe), tmp_path / name, wrapped)
    opened = weights_convert.open(tmp_path / name, tokenizer=pipe.tokenizer)
    assert opened.hash == pipe.hash
    assert opened.unet.config == pipe.unet.config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stored", [torch.float16, torch.float64])
def test_weights_are_cast_from_any_float(pipe, tmp_path, dtype, stored):
    state = {k: v.to(stored) if v.is_floating_point() else v for k, v in state_of(pipe).items()}
    opened = reopen(state, tmp_path / "m.safetensors", pipe, torch_dtype=dtype)
    assert {p.dtype for n in opened.networks.values() for p in n.parameters()} == {dtype}
    assert opened.hash == pipe.hash or dtype == torch.bfloat16


def test_text_keys_without_text_model_are_read(pipe, tmp_path):
    state = {key.replace(".text_model.", "."): value for key, value in state_of(pipe).items()}
    assert reopen(state, tmp_path / "m.ckpt", pipe).hash == pipe.hash


def test_averaged_weights_are_read_only_when_asked_for(pipe, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = write(state_of(pipe, ema=True), tmp_path / "m.ckpt")
    plain = weights_convert.open(path, tokenizer=pipe.tokenizer)
    assert "ema=True" in caplog.text
    averaged = weights_convert.open(path, tokenizer=pipe.tokenizer, ema=True)
    assert plain.hash == pipe.hash
    for key, value in pipe.unet.state_dict().items():
        assert torch.equal(averaged.unet.state_dict()[key], -value)
    assert torch.equal(averaged.vae.decoder.conv_in.weight, pipe.vae.decoder.conv_in.weight)


def test_averaged_weights_that_are_not_there_are_missed(pipe, tmp_path):
    state = state_of(pipe, ema=True)
    del state["model_ema.diffusion_modelout2weight"]
    with pytest.raises(ValueError, match="modelout2weight"):
        reopen(state, tmp_path / "m.ckpt", pipe, ema=True)
    assert reopen(state, tmp_path / "m.ckpt", pipe).hash == pipe.hash
    with pytest.raises(ValueError, match="no averaged weights"):
        reopen(state_of(pipe), tmp_path / "m.ckpt", pipe, ema=True)


def test_an_inpainting_model_is_told_by_its_nine_channels(tmp_path):
    nine = official(in_channels=9)
    opened = reopen(state_of(nine), tmp_path / "m.ckpt", nine)
    assert opened.unet.config.in_channels == 9
    assert isinstance(opened.scheduler, PNDMScheduler)


def test_official_defaults_are_512_pixels_and_pndm(pipe, tmp_path):
    opened = reopen(state_of(pipe), tmp_path / "m.ckpt", pipe)
    scale = opened.vae.config.downscale
    assert isinstance(opened.scheduler, PNDMScheduler)
    assert opened.scheduler.config.prediction_type == "epsilon"
    assert (opened.defaults.height, opened.defaults.num_inference_steps) == (64 * scale, 50)
    assert opened.family == "sd-1"


def test_from_single_file_is_a_door(pipe, tmp_path):
    path = write(state_of(pipe), tmp_path / "m.ckpt")
    opened = StableDiffusionPipeline.from_single_file(path, tokenizer=pipe.tokenizer)
    assert opened.hash == pipe.hash
    with pytest.raises(ValueError, match="from_pretrained"):
        StableDiffusionPipeline.from_single_file(tmp_path)


def test_without_a_tokenizer_clips_is_looked_for(pipe, tmp_path, monkeypatch):
    asked = []

    def find(path, pad, length):
        asked.append((path, pad, length))
        return pipe.tokenizer

    monkeypatch.setattr(weights_convert.single_file, "find_tokenizer", find)
    path = write(state_of(pipe), tmp_path / "m.ckpt")
    weights_convert.open(path)
    weights_convert.open(path, tokenizer="somewhere")
    assert asked == [(None, "<|endoftext|>", 77), ("somewhere", "<|endoftext|>", 77)]


def test_what_is_for_files_alone_is_refused_for_folders(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="single files"):
        weights_convert.open(tmp_path / "model", ema=True)


# ---- SD 2.x ----


def test_openclip_keys_are_split_into_q_k_v(second, tmp_path):
    state = state_of(second)
    assert f"{families.OPEN_CLIP}transformer.resblocks.0.attn.in_proj_weight" in state
    assert not any("q_proj" in key for key in state)
    opened = reopen(state, tmp_path / "m.ckpt", second, prediction_type="epsilon")
    assert opened.text_encoder.config == second.text_encoder.config
    assert (opened.hash, opened.family) == (second.hash, "sd-2")


def test_what_sd2_has_beside_its_23_layers_is_left(second, tmp_path):
    state = state_of(second)
    layer = f"{families.OPEN_CLIP}transformer.resblocks."
    state |= {f"{layer}23{k.removeprefix(layer)[1:]}": v for k, v in state.items() if layer in k}
    state[f"{families.OPEN_CLIP}text_projection"] = torch.eye(4)
    state[f"{families.OPEN_CLIP}logit_scale"] = torch.ones(())
    opened = reopen(state, tmp_path / "m.ckpt", second, prediction_type="epsilon")
    assert opened.hash == second.hash


def test_the_last_but_one_of_24_layers_is_the_last():
    state = zeros(dataclasses.replace(SD15, text_encoder=dataclasses.replace(
        SD21.text_encoder, layers=24)), families.OPEN_CLIP)  # fmt: skip
    assert families.text_encoder_config(state) == SD21.text_encoder


def test_sd2_pads_with_an_exclamation_mark(second, tmp_path, monkeypatch):
    pads = []
    monkeypatch.setattr(weights_convert.single_file, "find_tokenizer",
                        lambda path, pad, length: pads.append(pad) or second.tokenizer)  # fmt: skip
    path = write(state_of(second), tmp_path / "m.ckpt")
    weights_convert.open(path, prediction_type="epsilon")
    assert pads == ["!"]


@pytest.mark.parametrize(("given", "kind", "side"), [
    ("epsilon", PNDMScheduler, 64), ("v_prediction", DDIMScheduler, 96),
])  # fmt: skip
def test_the_prediction_type_can_be_given(second, tmp_path, given, kind, side):
    opened = reopen(state_of(second), tmp_path / "m.ckpt", second, prediction_type=given)
    assert type(opened.scheduler) is kind
    assert opened.scheduler.config.prediction_type == given
    assert opened.defaults.height == side * opened.vae.config.downscale


@pytest.mark.parametrize("answer", ["epsilon", "v_prediction"])
def test_a_unet_of_sd2_is_asked_what_it_predicts(second, tmp_path, monkeypatch, answer):
    monkeypatch.setattr(families, "ask_prediction_type", lambda unet, context: answer)
    opened = reopen(state_of(second), tmp_path / "m.ckpt", second)
    assert opened.scheduler.config.prediction_type == answer


def test_sd1_is_not_asked(pipe, tmp_path, monkeypatch):
    monkeypatch.delattr(families, "ask_prediction_type")
    assert reopen(state_of(pipe), tmp_path / "m.ckpt", pipe).hash == pipe.hash


def test_a_trained_unet_says_that_it_predicts_the_noise():
    shipped = StableDiffusionPipeline.from_pretrained()
    context = shipped.text_encoder(shipped.tokenizer(""))
    assert families.ask_prediction_type(shipped.unet, context) == "epsilon"

    class Velocity(torch.nn.Module):
        """The same knowledge as v = alpha eps - sigma x_0, x_0 from x_t = alpha x_0 + sigma eps."""

        config = shipped.unet.config

        def forward(self, x_t, t, context):
            eps = shipped.unet(x_t, t, context)
            alpha = shipped.scheduler.alphas_bar[int(t)] ** 0.5
            sigma = (1 - alpha**2) ** 0.5
            return alpha * eps - sigma * ((x_t - sigma * eps) / alpha).clamp(-4, 4)

    assert families.ask_prediction_type(Velocity(), context) == "v_prediction"


# ---- autoencoders ----


def lone(pipe, prefix=""):
    return {
        prefix + key.removeprefix(families.VAE): value
        for key, value in tensors_of(pipe.networks).items()
        if key.startswith(families.VAE)
    }


def same_vae(one, other):
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("prefix", ["", families.VAE])
def test_a_lone_autoencoder_is_read_without_what_trained_it(pipe, tmp_path, prefix):
    junk = {
        f"{prefix}loss.discriminator.main.0.weight": torch.ones(3),
        "model_ema.decay": torch.ones(()),
    }
    path = write({**lone(pipe, prefix), **junk}, tmp_path / "vae.ckpt")
    assert same_vae(weights_convert.open_vae(path), pipe.vae)


def test_the_autoencoder_of_anything_is_read(pipe, tmp_path):
    write(state_of(pipe), tmp_path / "m.ckpt")
    weights_convert.save(pipe, tmp_path / "native")
    weights_convert.save(pipe, tmp_path / "diffusers", "diffusers")
    for place in ("m.ckpt", "native", "native/vae.safetensors", "diffusers",
                  "diffusers/vae/diffusion_pytorch_model.safetensors"):  # fmt: skip
        assert same_vae(weights_convert.open_vae(tmp_path / place), pipe.vae), place


@pytest.mark.parametrize("places", [("query", "key", "value", "proj_attn"), None])
def test_old_names_of_diffusers_are_read(pipe, tmp_path, places):
    weights_convert.save(pipe, tmp_path / "diffusers", "diffusers")
    state = load_file(tmp_path / "diffusers/vae/diffusion_pytorch_model.safetensors")
    for new, old in zip(("to_q", "to_k", "to_v", "to_out.0"), places or ()):
        state = {key.replace(f".{new}.", f".{old}."): value for key, value in state.items()}
    path = write(state, tmp_path / "vae.safetensors")
    assert same_vae(weights_convert.open_vae(path), pipe.vae)


def test_an_autoencoder_can_be_swapped(pipe, tmp_path):
    other = official()
    other.vae.decoder.conv_in.weight.data += 1
    path = write(lone(other), tmp_path / "vae.ckpt")
    without = {k: v for k, v in state_of(pipe).items() if not k.startswith(families.VAE)}
    opened = reopen(without, tmp_path / "m.ckpt", pipe, vae=path)
    assert same_vae(opened.vae, other.vae)
    pipe.save_pretrained(tmp_path / "folder")
    opened = weights_convert.open(tmp_path / "folder", vae=other.vae)
    assert same_vae(opened.vae, other.vae)
    with pytest.raises(ValueError, match="give one by vae="):
        weights_convert.open(tmp_path / "m.ckpt", tokenizer=pipe.tokenizer)


def test_an_autoencoder_of_another_family_is_refused(pipe, tmp_path):
    state = {k: v for k, v in lone(pipe).items() if "quant_conv" not in k}
    with pytest.raises(ValueError, match="another family"):
        weights_convert.open_vae(write(state, tmp_path / "ae.safetensors"))


# ---- out ----


@pytest.mark.parametrize("family", ["sd-1", "sd-2"])
def test_a_single_file_and_back_changes_nothing(family, tmp_path):
    pipe = official(family, **({"in_channels": 9} if family == "sd-1" else {}))
    weights_convert.save(pipe, tmp_path / "m.safetensors", "single-file")
    assert_same(weights_convert.open(tmp_path / "m.safetensors"), pipe)


def test_a_model_whose_sizes_no_shape_tells_comes_back_whole(tmp_path):
    """Heads, norm groups, scheduler, defaults, tokenizer: all from the file's own note."""
    pipe = pipeline()
    pipe.vae.config = dataclasses.replace(pipe.vae.config, scaling_factor=0.5)
    weights_convert.save(pipe, tmp_path / "new" / "m.safetensors", "single-file")
    opened = weights_convert.open(tmp_path / "new" / "m.safetensors")
    assert_same(opened, pipe)
    changed = weights_convert.open(
        tmp_path / "new" / "m.safetensors", prediction_type="v_prediction"
    )
    assert changed.scheduler.config.prediction_type == "v_prediction"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["m.safetensors"]


def assert_same(opened, pipe):
    for name, network in pipe.networks.items():
        state = getattr(opened, name).state_dict()
        assert all(torch.equal(state[key], v) for key, v in network.state_dict().items())
        assert getattr(opened, name).config == network.config
    assert (opened.defaults, opened.family) == (pipe.defaults, pipe.family)
    assert type(opened.scheduler) is type(pipe.scheduler)
    assert opened.scheduler.config == pipe.scheduler.config
    assert opened.tokenizer("a red boat!").equal(pipe.tokenizer("a red boat!"))


def test_the_sizes_can_be_given_for_a_file_without_a_note(tmp_path):
    pipe = pipeline()
    config = ModelConfig(pipe.text_encoder.config, pipe.unet.config, pipe.vae.config)
    path = write(state_of(pipe), tmp_path / "m.ckpt")
    with pytest.raises(ValueError, match="give config="):
        weights_convert.open(path, tokenizer=pipe.tokenizer)
    assert weights_convert.open(path, tokenizer=pipe.tokenizer, config=config).hash == pipe.hash


def test_positions_are_written_and_no_file_is_replaced(pipe, tmp_path):
    path = tmp_path / "m.safetensors"
    weights_convert.save(pipe, path, "single-file")
    with safe_open(path, "pt") as file:
        assert file.get_tensor(f"{CLIP}embeddings.position_ids").tolist() == [list(range(77))]
        assert file.get_slice("first_stage_model.encoder.mid.attn_1.q.weight").get_shape()[2:] == [
            1,
            1,
        ]
    with pytest.raises(ValueError, match="exists"):
        weights_convert.save(pipe, path, "single-file")
    with pytest.raises(ValueError, match=r"\.safetensors"):
        weights_convert.save(pipe, tmp_path / "m.ckpt", "single-file")


def test_a_write_that_is_interrupted_leaves_nothing(pipe, tmp_path, monkeypatch):
    def interrupted(_state, part, _metadata):
        Path(part).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(weights_convert.single_file, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        weights_convert.save(pipe, tmp_path / "m.safetensors", "single-file")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_note_is_an_error(pipe, tmp_path):
    state = state_of(pipe)
    for note in ("", "{", "[]", '{"config": {}}', '{"scheduler": 3}'):
        path = write(state, tmp_path / "m.safetensors", metadata={"minisd": note})
        with pytest.raises(ValueError, match="metadata"):
            weights_convert.open(path, tokenizer=pipe.tokenizer)


def test_a_note_that_claims_a_huge_model_is_an_error(pipe, tmp_path):
    weights_convert.save(pipe, tmp_path / "m.safetensors", "single-file")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        note = json.loads(file.metadata()["minisd"])
    note["config"]["text_encoder"]["layers"] = 10**9
    path = write(state_of(pipe), tmp_path / "n.safetensors", metadata={"minisd": json.dumps(note)})
    with pytest.raises(ValueError, match="too few"):
        weights_convert.open(path)
