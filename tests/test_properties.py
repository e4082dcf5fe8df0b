"""Laws of whole calls at random points: sizes, masks, seeds, orders, schedulers."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny import inpainting, picture_book

import minisd
from minisd.inpaint import to_mask

PROMPTS = ["a red boat", "a yellow star at night", "the sea", ""]
SCHEDULERS = sorted(name for name in minisd.__all__ if name.endswith("Scheduler"))
CLOSE = {"rtol": 0, "atol": 1e-5}


def seeded(seed=0):
    return torch.Generator().manual_seed(int(seed))


@pytest.fixture
def pipe():
    return picture_book()


@pytest.fixture(scope="module")
def nine():
    return inpainting()


def random_picture(rng, width, height):
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def random_mask(rng, width, height):
    """Blots, single pixels, stripes, or gray noise, whose edge at one half is anywhere."""
    kind = rng.choice(["blots", "pixels", "stripes", "noise"])
    image = Image.new("L", (width, height))
    if kind == "noise":
        return Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8))
    for _ in range(rng.integers(1, 5)):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        box = {"blots": (x, y, x + 12, y + 9), "pixels": (x, y, x, y), "stripes": (x, 0, x, 99)}
        draw = ImageDraw.Draw(image)
        (draw.ellipse if kind == "blots" else draw.rectangle)(box[str(kind)], fill=255)
    return image


@pytest.mark.parametrize("channels", ["4", "9"])
@pytest.mark.parametrize("seed", range(12))
def test_unmasked_pixels_are_kept_exactly_whatever_the_mask_size_feather_and_strength(
    request, seed, channels
):
    rng = np.random.default_rng(seed)
    pipe = request.getfixturevalue("pipe" if channels == "4" else "nine")
    width, height = (int(side) for side in rng.integers(8, 45, 2))
    picture, mask = random_picture(rng, width, height), random_mask(rng, width, height)
    (out,) = pipe.inpaint(
        "a red boat", picture, mask, float(rng.choice([0.0, 0.4, 0.9, 1.0])),
        feather=int(rng.integers(0, 20)), guidance_scale=float(rng.uniform(0, 9)),
        num_inference_steps=int(rng.integers(1, 5)), generator=seeded(seed),
    ).images  # fmt: skip
    outside = to_mask(mask)[0, 0].numpy() == 0
    assert out.size == (width, height)
    assert outside.any()
    assert (np.asarray(out)[outside] == np.asarray(picture)[outside]).all()


def prompts_to_pictures(pipe, prompts, generators):
    return pipe(prompts, generator=generators, eta=0.7, output_type="pt").images


def pictures_to_pictures(pipe, prompts, generators):
    picture = random_picture(np.random.default_rng(0), 32, 24)
    call = {"strength": 0.7, "eta": 0.7, "output_type": "pt"}
    return pipe.image_to_image(prompts, picture, generator=generators, **call).images


def holes_to_pictures(pipe, prompts, generators):
    rng = np.random.default_rng(0)
    picture, mask = random_picture(rng, 32, 24), random_mask(rng, 32, 24)
    call = {"strength": 0.9, "eta": 0.7, "output_type": "pt"}
    return pipe.inpaint(prompts, picture, mask, generator=generators, **call).images


@pytest.mark.parametrize("draw", [prompts_to_pictures, pictures_to_pictures, holes_to_pictures])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_seed_and_a_prompt_give_their_picture_in_every_batch_and_order(pipe, kind, draw):
    pipe.scheduler = getattr(minisd, kind).from_config(pipe.scheduler.config)
    rng = np.random.default_rng(SCHEDULERS.index(kind))
    together = draw(pipe, PROMPTS, [seeded(i) for i in range(4)])
    for size in (1, 2, 3, 4):
        some = rng.permutation(4)[:size]
        drawn = draw(pipe, [PROMPTS[i] for i in some], [seeded(i) for i in some])
        torch.testing.assert_close(drawn, together[torch.from_numpy(some)], **CLOSE)
    assert all((together[0] - together[i]).abs().max() > 1e-3 for i in (1, 2, 3))


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_strength_0_is_the_sampled_reconstruction_with_every_scheduler(pipe, kind):
    pipe.scheduler = getattr(minisd, kind).from_config(pipe.scheduler.config)
    picture = torch.rand(1, 3, 24, 40, generator=seeded(5)) * 2 - 1
    expected = pipe.decode_latents(pipe.encode_image(picture, seeded())) / 2 + 0.5
    call = {"strength": 0, "generator": seeded(), "output_type": "pt"}
    out = pipe.image_to_image("a red boat", picture, **call).images
    assert torch.equal(out, expected.clamp(0, 1))
    assert torch.equal(out, pipe.image_to_image("", picture, **{**call, "generator": seeded()},
                                                guidance_scale=30.0).images)  # fmt: skip


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_slices_draw_the_same_picture_with_every_scheduler(pipe, kind):
    pipe.scheduler = getattr(minisd, kind).from_config(pipe.scheduler.config)
    plain = prompts_to_pictures(pipe, PROMPTS[:2], [seeded(0), seeded(1)])
    pipe.enable_attention_slicing("max")
    pipe.enable_vae_slicing()
    sliced = prompts_to_pictures(pipe, PROMPTS[:2], [seeded(0), seeded(1)])
    torch.testing.assert_close(sliced, plain, **CLOSE)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_negative_prompt_that_is_the_prompt_leaves_guidance_nothing_to_do(pipe, kind):
    pipe.scheduler = getattr(minisd, kind).from_config(pipe.scheduler.config)
    call = {"prompt": PROMPTS[0], "output_type": "pt"}
    guided = pipe(**call, negative_prompt=PROMPTS[0], guidance_scale=9.0, generator=seeded()).images
    plain = pipe(**call, guidance_scale=1.0, generator=seeded()).images
    torch.testing.assert_close(guided, plain, rtol=0, atol=1e-4)
