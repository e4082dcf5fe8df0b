"""The folders of diffusers as every release wrote them, and what ours carry beside that."""

import dataclasses
import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import picture_book, pipeline

import weights_convert
from minisd.checkpoint import Uninitialised, stored_tensors
from weights_convert import diffusers

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder, network, change):
    """Put change(key, value) in place of every tensor of a network."""
    path = next((folder / network).glob("*.safetensors"))
    state = dict(change(key, value) for key, value in load_file(path).items())
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path, state


# ---- dialects ----


def old_attention(key, value):
    for new, old in OLD_NAMES.items():
        if f".attentions.0.{new}." in key:
            return key.replace(new, old), value[:, :, None, None] if value.ndim == 2 else value
    return key, value


def test_the_old_names_and_shapes_of_the_autoencoders_attention_are_read(folder, pipe):
    _, state = rewrite(folder, "vae", old_attention)
    assert sum("proj_attn" in key for key in state) == 4
    assert state["decoder.mid_block.attentions.0.query.weight"].ndim == 4
    assert weights_convert.open(folder).hash == pipe.hash


def test_text_keys_without_text_model_are_read(folder, pipe):
    _, state = rewrite(folder, "text_encoder", lambda k, v: (k.removeprefix("text_model."), v))
    assert not any(key.startswith("text_model.") for key in state)
    assert weights_convert.open(folder).hash == pipe.hash


def test_text_keys_are_written_with_text_model(original):
    keys = load_file(original / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in keys)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("name", ["embeddings.position_ids", "text_model.embeddings.position_ids"])
def test_stored_positions_are_passed_over(folder, pipe, name, suffix):
    path = folder / "text_encoder" / "model.safetensors"
    state = {**load_file(path), name: torch.arange(77)[None]}
    path.unlink()
    if suffix == "bin":
        torch.save(state, path.with_name("pytorch_model.bin"))
    else:
        save_file(state, path)
    assert weights_convert.open(folder, torch_dtype=None).hash == pipe.hash


def test_quantised_weights_are_refused(folder):
    rewrite(folder, "unet", lambda key, value: (key, value.to(torch.int8)))
    with pytest.raises(ValueError, match="quantised"):
        weights_convert.open(folder)


