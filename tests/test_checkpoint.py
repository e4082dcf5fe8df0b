"""The native checkpoint: what is saved comes back, and what is wrong says so."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import picture_book

from minisd import DDPMScheduler, StableDiffusionPipeline, checkpoint
from minisd.config import ScheduleConfig

FILES = [
    "pipeline.json", "scheduler.json", "text_encoder.safetensors", "tokenizer.json",
    "unet.safetensors", "vae.safetensors",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    picture_book().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change(path, **metadata):
    """Write a network's file again, changed by the decorated function."""

    def apply(edit):
        with safe_open(path, "pt") as file:
            old = file.metadata()
        save_file(edit(load_file(path)), path, {**old, **metadata})

    return apply


def test_a_model_comes_back_bit_for_bit(folder):
    pipe, back = picture_book(), StableDiffusionPipeline.from_pretrained(folder)
    for name, network in pipe.networks.items():
        state, state_back = network.state_dict(), back.networks[name].state_dict()
        assert list(state) == list(state_back)
        assert all(torch.equal(state[key], state_back[key]) for key in state)
        assert back.networks[name].config == network.config
    assert (back.defaults, back.family, back.hash) == (pipe.defaults, pipe.family, pipe.hash)
    assert back.scheduler.config == pipe.scheduler.config
    assert type(back.scheduler) is type(pipe.scheduler)
    assert torch.equal(back.tokenizer("a red boat"), pipe.tokenizer("a red boat"))


def test_a_model_that_came_back_draws_the_same_picture(folder):
    pipes = picture_book(), StableDiffusionPipeline.from_pretrained(folder)
    first, second = (
        pipe("a red boat", generator=torch.Generator().manual_seed(0), output_type="pt").images
        for pipe in pipes
    )
    assert torch.equal(first, second)


def test_the_folder_holds_six_files_and_nothing_else(folder):
    assert sorted(path.name for path in folder.iterdir()) == FILES


def test_the_config_and_the_format_are_in_the_metadata(folder):
    with safe_open(folder / "unet.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["minisd_format"] == "1"
    assert json.loads(metadata["config"])["widths"] == [16, 32]


def test_loaded_networks_are_ready_to_use_not_to_train(folder):
    for network in StableDiffusionPipeline.from_pretrained(folder).networks.values():
        assert not network.training
        assert not any(p.requires_grad or p.is_meta for p in network.parameters())


def test_every_tensor_is_cast_to_the_asked_dtype(folder):
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16)
    assert {p.dtype for net in pipe.networks.values() for p in net.parameters()} == {torch.float16}


def test_half_precision_on_disk_loses_half_precision_and_no_more(folder, tmp_path):
    half = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    back = StableDiffusionPipeline.from_pretrained(tmp_path / "half")
    key = "conv_in.weight"
    assert torch.equal(back.unet.state_dict()[key], half.unet.state_dict()[key].float())


def test_the_hash_is_the_same_in_half_precision_and_tells_models_apart(folder):
    half = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16)
    assert (
        half.hash
        == picture_book().hash
        == json.loads((folder / "pipeline.json").read_text())["hash"]
    )
    assert picture_book(seed=1).hash != half.hash


def test_loading_with_assign_does_not_copy(folder):
    state = load_file(folder / "unet.safetensors")
    pipe = picture_book()
    network = checkpoint.load_state(
        checkpoint.build(type(pipe.unet), pipe.unet.config), state, "here"
    )
    assert network.conv_in.weight.data_ptr() == state["conv_in.weight"].data_ptr()


def test_the_schedulers_class_and_config_come_back(tmp_path):
    config = ScheduleConfig(beta_schedule="linear", timestep_spacing="trailing")
    checkpoint.save_scheduler(DDPMScheduler(config), tmp_path / "scheduler.json")
    back = checkpoint.load_scheduler(tmp_path / "scheduler.json")
    assert type(back) is DDPMScheduler
    assert back.config == config


# What is wrong says so


