"""Typical mistakes in attention, residual block and DDIM step, recognised by what they compute."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.attention import Attention
from minisd.layers import ResnetBlock
from minisd.schedulers import NoiseSchedule, Span
from minisd.teach.checks import compare


def _draw(like: nn.Module, *shapes: tuple[int, ...]) -> list[Tensor]:
    draw, weight = torch.Generator().manual_seed(0), next(like.parameters())
    return [torch.randn(shape, generator=draw).to(weight) * 2 for shape in shapes]


def attention_hint(ours: Attention, theirs: nn.Module) -> str:
    """What differs between two attention modules of the same weights; "" if nothing."""
    x, context = _draw(ours, (2, 6, ours.q.in_features), (2, 9, ours.k.in_features))
    split = {"pattern": "b n (heads d) -> b heads n d", "heads": ours.heads}
    q, k, v = (rearrange(p, **split) for p in (ours.q(x), ours.k(context), ours.v(context)))
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k)
    d, merge = q.shape[-1] ** -0.5, "b heads n d -> b n (heads d)"

    def finish(weights: Tensor, form: str = merge) -> Tensor:
        return ours.out(rearrange(weights @ v, form))

    plain = (scores * d).softmax(-1)
    wrong = {
        "the scale is missing: divide the scores by sqrt(d)": finish(scores.softmax(-1)),
        "the scores are divided by d, not by its square root": finish((scores * d**2).softmax(-1)),
        "the scale is that of the whole width; d is the width of one head":
            finish((scores * x.shape[-1] ** -0.5).softmax(-1)),
        "softmax runs over the wrong axis: every query's weights over the keys sum to 1":
            finish((scores * d).softmax(-2)),
        "softmax is missing": finish(scores * d),
        "the last layer, out, is missing": rearrange(plain @ v, merge),
        "the heads are put together in the wrong order: (heads d), head by head":
            finish(plain, "b heads n d -> b n (d heads)"),
        "the features are split in the wrong order: (heads d), head by head": _mixed_heads(
            ours, x, context, merge),
        "the heads are split and put together in the wrong order: (heads d), head by head":
            _mixed_heads(ours, x, context, "b heads n d -> b n (d heads)"),
        "the heads are missing: this is attention with one head": ours.out(
            (ours.q(x) @ ours.k(context).mT * x.shape[-1] ** -0.5).softmax(-1) @ ours.v(context)),
    }  # fmt: skip
    if ours.k.in_features == ours.q.in_features:
        wrong["the context is not used: keys and values come from it"] = ours(x)
    return compare(theirs(x, context), ours(x, context), wrong)


def _mixed_heads(ours: Attention, x: Tensor, context: Tensor, merge: str) -> Tensor:
    """Attention whose heads take every so-many-th feature in place of neighbouring ones."""
    split = {"pattern": "b n (d heads) -> b heads n d", "heads": ours.heads}
    q, k, v = (rearrange(p, **split) for p in (ours.q(x), ours.k(context), ours.v(context)))
    return ours.out(rearrange((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v, merge))


def resnet_hint(ours: ResnetBlock, theirs: nn.Module) -> str:
    """What differs between two residual blocks of the UNet of the same weights; "" if nothing."""
    x, time = _draw(ours, (2, ours.conv1.in_channels, 4, 4), (2, ours.time_proj.in_features))
    right = ours(x, time)
    h = ours.conv1(F.silu(ours.norm1(x)))
    shift = ours.time_proj(F.silu(time))[:, :, None, None]
    skip = x if ours.shortcut is None else ours.shortcut(x)

    def finish(middle: Tensor) -> Tensor:
        return ours.conv2(F.silu(ours.norm2(middle))) + skip

    return compare(theirs(x, time), right, {
        "the input is not added at the end": right - skip,
        "the timestep is not used": finish(h),
        "SiLU is missing before the timestep's layer":
            finish(h + ours.time_proj(time)[:, :, None, None]),
        "the timestep is added after the second norm; it goes before":
            ours.conv2(F.silu(ours.norm2(h) + shift)) + skip,
        "SiLU is missing after the first norm": finish(ours.conv1(ours.norm1(x)) + shift),
        "SiLU is missing after the second norm": ours.conv2(ours.norm2(h + shift)) + skip,
        "SiLU comes before the norms; it goes after them": ours.conv2(ours.norm2(F.silu(
            ours.conv1(ours.norm1(F.silu(x))) + shift))) + skip,
    })  # fmt: skip


def step_hint(own: NoiseSchedule, ours: NoiseSchedule, span: Span, x_t: Tensor) -> str:
    """What differs in one step, DDIM's mistakes by name; "" if nothing."""
    draw = torch.Generator().manual_seed(2)
    eps = torch.randn(x_t.shape, generator=draw).to(x_t)

    def take(scheduler: NoiseSchedule) -> Any:
        return scheduler.step(eps, span, x_t, generator=torch.Generator().manual_seed(3))

    given, (x_prev, x_0) = take(own), take(ours)
    if not isinstance(given, tuple) or len(given) != 2:
        return "step returns one thing, expected the pair (x_prev, x_0)"
    a, b = span.alpha_bar, span.alpha_bar_prev
    return compare(given[0], x_prev, {
        "the pair is the wrong way round: (x_prev, x_0)": x_0,
        "the literal subtraction x_t - eps; predict x_0, then go back out to the next level":
            x_t - eps,
        "both levels have the same alpha_bar: go out to span.alpha_bar_prev": x_t,
        "the noise of the next level is missing: + sqrt(1 - alpha_bar_prev) eps": b**0.5 * x_0,
        "the root of 1 - alpha_bar_prev is missing": b**0.5 * x_0 + (1 - b) * eps,
        "the root of alpha_bar_prev is missing": b * x_0 + (1 - b) ** 0.5 * eps,
        "the sign of the noise is wrong": b**0.5 * x_0 - (1 - b) ** 0.5 * eps,
        "the division by sqrt(alpha_bar) is missing in x_0":
            b**0.5 * (x_t - (1 - a) ** 0.5 * eps) + (1 - b) ** 0.5 * eps,
    })  # fmt: skip
