"""Opening: every kind of folder, and a clear word about every kind of damage."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import UNET, pipeline

import weights_convert
from minisd import DDIMScheduler, StableDiffusionPipeline
from minisd.text_encoder import TextEncoder
from minisd.unet import UNet
from weights_convert.diffusers import NOTE


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


@pytest.fixture
def folder(original, tmp_path):
    """A folder like the official ones, which have no note of ours, to damage."""
    return shutil.copytree(original, tmp_path / "model", ignore=lambda *_: [NOTE])


def edit(path, **changes):
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


def weights(folder, name="unet"):
    return next((folder / name).glob("*.safetensors"))


def test_a_diffusers_folder_opens_as_the_same_model(folder, pipe):
    opened = weights_convert.open(folder)
    assert opened.hash == pipe.hash
    assert opened.scheduler.config.beta_start == pipe.scheduler.config.beta_start


def test_from_pretrained_is_a_door_to_diffusers_folders(folder, pipe):
    assert StableDiffusionPipeline.from_pretrained(folder).hash == pipe.hash


def test_official_defaults_are_50_steps_guidance_7_5_and_the_unets_size(folder):
    defaults = weights_convert.open(folder).defaults
    assert (defaults.num_inference_steps, defaults.guidance_scale) == (50, 7.5)
    assert (defaults.height, defaults.width) == (64, 64)


def test_a_size_that_is_not_square_survives(folder):
    edit(folder / "unet" / "config.json", sample_size=[8, 16])
    defaults = weights_convert.open(folder).defaults
    assert (defaults.height, defaults.width) == (64, 128)


def test_a_minisd_folder_opens_and_keeps_its_own_defaults(pipe, tmp_path):
    weights_convert.save(pipe, tmp_path / "native")
    opened = weights_convert.open(tmp_path / "native")
    assert (opened.hash, opened.defaults) == (pipe.hash, pipe.defaults)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_cast_to_the_asked_dtype(folder, dtype):
    opened = weights_convert.open(folder, torch_dtype=dtype)
    assert {p.dtype for n in opened.networks.values() for p in n.parameters()} == {dtype}


def test_a_fp16_variant_is_read_when_asked_for(folder, pipe):
    for name in pipe.networks:
        path = weights(folder, name)
        half = {key: value.half() for key, value in load_file(path).items()}
        save_file(half, path.with_suffix(".fp16.safetensors"))
        path.unlink()
    opened = weights_convert.open(folder, variant="fp16")
    assert torch.equal(opened.unet.conv_in.weight, pipe.unet.conv_in.weight.half().float())
    with pytest.raises(ValueError, match="variant='fp16' would read"):
        weights_convert.open(folder)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_put_together(folder, pipe, suffix):
    path = weights(folder)
    state, halves = load_file(path), [{}, {}]
    for i, (key, value) in enumerate(state.items()):
        halves[i % 2][key] = value
    path.unlink()
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    for name, half in zip(names, halves):
        (torch.save if suffix == "bin" else save_file)(half, folder / "unet" / name)
    weight_map = {key: name for name, half in zip(names, halves) for key in half}
    index = folder / "unet" / f"diffusion_pytorch_model.{suffix}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert weights_convert.open(folder).hash == pipe.hash
    (folder / "unet" / names[1]).unlink()
    with pytest.raises(ValueError, match="00002-of-00002"):
        weights_convert.open(folder)


def test_an_index_cannot_point_out_of_its_folder(folder):
    path = weights(folder)
    path.rename(folder / "elsewhere.safetensors")
    index = path.parent / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="not beside it"):
        weights_convert.open(folder)


def test_bin_files_are_read(folder, pipe):
    for name in pipe.networks:
        path = weights(folder, name)
        stem = "pytorch_model" if name == "text_encoder" else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
        path.unlink()
    assert weights_convert.open(folder).hash == pipe.hash


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_bin_file_executes_nothing(folder, capsys):
    path = weights(folder)
    torch.save({"a": Evil()}, path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(ValueError, match="holds no tensors"):
        weights_convert.open(folder)
    assert "executed" not in capsys.readouterr().out


def test_a_tokenizer_json_is_read_too(folder, pipe):
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink()
    pipe.tokenizer.save(folder / "tokenizer" / "tokenizer.json")
    opened = weights_convert.open(folder)
    assert opened.tokenizer("a red boat").equal(pipe.tokenizer("a red boat"))


@pytest.mark.parametrize("token", ["!", {"content": "!", "lstrip": False}])
def test_the_padding_token_of_sd2_is_read(folder, token):
    edit(folder / "tokenizer" / "tokenizer_config.json", pad_token=token)
    assert weights_convert.open(folder).tokenizer("a")[0, -1] == 0


def test_a_tokenizer_can_be_given(folder, pipe):
    shutil.move(folder / "tokenizer", folder.parent / "tokenizer")
    with pytest.raises(ValueError, match="give a tokenizer"):
        weights_convert.open(folder)
    for given in (pipe.tokenizer, folder.parent / "tokenizer", folder.parent):
        opened = weights_convert.open(folder, tokenizer=given)
        assert opened.tokenizer("a boat").equal(pipe.tokenizer("a boat"))


def test_an_unknown_scheduler_becomes_ddim_on_its_schedule(folder, caplog):
    path = folder / "scheduler" / "scheduler_config.json"
    edit(path, _class_name="UniPCMultistepScheduler", beta_end=0.013)
    caplog.set_level("INFO")
    scheduler = weights_convert.open(folder).scheduler
    assert isinstance(scheduler, DDIMScheduler)
    assert scheduler.config.beta_end == 0.013
    assert "UniPCMultistepScheduler" in caplog.text


def test_a_learned_variance_is_refused(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    edit(path, _class_name="DDPMScheduler", variance_type="learned_range")
    with pytest.raises(ValueError, match="variance_type"):
        weights_convert.open(folder)


@pytest.mark.parametrize(("width", "family"), [(1024, "sd-2"), (24, "sd-1")])
def test_the_width_of_the_text_tells_the_family(tmp_path, width, family):
    pipe = pipeline()
    text = dataclasses.replace(pipe.text_encoder.config, width=width, layers=1)
    pipe.text_encoder = TextEncoder(text)
    pipe.unet = UNet(dataclasses.replace(UNET, context_width=width))
    weights_convert.save(pipe, tmp_path / "model", layout="diffusers")
    (tmp_path / "model" / NOTE).unlink()
    assert weights_convert.open(tmp_path / "model").family == family


@pytest.mark.parametrize("path", [
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
    "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/tokenizer_config.json",
    "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors",
])  # fmt: skip
@pytest.mark.parametrize("damage", ["{", "[]", b"\xff\xfe\x00", ""])
def test_a_damaged_file_is_named(folder, path, damage):
    data = damage.encode() if isinstance(damage, str) else damage
    (folder / path).write_bytes(data)
    with pytest.raises(ValueError, match=path.rsplit("/", 1)[-1]):
        weights_convert.open(folder)


@pytest.mark.parametrize("network", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
def test_weights_that_do_not_fit_are_named(folder, network, damage):
    path = weights(folder, network)
    state = load_file(path)
    key = next(iter(state))
    if damage == "missing":
        del state[key]
    else:
        state["stranger.weight" if damage == "unexpected" else key] = torch.zeros(1, 2, 3)
    save_file(state, path)
    with pytest.raises(ValueError, match="stranger" if damage == "unexpected" else network):
        weights_convert.open(folder)


def test_parts_of_different_models_are_refused(folder):
    vocab = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({**vocab, "extra": len(vocab)}))
    with pytest.raises(ValueError, match="belongs to the model"):
        weights_convert.open(folder)


def test_another_kind_of_pipeline_is_refused(folder):
    edit(folder / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(ValueError, match="StableDiffusionXLPipeline"):
        weights_convert.open(folder)


@pytest.mark.parametrize(("source", "word"), [
    ("nowhere/at/all", "no hub id"), (".", "neither"), (__file__, "is text"),
])  # fmt: skip
def test_a_source_that_is_no_model_is_refused(source, word):
    with pytest.raises(ValueError, match=word):
        weights_convert.open(source)