@pytest.mark.parametrize("old", [True, False], ids=["old shard names", "new shard names"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_of_a_variant_are_read_and_downloaded(folder, pipe, old, suffix):
    from fnmatch import fnmatch

    from weights_convert.hub import weight_patterns

    for network in pipe.networks:
        path = next((folder / network).glob("*.safetensors"))
        stem = diffusers.STEMS[network][f".{suffix}"]
        items = [(key, value.half()) for key, value in load_file(path).items()]
        path.unlink()
        weight_map = {}
        for i, half in enumerate((dict(items[::2]), dict(items[1::2])), start=1):
            part = f"-0000{i}-of-00002"
            name = f"{stem}{part}.fp16.{suffix}" if old else f"{stem}.fp16{part}.{suffix}"
            (torch.save if suffix == "bin" else save_file)(half, folder / network / name)
            weight_map |= dict.fromkeys(half, name)
        index = folder / network / f"{stem}.{suffix}.index.fp16.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
    assert weights_convert.open(folder, variant="fp16").hash == pipe.hash
    written = [path.relative_to(folder).as_posix() for path in folder.glob(f"*/*.{suffix}*")]
    patterns = weight_patterns(f".{suffix}", "fp16")
    assert len(written) == 9
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in written)


def test_weights_stay_as_they_are_stored_without_a_dtype(folder):
    rewrite(folder, "unet", lambda key, value: (key, value.half()))
    opened = weights_convert.open(folder, torch_dtype=None)
    kinds = {name: {p.dtype for p in n.parameters()} for name, n in opened.networks.items()}
    assert kinds["unet"] == {torch.float16}
    assert kinds["vae"] == {torch.float32}


def test_networks_that_wait_for_weights_draw_no_random_numbers():
    before = torch.get_rng_state()
    with Uninitialised():
        layers = [torch.nn.Embedding(4, 8), torch.nn.Linear(8, 8), torch.nn.Conv2d(8, 8, 3)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(isinstance(layer.weight, torch.nn.Parameter) for layer in layers)


def test_reading_with_a_cast_gives_the_same_tensors(original):
    path = original / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    half = dict(stored_tensors(path, torch.float16))
    assert half.keys() == state.keys()
    assert all(torch.equal(half[key], value.half()) for key, value in state.items())


@pytest.mark.parametrize(("data", "word"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    (b"<!DOCTYPE html><html></html>", "web page"), (bytes(1000), "zeros"), (b"", "empty"),
], ids=["pointer", "web page", "zeros", "empty"])  # fmt: skip
def test_a_failed_download_is_called_what_it_is(folder, data, word):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=word) as caught:
        weights_convert.open(folder)
    assert str(path) in str(caught.value)


def test_upcast_attention_changes_nothing_in_float32(folder, pipe):
    edit(folder / "unet" / "config.json", upcast_attention=True)
    assert weights_convert.open(folder).unet.config == pipe.unet.config


# ---- the safety checker ----


@pytest.fixture
def guarded(folder):
    """A folder like the official ones, with parts that are not read."""
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    extractor = ["transformers", "CLIPImageProcessor"]
    edit(folder / "model_index.json", safety_checker=checker, feature_extractor=extractor)
    for name in ("safety_checker", "feature_extractor"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("no JSON, and never read")
    (folder / "safety_checker" / "model.safetensors").write_bytes(b"never read")
    diffusers.say_what_is_not_run.cache_clear()
    yield folder
    diffusers.say_what_is_not_run.cache_clear()


def test_a_safety_checker_is_not_read_and_the_first_load_says_so_in_one_line(guarded, pipe, caplog):
    assert weights_convert.open(guarded).hash == pipe.hash
    weights_convert.open(guarded)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "safety checker" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_without_a_safety_checker_nothing_is_said(folder, caplog):
    diffusers.say_what_is_not_run.cache_clear()
    weights_convert.open(folder)
    edit(folder / "model_index.json", safety_checker=None)
    weights_convert.open(folder)
    assert caplog.records == []


# ---- what diffusers has no place for ----


def test_defaults_and_family_survive_a_diffusers_folder(tmp_path):
    book = picture_book()
    weights_convert.save(book, tmp_path / "model", layout="diffusers")
    again = weights_convert.open(tmp_path / "model")
    assert (again.defaults, again.family, again.hash) == (book.defaults, "picture-book", book.hash)


def test_every_layout_and_back_is_bit_for_bit_the_same(tmp_path):
    book, steps = picture_book(), ("diffusers", "single-file", "minisd", "diffusers", "minisd")
    pipe = book
    for i, layout in enumerate(steps):
        path = tmp_path / (f"{i}.safetensors" if layout == "single-file" else str(i))
        weights_convert.save(pipe, path, layout)
        pipe = weights_convert.open(path)
    for name, network in book.networks.items():
        after = pipe.networks[name].state_dict()
        assert after.keys() == network.state_dict().keys()
        assert all(torch.equal(after[key], v) for key, v in network.state_dict().items())
        assert pipe.networks[name].config == network.config
    assert (pipe.defaults, pipe.family) == (book.defaults, book.family)
    assert pipe.scheduler.plan(7) == book.scheduler.plan(7)
    assert pipe.tokenizer("a red boat").equal(book.tokenizer("a red boat"))


@pytest.mark.parametrize("note", ["{}", '{"family": "a", "defaults": {"x": 1}}', "{", "[]"])
def test_a_damaged_note_is_named(folder, note):
    (folder / diffusers.NOTE).write_text(note)
    with pytest.raises(ValueError, match=diffusers.NOTE):
        weights_convert.open(folder)


def test_the_note_says_nothing_else(original, pipe):
    about = json.loads((original / diffusers.NOTE).read_text())
    assert about == {"family": pipe.family, "defaults": dataclasses.asdict(pipe.defaults)}
