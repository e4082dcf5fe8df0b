"""What several files of tests need: a folder of diffusers' layout, and the command line."""

import os
import shutil

import pytest
import torch
from tiny import picture_book

import weights_convert
from minisd.__main__ import main

# One thread a process, those that the tests start included: `-n auto` starts one for each core,
# and networks of this size gain nothing from a second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def original(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusers") / "model"
    weights_convert.save(pipe, folder, layout="diffusers")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A diffusers folder of one's own, to change or damage."""
    return shutil.copytree(original, tmp_path / "model")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    picture_book().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def minisd(weights, here, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def run(*argv, model=weights):
        try:
            code = main([*argv, *(["--weights", model] if model else [])])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run