def test_missing_unexpected_and_misshapen_keys_are_named_with_the_file(folder):
    path = folder / "unet.safetensors"

    @change(path)
    def _(state):
        state["zebra"] = torch.zeros(7)
        state["conv_in.bias"] = torch.zeros(3)
        return {key: value for key, value in state.items() if key != "conv_out.bias"}

    with pytest.raises(ValueError, match=r"unet\.safetensors does not fit a UNet") as error:
        StableDiffusionPipeline.from_pretrained(folder)
    assert "missing conv_out.bias (4,)" in str(error.value)
    assert "unexpected zebra (7,)" in str(error.value)
    assert "conv_in.bias is (3,), expected (16,)" in str(error.value)


def test_of_many_wrong_keys_the_first_five_are_named_and_the_rest_counted(folder):
    @change(folder / "vae.safetensors")
    def _(state):
        return {f"old.{key}": value for key, value in state.items()}

    count = len(picture_book().vae.state_dict())
    with pytest.raises(ValueError, match=f"and {count - 5} more") as error:
        StableDiffusionPipeline.from_pretrained(folder)
    assert str(error.value).count("missing ") == 5
    assert str(error.value).count("unexpected ") == 5


def test_weights_of_another_config_are_refused(folder):
    other = picture_book().unet.config.to_json().replace("[16, 32]", "[16, 48]")

    @change(folder / "unet.safetensors", config=other)
    def _(state):
        return state

    with pytest.raises(ValueError, match="does not fit a UNet of its config"):
        StableDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("version", ["2", "", None])
def test_another_format_is_refused_with_the_way_to_convert(folder, version):
    path = folder / "text_encoder.safetensors"
    metadata = None if version is None else {"minisd_format": version}
    save_file(load_file(path), path, metadata)
    with pytest.raises(ValueError, match=r"no minisd checkpoint of format 1.*weights_convert"):
        StableDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".safetensors")])
@pytest.mark.parametrize("damage", ["truncated", "cut to its start", "zeros", "empty", "text"])
def test_a_damaged_file_is_an_error_that_names_it(folder, name, damage):
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(
        {
            "truncated": whole[:-1],
            "cut to its start": whole[:4],
            "zeros": bytes(len(whole)),
            "empty": b"",
            "text": b"<html>not found</html>" * 9,
        }[damage]
    )
    with pytest.raises(ValueError, match=f"{name} is damaged or no safetensors file"):
        StableDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("name", [name for name in FILES if name != "pipeline.json"])
def test_a_missing_file_is_an_error_that_names_it(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        StableDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"family": "x", "defaults": {"hue": 3}}'])
def test_a_damaged_pipeline_json_is_an_error_that_names_it(folder, text):
    (folder / "pipeline.json").write_text(text)
    with pytest.raises(ValueError, match=r"pipeline\.json"):
        StableDiffusionPipeline.from_pretrained(folder)


def test_an_unknown_scheduler_is_an_error_that_lists_the_known_ones(folder):
    (folder / "scheduler.json").write_text('{"class": "WarpScheduler"}')
    with pytest.raises(ValueError, match=r"'WarpScheduler', expected one of \['DDIMScheduler'"):
        StableDiffusionPipeline.from_pretrained(folder)


def test_a_file_of_another_name_is_no_network(folder):
    with pytest.raises(ValueError, match=r"decoder\.safetensors is not one of"):
        checkpoint.load_network(folder / "decoder.safetensors")


def test_a_place_that_does_not_exist_is_an_error_that_says_what_to_give():
    with pytest.raises(ValueError, match=r"/no/such/model does not exist.*give a model's folder"):
        StableDiffusionPipeline.from_pretrained("/no/such/model")


# A save that is stopped


def test_a_stopped_save_leaves_the_old_file_and_nothing_half_written(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def half_a_save(state, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", half_a_save)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_network(picture_book(seed=1).unet, folder / "unet.safetensors")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_saving_does_not_change_the_network(tmp_path):
    pipe = picture_book().to(torch.float16)
    before = {key: value.clone() for key, value in pipe.vae.state_dict().items()}
    pipe.save_pretrained(tmp_path)
    after = pipe.vae.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert pipe.dtype == torch.float16
