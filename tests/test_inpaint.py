"""Inpainting and outpainting on a tiny random model: what they keep, and what they refuse."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny import inpainting, picture_book

from minisd import images
from minisd.call import finish
from minisd.inpaint import extend, latent_mask, paste_back, to_mask

PROMPT = "a red boat"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def four():
    return picture_book()


@pytest.fixture(scope="module")
def nine():
    return inpainting()


@pytest.fixture(params=["four", "nine"])
def pipe(request):
    return request.getfixturevalue(request.param)


def picture(width=32, height=32, seed=0):
    """Each pixel random: whatever passes through the autoencoder cannot come back the same."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mask(width=32, height=32, box=(9, 11, 24, 21)):
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).ellipse(box, fill=255)
    return image


def paint(pipe, image=None, mask_image=None, seed=0, **call):
    image = picture() if image is None else image
    size = image.size if isinstance(image, Image.Image) else (32, 32)
    mask_image = mask(*size) if mask_image is None else mask_image
    call = {"prompt": PROMPT, "generator": seeded(seed), "output_type": "np", **call}
    return pipe.inpaint(image=image, mask_image=mask_image, **call).images


def levels(output):
    return (np.asarray(output) * 255).round().astype(int)


@pytest.mark.parametrize("strength", [0, 0.5, 1.0])
@pytest.mark.parametrize("size", [(32, 32), (37, 45)])
def test_unmasked_pixels_are_the_originals_exactly(pipe, strength, size):
    (out,) = paint(pipe, picture(*size), strength=strength, output_type="pil")
    outside = np.asarray(mask(*size)) < 128
    assert out.size == size
    assert (np.asarray(out)[outside] == np.asarray(picture(*size))[outside]).all()
    assert (np.asarray(out)[~outside] != np.asarray(picture(*size))[~outside]).any()


def test_without_pasting_the_autoencoder_changes_them(pipe):
    outside = np.asarray(mask()) < 128
    out = levels(paint(pipe, paste=False))[0]
    assert (out[outside] != np.asarray(picture())[outside]).any()


@pytest.mark.parametrize("strength", [0.4, 0.7, 1.0])
def test_unmasked_latents_are_clean_after_the_last_step(four, strength):
    out = paint(four, strength=strength, paste=False, output_type="latent")
    x_0 = four.encode_image(images.from_pil(picture()), seeded())
    known = latent_mask(to_mask(mask()), 8, False)[0, 0] == 0
    assert 0 < known.sum() < known.numel()
    assert torch.equal(out[..., known], x_0[..., known])
    assert (out - x_0)[..., ~known].abs().min() > 0


def test_between_the_steps_unmasked_latents_are_the_pictures_at_the_next_level(four):
    seen = []

    def watch(_pipe, _index, _t, tensors):
        seen.append(tensors["latents"])
        return {}

    paint(four, num_inference_steps=5, strength=0.8, paste=False, callback_on_step_end=watch)
    generator = seeded()
    x_0 = four.encode_image(images.from_pil(picture()), generator)
    noise = torch.randn(x_0.shape, generator=generator)
    known = latent_mask(to_mask(mask()), 8, False)[0, 0] == 0
    next_ts = four.scheduler.timesteps(5)[2:]
    assert len(seen) == 4
    for latents, t in zip(seen, next_ts):
        expected = four.scheduler.add_noise(x_0, noise, torch.tensor(t))
        torch.testing.assert_close(latents[..., known], expected[..., known])


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_mask_of_everything_in_an_ordinary_model_is_image_to_image(four, strength):
    """At strength 1 the start is noise alone: the picture leaves no trace."""
    everything = torch.ones(32, 32)
    out = paint(four, mask_image=everything, strength=strength, paste=False, output_type="latent")
    if strength < 1:
        expected = four.image_to_image(
            PROMPT, picture(), strength, generator=seeded(), output_type="latent"
        ).images
    else:
        generator = seeded()
        four.encode_image(images.from_pil(picture()), generator)
        noise = torch.randn(1, 4, 4, 4, generator=generator)
        expected = four(PROMPT, latents=noise, output_type="latent").images
    assert torch.equal(out, expected)


