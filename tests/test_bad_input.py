"""Wrong calls: each is a ValueError that says what was given, what was expected, what to do.

What the calls with pictures refuse beyond this stands in test_image_to_image.py and
test_inpaint.py, what is wrong with files in test_lora.py and test_textual_inversion.py.
"""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import UNET, picture_book, pipeline

import minisd
from minisd import prompts
from minisd.lora import adaptable, fresh
from minisd.unet import UNet
from weights_convert.adapters import write_lora

NAN, INF = float("nan"), float("inf")
SCHEDULERS = sorted(name for name in minisd.__all__ if name.endswith("Scheduler"))
PICTURE, MASK = Image.new("RGB", (32, 32)), Image.new("L", (32, 32), 255)
EMBEDS = torch.zeros(1, 77, 24)


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def pipe():
    return picture_book()


CALLS = {
    # the prompt
    "nothing": ({"prompt": None}, "give either a prompt or prompt_embeds"),
    "a number": ({"prompt": 5}, "the prompt is 5, expected a text or a list of texts"),
    "numbers": ({"prompt": [1, 2]}, r"the prompt is \[1, 2\], expected a text or a list"),
    "one of them nothing": ({"prompt": ["a", None]}, r"the prompt is \['a', None\], expected"),
    "bytes": ({"prompt": b"a boat"}, "the prompt is b'a boat', expected a text"),
    "no prompt": ({"prompt": []}, "0 prompts .* expected at least one prompt"),
    "a negative number": ({"negative_prompt": 5}, "the negative prompt is 5, expected a text"),
    "negative numbers": ({"negative_prompt": [1]}, r"the negative prompt is \[1\], expected"),
    "more negative prompts": (
        {"prompt": ["a", "b"], "negative_prompt": ["c"] * 3},
        "2 prompts and 3 negative prompts given, .* one negative prompt for all or for each",
    ),
    "no negative prompt": ({"negative_prompt": []}, "1 prompts and 0 negative prompts given"),
    # their embeddings
    "both": ({"prompt_embeds": EMBEDS}, "either a prompt or prompt_embeds, and not both"),
    "both negative": (
        {"negative_prompt": "a", "negative_prompt_embeds": EMBEDS},
        "either a negative_prompt or negative_prompt_embeds, not both",
    ),
    "embeddings without a batch": (
        {"prompt": None, "prompt_embeds": EMBEDS[0], "negative_prompt_embeds": EMBEDS[0]},
        r"prompt_embeds have shape \(77, 24\), expected a tensor \(b, 77, 24\).*encode_prompt",
    ),
    "embeddings of another model": (
        {"prompt": None, "prompt_embeds": torch.zeros(1, 77, 25)},
        r"prompt_embeds have shape \(1, 77, 25\), expected a tensor \(b, 77, 24\)",
    ),
    "embeddings in a list": (
        {"prompt": None, "prompt_embeds": [EMBEDS]}, "prompt_embeds have shape list, expected",
    ),
    "no embeddings": (
        {"prompt": None, "prompt_embeds": EMBEDS[:0]}, r"prompt_embeds have shape \(0, 77, 24\)",
    ),
    "negative embeddings in an array": (
        {"negative_prompt_embeds": EMBEDS.numpy()}, r"negative_prompt_embeds have shape \(1, 77",
    ),
    "a longer prompt's embeddings": (
        {"prompt": None, "prompt_embeds": torch.zeros(1, 154, 24)},
        r"embeddings are \(1, 154, 24\) and the negative prompt's \(1, 77, 24\), expected the same",
    ),
    # the latents
    "latents without a batch": (
        {"latents": torch.zeros(4, 4, 4)},
        r"latents have shape \(4, 4, 4\), expected \(1, 4\) and h/8, w/8",
    ),
    "latents with a rank too many": (
        {"latents": torch.zeros(1, 1, 4, 4, 4)}, r"shape \(1, 1, 4, 4, 4\), expected \(1, 4\)",
    ),
    "latents for two": ({"latents": torch.zeros(2, 4, 4, 4)}, r"\(2, 4, 4, 4\), expected \(1, 4\)"),
    "pixels": ({"latents": torch.zeros(1, 3, 32, 32)}, r"\(1, 3, 32, 32\), expected \(1, 4\)"),
    "latents in an array": ({"latents": np.zeros((1, 4, 4, 4))}, "have shape .*, expected"),
    "latents in words": ({"latents": "noise"}, "latents have shape str, expected"),
    # sizes and numbers
    "a height between": ({"height": 20}, "20 x 32, expected multiples of 8; try 16 x 32"),
    "no width": ({"width": 0}, "32 x 0, expected multiples of 8; try 32 x 8"),
    "a negative height": ({"height": -8}, "-8 x 32, expected multiples of 8; try 8 x 32"),
    "a height in words": ({"height": "32"}, "height is '32', expected a whole number"),
    "a broken width": ({"width": 32.0}, "width is 32.0, expected a whole number"),
    "no steps": ({"num_inference_steps": 0}, "num_inference_steps is 0, expected 1 to 1000"),
    "negative steps": ({"num_inference_steps": -3}, "is -3, expected 1 to 1000"),
    "half a step": ({"num_inference_steps": 2.5}, "is 2.5, expected a whole number"),
    "steps in words": ({"num_inference_steps": "5"}, "is '5', expected a whole number"),
    "too many steps": ({"num_inference_steps": 1001}, "is 1001, expected 1 to 1000"),
    "guidance in words": ({"guidance_scale": "7"}, "guidance_scale is '7', expected a number"),
    "guidance that is none": ({"guidance_scale": NAN}, "guidance_scale is nan, expected a number"),
    "guidance without end": ({"guidance_scale": INF}, "guidance_scale is inf, expected a number"),
    "two guidances": ({"guidance_scale": [1, 2]}, r"guidance_scale is \[1, 2\], expected"),
    "too much rescaling": ({"guidance_rescale": 2}, "guidance_rescale is 2, expected 0 to 1"),
    "eta over 1": ({"eta": 1.5}, "eta is 1.5, expected 0 to 1"),
    "eta under 0": ({"eta": -0.1}, "eta is -0.1, expected 0 to 1"),
    "eta in words": ({"eta": "1"}, "eta is '1', expected 0 to 1"),
    "no pictures": ({"num_images_per_prompt": 0}, "is 0, expected at least 1"),
    "half a picture": ({"num_images_per_prompt": 1.5}, "is 1.5, expected a whole number"),
    "a clip skip of all": ({"clip_skip": 3}, "clip_skip is 3, expected 0 to 2"),
    "half a clip skip": ({"clip_skip": 0.5}, "clip_skip is 0.5, expected a whole number"),
    # generators and results
    "a seed": ({"generator": 5}, r"generator is 5, expected torch.Generator\(\).manual_seed"),
    "a seed in words": ({"generator": "five"}, "generator is 'five', expected torch.Generator"),
    "seeds": ({"generator": [5]}, "generator is 5, expected torch.Generator"),
    "generators for two": (
        {"generator": [seeded(), seeded()]},
        "2 generators were given for 1 pictures; give one generator, or one for each picture",
    ),
    "another output type": ({"output_type": "jpeg"}, "'jpeg', expected one of .*'pil'"),
    "no output type": ({"output_type": None}, "output_type is None, expected one of"),
    "a callback's other latents": (
        {"callback_on_step_end": lambda *_: {"latents": torch.zeros(3)}},
        r"returned latents of shape \(3,\), expected \(1, 4, 4, 4\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_a_clear_error(pipe, name):
    wrong, message = CALLS[name]
    call = {"prompt": "a boat", "generator": seeded(), **wrong}
    with pytest.raises(ValueError, match=message):
        pipe(**call)


SHARED = [
    ({"prompt": [1, 2]}, "the prompt is"),
    ({"num_inference_steps": 2.5}, "is 2.5, expected a whole number"),
    ({"guidance_scale": "7"}, "guidance_scale is '7', expected a number"),
    ({"generator": 5}, "generator is 5, expected torch.Generator"),
    ({"strength": "0.5"}, "strength is '0.5', expected 0 to 1"),
    ({"strength": None}, "strength is None, expected 0 to 1"),
    ({"strength": NAN}, "strength is nan, expected 0 to 1"),
    ({"strength": -0.1}, "strength is -0.1, expected 0 to 1"),
    ({"strength": 2}, "strength is 2, expected 0 to 1"),
    ({"image": 5}, "the picture is int, expected a PIL picture, an array, a tensor or a list"),
    ({"image": "boat.png"}, "the picture is str, expected a PIL picture"),
]


@pytest.mark.parametrize(("wrong", "message"), SHARED, ids=str)
@pytest.mark.parametrize("method", ["image_to_image", "inpaint", "outpaint"])
def test_calls_with_pictures_refuse_it_as_well(pipe, method, wrong, message):
    more = {"inpaint": {"mask_image": MASK}, "outpaint": {"left": 8}}.get(method, {})
    call = {"prompt": "a boat", "image": PICTURE, "generator": seeded(), **more, **wrong}
    with pytest.raises(ValueError, match=message):
        getattr(pipe, method)(**call)


@pytest.mark.parametrize(("method", "wrong", "message"), [
    ("image_to_image", {"height": "32"}, "height is '32', expected a whole number"),
    ("inpaint", {"mask_image": MASK.resize((32, 24))}, "masks are 1 of 24 x 32 and the pictures"),
    ("inpaint", {"mask_image": None}, "the mask is NoneType, expected a PIL picture"),
    ("inpaint", {"mask_image": 5}, "the mask is int, expected a PIL picture"),
    ("inpaint", {"mask_image": MASK, "feather": 1.5}, "feather is 1.5, expected a whole number"),
    ("inpaint", {"mask_image": MASK, "latents": "noise"}, "latents have shape str, expected"),
    ("outpaint", {"left": "8"}, "left is '8', expected a whole number"),
    ("outpaint", {"top": 0.5}, "top is 0.5, expected a whole number"),
])  # fmt: skip
def test_pictures_masks_and_sides_that_do_not_fit_are_a_clear_error(pipe, method, wrong, message):
    with pytest.raises(ValueError, match=message):
        getattr(pipe, method)("a boat", PICTURE, generator=seeded(), **wrong)


@pytest.mark.parametrize("read", [prompts.encode, lambda pipe, text: pipe.encode_prompt(text)])
@pytest.mark.parametrize("wrong", [None, 5, [1, 2], [["a"]]], ids=str)
def test_what_is_no_prompt_is_not_encoded(pipe, read, wrong):
    with pytest.raises(ValueError, match=r"the prompt is .* expected a text or a list"):
        read(pipe, wrong)


SETTINGS = [
    ({"beta_schedule": "cosine"}, "beta_schedule is 'cosine', expected one of .*'scaled_linear'"),
    ({"prediction_type": "x_0"}, "prediction_type is 'x_0', expected one of .*'epsilon'"),
    ({"timestep_spacing": "even"}, "timestep_spacing is 'even', expected one of .*'leading'"),
    ({"num_train_timesteps": 0}, "num_train_timesteps is 0, expected at least 1, a whole number"),
    ({"num_train_timesteps": 10.5}, "num_train_timesteps is 10.5, expected at least 1, a whole"),
    ({"steps_offset": "1"}, "steps_offset is '1', expected at least 0, a whole number"),
    ({"steps_offset": -1}, "steps_offset is -1, expected at least 0, a whole number"),
    ({"beta_start": -1.0}, r"are \(-1.0, .*\), expected numbers between 0 and 1"),
    ({"beta_end": 2.0}, "expected numbers between 0 and 1"),
    ({"beta_end": "x"}, "expected numbers between 0 and 1"),
    ({"trained_betas": [0.1]}, r"trained_betas=\[0.1\] is not supported, expected None"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS, ids=str)
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_wrong_setting_of_a_scheduler_is_a_clear_error(kind, settings, message):
    kind = getattr(minisd, kind)
    base = {"skip_prk_steps": True}  # without which PNDM refuses before all else
    for call in (lambda: kind.from_config({**base, **settings}),
                 lambda: kind.from_config(base, **settings)):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_what_is_no_config_and_no_number_of_steps_is_a_clear_error(kind):
    kind = getattr(minisd, kind)
    for wrong in ([1], None, kind()):
        with pytest.raises(ValueError, match=r"config is \w+, expected a dictionary or a sched"):
            kind.from_config(wrong)
    for wrong in (0, -1, 2.5, "5", None):
        with pytest.raises(ValueError, match=f"num_inference_steps is {wrong!r}"):
            kind().plan(wrong)


def test_a_change_that_no_scheduler_knows_is_an_error_and_one_of_another_class_is_not():
    config = minisd.DDIMScheduler().config
    with pytest.raises(ValueError, match=r"settings \['karras'\], expected .*'use_karras_sigmas'"):
        minisd.DPMSolverMultistepScheduler.from_config(config, karras=True)
    changed = minisd.DDIMScheduler.from_config(config, use_karras_sigmas=True, steps_offset=0)
    assert (changed.config.use_karras_sigmas, changed.config.steps_offset) == (True, 0)
    assert (config.use_karras_sigmas, config.steps_offset) == (False, 1)
    with pytest.raises(ValueError, match="thresholding=True is not supported, expected False"):
        minisd.DDIMScheduler.from_config(config, thresholding=True)


def test_adapters_and_words_for_another_model_are_a_clear_error_and_change_nothing(tmp_path):
    other = pipeline(unet=UNet(dataclasses.replace(UNET, widths=(24, 48))))
    loras = fresh(adaptable(other.networks), 2, seeded())
    write_lora(loras, other.networks, tmp_path / "other.safetensors")
    pipe = picture_book()
    before = pipe.hash
    with pytest.raises(ValueError, match=r"other.safetensors was made for another model: .* is "):
        pipe.load_lora_weights(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"'<cat>' is \(1, 32\), expected \(n, 24\): it was made"):
        pipe.load_textual_inversion({"<cat>": torch.zeros(1, 32)})
    with pytest.raises(ValueError, match="the token is 5, expected letters"):
        pipe.load_textual_inversion(torch.zeros(1, 24), token=5)
    assert pipe.get_active_adapters() == []
    assert pipe.hash == before
