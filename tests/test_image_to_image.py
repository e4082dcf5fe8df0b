"""Image to image on a tiny random model: its laws, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import picture_book

from minisd import images
from minisd.call import finish

PROMPT = "a red boat"


@pytest.fixture(scope="module")
def pipe():
    return picture_book()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(width=32, height=32, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def redraw(pipe, image=None, seed=0, **call):
    """Latents of picture() redrawn, unless the call says otherwise."""
    call = {"prompt": PROMPT, "strength": 0.7, "generator": seeded(seed), "output_type": "latent",
            **call}  # fmt: skip
    return pipe.image_to_image(image=picture() if image is None else image, **call).images


@pytest.mark.parametrize("strength", [0, 0.33])
def test_under_one_step_it_is_the_sampled_reconstruction(pipe, strength):
    pixels = images.from_pil(picture())
    expected = finish(pipe, pipe.encode_image(pixels, seeded()), "pt")
    got = redraw(pipe, strength=strength, num_inference_steps=3, output_type="pt")
    assert torch.equal(got, expected)
    assert not torch.equal(got, redraw(pipe, strength=strength, seed=1, output_type="pt"))


@pytest.mark.parametrize(("n", "strength", "calls"), [
    (10, 0.3, 3), (50, 0.29, 14), (50, 0.8, 40), (7, 0.5, 3), (3, 1.0, 3), (10, 0.7, 7),
])  # fmt: skip
def test_the_last_int_of_n_times_strength_steps_are_run(pipe, n, strength, calls):
    seen = []

    def watch(_pipe, index, t, _tensors):
        seen.append((index, t))
        return {}

    redraw(pipe, strength=strength, num_inference_steps=n, callback_on_step_end=watch)
    plan = [(span.index, span.t) for span in pipe.scheduler.plan(n)]
    assert seen == plan[n - calls :]


def test_the_start_is_the_posterior_noised_with_the_draw_after_it(pipe):
    seen = []

    def watch(_pipe, _index, _t, tensors):
        seen.append(tensors["x_t"])
        return {}

    redraw(pipe, callback_on_step_end=watch, num_inference_steps=10, seed=4)
    generator = seeded(4)
    x_0 = pipe.encode_image(images.from_pil(picture()), generator)
    eps = torch.randn(x_0.shape, generator=generator)
    t = torch.tensor(pipe.scheduler.timesteps(10)[3])
    torch.testing.assert_close(seen[0], pipe.scheduler.add_noise(x_0, eps, t))


def test_the_less_strength_the_closer_to_the_picture(pipe):
    x_0 = pipe.encode_image(images.from_pil(picture()), seeded())
    distances = [
        (redraw(pipe, strength=strength, num_inference_steps=10) - x_0).norm().item()
        for strength in (0, 0.3, 0.6, 1.0)
    ]
    assert distances[0] == 0
    assert distances == sorted(distances)


def test_a_pictures_seed_decides_whatever_its_neighbours_and_their_order(pipe):
    def batch(*seeds):
        generators = [seeded(seed) for seed in seeds]
        return redraw(pipe, num_images_per_prompt=len(seeds), generator=generators, eta=0.8)

    alone, three = [batch(seed)[0] for seed in (3, 8, 5)], batch(3, 8, 5)
    for i, j in enumerate((2, 0, 1)):
        torch.testing.assert_close(alone[i], three[i], rtol=0, atol=1e-5)
        torch.testing.assert_close(batch(8, 5, 3)[j], three[i], rtol=0, atol=1e-5)
    assert (three[0] - three[1]).abs().max() > 0.1


def test_each_prompt_gets_its_own_picture(pipe):
    two = [picture(seed=1), picture(seed=2)]
    prompts = [PROMPT, "a blue bird"]
    generators = [seeded(seed) for seed in (0, 1, 2, 3)]
    four = redraw(pipe, two, prompt=prompts, num_images_per_prompt=2, generator=generators)
    for i in range(4):
        one = redraw(pipe, two[i // 2], prompt=prompts[i // 2], seed=i)[0]
        torch.testing.assert_close(four[i], one, rtol=0, atol=1e-5)


def test_without_a_generator_the_seed_is_drawn_and_reported(pipe):
    out = pipe.image_to_image(PROMPT, picture(), output_type="latent")
    assert torch.equal(out.images, redraw(pipe, strength=0.8, seed=out.seed))


def test_given_embeddings_and_a_prompt_give_the_same_picture(pipe):
    cond, uncond = pipe.encode_prompt(PROMPT)
    embeds = {"prompt_embeds": cond, "negative_prompt_embeds": uncond}
    assert torch.equal(redraw(pipe, prompt=None, **embeds), redraw(pipe))


def test_nothing_that_is_given_is_changed(pipe):
    image = images.from_pil(picture())
    before = image.clone()
    assert torch.equal(redraw(pipe, image), redraw(pipe, image))
    assert torch.equal(image, before)


KINDS = {
    "list": lambda p: [p],
    "uint8 array": np.asarray,
    "float array": lambda p: np.asarray(p, dtype=np.float32) / 255,
    "array of a batch": lambda p: np.asarray(p)[None],
    "tensor in [-1, 1]": images.from_pil,
    "tensor in [0, 1]": lambda p: images.from_pil(p) / 2 + 0.5,
    "tensor without a batch": lambda p: images.from_pil(p)[0],
    "list of tensors": lambda p: [images.from_pil(p)[0]],
    "uint8 tensor": lambda p: torch.from_numpy(np.asarray(p).copy()).permute(2, 0, 1),
    "float64": lambda p: images.from_pil(p).double(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_every_kind_is_read_as_the_same(pipe, kind):
    same = redraw(pipe, KINDS[kind](picture()))
    torch.testing.assert_close(same, redraw(pipe), rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_a_picture_of_every_mode_is_redrawn(pipe, mode):
    image = picture().convert("L").convert(mode) if mode in ("I", "F") else picture()
    image = image.convert("RGBA").convert("LA") if mode == "LA" else image.convert(mode)
    assert redraw(pipe, image).isfinite().all()


def test_gray_arrays_are_pictures_too(pipe):
    gray = picture().convert("L")
    as_rgb = redraw(pipe, gray.convert("RGB"))
    assert torch.equal(redraw(pipe, np.asarray(gray)), as_rgb)
    as_float = redraw(pipe, torch.from_numpy(np.asarray(gray) / 255))
    torch.testing.assert_close(as_float, as_rgb, rtol=0, atol=1e-4)


def test_latents_are_not_encoded_again(pipe):
    z = torch.randn(1, 4, 4, 4, generator=seeded(3))
    assert torch.equal(redraw(pipe, z, strength=0), z)


@pytest.mark.parametrize(("size", "asked", "latent"), [
    ((32, 32), {}, (4, 4)),
    ((47, 35), {}, (4, 5)),
    ((8, 15), {}, (1, 1)),
    ((100, 20), {"height": 40, "width": 24}, (5, 3)),
    ((35, 47), {"height": 16}, (2, 4)),
])  # fmt: skip
def test_the_size_is_the_asked_one_or_the_pictures_rounded_down(pipe, size, asked, latent):
    assert redraw(pipe, picture(*size), **asked).shape[-2:] == latent


def test_resized_pil_pictures_are_those_of_lanczos(pipe):
    expected = picture(47, 35).resize((40, 32), Image.Resampling.LANCZOS)
    assert torch.equal(redraw(pipe, picture(47, 35)), redraw(pipe, expected))


def test_pictures_of_several_sizes_need_one(pipe):
    two = [picture(), picture(48, 32)]
    with pytest.raises(ValueError, match="sizes 32 x 32, 32 x 48, expected one size; resize"):
        redraw(pipe, two, prompt=[PROMPT] * 2)
    assert redraw(pipe, two, prompt=[PROMPT] * 2, height=16, width=24).shape[-2:] == (2, 3)


@pytest.mark.parametrize(("call", "message"), [
    ({"image": "boat.png"}, "the picture is str, expected a PIL picture"),
    ({"image": []}, "the picture is list, expected a PIL picture"),
    ({"image": torch.rand(1, 5, 32, 32)}, r"\(1, 5, 32, 32\), expected \(b, 3, h, w\)"),
    ({"image": np.zeros((32, 32, 2))}, r"\(32, 32, 2\), expected \(b, 3, h, w\)"),
    ({"image": torch.rand(1, 3, 32, 32) * 255}, "values from .* expected .-1, 1. or .0, 1."),
    ({"image": torch.full((1, 3, 8, 8), torch.nan)}, "values from nan to nan, expected"),
    ({"image": np.full((8, 8, 3), 300)}, "values from 300 to 300, expected 0..255"),
    ({"image": [picture(), torch.rand(3, 32, 32)]}, "some 8-bit and some float"),
    ({"image": picture(7, 32)}, "32 x 0, expected multiples of 8"),
    ({"height": 20}, "20 x 32, expected multiples of 8"),
    ({"width": 0}, "32 x 0, expected multiples of 8"),
    ({"image": [picture()] * 3}, "3 pictures were given for 1 prompts of 1 pictures each; give"),
    ({"image": torch.rand(3, 4, 4, 4)}, "3 latents were given for 1 prompts"),
    ({"strength": 1.2}, "strength is 1.2, expected 0 to 1"),
    ({"strength": -0.1}, "strength is -0.1, expected 0 to 1"),
    ({"num_inference_steps": 0}, "num_inference_steps is 0, expected 1 to 1000"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0, expected at least 1"),
    ({"output_type": "jpeg"}, "'jpeg', expected one of"),
    ({"generator": [seeded(), seeded()]}, "2 generators were given for 1 pictures"),
    ({"prompt": None}, "give either a prompt or prompt_embeds"),
])  # fmt: skip
def test_what_does_not_fit_is_a_clear_error(pipe, call, message):
    with pytest.raises(ValueError, match=message):
        redraw(pipe, **call)


def test_no_picture_at_all_is_a_clear_error(pipe):
    with pytest.raises(ValueError, match="the picture is NoneType, expected a PIL picture"):
        pipe.image_to_image(PROMPT)


def test_an_unknown_argument_is_an_error(pipe):
    with pytest.raises(TypeError, match="negative_promt"):
        redraw(pipe, negative_promt="a bird")
