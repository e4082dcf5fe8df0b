"""The shipped model elsewhere: exported, diffusers draws the same pictures with it."""

import json
import logging
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import weights_convert
from minisd import StableDiffusionPipeline
from minisd.machine import shipped_weights
from parity import models

pytestmark = pytest.mark.skipif(
    not (shipped_weights() / "pipeline.json").is_file(), reason="the shipped model is not there"
)
CALL = {"prompt": "a red boat at sunset", "num_inference_steps": 6, "guidance_scale": 4.0,
        "height": 128, "width": 128, "output_type": "np"}  # fmt: skip


@pytest.fixture(scope="module")
def shipped():
    pipe = StableDiffusionPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def folder(shipped, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped") / "model"
    weights_convert.save(shipped, folder, layout="diffusers")
    return folder


def listened_to(action):
    """(what action returns, everything that the reference warned of meanwhile)."""
    heard = []

    class Ear(logging.Handler):
        def emit(self, record):
            heard.append(record.getMessage())

    ear, loggers = (
        Ear(logging.WARNING),
        [logging.getLogger(n) for n in ("diffusers", "transformers")],
    )
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(ear)
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = action()
    for logger, level in zip(loggers, levels):
        logger.removeHandler(ear)
        logger.setLevel(level)
    return result, heard + [str(one.message) for one in caught]


def picture(pipe, seed=7):
    pipe.set_progress_bar_config(disable=True)
    return pipe(**CALL, generator=torch.Generator().manual_seed(seed)).images


def assert_same(ours, theirs):
    assert np.abs((ours * 255).round() - (theirs * 255).round()).max() <= 1
    assert ours.std() > 0.05


def test_the_exported_folder_draws_the_same_picture_in_diffusers_and_warns_of_nothing(
    shipped, folder
):
    opener = models.diffusers.StableDiffusionPipeline.from_pretrained
    theirs, heard = listened_to(lambda: opener(folder))
    assert heard == []
    assert theirs.tokenizer.model_max_length == 77
    assert_same(picture(shipped), picture(theirs))


def test_the_exported_file_draws_the_same_picture_in_diffusers(shipped, folder, tmp_path):
    weights_convert.save(shipped, tmp_path / "model.safetensors", layout="single-file")
    opener = models.diffusers.StableDiffusionPipeline.from_single_file
    theirs, heard = listened_to(lambda: opener(tmp_path / "model.safetensors", config=str(folder)))
    assert [line for line in heard if "missing" in line or "unexpected" in line] == []
    assert_same(picture(shipped), picture(theirs))


def test_the_export_is_written_as_official_folders_are(folder):
    keys = load_file(folder / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in keys)
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    assert tokenizer["model_max_length"] == 77


def test_the_exported_folder_keeps_the_models_own_defaults(shipped, folder):
    again = weights_convert.open(folder)
    assert (again.defaults, again.family, again.hash) == (
        shipped.defaults, shipped.family, shipped.hash,
    )  # fmt: skip
