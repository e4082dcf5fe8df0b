"""Files that are no whole checkpoint of Stable Diffusion: each has its own clear message."""

import re

import pytest
import torch
from official import official, state_of, write
from safetensors.torch import save_file

import weights_convert
from weights_convert.tensors import read_weights

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:6ce0161689\nsize 4265146304\n"


@pytest.fixture(scope="module")
def pipe():
    return official()


@pytest.fixture(scope="module")
def state(pipe):
    return state_of(pipe)


@pytest.fixture(scope="module")
def files(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {suffix: write(state, folder / f"m{suffix}") for suffix in (".safetensors", ".ckpt")}


def refused(path, *words):
    with pytest.raises(ValueError, match=re.escape(path.name)) as caught:
        weights_convert.open(path)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize(("data", "words"), [
    (b"", ["is empty", "fetch"]),
    (bytes(5000), ["zeros", "fetch"]),
    (LFS, ["Git LFS pointer", "git lfs pull"]),
    (b"<!DOCTYPE html>\n<html><title>Sign in</title></html>", ["web page", "browser"]),
    (b"\n  <html lang='en'>" + bytes(20), ["web page"]),
    (b'{"error":"Access to model is restricted"}', ["is text", "Access to model is restricted"]),
    (b"Entry not found\n\n\n", ["is text", "Entry not found"]),
    (b"GGUF\x03\x00\x00\x00", ["GGUF", "quantised"]),
    (bytes(range(1, 200)) * 9, ["damaged"]),
], ids=lambda value: value[:9] if isinstance(value, bytes) else "")  # fmt: skip
def test_what_a_failed_download_leaves_is_named(suffix, data, words, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(data)
    refused(path, *words)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.9999])
def test_a_file_cut_short_is_named(suffix, kept, files, tmp_path):
    data = files[suffix].read_bytes()
    path = tmp_path / f"model{suffix}"
    path.write_bytes(data[: int(kept * len(data))])
    words = [f"{int(kept * len(data))} of {len(data)} bytes"] * (suffix == ".safetensors")
    refused(path, "cut short", *words)


def test_a_folder_and_nothing_are_no_files(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.safetensors"):
        with pytest.raises(ValueError, match="cannot be read"):
            read_weights(path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int64])
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_quantised_weights_are_named(dtype, suffix, state, pipe, tmp_path):
    key = "model.diffusion_model.out.2.weight"
    path = write({**state, key: state[key].to(dtype)}, tmp_path / f"model{suffix}")
    refused(path, key, str(dtype), "quantised")


def test_pytorchs_own_quantised_tensors_are_named(state, pipe, tmp_path):
    key = "model.diffusion_model.out.2.weight"
    packed = torch.quantize_per_tensor(state[key], 0.1, 0, torch.qint8)
    path = write({**state, key: packed}, tmp_path / "model.ckpt")
    refused(path, "quantised")


@pytest.mark.parametrize(("theirs", "ours"), [
    ("model.diffusion_model.input_blocks.1.0.in_layers.0.weight", "down.0.resnets.0.norm1.weight"),
    ("first_stage_model.decoder.up.0.block.1.conv1.bias", "decoder.up.1.resnets.1.conv1.bias"),
    ("cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.v_proj.weight",
     "layers.1.attn.v.weight"),
])  # fmt: skip
@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_keys_that_do_not_fit_have_both_names(theirs, ours, damage, state, tmp_path):
    state = dict(state)
    if damage == "missing":
        del state[theirs]
        words = [f"missing {theirs} (", f"here {ours}"]
    elif damage == "unexpected":
        stranger = f"{theirs.split('.', 1)[0]}.{theirs.split('.')[1]}.stranger"
        stranger = stranger if theirs.startswith("model") else f"{theirs.split('.')[0]}.stranger"
        state[stranger] = torch.zeros(1, 2)
        words = [f"unexpected {stranger} (1, 2)"]
    else:
        state[theirs] = torch.zeros(1, 2, 3)
        words = [f"{theirs} is (1, 2, 3), expected", f"here {ours}"]
    refused(write(state, tmp_path / "model.ckpt"), *words)


def test_many_wrong_keys_are_counted(state, tmp_path):
    some = [key for key in state if ".decoder." in key]
    kept = {key: value for key, value in state.items() if key not in some}
    message = refused(write(kept, tmp_path / "model.ckpt"), f"and {len(some) - 5} more")
    assert message.count("\n") == 6


