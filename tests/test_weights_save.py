"""Saving, downloading and the command line: whole or not at all, and one clear error."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from tiny import pipeline

import weights_convert
from minisd import StableDiffusionPipeline
from weights_convert import __main__ as cli
from weights_convert import hub
from weights_convert.folders import new_folder


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


def weights(folder, name="unet"):
    return next((folder / name).glob("*.safetensors"))


@pytest.mark.parametrize("layout", ["minisd", "diffusers"])
def test_a_folder_with_something_in_it_is_left_alone(pipe, tmp_path, layout):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        weights_convert.save(pipe, tmp_path, layout)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path):
    def interrupted():
        with new_folder(tmp_path / "model") as part:
            (part / "half").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_layout_that_cannot_be_written_is_refused(pipe, tmp_path):
    with pytest.raises(ValueError, match="onnx"):
        weights_convert.save(pipe, tmp_path / "model", "onnx")


# ---- the hub ----


def test_only_the_needed_files_are_downloaded(original, pipe, monkeypatch):
    asked = []

    def download(hub_id, allow_patterns):
        asked.append((hub_id, allow_patterns))
        return str(original)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert weights_convert.open("owner/name").hash == pipe.hash
    ((hub_id, patterns),) = asked
    assert hub_id == "owner/name"
    assert "unet/diffusion_pytorch_model.safetensors" in patterns
    assert not any(p.endswith((".bin", ".ckpt")) or "fp16" in p or p == "*" for p in patterns)


def test_pickles_are_downloaded_only_without_safetensors(tmp_path, monkeypatch):
    asked = []

    def download(_hub_id, allow_patterns):
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    hub.download("owner/name", "fp16")
    assert len(asked) == 2
    assert "unet/diffusion_pytorch_model.fp16.bin" in asked[1]


def test_without_a_connection_the_files_to_fetch_are_named(monkeypatch):
    def download(*_arguments, **_more):
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ValueError, match="by hand") as caught:
        StableDiffusionPipeline.from_pretrained("owner/name")
    for word in ("no connection", "model_index.json", "text_encoder/model.safetensors",
                 "vae/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt"):  # fmt: skip
        assert word in str(caught.value)


# ---- the command line ----


@pytest.mark.parametrize("layout", ["minisd", "diffusers"])
def test_the_command_line_converts(original, tmp_path, capsys, layout):
    arguments = [str(original), str(tmp_path / "out"), "--to", layout, "--dtype", "float16"]
    assert cli.main(arguments) == 0
    assert str(tmp_path / "out") in capsys.readouterr().out
    again = weights_convert.open(tmp_path / "out", torch_dtype=torch.float16)
    assert again.hash == weights_convert.open(original).hash


def test_the_command_line_fails_in_one_line(tmp_path):
    command = [sys.executable, "-m", "weights_convert", str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_many_wrong_keys_are_still_one_line(folder, tmp_path, capsys):
    save_file({"a.weight": torch.zeros(1)}, weights(folder))
    assert cli.main([str(folder), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
