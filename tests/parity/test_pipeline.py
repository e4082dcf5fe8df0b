"""Whole pictures: the same prompt, weights and seed give the reference's picture."""

import inspect
import logging
import warnings

import numpy as np
import pytest
import torch

import weights_convert
from minisd import DDPMScheduler
from minisd.config import ScheduleConfig
from minisd.schedulers import SCHEDULERS
from parity import models
from weights_convert.diffusers_config import write_scheduler

PROMPT = "a red boat on the sea"
CALL = {"num_inference_steps": 4, "guidance_scale": 7.5, "height": 64, "width": 64}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def both(pipelines, generators=seeded, **call):
    """The same call of our pipeline and the reference's, as arrays in [0, 1]."""
    call = {"prompt": PROMPT, **CALL, **call}
    return [pipe(**call, generator=generators(), output_type="np").images for pipe in pipelines]


def assert_same_pictures(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-3  # in [0, 1], a quarter of one of 255 levels
    levels = [(images * 255).round() for images in (ours, theirs)]
    assert np.abs(levels[0] - levels[1]).max() <= 1
    assert ours.std() > 0.05


@pytest.mark.parametrize("call", [
    {"guidance_scale": 7.5},
    {"guidance_scale": 1.0},
    {"guidance_scale": 0.0},
    {"negative_prompt": "a horse at sunset"},
    {"num_images_per_prompt": 2},
    {"prompt": [PROMPT, "an astronaut"], "num_images_per_prompt": 2},
    {"prompt": [PROMPT, "an astronaut"], "negative_prompt": ["the sea", ""]},
    {"height": 40, "width": 72},
    {"clip_skip": 1},
    {"guidance_rescale": 0.7},
    {"eta": 1.0},
    {"prompt": " ".join(["boat", "sea", "horse"] * 60)},
    {"prompt": ""},
    {"num_inference_steps": 7},
    {"num_inference_steps": 1},
], ids=lambda call: str(call)[:60])  # fmt: skip
def test_pictures_are_the_references(pipelines, call):
    assert_same_pictures(*both(pipelines, **call))


def test_pil_pictures_are_the_references(pipelines):
    pictures = [p(PROMPT, **CALL, generator=seeded()).images[0] for p in pipelines]
    ours, theirs = (np.asarray(picture, dtype=int) for picture in pictures)
    assert np.abs(ours - theirs).max() <= 1


def test_latents_are_the_references(pipelines):
    ours, theirs = (
        pipe(PROMPT, **CALL, generator=seeded(), output_type="latent").images for pipe in pipelines
    )
    assert models.relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_a_list_of_generators_gives_the_references_pictures(pipelines, eta):
    def generators():
        return [seeded(3), seeded(8)]

    assert_same_pictures(*both(pipelines, generators, prompt=[PROMPT, "a horse"], eta=eta))


def test_given_latents_give_the_references_picture(pipelines):
    latents = torch.randn(1, 4, 8, 8, generator=seeded(5))
    assert_same_pictures(*both(pipelines, latents=latents))


def test_given_embeddings_give_the_references_picture(pipelines):
    cond = torch.randn(1, 77, 32, generator=seeded(6))
    uncond = torch.randn(1, 77, 32, generator=seeded(7))
    embeds = {"prompt_embeds": cond, "negative_prompt_embeds": uncond}
    assert_same_pictures(*both(pipelines, prompt=None, **embeds))


@pytest.fixture
def with_ddpm(pipelines):
    """Both pipelines with DDPM in place of DDIM, for one test."""
    ours, theirs = pipelines
    before = ours.scheduler, theirs.scheduler
    theirs.scheduler = models.reference_scheduler("DDPMScheduler")
    ours.scheduler = DDPMScheduler.from_config(dict(theirs.scheduler.config))
    yield pipelines
    ours.scheduler, theirs.scheduler = before


@pytest.mark.parametrize("call", [{}, {"num_images_per_prompt": 2, "guidance_scale": 3}], ids=str)
def test_ddpm_pictures_are_the_references(with_ddpm, call):
    assert_same_pictures(*both(with_ddpm, **call))


def test_text_embeddings_of_a_prompt_are_the_references(pipelines):
    ours, theirs = pipelines
    mine = ours.encode_prompt(PROMPT, "a horse")
    reference = theirs.encode_prompt(PROMPT, "cpu", 1, True, "a horse")
    for a, b in zip(mine, reference):
        assert models.relative_error(a, b) < 1e-5


@pytest.fixture(scope="module")
def exported(pipelines, tmp_path_factory):
    """Our pipeline written as a diffusers folder, opened by the reference, and what it said."""
    folder, complaints = tmp_path_factory.mktemp("export") / "model", []

    class Complaints(logging.Handler):
        def emit(self, record):
            complaints.append(record.getMessage())

    weights_convert.save(pipelines[0], folder, layout="diffusers")
    handler, roots = Complaints(logging.WARNING), ("diffusers", "transformers")
    for name in roots:
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipe = models.diffusers.StableDiffusionPipeline.from_pretrained(folder)
    for name in roots:
        logging.getLogger(name).removeHandler(handler)
        logging.getLogger(name).setLevel(logging.ERROR)
    complaints += [str(one.message) for one in caught]
    pipe.set_progress_bar_config(disable=True)
    return folder, pipe, complaints


def test_an_exported_folder_opens_in_diffusers_without_a_complaint(exported):
    _, _, complaints = exported
    words = ("missing", "unexpected", "not used", "newly initialized", "ignored", "deprecat",
             "outdated", "mismatch", "expected")  # fmt: skip
    assert [line for line in complaints if any(word in line.lower() for word in words)] == []


def test_an_exported_folder_gives_the_same_picture_in_diffusers(pipelines, exported):
    _, pipe, _ = exported
    assert_same_pictures(*both((pipelines[0], pipe)))


@pytest.mark.parametrize("network", ["unet", "vae", "text_encoder"])
def test_a_folder_goes_through_ours_and_back_bit_for_bit(pipelines, exported, network):
    before = getattr(pipelines[1], network).state_dict()
    after = getattr(exported[1], network).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_an_exported_tokenizer_gives_the_same_ids_in_transformers(pipelines, exported):
    theirs = exported[1].tokenizer
    assert theirs.model_max_length == 77
    for text in (PROMPT, "", "Ünïcödé 猫 🚣 12", "boat " * 100):
        ids = theirs(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert pipelines[0].tokenizer(text)[0].tolist() == ids


def test_an_exported_folder_opens_again_as_the_same_model(pipelines, exported):
    again = weights_convert.open(exported[0])
    assert again.hash == pipelines[0].hash
    assert again.unet.config == pipelines[0].unet.config
    assert again.vae.config == pipelines[0].vae.config
    assert again.text_encoder.config == pipelines[0].text_encoder.config
    assert again.defaults == pipelines[0].defaults


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of the reference
@pytest.mark.parametrize("kind", sorted({kind.__name__ for kind in SCHEDULERS.values()}))
def test_an_exported_scheduler_has_the_keys_that_its_class_knows_and_clips_as_before(kind):
    kinds = {kind.__name__: kind for kind in SCHEDULERS.values()}
    ours = kinds[kind](ScheduleConfig(beta_end=0.013))
    written = write_scheduler(ours)
    theirs = getattr(models.diffusers, kind)
    known = set(inspect.signature(theirs.__init__).parameters)
    assert {key for key in written if not key.startswith("_")} <= known | {"clip_sample"}
    read = theirs.from_config(written)
    assert read.config.beta_end == 0.013
    assert models.diffusers.DDIMScheduler.from_config(read.config).config.clip_sample is False
    again = kinds[kind].from_config(written)
    assert again.plan(10) == ours.plan(10)
    assert again.config.clip_sample is False