def test_a_mask_of_nothing_gives_the_picture_back(pipe):
    assert (levels(paint(pipe, mask_image=torch.zeros(32, 32)))[0] == np.asarray(picture())).all()


def test_strength_0_is_the_reconstruction(pipe):
    out = paint(pipe, strength=0, paste=False, output_type="pt")
    x_0 = pipe.encode_image(images.from_pil(picture()), seeded())
    assert torch.equal(out, finish(pipe, x_0, "pt"))


@pytest.mark.parametrize("hidden", ["mask", "picture"])
def test_a_model_made_for_inpainting_sees_the_mask_and_the_rest_of_the_picture(nine, hidden):
    """And not what is under the mask."""
    array = np.asarray(picture()).copy()
    array[np.asarray(mask()) >= 128] = 0
    changed = {"image": Image.fromarray(array)} if hidden == "picture" else {
        "mask_image": mask(box=(0, 11, 24, 21))}  # fmt: skip
    out, other = (paint(nine, **call, paste=False) for call in ({}, changed))
    assert np.array_equal(out, other) == (hidden == "picture")


def test_a_pictures_seed_decides_whatever_its_neighbours_and_their_order(pipe):
    def batch(*seeds):
        generators = [seeded(seed) for seed in seeds]
        return paint(pipe, num_images_per_prompt=len(seeds), generator=generators, eta=0.8)

    alone, three, turned = [batch(seed)[0] for seed in (3, 8, 5)], batch(3, 8, 5), batch(8, 5, 3)
    for i, j in enumerate((2, 0, 1)):
        np.testing.assert_allclose(alone[i], three[i], rtol=0, atol=1e-5)
        np.testing.assert_allclose(turned[j], three[i], rtol=0, atol=1e-5)
    assert np.abs(three[0] - three[1]).max() > 1e-3


