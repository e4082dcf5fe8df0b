"""What several files of tests need: a folder of diffusers' layout, made from the file's `pipe`."""

import shutil

import pytest

import weights_convert


@pytest.fixture(scope="module")
def original(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusers") / "model"
    weights_convert.save(pipe, folder, layout="diffusers")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A diffusers folder of one's own, to change or damage."""
    return shutil.copytree(original, tmp_path / "model")
