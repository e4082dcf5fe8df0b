"""What must hold for any weights: nothing here knows a right answer beforehand."""

import dataclasses
import itertools

import pytest
import torch
from tiny import UNET, pipeline

from minisd import DDIMScheduler, DDPMScheduler
from minisd.attention import (
    METHODS,
    Attention,
    attend,
    attend_blocks,
    attend_plain,
    attention_probabilities,
)
from minisd.checkpoint import build, load_state
from minisd.noise import draw_noise
from minisd.unet import UNet

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


# ---- twice the same, and nothing changed on the way ----


def twice(function, *arguments):
    """The two results of a call, after a check that it left its arguments alone."""
    before = [a.clone() for a in arguments]
    first, second = function(*arguments), function(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before))
    return first, second


@torch.no_grad()
def test_decoding_twice_gives_the_same_and_leaves_the_latents_alone(pipe):
    first, second = twice(pipe.decode_latents, normal(2, 4, 8, 8))
    assert torch.equal(first, second)


@torch.no_grad()
def test_encoding_twice_gives_the_same_and_leaves_the_picture_alone(pipe):
    first, second = twice(lambda x: pipe.encode_image(x, seeded()), normal(2, 3, 64, 64))
    assert torch.equal(first, second)


@torch.no_grad()
def test_the_unet_twice_gives_the_same_and_leaves_its_inputs_alone(pipe):
    first, second = twice(pipe.unet, normal(2, 4, 8, 8), torch.tensor([1, 981]), normal(2, 77, 24))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
def test_a_step_twice_gives_the_same_and_leaves_its_inputs_alone(kind):
    scheduler = kind()
    span = scheduler.plan(10)[3]
    first, second = twice(
        lambda eps, x: torch.stack(scheduler.step(eps, span, x, generator=seeded())),
        normal(2, 4, 8, 8), normal(2, 4, 8, 8, seed=1),
    )  # fmt: skip
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
def test_a_plan_twice_is_the_same_whatever_was_planned_between(kind):
    scheduler = kind()
    first = scheduler.plan(10)
    scheduler.plan(50, 0.3)
    assert scheduler.plan(10) == first


def test_a_seed_gives_the_same_picture_again(pipe):
    first, second = (pipe("a boat", generator=seeded(), output_type="pt").images for _ in range(2))
    assert torch.equal(first, second)


def test_a_drawn_seed_is_told_and_gives_the_picture_again(pipe):
    out = pipe("a boat", output_type="pt")
    assert torch.equal(
        pipe("a boat", output_type="pt", generator=seeded(out.seed)).images, out.images
    )


def test_given_latents_are_left_alone(pipe):
    latents = normal(1, 4, 8, 8)
    before = latents.clone()
    pipe("a boat", latents=latents, generator=seeded(), output_type="latent")
    assert torch.equal(latents, before)


# ---- a picture does not depend on its neighbours ----


@torch.no_grad()
def test_the_unets_rows_do_not_mix(pipe):
    x_t, context, t = normal(4, 4, 8, 8), normal(4, 77, 24, seed=1), torch.tensor([1, 21, 500, 981])
    together = pipe.unet(x_t, t, context)
    for i in range(4):
        alone = pipe.unet(x_t[i : i + 1], t[i], context[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], **CLOSE)


@torch.no_grad()
def test_the_autoencoders_rows_do_not_mix(pipe):
    z = normal(4, 4, 8, 8)
    together = pipe.vae.decode(z)
    torch.testing.assert_close(pipe.vae.decode(z[2:3]), together[2:3], **CLOSE)


@torch.no_grad()
def test_the_text_encoders_rows_do_not_mix(pipe):
    ids = pipe.tokenizer(["a boat", "a star", "the sea", ""])
    together = pipe.text_encoder(ids)
    torch.testing.assert_close(pipe.text_encoder(ids[1:2]), together[1:2], **CLOSE)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_picture_is_the_same_alone_and_among_four(pipe, eta):
    prompts = ["a boat", "a star", "the sea", "night"]
    call = {"eta": eta, "output_type": "pt"}
    together = pipe(prompts, generator=[seeded(i) for i in range(4)], **call).images
    for i, prompt in enumerate(prompts):
        alone = pipe(prompt, generator=[seeded(i)], **call).images
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-4)


def test_one_generator_alone_draws_as_a_list_of_one():
    one = draw_noise((1, 4, 8, 8), seeded(3))
    assert torch.equal(one, draw_noise((1, 4, 8, 8), [seeded(3)]))


def test_the_wrong_number_of_generators_is_refused():
    with pytest.raises(ValueError, match="2 generators were given for 3 pictures"):
        draw_noise((3, 4, 8, 8), [seeded(), seeded()])


