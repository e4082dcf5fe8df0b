"""No picture is black because of NaN: float32 draws it where that helps, else it is an error."""

import copy

import pytest
import torch
from tiny import pipeline

from minisd import guard, images

MASK = torch.zeros(64, 64)
MASK[20:40, 20:40] = 1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


def overflowing(dtype=torch.float16):
    """A pipeline whose autoencoder has activations past 65504, that its next norm takes back."""
    pipe = pipeline()
    for resnet in (pipe.vae.decoder.up[-1].resnets[0], pipe.vae.encoder.down[0].resnets[0]):
        resnet.conv1.weight *= 1e5
    pipe.vae = pipe.vae.half()
    return pipe.to(dtype)


def test_the_overflow_of_these_tests_happens():
    pipe = overflowing()
    assert pipe.vae.decode(noise(1, 4, 8, 8).half()).isnan().any()
    assert pipe.vae.encode(noise(1, 3, 64, 64).half()).mean.isnan().any()
    assert pipe.to(torch.float32).vae.decode(noise(1, 4, 8, 8)).isfinite().all()


def test_a_picture_that_overflows_is_float32s():
    pipe, latents = overflowing(), noise(2, 4, 8, 8).half()
    expected = copy.deepcopy(pipe).to(torch.float32).decode_latents(latents.float())
    assert torch.equal(pipe.decode_latents(latents), expected)


def test_the_autoencoder_is_put_back_bit_by_bit():
    pipe = overflowing()
    before = copy.deepcopy(pipe.vae.state_dict())
    pipe.decode_latents(noise(1, 4, 8, 8).half())
    for name, value in pipe.vae.state_dict().items():
        assert value.dtype == torch.float16
        assert torch.equal(value, before[name]), name


def test_the_autoencoder_is_put_back_after_an_error_too(monkeypatch):
    pipe = overflowing()
    decode = pipe.vae.decode

    def no_memory_for_float32(z):
        if z.dtype == torch.float32:
            raise MemoryError
        return decode(z)

    monkeypatch.setattr(pipe.vae, "decode", no_memory_for_float32)
    with pytest.raises(MemoryError):
        pipe.decode_latents(noise(1, 4, 8, 8).half())
    assert pipe.vae.post_quant_conv.weight.dtype == torch.float16


def test_a_picture_that_does_not_overflow_stays_in_half_precision():
    pipe, latents = pipeline().to(torch.float16), noise(1, 4, 8, 8).half()
    expected = pipe.vae.decode(latents / pipe.vae.config.scaling_factor)
    assert torch.equal(pipe.decode_latents(latents), expected)
    assert expected.dtype == torch.float16


def test_latents_of_a_picture_that_overflows_are_float32s():
    pipe, image = overflowing(), noise(1, 3, 64, 64).half()
    posterior = copy.deepcopy(pipe.vae).float().encode(image.float())
    expected = (posterior.sample(seeded()) * pipe.vae.config.scaling_factor).half()
    assert torch.equal(pipe.encode_image(image, seeded()), expected)


CALLS = {
    "text": lambda pipe, **more: pipe("a red boat", **more),
    "image_to_image": lambda pipe, **more: pipe.image_to_image(
        "a red boat", images.to_pil(noise(1, 3, 64, 64))[0], 0.6, **more
    ),
    "inpaint": lambda pipe, **more: pipe.inpaint(
        "a red boat", images.to_pil(noise(1, 3, 64, 64))[0], MASK, **more
    ),
    "outpaint": lambda pipe, **more: pipe.outpaint(
        "a red boat", images.to_pil(noise(1, 3, 64, 48))[0], right=16, **more
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_call_mends_an_overflow(call):
    picture = call(overflowing(), generator=seeded(), output_type="pt").images
    assert picture.isfinite().all()
    assert picture.std() > 0.05


@pytest.mark.parametrize("output_type", ["pil", "latent"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_call_refuses_latents_of_nan(call, output_type):
    def spoil(pipe, index, t, tensors):
        return {"latents": tensors["latents"] * float("nan")}

    with pytest.raises(ValueError, match=r"UNet, in torch.float32, made NaN.*damaged"):
        call(pipeline(), callback_on_step_end=spoil, output_type=output_type)


def test_a_unet_that_overflows_is_named_with_a_way_out():
    pipe = pipeline()
    pipe.unet.conv_out.weight *= 1e5
    pipe.to(torch.float16)
    with pytest.raises(ValueError, match=r"UNet, in torch.float16.*torch_dtype=torch.float32, or"):
        pipe("a red boat", generator=seeded())
    pipe.to(torch.bfloat16)
    assert pipe("a red boat", generator=seeded(), output_type="latent").images.isfinite().all()


def test_a_text_encoder_that_overflows_is_named():
    pipe = pipeline()
    pipe.text_encoder.layers[0].mlp.fc1.weight *= 1e5
    with pytest.raises(ValueError, match=r"text encoder is in torch.float16.*torch_dtype"):
        pipe.to(torch.float16)("a red boat", generator=seeded())


def test_latents_that_were_nan_before_the_run_are_named():
    latents = torch.full((1, 4, 8, 8), float("nan"))
    with pytest.raises(ValueError, match="latents that the run began with"):
        pipeline()("a red boat", latents=latents)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_decoding_latents_that_are_not_finite_is_refused(value):
    latents = noise(1, 4, 8, 8)
    latents[0, 0, 0, 0] = value
    for dtype in (torch.float32, torch.float16):
        with pytest.raises(ValueError, match="given to the autoencoder hold NaN or infinity"):
            pipeline().to(dtype).decode_latents(latents.to(dtype))


@pytest.mark.parametrize(("dtype", "tried"), [(torch.float32, "in torch.float32 made"),
    (torch.float16, "float16, and in torch.float32 too,")])  # fmt: skip
def test_an_autoencoder_that_float32_does_not_help_is_an_error(dtype, tried):
    pipe = pipeline().to(dtype)
    pipe.vae.decoder.conv_out.bias[0] = float("nan")
    with pytest.raises(ValueError, match=f"{tried}.*weights.*damaged"):
        pipe("a red boat", generator=seeded())


def test_float64_is_not_narrowed():
    pipe = pipeline().to(torch.float64)
    pipe.vae.post_quant_conv.weight += 1e-12  # lost in float32
    before = pipe.vae.post_quant_conv.weight.clone()
    pipe.vae.decoder.conv_out.bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"in torch.float64 made"):
        pipe.decode_latents(noise(1, 4, 8, 8).double())
    assert torch.equal(pipe.vae.post_quant_conv.weight, before)


def test_the_loop_is_not_interrupted_by_the_guard(monkeypatch):
    asked, ask = [], guard.is_finite
    monkeypatch.setattr(guard, "is_finite", lambda x: asked.append(x) or ask(x))
    pipe, counts = pipeline(), []
    for steps in (2, 9):
        pipe("a red boat", num_inference_steps=steps)
        counts.append(len(asked))
        asked.clear()
    assert counts == [2, 2]  # the latents after the loop, and the picture


@pytest.mark.parametrize(("dtype", "least"), [(torch.float16, 45), (torch.bfloat16, 25)])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_half_precision_draws_float32s_picture(call, dtype, least):
    pictures = []
    for kind in (torch.float32, dtype):
        pipe = pipeline().to(kind)
        out = call(pipe, generator=seeded(), output_type="pt").images
        assert pipe.vae.post_quant_conv.weight.dtype == kind
        pictures.append(out.float())
    assert -10 * (pictures[0] - pictures[1]).square().mean().log10() > least  # dB
