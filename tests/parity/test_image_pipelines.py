"""Pictures made from pictures: the same weights, picture, mask and seed give the reference's."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import weights_convert
from minisd import schedulers
from parity import models

PROMPT, OTHER = "a red boat on the sea", "an astronaut riding a horse"
CALL = {"num_inference_steps": 5, "guidance_scale": 5.0}
STRENGTHS = (0.2, 0.5, 0.75, 0.99, 1.0)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def seeds(*numbers):
    return lambda: [seeded(number) for number in numbers]


def picture(width=64, height=64, seed=0):
    """Smooth colours, edges and a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(6 * x + k + seed) * np.cos(4 * y - k) for k in range(3)]
    pixels = 127 + 90 * np.stack(waves, axis=-1) + rng.normal(0, 8, (height, width, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype("uint8"))
    ImageDraw.Draw(image).ellipse((8, 8, 30, 26), fill=(200, 30, 60))
    return image


def mask(width=64, height=64, box=(13, 18, 44, 51)):
    """White ellipse on black, smooth at its edge, so that the threshold matters."""
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).ellipse(box, fill=255)
    blurred = np.asarray(image, dtype=float)
    blurred = (blurred + np.roll(blurred, 1, 0) + np.roll(blurred, 1, 1)) / 3
    return Image.fromarray(blurred.astype("uint8"))


@pytest.fixture(scope="module")
def image_pipelines(pipelines):
    ours, theirs = pipelines
    parts = {**theirs.components, "requires_safety_checker": False}
    parts.pop("image_encoder", None)
    made = {}
    for name in ("Img2Img", "Inpaint"):
        kind = getattr(models.diffusers, f"StableDiffusion{name}Pipeline")
        made[name] = kind(**parts)
        made[name].set_progress_bar_config(disable=True)
    return ours, made["Img2Img"], made["Inpaint"]


@pytest.fixture(scope="module")
def nine(pipelines, tmp_path_factory):
    """A random model made for inpainting, with 9 channels, and the same as ours."""
    folder, parts = tmp_path_factory.mktemp("nine") / "theirs", dict(pipelines[1].components)
    parts.pop("image_encoder", None)
    parts["unet"] = models.reference_unet("like SD 1", 3, in_channels=9, cross_attention_dim=32)
    theirs = models.diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(folder)
    ours = weights_convert.open(folder)
    ours.set_progress_bar_config(disable=True)
    return ours, theirs


def assert_same(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 2e-5  # in [0, 1]; 5e-6 at most was measured
    levels = [(images * 255).round() for images in (ours, theirs)]
    assert np.abs(levels[0] - levels[1]).max() <= 1
    assert ours.std() > 0.05


def redraw(pipelines, generators=seeded, **call):
    """image_to_image and the reference's, as arrays in [0, 1]."""
    call = {"prompt": PROMPT, "image": picture(), **CALL, "output_type": "np", **call}
    ours, theirs, _ = pipelines
    mine = ours.image_to_image(**call, generator=generators()).images
    return mine, theirs(**call, generator=generators()).images


def fill(ours, theirs, generators=seeded, **call):
    """inpaint without pasting and the reference's, as arrays in [0, 1]."""
    image = call.pop("image", picture())
    size = {"height": 64, "width": 64} | {k: call.pop(k) for k in ("height", "width") if k in call}
    call = {"prompt": PROMPT, "image": image, "mask_image": mask(), **CALL, **size,
            "output_type": "np", **call}  # fmt: skip
    mine = ours.inpaint(**call, paste=False, generator=generators()).images
    return mine, theirs(**call, generator=generators()).images


@pytest.mark.parametrize("strength", STRENGTHS)
def test_image_to_image_at_each_strength_is_the_references(image_pipelines, strength):
    assert_same(*redraw(image_pipelines, strength=strength))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20])
def test_image_to_image_with_each_number_of_steps_is_the_references(image_pipelines, n):
    strength = 0.29 if n == 20 else 1.0 if n == 1 else 0.6
    assert_same(*redraw(image_pipelines, num_inference_steps=n, strength=strength))


@pytest.mark.parametrize("call", [
    {"image": picture(40, 72)},
    {"image": picture(69, 51)},
    {"guidance_scale": 1.0},
    {"eta": 1.0},
    {"negative_prompt": "a horse", "clip_skip": 1},
    {"num_images_per_prompt": 2},
    {"prompt": [PROMPT, OTHER]},
    {"prompt": [PROMPT, OTHER], "image": [picture(), picture(seed=1)], "eta": 0.5},
    {"image": np.asarray(picture(52, 60), dtype=np.float32) / 255},
    {"image": torch.rand(1, 3, 52, 60, generator=seeded(4))},
    {"image": torch.rand(1, 3, 52, 60, generator=seeded(4)) * 2 - 1},
    {"image": torch.randn(1, 4, 8, 8, generator=seeded(4))},
], ids=lambda call: str(call)[:50])  # fmt: skip
@pytest.mark.filterwarnings("ignore:Passing `image` as torch tensor with value range")
def test_image_to_image_is_the_references(image_pipelines, call):
    assert_same(*redraw(image_pipelines, **{"strength": 0.6, **call}))