def test_each_picture_gets_its_own_mask_and_prompt(pipe):
    pictures, prompts = [picture(seed=1), picture(seed=2)], [PROMPT, "a blue bird"]
    masks = [mask(), mask(box=(2, 2, 14, 29))]
    generators = [seeded(seed) for seed in (0, 1, 2, 3)]
    four_of_them = paint(
        pipe, pictures, masks, prompt=prompts, num_images_per_prompt=2, generator=generators
    )
    for i in range(4):
        one = paint(pipe, pictures[i // 2], masks[i // 2], prompt=prompts[i // 2], seed=i)
        np.testing.assert_allclose(four_of_them[i], one[0], rtol=0, atol=1e-5)


def test_one_generator_and_one_picture_make_several(pipe):
    out = paint(pipe, num_images_per_prompt=3)
    assert out.shape == (3, 32, 32, 3)
    assert np.abs(out[0] - out[1]).max() > 1e-3


@pytest.mark.parametrize("paste", [True, False])
def test_a_thin_mask_is_drawn_anew_though_no_cell_starts_in_it(four, paste):
    line = torch.zeros(32, 32)
    line[:, 13] = 1  # the second column of cells is 8..15
    out = paint(four, mask_image=line, paste=paste, output_type="latent")
    changed = (out != four.encode_image(images.from_pil(picture()), seeded())).any(1)[0]
    assert changed.any(0).tolist() == [False, paste, False, False]


MASKS = {
    "RGB": lambda m: m.convert("RGB"),
    "1": lambda m: m.point(lambda v: 255 * (v > 127)).convert("1"),
    "list": lambda m: [m],
    "bool array": lambda m: np.asarray(m) > 127,
    "uint8 array": np.asarray,
    "float array": lambda m: np.asarray(m) / 255,
    "array with channel": lambda m: (np.asarray(m) / 255)[None, ..., None],
    "tensor": lambda m: torch.from_numpy(np.asarray(m) / 255),
    "tensor with batch": lambda m: torch.from_numpy(np.asarray(m) / 255)[None],
    "tensor with batch and channel": lambda m: torch.from_numpy(np.asarray(m) / 255)[None, None],
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_of_every_kind_is_read_as_the_same(kind):
    assert torch.equal(to_mask(MASKS[kind](mask())), to_mask(mask()))


def test_masks_have_their_edge_at_one_half():
    assert to_mask(torch.tensor([[0, 0.499, 0.5, 1]])).flatten().tolist() == [0, 0, 1, 1]
    bytes_ = np.array([[0, 127, 128, 255]], dtype=np.uint8)
    assert to_mask(bytes_).flatten().tolist() == [0, 0, 1, 1]
    assert to_mask(Image.fromarray(bytes_)).flatten().tolist() == [0, 0, 1, 1]


def test_the_feather_grows_evenly_inside_the_mask_alone():
    hole = torch.zeros(1, 1, 1, 12).repeat(1, 1, 9, 1)
    hole[..., 3:] = 1  # its right edge is the picture's, and needs no feather
    black, white = -torch.ones(1, 3, 9, 12), torch.ones(1, 3, 9, 12)
    shares = paste_back(white, black, hole, feather=4)[0, 0, 4] / 2 + 0.5
    assert shares.tolist() == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]
    for hard in (0, 1):
        assert torch.equal(paste_back(white, black, hole, hard), (2 * hole - 1).expand(1, 3, 9, 12))


def test_overshoot_does_not_reach_through_the_feather():
    pasted = paste_back(torch.full((1, 3, 8, 8), 9.0), torch.zeros(1, 3, 8, 8),
                        torch.ones(1, 1, 8, 8), 4)  # fmt: skip
    assert pasted.max() == 1


@pytest.mark.parametrize("sides", [
    {"left": 8}, {"right": 16}, {"top": 5}, {"bottom": 3}, {"left": 7, "right": 1, "top": 2},
    {"left": 50, "bottom": 70},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("size", [(32, 32), (21, 30)])
def test_outpainting_keeps_the_picture_and_has_the_asked_size(pipe, sides, size):
    (out,) = pipe.outpaint(PROMPT, picture(*size), **sides, generator=seeded()).images
    left, top = sides.get("left", 0), sides.get("top", 0)
    assert out.size == (size[0] + left + sides.get("right", 0),
                        size[1] + top + sides.get("bottom", 0))  # fmt: skip
    kept = out.crop((left, top, left + size[0], top + size[1]))
    assert (np.asarray(kept) == np.asarray(picture(*size))).all()


def test_every_cell_with_a_pixel_that_outpainting_adds_is_drawn_anew(four):
    """So none of them is left over from the mirror image that the canvas starts with."""
    pixels = images.from_pil(picture(30, 20))
    call = {"left": 1, "right": 6, "top": 3, "bottom": 4}
    out = four.outpaint(PROMPT, pixels, **call, generator=seeded(), output_type="latent").images
    canvas, _ = extend(pixels, **call, side=8)  # 32 x 40; the picture covers 3..22 x 1..30
    kept = (out == four.encode_image(canvas, seeded())).all(1)[0]
    assert kept.int().tolist() == [[0] * 5, [0, 1, 1, 0, 0], [0] * 5, [0] * 5]


def test_the_canvas_mirrors_the_picture_outwards():
    row = torch.arange(3.0).expand(1, 3, 1, 3)
    canvas, new = extend(row, left=2, right=4, top=0, bottom=1, side=2)
    assert canvas[0, 0].tolist() == [[1, 0, 0, 1, 2, 2, 1, 0, 0, 1]] * 2
    assert new[0, 0].tolist() == [[1, 1, 0, 0, 0, 1, 1, 1, 1, 1], [1] * 10]


def test_outpainted_latents_cover_the_next_multiple_of_eight(four):
    call = {"generator": seeded(), "output_type": "latent"}
    assert four.outpaint(PROMPT, picture(), left=3, **call).images.shape == (1, 4, 4, 5)


def test_given_latents_are_the_noise(four):
    """And the draws before and after them stay as they are: eta 0 needs none."""
    generator = seeded()
    four.encode_image(images.from_pil(picture()), generator)
    noise = torch.randn(1, 4, 4, 4, generator=generator)
    for strength in (0.7, 1.0):
        assert np.array_equal(paint(four, latents=noise, strength=strength),
                              paint(four, strength=strength))  # fmt: skip


def test_without_a_generator_the_seed_is_drawn_and_reported(pipe):
    out = pipe.inpaint(PROMPT, picture(), mask(), output_type="np")
    assert np.array_equal(out.images, paint(pipe, seed=out.seed))


def test_nothing_that_is_given_is_changed(pipe):
    image, where = images.from_pil(picture()), torch.rand(32, 32, generator=seeded())
    before = image.clone(), where.clone()
    assert np.array_equal(paint(pipe, image, where), paint(pipe, image, where))
    assert torch.equal(image, before[0])
    assert torch.equal(where, before[1])


@pytest.mark.parametrize(("call", "message"), [
    ({"mask_image": mask(32, 24)}, "1 of 24 x 32 and the pictures 1 of 32 x 32, expected"),
    ({"mask_image": torch.zeros(2, 32, 32)}, "masks are 2 of 32 x 32 and the pictures 1 of"),
    ({"mask_image": torch.zeros(1, 3, 32, 32)}, r"the mask has shape \(1, 3, 32, 32\) and values"),
    ({"mask_image": torch.full((32, 32), 7.0)}, "values from 7.0 to 7.0, expected"),
    ({"mask_image": torch.full((32, 32), torch.nan)}, "values from nan to nan, expected"),
    ({"mask_image": "mask.png"}, "the mask is str, expected a PIL picture or an array"),
    ({"mask_image": []}, "the mask is list, expected a PIL picture or an array"),
    ({"image": torch.rand(1, 4, 32, 32)}, r"\(1, 4, 32, 32\), expected \(b, 3, h, w\)"),
    ({"image": [picture()] * 3}, "3 pictures were given for 1 prompts"),
    ({"height": 20}, "20 x 32, expected multiples of 8"),
    ({"strength": 1.5}, "strength is 1.5, expected 0 to 1"),
    ({"feather": -1}, "feather is -1, expected"),
    ({"latents": torch.zeros(1, 4, 8, 8)}, r"\(1, 4, 8, 8\), expected \(1, 4, 4, 4\)"),
    ({"output_type": "jpeg"}, "'jpeg', expected one of"),
    ({"prompt": []}, "at least one prompt"),
])  # fmt: skip
def test_what_does_not_fit_is_a_clear_error(four, call, message):
    with pytest.raises(ValueError, match=message):
        paint(four, **call)


@pytest.mark.parametrize("sides", [{}, {"left": -8, "right": 8}], ids=str)
def test_outpainting_by_nothing_or_less_is_an_error(four, sides):
    with pytest.raises(ValueError, match="expected pixels to add: none negative, one at least"):
        four.outpaint(PROMPT, picture(), **sides)


def test_an_unknown_argument_is_an_error(four):
    with pytest.raises(TypeError, match="mask_blur"):
        paint(four, mask_blur=4)


def test_a_model_made_for_inpainting_says_so_where_it_cannot_serve(nine):
    for call in (lambda: nine(PROMPT), lambda: nine.image_to_image(PROMPT, picture())):
        with pytest.raises(ValueError, match=r"given 4 channels, expected 9; .* pipe\.inpaint"):
            call()
