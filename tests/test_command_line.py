"""The command line, from its first line to its last file."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from official import official, state_of
from PIL import Image
from safetensors.torch import save_file
from tiny import picture_book

from minisd import StableDiffusionPipeline, __version__
from minisd.images import read_settings


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def start(*argv, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    command = [sys.executable, "-m", "minisd", *argv]
    return subprocess.Popen(command, text=True, encoding="utf8", **pipes, **options)


def assert_one_line(code, err, *parts):
    assert code == 2
    assert err.startswith("minisd: error: ")
    assert err.count("\n") == 1
    for part in parts:
        assert part in err


# From the shell


def test_the_first_line_comes_before_torch_is_imported(here):
    (here / "torch.py").write_text("raise ModuleNotFoundError('torch was imported')")
    process = start("a boat", env={**os.environ, "PYTHONPATH": str(here)}, cwd=here)
    out, err = process.communicate(timeout=180)
    assert out.startswith(f'minisd {__version__} draws "a boat" (loading PyTorch ...)\n')
    assert_one_line(process.returncode, err, "torch was imported", "requirements.txt")


def test_a_prompt_becomes_a_png_with_a_progress_bar_from_the_first_step(weights, here):
    process = start("a red boat", "-o", "boat.png", "--seed", "3", "--weights", weights, cwd=here)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0
    assert "wrote boat.png (seed 3)" in out
    assert "0/3" in err
    assert "3/3" in err
    assert Image.open(here / "boat.png").size == (32, 32)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_leaves_no_file_one_line_and_exit_code_130(weights, here):
    # Where the tests run in the background, the shell has told their processes to ignore SIGINT.
    heed = {"preexec_fn": partial(signal.signal, signal.SIGINT, signal.SIG_DFL)}
    argv = ("a boat", "--weights", weights, "--steps", "1000", "-o", "b.png")
    process = start(*argv, cwd=here, **heed)
    seen = ""
    while "denoising" not in seen:  # the bar is there: the loop runs
        assert process.poll() is None
        seen += process.stderr.read(10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "minisd: stopped; no picture was left half-written"
    assert "Traceback" not in err
    assert list(here.iterdir()) == []


# What is drawn, and where it goes


def test_it_announces_model_device_dtype_and_settings(minisd):
    _, out, _ = minisd("a boat", "--seed", "0")
    family_and_hash = f"picture-book model {picture_book().hash}"
    assert f"{family_and_hash} on cpu in float32, 3 steps of ddim, guidance 4, 32 x 32" in out


def test_the_picture_is_the_one_that_python_makes_with_this_seed(minisd, weights):
    minisd("a red boat", "--seed", "7", "-o", "boat.png")
    pipe = StableDiffusionPipeline.from_pretrained(weights)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red boat", generator=torch.Generator().manual_seed(7)).images[0]
    assert abs(pixels("boat.png") - np.asarray(image)).max() <= 1


def test_without_a_seed_one_is_drawn_and_said(minisd):
    _, out, _ = minisd("a boat", "-o", "boat.png")
    assert f"seed {read_settings('boat.png')['seed']} (--seed chooses another)" in out
    _, out, _ = minisd("a boat", "-o", "boat.png", "--seed", "")
    assert f"seed {read_settings('boat.png')['seed']} (--seed chooses another)" in out


def test_the_settings_are_in_the_png(minisd):
    minisd(
        "a boat", "-o", "x.png", "--seed", "0", "--negative-prompt", "red", "--steps", "2",
        "--guidance-scale", "2.5", "--eta", "0.5", "--height", "40", "--scheduler", "ddim",
    )  # fmt: skip
    assert read_settings("x.png") == {
        "prompt": "a boat", "negative_prompt": "red", "seed": 0, "num_inference_steps": 2,
        "guidance_scale": 2.5, "eta": 0.5, "height": 40, "width": 32, "scheduler": "ddim",
        "model": picture_book().hash, "dtype": "float32", "version": __version__,
    }  # fmt: skip
    assert Image.open("x.png").size == (32, 40)


def test_every_option_that_should_change_the_picture_does(minisd):
    minisd("a boat", "--seed", "0", "-o", "plain.png")
    for option in (
        ("--seed", "1"), ("--steps", "2"), ("--guidance-scale", "9"), ("--scheduler", "ddpm"),
        ("--eta", "1"), ("--negative-prompt", "a red house"),
    ):  # fmt: skip
        minisd("a boat", "--seed", "0", "-o", "other.png", *option)
        assert (pixels("plain.png") != pixels("other.png")).any(), option


def test_the_default_name_tells_prompt_and_seed(minisd):
    minisd("A red boat, at sunset!", "--seed", "0")
    assert Path("a-red-boat-at-sunset-seed-0.png").exists()
    minisd("", "--seed", "0")
    assert Path("picture-seed-0.png").exists()


def test_a_default_name_never_replaces_a_picture_with_other_settings(minisd):
    for argv in (("a boat",), ("a boat",), ("A boat!",), ("a boat", "--steps", "2")):
        minisd(*argv, "--seed", "0")
    made = {path.name: read_settings(path) for path in Path().glob("*.png")}
    assert set(made) == {f"a-boat-seed-0{n}.png" for n in ("", "-2", "-3")}
    assert made["a-boat-seed-0-2.png"]["prompt"] == "A boat!"
    assert made["a-boat-seed-0-3.png"]["num_inference_steps"] == 2


def test_an_explicit_output_replaces_the_file(minisd):
    Path("x.png").write_text("old")
    minisd("a boat", "-o", "x.png", "--seed", "0")
    assert read_settings("x.png")["prompt"] == "a boat"


def test_an_output_without_ending_gets_one_and_folders_are_made(minisd):
    minisd("a boat", "-o", "some/where/x", "--seed", "0")
    minisd("a boat", "-o", "else/", "--seed", "0")
    assert Path("some/where/x.png").exists()
    assert Path("else/a-boat-seed-0.png").exists()


def test_several_pictures_have_seeds_in_a_row_and_a_file_each(minisd):
    minisd("a boat", "-o", "x.png", "--num-images", "3", "--seed", "5")
    assert sorted(path.name for path in Path().iterdir()) == ["x_0.png", "x_1.png", "x_2.png"]
    assert [read_settings(f"x_{i}.png")["seed"] for i in range(3)] == [5, 6, 7]
    minisd("a boat", "-o", "alone.png", "--seed", "6")
    assert abs(pixels("alone.png") - pixels("x_1.png")).max() <= 1


def test_a_grid_is_one_sheet(minisd):
    minisd("a boat", "--grid", "--num-images", "3", "--seed", "5")
    (sheet,) = Path().glob("*.png")
    assert sheet.name == "a-boat-seed-5-to-7.png"
    assert Image.open(sheet).size == (68, 68)


def test_save_steps_writes_x_t_and_x_0_of_every_step(minisd):
    minisd("a boat", "-o", "x.png", "--seed", "0", "--save-steps", "steps")
    names = [f"step-00{i}-{x}.png" for i in range(3) for x in ("x_0", "x_t")]
    assert sorted(path.name for path in Path("steps").iterdir()) == names
    minisd("a boat", "-o", "y.png", "--seed", "0")
    assert (pixels("x.png") == pixels("y.png")).all()


def test_from_png_draws_the_same_picture_again(minisd):
    minisd(
        "a boat", "-o", "x.png", "--seed", "4", "--steps", "2", "--eta", "1",
        "--negative-prompt=-red", "--width", "40",
    )  # fmt: skip
    code, _, err = minisd("--from-png", "x.png", "-o", "y.png")
    assert code == 0
    assert "warning" not in err
    assert Path("x.png").read_bytes() == Path("y.png").read_bytes()


def a_picture(path, size=(40, 32)):
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def test_an_image_is_drawn_anew_in_its_own_size_and_again_from_the_png(minisd):
    a_picture("source.png")
    minisd("a boat", "-o", "x.png", "--seed", "4", "--image", "source.png", "--strength", "0.7")
    assert Image.open("x.png").size == (40, 32)
    settings = read_settings("x.png")
    assert (settings["image"], settings["strength"]) == ("source.png", 0.7)
    minisd("--from-png", "x.png", "-o", "y.png")
    assert Path("x.png").read_bytes() == Path("y.png").read_bytes()
    minisd("a boat", "-o", "z.png", "--seed", "4", "--image", "source.png", "--strength", "1")
    assert (pixels("x.png") != pixels("z.png")).any()


def test_outside_the_mask_the_picture_stays_exactly_as_it_was(minisd):
    a_picture("source.png")
    mask = Image.new("L", (40, 32))
    mask.paste(255, (0, 0, 16, 32))
    mask.save("mask.png")
    minisd("a boat", "-o", "x.png", "--image", "source.png", "--mask", "mask.png")
    same = (pixels("x.png") == pixels("source.png")).all(axis=-1)
    assert same[:, 16:].all()
    assert not same[:, :12].all()


def test_from_png_draws_a_grid_again(minisd):
    minisd("a boat", "-o", "x.png", "--seed", "4", "--num-images", "2", "--grid")
    minisd("--from-png", "x.png", "-o", "y.png")
    assert Path("x.png").read_bytes() == Path("y.png").read_bytes()


def test_from_png_gives_way_to_the_command_line(minisd):
    minisd("a boat", "-o", "x.png", "--seed", "4", "--steps", "2")
    minisd("a bird", "--from-png", "x.png", "-o", "y.png", "--steps", "3")
    settings = read_settings("y.png")
    assert (settings["prompt"], settings["seed"]) == ("a bird", 4)
    assert settings["num_inference_steps"] == 3


def test_from_png_warns_of_another_model(minisd, tmp_path):
    minisd("a boat", "-o", "x.png", "--seed", "4")
    picture_book(seed=1).save_pretrained(tmp_path / "other")
    code, _, err = minisd("--from-png", "x.png", "-o", "y.png", model=str(tmp_path / "other"))
    assert code == 0
    assert f"x.png was made by model {picture_book().hash}; this picture will differ" in err


def test_prompts_draws_one_picture_a_line_and_goes_on_where_it_stopped(minisd):
    Path("prompts.txt").write_text("a boat\n\n  a bird  \na house\n")
    argv = ("--prompts", "prompts.txt", "-o", "pictures")
    minisd(*argv)
    names = ["a-bird-seed-0.png", "a-boat-seed-0.png", "a-house-seed-0.png"]
    assert sorted(path.name for path in Path("pictures").iterdir()) == names
    Path("pictures/a-bird-seed-0.png").unlink()
    _, out, _ = minisd(*argv)
    assert out.count("is there already") == 2
    assert out.count("wrote") == 1
    assert sorted(path.name for path in Path("pictures").iterdir()) == names


# Words


def test_a_single_file_opens_with_the_tokenizer_that_it_lacks(minisd, here):
    model = official()
    save_file(state_of(model), "model.safetensors")
    model.tokenizer.save("tokenizer.json")
    argv = ("a boat", "--steps", "1", "--height", "16", "--width", "16", "-o", "boat.png")
    tokenizer = ("--tokenizer", "tokenizer.json")
    assert minisd(*argv, *tokenizer, model="model.safetensors")[0] == 0
    assert Image.open("boat.png").size == (16, 16)
    assert_one_line(*minisd(*argv, *tokenizer, model=None)[::2], "--weights FILE")


def test_unknown_words_are_named_with_prompts_that_work_and_the_picture_is_made(minisd):
    code, _, err = minisd("a cat", "-o", "cat.png")
    assert code == 0
    assert 'minisd: warning: "cat" is not in the picture book; try "' in err
    assert Path("cat.png").exists()


def test_known_words_and_other_families_have_no_warning(minisd, tmp_path):
    assert "warning" not in minisd("a red boat", "-o", "boat.png")[2]
    pipe = picture_book()
    pipe.family = "sd-1"
    pipe.save_pretrained(tmp_path / "sd")
    assert "warning" not in minisd("a cat", "-o", "cat.png", model=str(tmp_path / "sd"))[2]


def test_words_lists_what_the_model_knows(minisd):
    code, out, _ = minisd("--words", model=None)
    assert code == 0
    assert "objects: circle" in out
    assert "boat" in out


# Errors


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ([], ["give a prompt"]),
        (["a boat", "--height", "100"], ["100 x 32", "try 96 x 32"]),
        (["a boat", "--width", "0"], ["32 x 0", "multiples of 8"]),
        (["a boat", "--steps", "0"], ["num_inference_steps is 0"]),
        (["a boat", "--steps", "two"], ["--steps", "'two'"]),
        (["a boat", "--seed", "-1"], ["--seed", "-1 is not between"]),
        (["a boat", "--seed", "one"], ["invalid seed value: 'one'"]),
        (["a boat", "--eta", "1.5"], ["--eta", "1.5 is not between 0 and 1"]),
        (["a boat", "--num-images", "0"], ["--num-images"]),
        (["a boat", "--scheduler", "warp"], ["'warp' is unknown", "ddim"]),
        (["a boat", "--device", "abacus"], ["'abacus' is unknown"]),
        (["a boat", "--dtype", "float16", "--device", "cpu"], ["float16 on the CPU"]),
        (["a boat", "--dtype", "int3"], ["'int3' is unknown"]),
        (["a boat", "--image", "none.png"], ["none.png: No such file"]),
        (["a boat", "--image", "file"], ["cannot identify image file"]),
        (["a boat", "--image", "plain.png", "--mask", "large.png"], ["16 x 16", "8 x 8"]),
        (["a boat", "--strength", "0.5"], ["--image FILE"]),
        (["a boat", "--mask", "plain.png"], ["--image FILE"]),
        (["a boat", "--image", "plain.png", "--strength", "2"], ["2 is not between 0 and 1"]),
        (["a boat", "-o", "x.jpg"], ["x.jpg does not end in .png"]),
        (["a boat", "-o", "file/x.png"], ["file: "]),
        (["a boat", "--save-steps", "file"], ["file: "]),
        (["a boat", "--weights", "no/such/model"], ["no/such/model does not exist"]),
        (["--from-png", "none.png"], ["none.png: No such file"]),
        (["--from-png", "file"], ["cannot identify image file"]),
        (["--from-png", "plain.png"], ["plain.png holds no settings"]),
        (["--prompts", "none.txt", "-o", "d"], ["none.txt: No such file"]),
        (["--prompts", "empty.txt", "-o", "d"], ["empty.txt holds no prompts"]),
        (["--prompts", "file"], ["-o DIR"]),
        (["a boat", "--prompts", "file", "-o", "d"], ["leave out PROMPT"]),
        (["a \udcff boat"], ["not UTF-8"]),
        (["a boat", "--no-such-option"], ["--no-such-option"]),
    ],
)
def test_wrong_input_is_one_clear_line_and_exit_code_2(minisd, argv, parts):
    Path("file").write_text("text")
    Path("empty.txt").write_text("\n")
    Image.new("RGB", (8, 8)).save("plain.png")
    Image.new("RGB", (16, 16)).save("large.png")
    code, _, err = minisd(*argv, model=None) if "--weights" in argv else minisd(*argv)
    assert_one_line(code, err, *parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU")
def test_a_missing_gpu_is_one_clear_line(minisd):
    code, _, err = minisd("a boat", "--device", "cuda")
    assert_one_line(code, err, "'cuda' was asked for", "try cpu")


@pytest.mark.parametrize("name", ["unet.safetensors", "pipeline.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_a_corrupt_file_is_one_clear_line_that_names_it(minisd, tmp_path, name, damage):
    picture_book().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_bytes(path.read_bytes()[:-20] if damage is None else damage)
    code, _, err = minisd("a boat", model=str(tmp_path / "model"))
    assert_one_line(code, err, name)


def test_ctrl_c_has_exit_code_130(minisd, monkeypatch):
    def predict(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(StableDiffusionPipeline, "predict", predict)
    code, _, err = minisd("a boat")
    assert code == 130
    assert err.endswith("minisd: stopped; no picture was left half-written\n")


def test_too_little_memory_has_exit_code_1_and_advice(minisd, monkeypatch):
    def predict(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(StableDiffusionPipeline, "predict", predict)
    code, _, err = minisd("a boat")
    assert code == 1
    assert err.endswith("minisd: error: out of memory; try fewer --num-images or a smaller size\n")
