"""Each number that is easy to get wrong and hard to see in a picture, asserted where it lives."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from minisd import DDIMScheduler, images
from minisd.attention import Attention
from minisd.autoencoder import Autoencoder
from minisd.checkpoint import build
from minisd.config import SD15, SD21, AutoencoderConfig, ScheduleConfig, TextEncoderConfig
from minisd.layers import Downsample, timestep_embedding
from minisd.text_encoder import MLP, TextEncoder
from minisd.unet import GEGLU, SpatialTransformer, UNet


@pytest.fixture(scope="module")
def sd15():
    """The networks at full size, without memory for their weights."""
    kinds = {"text_encoder": TextEncoder, "unet": UNet, "vae": Autoencoder}
    return {name: build(kind, getattr(SD15, name)) for name, kind in kinds.items()}


def modules(network, kind):
    return [m for m in network.modules() if isinstance(m, kind)]


@pytest.mark.parametrize(
    ("name", "count"), [("unet", 859_520_964), ("vae", 83_653_863), ("text_encoder", 123_060_480)]
)
def test_sd15_has_the_published_number_of_parameters(sd15, name, count):
    assert sum(p.numel() for p in sd15[name].parameters()) == count


def test_the_decoder_has_49490199_parameters_with_its_first_convolution(sd15):
    parts = (sd15["vae"].decoder, sd15["vae"].post_quant_conv)
    assert sum(p.numel() for part in parts for p in part.parameters()) == 49_490_199


def test_no_network_has_a_buffer(sd15):
    assert [name for n in sd15.values() for name, _ in n.named_buffers()] == []


def test_the_unet_has_45_group_norms_of_1e_5_and_16_of_1e_6(sd15):
    eps = [m.eps for m in modules(sd15["unet"], nn.GroupNorm)]
    assert (eps.count(1e-5), eps.count(1e-6), len(eps)) == (45, 16, 61)


def test_the_group_norms_of_1e_6_are_those_before_the_transformers(sd15):
    assert {m.norm.eps for m in modules(sd15["unet"], SpatialTransformer)} == {1e-6}


def test_the_autoencoder_has_52_group_norms_of_1e_6(sd15):
    assert [m.eps for m in modules(sd15["vae"], nn.GroupNorm)] == [1e-6] * 52


def test_every_group_norm_has_32_groups(sd15):
    norms = [m for n in ("unet", "vae") for m in modules(sd15[n], nn.GroupNorm)]
    assert {m.num_groups for m in norms} == {32}


@pytest.mark.parametrize("name", ["unet", "text_encoder"])
def test_every_layer_norm_has_1e_5(sd15, name):
    assert {m.eps for m in modules(sd15[name], nn.LayerNorm)} == {1e-5}


def test_the_unet_has_8_heads_of_40_80_and_160(sd15):
    attentions = modules(sd15["unet"], Attention)
    assert {m.heads for m in attentions} == {8}
    assert {m.q.out_features // m.heads for m in attentions} == {40, 80, 160}


def test_sd2_has_heads_of_64_everywhere():
    attentions = modules(build(UNet, SD21.unet), Attention)
    assert {m.q.out_features // m.heads for m in attentions} == {64}


def test_the_autoencoder_has_one_head_and_the_text_encoder_12(sd15):
    assert {m.heads for m in modules(sd15["vae"], Attention)} == {1}
    assert {m.heads for m in modules(sd15["text_encoder"], Attention)} == {12}


def test_only_the_autoencoder_and_clip_have_biases_on_q_k_v(sd15):
    biased = {n: {m.q.bias is not None for m in modules(sd15[n], Attention)} for n in sd15}
    assert biased == {"text_encoder": {True}, "unet": {False}, "vae": {True}}


def test_only_the_text_encoder_is_causal(sd15):
    causal = {n: {m.causal for m in modules(sd15[n], Attention)} for n in sd15}
    assert causal == {"text_encoder": {True}, "unet": {False}, "vae": {False}}


def test_the_unet_downsamples_with_padding_on_all_sides(sd15):
    downs = modules(sd15["unet"], Downsample)
    assert [(m.padding, m.pad_end_only) for m in downs] == [((1, 1), False)] * 3


def test_the_encoder_downsamples_with_padding_right_and_bottom_alone(sd15):
    downs = modules(sd15["vae"], Downsample)
    assert [(m.padding, m.pad_end_only) for m in downs] == [((0, 0), True)] * 3


def test_end_padding_shifts_nothing():
    down = Downsample(1, pad_end_only=True)
    down.weight.data, down.bias.data = torch.zeros_like(down.weight), torch.zeros_like(down.bias)
    down.weight.data[0, 0, 0, 0] = 1  # picks the first pixel of each window
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(down(x), x[:, :, ::2, ::2])


def test_the_timestep_embedding_is_cosines_then_sines():
    waves = timestep_embedding(torch.tensor([981]), 320)[0].double()
    for i in (0, 1, 77, 159):
        angle = 981 * 10_000 ** (-i / 160)
        assert waves[i].item() == pytest.approx(math.cos(angle), abs=2e-4)
        assert waves[160 + i].item() == pytest.approx(math.sin(angle), abs=2e-4)


def test_the_timestep_embedding_has_these_numbers():
    """Golden: cos and sin of 1 / 10000^(i / 4) for i = 0..3, by calculator."""
    expected = [0.540302, 0.995004, 0.999950, 0.9999995, 0.841471, 0.0998334, 0.00999983, 0.001]
    assert timestep_embedding(torch.tensor([1]), 8)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_the_gate_is_the_exact_gelu_of_the_second_half():
    block = GEGLU(2)
    block.gate_up.weight.data = torch.zeros(16, 2)
    block.gate_up.bias.data = torch.cat([torch.full((8,), 3.0), torch.full((8,), 0.7)])
    block.down.weight.data, block.down.bias.data = torch.full((2, 8), 1 / 8), torch.zeros(2)
    gelu = 0.7 * 0.5 * (1 + math.erf(0.7 / math.sqrt(2)))  # tanh's is 1.1e-4 away at 0.7
    assert block(torch.zeros(1, 1, 2))[0, 0, 0].item() == pytest.approx(3 * gelu, abs=1e-6)


@pytest.mark.parametrize(("activation", "expected"), [
    ("quick_gelu", 0.7 / (1 + math.exp(-1.702 * 0.7))),
    ("gelu", 0.7 * 0.5 * (1 + math.erf(0.7 / math.sqrt(2)))),
])  # fmt: skip
def test_clips_activation_is_the_one_of_its_config(activation, expected):
    mlp = MLP(TextEncoderConfig(width=2, heads=1, mlp_width=2, activation=activation))
    mlp.fc1.weight.data, mlp.fc1.bias.data = torch.zeros(2, 2), torch.full((2,), 0.7)
    mlp.fc2.weight.data, mlp.fc2.bias.data = torch.eye(2), torch.zeros(2)
    assert mlp(torch.zeros(1, 1, 2))[0, 0, 0].item() == pytest.approx(expected, abs=1e-6)


def tiny_text_encoder():
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "width": 16, "layers": 2, "heads": 2, "mlp_width": 32}
    return TextEncoder(TextEncoderConfig(**sizes)).requires_grad_(False)


def test_a_token_does_not_see_the_tokens_after_it():
    encoder, ids = tiny_text_encoder(), torch.arange(20)[None]
    other = ids.clone()
    other[0, 12:] = 49
    a, b = encoder(ids), encoder(other)
    torch.testing.assert_close(a[:, :12], b[:, :12])
    assert (a[:, 12:] - b[:, 12:]).abs().min(dim=-1).values.max() > 0


def test_padding_is_seen_like_any_other_token():
    encoder, ids = tiny_text_encoder(), torch.full((1, 20), 49)
    other = ids.clone()
    other[0, 10] = 7  # in the middle of the padding
    assert not torch.allclose(encoder(ids)[0, -1], encoder(other)[0, -1])


def test_the_log_variance_is_cut_at_minus_30_and_20():
    vae = Autoencoder(AutoencoderConfig(widths=(4,), layers_per_level=1, norm_groups=2))
    vae.quant_conv.weight.data.zero_()
    vae.quant_conv.bias.data = torch.tensor([0, 0, 0, 0, -99.0, 99.0, -29.0, 19.0])
    logvar = vae.encode(torch.zeros(1, 3, 8, 8)).logvar[0, :, 0, 0]
    assert logvar.tolist() == [-30, 20, -29, 19]


def test_sds_schedule_has_these_levels():
    """Golden: the reference implementations, both float32 and float64."""
    scheduler = DDIMScheduler()
    assert scheduler.betas[0].item() == pytest.approx(0.00085, rel=1e-6)
    assert scheduler.betas[-1].item() == pytest.approx(0.012, rel=1e-6)
    assert scheduler.alphas_bar[0].item() == pytest.approx(0.99915, abs=1e-6)
    assert scheduler.alphas_bar[999].item() == pytest.approx(0.00466010, abs=5e-9)


def test_scaled_linear_is_the_square_of_a_line_in_its_root():
    roots = DDIMScheduler().betas.double().sqrt()
    assert roots[500].item() == pytest.approx(
        math.sqrt(0.00085) + 500 / 999 * (math.sqrt(0.012) - math.sqrt(0.00085)), rel=1e-5
    )


def test_ddim_with_50_steps_runs_from_981_to_1():
    assert DDIMScheduler().timesteps(50) == list(range(981, 0, -20))


def test_ddim_with_30_steps_runs_from_958():
    timesteps = DDIMScheduler().timesteps(30)
    assert (timesteps[0], timesteps[-1], len(timesteps)) == (958, 1, 30)


def test_the_last_step_leaves_a_sigma_of_0_0292():
    assert DDIMScheduler().plan(50)[-1].sigma_prev == pytest.approx(0.0292, abs=5e-5)


def test_with_set_alpha_to_one_no_noise_is_left():
    assert DDIMScheduler(ScheduleConfig(set_alpha_to_one=True)).plan(50)[-1].sigma_prev == 0


def test_the_scale_of_the_latents_is_0_18215():
    assert SD15.vae.scaling_factor == 0.18215


def test_pixels_are_rounded_not_truncated():
    levels = torch.tensor([0.0, 0.4, 0.6, 127.6, 254.4, 254.6]) / 255 * 2 - 1
    picture = images.to_pil(levels.reshape(1, 1, 1, 6).repeat(1, 3, 1, 1))[0]
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 0, 1, 128, 254, 255]


def test_overshoot_is_cut_off():
    picture = images.to_pil(torch.full((1, 3, 2, 2), 1.7))[0]
    assert np.asarray(picture).min() == 255
