"""The doctor, and the facts about the machine that it and the notebooks' first cell read."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tiny import picture_book

from minisd import doctor, machine
from minisd.doctor import Line

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    picture_book().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_whole_model_is_ok_and_named_by_its_hash(folder):
    line = doctor.weights_line(folder)
    assert line.kind == "ok"
    assert picture_book().hash in line.text


def test_a_missing_model_is_lacking_with_advice(tmp_path):
    line = doctor.weights_line(tmp_path / "nowhere")
    assert line.kind == "lacks"
    assert line.advice


def test_the_missing_shipped_model_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "shipped_weights", lambda: tmp_path / "nowhere")
    line = doctor.weights_line()
    assert line.kind == "lacks"
    assert "pip install" in line.advice


def test_changed_weights_are_found_by_their_hash(folder):
    about = json.loads((folder / "pipeline.json").read_text())
    (folder / "pipeline.json").write_text(json.dumps({**about, "hash": "0" * 12}))
    line = doctor.weights_line(folder)
    assert line.kind == "lacks"
    assert "damaged" in line.advice


def test_a_truncated_file_is_found(folder):
    with open(folder / "unet.safetensors", "r+b") as file:
        file.truncate(1000)
    line = doctor.weights_line(folder)
    assert line.kind == "lacks"
    assert "unet.safetensors" in line.text


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([Line("ok", "all there")], 0),
        ([Line("note", "no jupyter", "pip install jupyter")], 0),
        ([Line("ok", "all there"), Line("lacks", "no torch", "install it")], 1),
    ],
)
def test_the_exit_code_says_whether_the_course_can_run(lines, code, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: lines)
    assert doctor.main() == code
    out = capsys.readouterr().out
    assert ("The course can run." in out) == (code == 0)
    for line in lines:
        assert line.text in out
        assert line.advice in out


def test_it_runs_as_a_command_and_exits_by_what_it_found():
    command = [sys.executable, "-m", "minisd.doctor"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert run.returncode == int("\n  lacks " in run.stdout)
    for word in ("Python 3", "PyTorch", "device:", "memory:", "threads:", "packages:", "model"):
        assert word in run.stdout


def test_without_pytorch_it_says_so_in_place_of_a_traceback(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    (line,) = doctor.torch_lines()
    assert line.kind == "lacks"
    assert "pip install" in line.advice


def test_the_tested_versions_of_pytorch_are_those_of_pyproject():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    oldest, before = (".".join(map(str, v)) for v in (machine.TORCH_OLDEST, machine.TORCH_BEFORE))
    assert f"torch>={oldest},<{before}" in wanted


@pytest.mark.parametrize(
    ("version", "word"),
    [
        ("2.5.1", "too old"),
        ("2.6.0", ""),
        ("2.13.0+cpu", ""),
        ("2.14.0", "newer"),
        ("3.0", "newer"),
    ],
)
def test_a_version_of_pytorch_outside_the_tested_ones_is_told(version, word):
    advice = machine.torch_advice(version)
    assert (word in advice) if word else advice == ""


def test_a_package_that_is_missing_or_outside_its_range_is_told():
    assert machine.package_problem("numpy>=1.0,<99") == ""
    assert "expected >=98" in machine.package_problem("numpy>=98,<99")
    assert "not installed" in machine.package_problem("no-such-package>=1")


def test_memory_and_cores_are_sensible():
    total, free = machine.memory_gib()
    assert machine.cores() >= 1
    assert total is None or total > 0.5
    assert free is None or 0 < free <= total