def test_image_to_image_with_a_list_of_generators_is_the_references(image_pipelines):
    call = {"prompt": [PROMPT, OTHER], "eta": 0.7, "strength": 0.6}
    assert_same(*redraw(image_pipelines, seeds(3, 8), **call))
    assert_same(*redraw(image_pipelines, seeds(3, 8), num_images_per_prompt=2, strength=0.6))


def test_image_to_image_where_diffusers_refuses_gives_the_sampled_reconstruction(image_pipelines):
    ours, theirs, _ = image_pipelines
    call = {"prompt": PROMPT, "image": picture(), "strength": 0.19, **CALL}
    with pytest.raises(Exception):  # noqa: B017, PT011 an IndexError of an empty tensor today
        theirs(**call, generator=seeded())
    pixels = theirs.image_processor.preprocess(picture())
    with torch.no_grad():
        z = theirs.vae.encode(pixels).latent_dist.sample(seeded())
        expected = theirs.image_processor.postprocess(theirs.vae.decode(z).sample, "np")
    assert_same(ours.image_to_image(**call, generator=seeded(), output_type="np").images, expected)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_inpainting_at_each_strength_is_the_references(image_pipelines, strength):
    ours, _, theirs = image_pipelines
    assert_same(*fill(ours, theirs, strength=strength))


@pytest.mark.parametrize("strength", STRENGTHS)
def test_inpainting_with_nine_channels_at_each_strength_is_the_references(nine, strength):
    assert_same(*fill(*nine, strength=strength))


@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_inpainting_with_each_number_of_steps_is_the_references(image_pipelines, nine, n):
    ours, _, theirs = image_pipelines
    strength = {1: 1.0, 20: 0.29}.get(n, 0.6)
    assert_same(*fill(ours, theirs, num_inference_steps=n, strength=strength))
    assert_same(*fill(*nine, num_inference_steps=n, strength=strength))


INPAINTS = [
    {"height": 40, "width": 72, "image": picture(72, 40), "mask_image": mask(72, 40)},
    {"height": 48, "width": 64, "image": picture(69, 51), "mask_image": mask(69, 51)},
    {"guidance_scale": 1.0},
    {"eta": 1.0},
    {"num_images_per_prompt": 2, "eta": 0.5},
    {"prompt": [PROMPT, OTHER], "image": [picture(), picture(seed=1)],
     "mask_image": [mask(), mask(box=(2, 30, 60, 60))], "eta": 0.5},
    {"prompt": [PROMPT, OTHER], "image": [picture(), picture(seed=1)], "strength": 0.6},
    {"mask_image": mask().convert("RGB")},
    {"mask_image": mask().convert("1")},
    {"mask_image": torch.rand(1, 1, 64, 64, generator=seeded(9))},
    {"mask_image": np.asarray(mask(), dtype=np.float32) / 255},
    {"mask_image": torch.tensor([0.4999, 0.5]).repeat_interleave(32).expand(1, 1, 64, 64)},
    {"latents": torch.randn(1, 4, 8, 8, generator=seeded(5))},
]  # fmt: skip


@pytest.mark.parametrize("call", INPAINTS, ids=lambda call: str(call)[:50])
def test_inpainting_is_the_references(image_pipelines, call):
    ours, _, theirs = image_pipelines
    assert_same(*fill(ours, theirs, **call))


@pytest.mark.parametrize("call", INPAINTS, ids=lambda call: str(call)[:50])
def test_inpainting_with_nine_channels_is_the_references(nine, call):
    assert_same(*fill(*nine, **call))


def test_inpainting_with_a_list_of_generators_is_the_references(image_pipelines, nine):
    call = {"prompt": [PROMPT, OTHER], "image": [picture(), picture(seed=1)], "eta": 0.7,
            "mask_image": [mask(), mask(box=(2, 30, 60, 60))], "strength": 0.6}  # fmt: skip
    ours, _, theirs = image_pipelines
    assert_same(*fill(ours, theirs, seeds(3, 8), **call))
    assert_same(*fill(*nine, seeds(3, 8), **call))


SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SWAPS = {
    "DDPMScheduler": {"clip_sample": False, "steps_offset": 1},
    "EulerDiscreteScheduler": {"timestep_spacing": "leading", "steps_offset": 1},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {"use_karras_sigmas": True},
}


@pytest.fixture(params=SWAPS)
def swapped(request, image_pipelines, nine):
    """All pipelines with another scheduler, for one test."""
    pipes, kind = [*image_pipelines, *nine], request.param
    before = [pipe.scheduler for pipe in pipes]
    for pipe in pipes:
        pipe.scheduler = getattr(models.diffusers, kind)(**SD, **SWAPS[kind])
    for pipe in (image_pipelines[0], nine[0]):
        pipe.scheduler = getattr(schedulers, kind).from_config(dict(pipe.scheduler.config))
    yield image_pipelines, nine
    for pipe, scheduler in zip(pipes, before):
        pipe.scheduler = scheduler


def test_other_schedulers_start_and_blend_as_the_references(swapped):
    image_pipelines, nine = swapped
    ours, _, inpaint = image_pipelines
    assert_same(*redraw(image_pipelines, strength=0.6))
    assert_same(*fill(ours, inpaint, strength=0.6))
    assert_same(*fill(ours, inpaint, strength=1.0))
    assert_same(*fill(*nine, strength=0.6))