def test_a_tensor_that_tells_sizes_is_missed_by_name(state, tmp_path):
    for key in (
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.quant_conv.bias",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    ):
        kept = {k: v for k, v in state.items() if k != key}
        refused(write(kept, tmp_path / "model.ckpt"), key, "missing")


UNET, OTHER = "model.diffusion_model.", torch.zeros(4, 4)


@pytest.mark.parametrize(("key", "words"), [
    ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", "XL"),
    (f"{UNET}joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
    (f"{UNET}double_blocks.0.img_attn.norm.key_norm.scale", "Flux"),
    ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "load_lora_weights"),
    ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", "load_lora_weights"),
    ("control_model.input_blocks.0.0.weight", "ControlNet"),
    ("controlnet_cond_embedding.conv_in.weight", "ControlNet"),
    ("emb_params", "load_textual_inversion"),
    ("<cat-toy>", "load_textual_inversion"),
    ("down_blocks.0.resnets.0.conv1.weight", "diffusers folder"),
    ("encoder.down_blocks.0.resnets.0.conv1.weight", "open_vae"),
    ("encoder.down.0.block.0.conv1.weight", "open_vae"),
    ("text_model.encoder.layers.0.mlp.fc1.weight", "text encoder"),
    (f"{UNET}label_emb.0.0.weight", "unCLIP"),
    ("down_blocks.0.motion_modules.0.proj_in.weight", "AnimateDiff"),
    ("layer1.0.conv1.weight", "no Stable Diffusion"),
])  # fmt: skip
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_another_kind_of_model_is_named(key, words, suffix, tmp_path):
    path = write({key: OTHER, f"{key}.2": OTHER.clone()}, tmp_path / f"model{suffix}")
    refused(path, words)


def test_a_model_with_a_controlnet_or_a_lora_in_it_is_named(state, tmp_path):
    path = write({**state, "control_model.zero_convs.0.0.weight": OTHER}, tmp_path / "m.ckpt")
    refused(path, "ControlNet")


def test_a_web_uis_textual_inversion_is_named(tmp_path):
    torch.save({"string_to_param": {"*": OTHER}, "name": "cat"}, tmp_path / "cat.pt")
    refused(tmp_path / "cat.pt", "textual inversion")


@pytest.mark.parametrize(
    ("channels", "words"), [(8, "InstructPix2Pix"), (5, "depth"), (6, "6 input")]
)
def test_a_unet_that_reads_something_else_is_named(channels, words, tmp_path):
    other = official(in_channels=channels)
    path = write(state_of(other), tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=words):
        weights_convert.open(path, tokenizer=other.tokenizer)


def test_a_part_of_a_native_folder_is_named(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    refused(tmp_path / "model" / "unet.safetensors", "open the folder")


def test_a_text_encoder_of_another_model_is_refused(pipe, state, tmp_path):
    other = official(context_width=96)
    mixed = {**state, **{k: v for k, v in state_of(other).items() if k.startswith(UNET)}}
    path = write(mixed, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="different models"):
        weights_convert.open(path, tokenizer=pipe.tokenizer)


@pytest.mark.parametrize("held", [[1, 2], "text", {}, {"a": 1}, {3: OTHER}, OTHER])
def test_a_pickle_without_named_tensors_is_refused(held, tmp_path):
    torch.save(held, tmp_path / "model.ckpt")
    refused(tmp_path / "model.ckpt", "no tensors by name")


def test_a_tensor_that_claims_more_than_is_stored_is_refused(state, tmp_path):
    huge = torch.zeros(1).expand(1 << 20, 1 << 20)
    torch.save({**state, "model.diffusion_model.out.2.weight": huge}, tmp_path / "model.ckpt")
    refused(tmp_path / "model.ckpt", "claims more numbers")


def test_an_empty_safetensors_is_refused(tmp_path):
    save_file({}, tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "no Stable Diffusion")


def test_a_safetensors_is_known_whatever_the_length_of_its_header(tmp_path):
    """The length comes first; its lowest byte may be 0x80, with which a pickle begins."""
    path, lowest = tmp_path / "model.safetensors", set()
    for n in range(0, 256, 4):
        save_file({"a": OTHER}, path, {"note": "x" * n})
        lowest.add(path.read_bytes()[0])
        state, metadata = read_weights(path)
        assert torch.equal(state["a"], OTHER)
        assert metadata == {"note": "x" * n}
    assert 0x80 in lowest
