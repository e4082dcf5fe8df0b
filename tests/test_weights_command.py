"""python -m weights_convert: what it says, what it leaves behind, and its exit codes."""

import importlib.util
import itertools
import json
import multiprocessing
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_weights_folders import edit
from tiny import picture_book

import weights_convert
from weights_convert import __main__ as cli
from weights_convert.names import WALKS, markdown

ROOT = Path(__file__).parents[1]
LAYOUTS = {"minisd": "out", "diffusers": "out", "single-file": "out.safetensors"}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def pipe():
    return picture_book()


@pytest.fixture(scope="module")
def source(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "model"
    weights_convert.save(pipe, folder, layout="diffusers")
    return folder


def run(*arguments):
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


# ---- --info ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_info_says_what_a_model_is_in_every_layout(pipe, tmp_path, capsys, layout):
    weights_convert.save(pipe.to(torch.float32), tmp_path / LAYOUTS[layout], layout)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main([str(tmp_path / LAYOUTS[layout]), "--info"]) == 0
    said = capsys.readouterr().out
    count = sum(p.numel() for p in pipe.unet.parameters())
    for word in (layout.replace("-", " "), "picture-book", f"{count:,} parameters, float32", "MB",
                 "32 x 32 pixels, 3 steps, guidance 4", pipe.hash):  # fmt: skip
        assert word in said
    assert sorted(tmp_path.rglob("*")) == before


def test_info_needs_no_tokenizer_for_a_single_file(pipe, tmp_path, capsys, monkeypatch):
    def download(*_arguments, **_more):
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    path = tmp_path / "model.safetensors"
    weights_convert.save(pipe, path, "single-file")
    assert cli.main([str(path), "--info"]) == 0
    assert pipe.hash in capsys.readouterr().out


def test_info_names_the_dtypes_as_they_are_stored(source, tmp_path, capsys):
    half = weights_convert.open(source, torch_dtype=torch.float16)
    half.vae.float()
    weights_convert.save(half, tmp_path / "mixed")
    assert cli.main([str(tmp_path / "mixed"), "--info"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "float16" in lines["unet"]
    assert "float32" in lines["vae"]
    assert "float16 and float32" in lines["together"]


# ---- --verify ----


def test_without_diffusers_verify_says_how_to_install_it(source, capsys, monkeypatch):
    found = importlib.util.find_spec
    absent = ("diffusers", "transformers")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in absent else found(name, *a)
    )
    assert cli.main([str(source), "--verify"]) == 2
    said = capsys.readouterr().err
    assert "pip install" in said
    assert "diffusers" in said


@pytest.mark.parametrize(("error", "code"), [(9e-6, 0), (2e-5, 1), (float("nan"), 1)])
def test_verify_judges_by_the_largest_difference(source, capsys, monkeypatch, error, code):
    monkeypatch.setattr(cli.verify, "compare", lambda _networks: {"eps": error, "text": 1e-7})
    assert cli.main([str(source), "--verify"]) == code
    said = capsys.readouterr().out
    assert ("All agree" in said) == (code == 0)
    assert ("differ in: eps" in said) == (code == 1)


# ---- options ----


@pytest.mark.parametrize("arguments", [["model"], ["model", "out", "--info"],
                                       ["model", "out", "--verify"]])  # fmt: skip
def test_a_target_or_a_question_but_not_both(arguments):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_the_commands_that_the_readme_shows_have_options_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    shown = re.findall(r"^python -m weights_convert (.+)$", text, re.MULTILINE)
    assert len(shown) > 3
    for line in shown:
        cli.parser().parse_args(shlex.split(line))


@pytest.mark.parametrize(("flags", "expected"), [
    ([], {}), (["--ema"], {"ema": True}), (["--no-ema"], {"ema": False}),
    (["--tokenizer", "t"], {"tokenizer": "t"}), (["--vae", "v"], {"vae": "v"}),
    (["--variant", "fp16"], {"variant": "fp16"}),
    (["--prediction-type", "v_prediction"], {"prediction_type": "v_prediction"}),
    (["--dtype", "bfloat16"], {"torch_dtype": torch.bfloat16}),
], ids=str)  # fmt: skip
def test_the_options_are_those_of_open(source, pipe, tmp_path, monkeypatch, flags, expected):
    asked = []

    def opened(_source, **settings):
        asked.append({name: value for name, value in settings.items() if value is not None})
        return pipe

    monkeypatch.setattr(weights_convert, "open", opened)
    assert cli.main([str(source), str(tmp_path / "out"), *flags]) == 0
    assert asked == [expected]


def test_a_conversion_keeps_the_stored_precision(source, tmp_path, capsys):
    half = weights_convert.open(source, torch_dtype=torch.float16)
    weights_convert.save(half, tmp_path / "half", "diffusers")
    assert cli.main([str(tmp_path / "half"), str(tmp_path / "out")]) == 0
    assert "float16" in capsys.readouterr().out
    assert weights_convert.open(tmp_path / "out", torch_dtype=None).dtype == torch.float16


def test_a_safety_checker_is_mentioned_on_the_command_line(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "model")
    edit(folder / "model_index.json", safety_checker=["stable_diffusion", "SafetyChecker"])
    done = run("weights_convert", folder, "--info")
    assert done.returncode == 0
    assert done.stderr.startswith("note: ")
    assert "safety checker" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_table_of_names_is_printed_as_markdown_and_nothing_beside_it():
    done = run("weights_convert.names")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == markdown() + "\n"
    rows = [line for line in done.stdout.splitlines() if line.startswith("| `")]
    assert len(rows) == 391 + 124 + 99
    assert all(line.count(" | ") == 2 for line in rows)
    assert len([line for line in done.stdout.splitlines() if line.startswith("## ")]) == len(WALKS)
    down = "| `down.0.resnets.1.conv1` | `down_blocks.0.resnets.1.conv1` | `input_blocks.2.0."
    assert down in done.stdout


# ---- whole or not at all ----


@pytest.mark.parametrize("layout", LAYOUTS)
def test_too_little_room_is_said_before_anything_is_written(
    source, tmp_path, capsys, monkeypatch, layout
):
    asked = []

    def usage(path):
        asked.append(Path(path))
        return Usage(10**9, 10**9 - 1000, 1000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    target = tmp_path / "new" / LAYOUTS[layout]
    assert cli.main([str(source), str(target), "--to", layout]) == 2
    said = capsys.readouterr().err
    assert "MB" in said
    assert "make room" in said
    assert asked == [tmp_path]  # the nearest folder that exists
    assert list(tmp_path.iterdir()) == []


def test_the_room_asked_for_is_that_of_the_chosen_precision(pipe, monkeypatch):
    weights = sum(p.numel() for n in pipe.networks.values() for p in n.parameters())
    single = weights_convert.bytes_on_disk(pipe.to(torch.float32))
    half = weights_convert.bytes_on_disk(pipe.to(torch.float16))
    pipe.to(torch.float32)
    assert single - half == 2 * weights
    assert half > 2 * weights


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stopping_it_leaves_nothing_behind(source, tmp_path, capsys, monkeypatch, layout):
    def interrupted(*_arguments, **_more):
        raise KeyboardInterrupt

    for module in ("minisd.checkpoint", "weights_convert.diffusers", "weights_convert.single_file"):
        monkeypatch.setattr(f"{module}.save_file", interrupted)
    target = tmp_path / LAYOUTS[layout]
    assert cli.main([str(source), str(target), "--to", layout]) == 130
    assert "stopped" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def save_again_and_again(source, folder):
    """What the killed processes do."""
    pipe = weights_convert.open(source)
    for i in itertools.count():
        for layout, name in LAYOUTS.items():
            weights_convert.save(pipe, folder / layout / str(i) / name, layout)


def test_killed_at_any_moment_the_target_is_absent_or_whole(source, pipe, tmp_path):
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs processes that are forked off, to start at once")
    context, rng, halves = multiprocessing.get_context("forkserver"), random.Random(0), 0
    context.set_forkserver_preload(["weights_convert"])
    for i in range(20):
        folder = tmp_path / str(i)
        child = context.Process(target=save_again_and_again, args=(source, folder))
        child.start()
        while not (folder / "single-file" / "0").exists():  # then it is at work
            assert child.is_alive()
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        while i > 0 and not list(folder.glob("*/*/.*.part")):  # the first at any moment
            pass
        child.kill()
        child.join()
        for target in (t for name in LAYOUTS.values() for t in folder.glob(f"*/*/{name}")):
            assert weights_convert.open(target).hash == pipe.hash
        halves += len(list(folder.glob("*/*/.*.part")))
        if i >= 2 and halves:
            break
    assert halves > 0  # at least one was killed while it wrote


def test_an_unknown_file_is_one_line_and_exit_code_2(tmp_path, capsys):
    save_file({"a.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "X"}))
    for place in (tmp_path, tmp_path / "a.safetensors", tmp_path / "none"):
        assert cli.main([str(place), str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