# ---- attention ----


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_ways_of_attention_are_equal(method, causal):
    q, k, v = (normal(2, 3, 9, 8, seed=i) for i in range(3))
    expected = attend(q, k, v, causal, "plain")
    torch.testing.assert_close(attend(q, k, v, causal, method), expected, **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("block", [1, 20, 7 * 9, 3 * 7 * 9, 2**21])
def test_blocks_of_any_size_are_the_formula(block, causal, monkeypatch):
    monkeypatch.setattr("minisd.attention.BLOCK", block)
    q, k, v = normal(2, 3, 9, 8), normal(2, 3, 7, 8, seed=1), normal(2, 3, 7, 8, seed=2)
    expected = attend(q, k, v, causal, "plain")
    torch.testing.assert_close(attend_blocks(q, k, v, causal), expected, **CLOSE)


def test_a_block_holds_no_more_scores_than_it_should(monkeypatch):
    sizes = []

    def spy(q, k, *more):
        sizes.append(q.shape[0] * q.shape[2] * k.shape[2])
        return attend_plain(q, k, *more)

    monkeypatch.setattr("minisd.attention.attend_plain", spy)
    monkeypatch.setattr("minisd.attention.BLOCK", 100)
    attend_blocks(*(normal(2, 3, 40, 8, seed=i) for i in range(3)))
    assert max(sizes) <= 100
    assert sum(sizes) == 2 * 3 * 40 * 40


@pytest.mark.parametrize("learning", [False, True])
def test_bfloat16_on_the_cpu_is_in_blocks_unless_it_learns(learning, monkeypatch):
    calls = []
    monkeypatch.setattr("minisd.attention.attend_blocks", lambda *given: calls.append(given))
    q, k, v = (normal(1, 2, 5, 8, seed=i).bfloat16() for i in range(3))
    attend(q.requires_grad_(learning), k, v)
    attend(q.float(), k.float(), v.float())
    assert len(calls) == (0 if learning else 1)


def test_bfloat16_attention_is_as_near_to_float32_as_its_digits_allow():
    q, k, v = (normal(2, 3, 50, 8, seed=i) for i in range(3))
    rough = attend(q.bfloat16(), k.bfloat16(), v.bfloat16()).float()
    error = (rough - attend(q, k, v)).std() / attend(q, k, v).std()
    assert 0 < error < 1e-2


def test_attention_probabilities_sum_to_one():
    p = attention_probabilities(normal(2, 3, 5, 8), normal(2, 3, 7, 8, seed=1))
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 3, 5), **CLOSE)


def test_causal_attention_puts_nothing_on_later_tokens():
    p = attention_probabilities(normal(1, 2, 6, 8), normal(1, 2, 6, 8, seed=1), causal=True)
    assert p.triu(1).abs().max() == 0


def test_self_attention_does_not_care_about_the_order_of_its_tokens():
    layer, x, order = Attention(16, 4).requires_grad_(False), normal(1, 7, 16), torch.randperm(7)
    torch.testing.assert_close(layer(x)[:, order], layer(x[:, order]), **CLOSE)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="magic"):
        attend(*(normal(1, 1, 2, 4) for _ in range(3)), method="magic")


@torch.no_grad()
def test_recording_does_not_change_the_answer(pipe):
    inputs = (normal(1, 4, 8, 8), torch.tensor(500), normal(1, 77, 24))
    record = {}
    torch.testing.assert_close(pipe.unet(*inputs, record), pipe.unet(*inputs), **CLOSE)
    p = record["mid.attention.block.cross_attn.probabilities"]
    assert p.shape == (1, 4, 16, 77)


@torch.no_grad()
def test_the_skips_of_the_way_up_are_the_outputs_of_the_way_down_in_reverse(pipe):
    record = {}
    out = pipe.unet(normal(1, 4, 8, 8), torch.tensor(500), normal(1, 77, 24), record)
    assert record["conv_out"] is out
    skips = [value for path, value in record.items() if path.endswith(".skip")]
    sources = [
        next(path for path, value in record.items() if value is skip) for skip in reversed(skips)
    ]
    levels, depth = len(pipe.unet.down), len(pipe.unet.down[0].resnets)
    assert len(skips) == levels * (depth + 1)
    assert sources[0] == "conv_in"
    assert sources[depth + 1] == "down.0.downsample"
    assert "down.0.resnets.0" in sources or "down.0.attentions.0" in sources


@torch.no_grad()
def test_a_record_of_the_autoencoder_begins_and_ends_with_its_outer_layers(pipe):
    record = {}
    pipe.vae.encode(normal(1, 3, 64, 64), record)
    picture = pipe.vae.decode(normal(1, 4, 8, 8), record)
    paths = list(record)
    assert paths[0] == "encoder.conv_in"
    assert "encoder.conv_out" in paths
    assert {"encoder.down.0.downsample", "decoder.up.0.upsample"} <= set(paths)
    assert record["decoder.conv_out"] is picture


