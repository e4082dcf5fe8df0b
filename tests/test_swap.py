"""A student's own part in the real model: the identical picture, or a hint."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from tiny import picture_book
from torch import nn

from minisd import DDIMScheduler, DDPMScheduler
from minisd.attention import Attention
from minisd.layers import ResnetBlock
from minisd.teach import swap


@pytest.fixture
def pipe():
    return picture_book()


class MyAttention(nn.Module):
    def __init__(self, width, heads, context_width):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(context_width, width, bias=False)
        self.v = nn.Linear(context_width, width, bias=False)
        self.out = nn.Linear(width, width)

    def split(self, x):
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)

    def weights(self, scores, d):
        return (scores / d**0.5).softmax(-1)

    def forward(self, x, context=None):
        context = x if context is None else context
        q, k, v = self.split(self.q(x)), self.split(self.k(context)), self.split(self.v(context))
        out = self.weights(q @ k.mT, q.shape[-1]) @ v
        return self.out(rearrange(out, "b h n d -> b n (h d)"))


class NoScale(MyAttention):
    def weights(self, scores, d):
        return scores.softmax(-1)


class WrongAxis(MyAttention):
    def weights(self, scores, d):
        return (scores / d**0.5).softmax(-2)


class NoContext(MyAttention):
    def forward(self, x, context=None):
        return super().forward(x)


class WrongHeads(MyAttention):
    def split(self, x):
        return rearrange(x, "b n (d h) -> b h n d", h=self.heads)


class MyResnet(nn.Module):
    def __init__(self, c_in, c_out, groups, eps, time_width):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_proj = nn.Linear(time_width, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = None if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def shift(self, time):
        return self.time_proj(F.silu(time))[:, :, None, None]

    def skip(self, x):
        return x if self.shortcut is None else self.shortcut(x)

    def forward(self, x, time):
        h = self.conv1(F.silu(self.norm1(x))) + self.shift(time)
        return self.conv2(F.silu(self.norm2(h))) + self.skip(x)


class NoSkip(MyResnet):
    def skip(self, x):
        return 0


class NoTime(MyResnet):
    def shift(self, time):
        return 0


class NoTimeSilu(MyResnet):
    def shift(self, time):
        return self.time_proj(time)[:, :, None, None]


def my_step(model_output, span, x_t):
    a, b = span.alpha_bar, span.alpha_bar_prev
    x_0 = (x_t - (1 - a) ** 0.5 * model_output) / a**0.5
    return b**0.5 * x_0 + (1 - b) ** 0.5 * model_output, x_0


PARTS = {
    "attention": (MyAttention, [NoScale, WrongAxis, NoContext, WrongHeads]),
    "resnet": (MyResnet, [NoSkip, NoTime, NoTimeSilu]),
    "scheduler": (
        my_step,
        [
            lambda eps, span, x_t: (x_t - eps, x_t),
            lambda eps, span, x_t: my_step(eps, span, x_t)[::-1],
            lambda eps, span, x_t: (span.alpha_bar_prev**0.5 * my_step(eps, span, x_t)[1], x_t),
            lambda eps, span, x_t: my_step(eps, span, x_t)[0],
        ],
    ),
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_right_part_in_the_model_gives_the_identical_picture(kind, pipe, capsys):
    result = swap(kind, PARTS[kind][0], pipe)
    assert result.passed is True, result
    assert capsys.readouterr().out.startswith(f"{kind} identical: ")
    draw = [p("a red boat", output_type="pt", generator=torch.Generator().manual_seed(0)).images
            for p in (pipe, result.pipe)]  # fmt: skip
    assert torch.allclose(*draw, atol=1e-5)


@pytest.mark.parametrize("kind", PARTS)
def test_a_wrong_part_gets_a_hint_of_its_own(kind, pipe):
    results = [swap(kind, wrong, pipe) for wrong in PARTS[kind][1]]
    assert all(result.passed is False for result in results)
    hints = {result.hint.split(": ", 1)[-1] for result in results}
    assert len(hints) == len(results) >= 3
    assert not any("differ by up to" in hint or "stopped with" in hint for hint in hints), hints


@pytest.mark.parametrize("kind", PARTS)
def test_swap_leaves_the_shared_pipeline_as_it_was(kind, pipe):
    before, scheduler = pipe.hash, pipe.scheduler
    own = swap(kind, PARTS[kind][0], pipe).pipe
    for parameter in own.unet.parameters():
        if kind != "scheduler":
            parameter.data.zero_()
    assert pipe.hash == before
    assert pipe.scheduler is scheduler
    kinds = {type(module).__name__ for module in pipe.unet.modules()}
    assert "Guest" not in kinds


@pytest.mark.parametrize("kind", PARTS)
def test_an_unwritten_part_is_not_yet(kind, pipe, capsys):
    result = swap(kind, None, pipe)
    assert result.passed is None
    assert capsys.readouterr().out.startswith(f"{kind} not yet: ")
    if kind == "scheduler":
        assert swap(kind, lambda eps, span, x_t: None, pipe).passed is None


def test_a_part_whose_weights_do_not_fit_is_told_which(pipe):
    class Biased(MyAttention):
        def __init__(self, width, heads, context_width):
            super().__init__(width, heads, context_width)
            self.extra = nn.Linear(width, width)

    result = swap("attention", Biased, pipe)
    assert result.passed is False
    assert "extra.weight is not in the model" in result.hint


def test_the_librarys_own_parts_pass(pipe):
    assert swap("attention", Attention, pipe).passed
    assert swap("resnet", ResnetBlock, pipe).passed
    assert swap("scheduler", DDIMScheduler, pipe).passed
    assert swap("scheduler", DDPMScheduler, pipe).passed is False


def test_a_difference_that_only_the_whole_network_shows_is_placed_at_its_block(pipe):
    class Late(MyResnet):
        def forward(self, x, time):
            return super().forward(x, time) + 0.1 * (x.shape[-1] == 8)  # where the input is 8 wide

    result = swap("resnet", Late, pipe)
    assert result.passed is False
    assert result.where == "down.0.resnets.0"
    assert "the first block that differs is down.0.resnets.0" in result.hint


def test_a_part_that_stops_becomes_a_hint_and_an_unknown_kind_an_error(pipe):
    assert "TypeError" in swap("attention", nn.Linear(2, 2), pipe).hint
    with pytest.raises(ValueError, match="expected one of"):
        swap("vae", MyResnet, pipe)
