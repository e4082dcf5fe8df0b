"""The names of the command line's pictures, and the work of several processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import picture_book

from minisd import images
from minisd.options import build_parser
from minisd.targets import settings_on, share

PROMPTS = ["a red boat", "a red boat!", "a star", "a star at night", "a red, boat"]
COMMON = {"num_inference_steps": 3}


def plan(monkeypatch, folder, rank=0, world=1, prompts=PROMPTS):
    args = build_parser().parse_args(["--prompts", "p.txt", "-o", str(folder), "--seed", "0"])
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))
    return [(prompt, [t.path.name for t in targets])
            for prompt, targets in share(args, prompts, COMMON)]  # fmt: skip


def test_prompts_of_the_same_letters_get_names_of_their_own(monkeypatch, tmp_path):
    names = [name for _, names in plan(monkeypatch, tmp_path) for name in names]
    assert names[0] == "a-red-boat-seed-0.png"
    assert names[1] == "a-red-boat-seed-0-2.png"
    assert len(set(names)) == len(PROMPTS)


def test_the_shares_of_all_processes_are_the_whole_in_turns(monkeypatch, tmp_path):
    whole = plan(monkeypatch, tmp_path)
    shares = [plan(monkeypatch, tmp_path, rank, 3) for rank in range(3)]
    assert [shares[i % 3][i // 3] for i in range(len(PROMPTS))] == whole


def test_a_process_that_starts_late_finds_the_same_names(monkeypatch, tmp_path):
    args = build_parser().parse_args(["--prompts", "p.txt", "-o", str(tmp_path), "--seed", "0"])
    before = plan(monkeypatch, tmp_path)
    for prompt, targets in share(args, PROMPTS[:3], COMMON):
        settings = settings_on(targets[0], prompt, COMMON)
        images.save_png(Image.new("RGB", (4, 4)), targets[0].path, settings)
    assert plan(monkeypatch, tmp_path) == before


def test_a_prompt_that_stands_twice_is_drawn_once(monkeypatch, tmp_path):
    assert len(plan(monkeypatch, tmp_path, prompts=["a star", "a star"])) == 1


def draw_all(folder, out, *start):
    options = ["--weights", str(folder / "model"), "--prompts", str(folder / "prompts.txt")]
    command = [*start, "-m", "minisd", *options, "--device", "cpu", "-o", str(folder / out)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=folder,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return {path.name: np.asarray(Image.open(path)) for path in (folder / out).iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun")
    picture_book().save_pretrained(folder / "model")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


def test_two_processes_draw_the_pictures_of_one(folder):
    alone = draw_all(folder, "alone", sys.executable)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    together = draw_all(folder, "together", *torchrun)
    assert together.keys() == alone.keys()
    assert len(alone) == len(PROMPTS)
    for name, picture in alone.items():
        assert (together[name] == picture).all(), name


def test_the_viewers_text_says_how_a_picture_was_made(tmp_path):
    settings = {
        "prompt": "ein Boot, größer", "negative_prompt": "night", "seed": 7,
        "num_inference_steps": 30, "guidance_scale": 4.5, "scheduler": "dpm++", "height": 64,
        "width": 128, "model": "abc", "version": "1.2",
    }  # fmt: skip
    path = Path(tmp_path / "x.png")
    images.save_png(Image.new("RGB", (128, 64)), path, settings)
    assert Image.open(path).info["parameters"] == (
        "ein Boot, größer\nNegative prompt: night\nSteps: 30, Sampler: DPM++ 2M, CFG scale: 4.5, "
        "Seed: 7, Model hash: abc, Size: 128x64, Version: minisd 1.2"
    )
    assert images.read_settings(path) == settings


def test_a_figure_has_no_viewers_text(tmp_path):
    images.save_png(Image.new("RGB", (4, 4)), tmp_path / "x.png", {"alt": "a figure"})
    assert "parameters" not in Image.open(tmp_path / "x.png").info