def test_the_loop_fills_a_record_at_every_step(pipe):
    cond, uncond = pipe.encode_prompt("a boat")
    record, seen = {}, []
    for _ in pipe.denoise(normal(1, 4, 8, 8), cond, uncond, 3, 4.0, record=record):
        seen.append(record["conv_out"])
    assert [tuple(x.shape) for x in seen] == 3 * [(2, 4, 8, 8)]  # without text, then with it
    assert not torch.equal(seen[0], seen[1])


# ---- the loop ----


def steps_of(pipe, **call):
    cond, uncond = pipe.encode_prompt("a boat")
    return list(pipe.denoise(normal(1, 4, 8, 8), cond, uncond, 5, **call))


def test_each_step_starts_where_the_last_one_ended(pipe):
    steps = steps_of(pipe, guidance_scale=5.0)
    assert all(torch.equal(a.x_prev, b.x_t) for a, b in itertools.pairwise(steps))


def test_a_steps_picture_and_noise_make_up_what_the_model_saw(pipe):
    for step in steps_of(pipe, guidance_scale=5.0):
        x_t = pipe.scheduler.add_noise(step.x_0, step.eps, torch.tensor(step.t))
        torch.testing.assert_close(x_t, step.x_t, rtol=1e-4, atol=1e-4)


class Spy(torch.nn.Module):
    """A UNet that remembers what it was asked."""

    config = UNET

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.calls = []

    def forward(self, x_t, t, context, record=None):
        self.calls.append((x_t, t, context))
        return context.mean(dim=(1, 2))[:, None, None, None] * torch.ones_like(x_t)


def test_guidance_asks_once_with_uncond_first_and_extrapolates():
    spy = Spy()
    pipe = pipeline(unet=spy)
    cond, uncond = torch.full((1, 77, 24), 3.0), torch.full((1, 77, 24), 1.0)
    step = next(pipe.denoise(normal(1, 4, 8, 8), cond, uncond, 5, 7.5))
    assert torch.equal(spy.calls[0][2], torch.cat([uncond, cond]))
    assert len(spy.calls) == 1
    torch.testing.assert_close(step.eps, torch.full_like(step.eps, 1 + 7.5 * 2))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_guidance_of_one_or_less_asks_for_the_prompt_alone(scale):
    spy = Spy()
    pipe = pipeline(unet=spy)
    cond, uncond = torch.full((1, 77, 24), 3.0), torch.full((1, 77, 24), 1.0)
    next(pipe.denoise(normal(1, 4, 8, 8), cond, uncond, 5, scale))
    assert torch.equal(spy.calls[0][2], cond)


def test_the_scale_and_steps_left_out_are_the_models_own(pipe):
    given = pipe("a boat", generator=seeded(), output_type="pt", num_inference_steps=4,
                 guidance_scale=5.0, height=64, width=64).images  # fmt: skip
    assert torch.equal(pipe("a boat", generator=seeded(), output_type="pt").images, given)


def test_several_pictures_of_a_prompt_lie_together(pipe):
    generators = [seeded(i) for i in range(4)]
    both = pipe(["a boat", "night"], num_images_per_prompt=2, generator=generators,
                output_type="pt").images  # fmt: skip
    night = pipe("night", generator=[seeded(2)], output_type="pt").images
    torch.testing.assert_close(both[2:3], night, rtol=0, atol=1e-4)


# ---- weights ----


def test_a_network_with_tensors_assigned_answers_as_the_one_they_came_from(pipe):
    twin = load_state(build(UNet, UNET), pipe.unet.state_dict(), "memory")
    inputs = (normal(1, 4, 8, 8), 500, normal(1, 77, 24))
    assert torch.equal(twin(*inputs), pipe.unet(*inputs))


def test_a_native_folder_gives_back_the_same_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = type(pipe).from_pretrained(tmp_path)
    assert again.hash == pipe.hash
    assert dataclasses.asdict(again.defaults) == dataclasses.asdict(pipe.defaults)
    assert again.scheduler.config == pipe.scheduler.config
    assert again.tokenizer("a boat").equal(pipe.tokenizer("a boat"))


@pytest.mark.parametrize("change", ["missing", "unexpected", "misshapen"])
def test_loading_names_the_key_that_does_not_fit(pipe, change):
    state = dict(pipe.unet.state_dict())
    if change == "missing":
        del state["conv_in.weight"]
    elif change == "unexpected":
        state["conv_in.weird"] = torch.zeros(1)
    else:
        state["conv_in.weight"] = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"(?s)the file.*conv_in\.wei"):
        load_state(build(UNet, UNET), state, "the file")
