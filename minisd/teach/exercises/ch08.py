"""Chapter 08: inside the UNet."""

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minisd.config import SD15
from minisd.layers import ResnetBlock, timestep_embedding
from minisd.teach.checks import Exercise, call, compare, seeded, sentences
from minisd.unet import UNet

OTHERS = 123_060_480 + 83_653_863  # parameters of SD 1.x's text encoder and autoencoder


@cache
def official() -> UNet:
    """SD 1.x's UNet without its numbers: on the meta device a tensor is its shape alone."""
    with torch.device("meta"):
        return UNet(SD15.unet)


@cache
def way_up() -> list[tuple[int, int, int]]:
    """For each residual block of SD's way up: channels of x, of the skip, and of what it returns"""
    unet, rows = official(), []
    x = unet.mid.resnet2.conv2.out_channels
    for stage in unet.up:
        for resnet in stage.resnets:
            both, out = resnet.conv1.in_channels, resnet.conv1.out_channels
            rows.append((x, both - x, out))
            x = out
    return rows


def concatenated(answer: Any) -> str:
    """The check of 08.1."""
    if not isinstance(answer, (list, tuple)) or len(answer) != len(way_up()):
        return "give a list of twelve numbers, in the order of the way up: [2560, ...]"
    given, right = [int(value) for value in answer], [x + skip for x, skip, _ in way_up()]
    if given == right:
        return ""
    wrong = {
        "these are the channels before the concatenation; the skip's come on top":
            [x for x, _, _ in way_up()],
        "these are the skips alone; the features from below are there too":
            [skip for _, skip, _ in way_up()],
        "this is what each block returns; asked is what goes in": [out for *_, out in way_up()],
        "in the order in which the skips were made; the way up reads the last one first":
            right[::-1],
        "every skip is taken to be as wide as the level that reads it; a level's last skip was "
        "made by the downsampling before it, and has the width of the level above":
            [x + out for x, _, out in way_up()],
    }  # fmt: skip
    for hint, value in wrong.items():
        if given == value:
            return hint
    place = next(i for i in range(len(right)) if given[i] != right[i])
    return (
        f"number {place + 1} of 12 is not {given[place]}: add the channels of the features so far "
        "and those of the skip that is on top of the stack"
    )


def waves(answer: Any) -> str:
    """The check of 08.2."""
    t, width, half = torch.tensor([0.0, 1.0, 37.0, 500.0, 999.0]), 16, 8
    right, i = timestep_embedding(t, width), torch.arange(half)

    def angles(frequencies: Tensor) -> Tensor:
        return t[:, None] * frequencies

    def joined(frequencies: Tensor) -> Tensor:
        a = angles(frequencies)
        return torch.cat([a.cos(), a.sin()], dim=-1)

    usual = 10_000.0 ** (-i / half)
    cos, sin = angles(usual).cos(), angles(usual).sin()
    return compare(call(answer, t, width), right, {
        "the sines come first; Stable Diffusion's first half are the cosines":
            torch.cat([sin, cos], dim=-1),
        "the exponent is divided by half - 1; here the slowest wave stops one step short of "
        "1/10000: divide by half": joined(10_000.0 ** (-i / (half - 1))),
        "cosines and sines take turns; first come all cosines, then all sines":
            rearrange([cos, sin], "two b i -> b (i two)"),
        "the exponent is divided by the width; there are only half as many frequencies":
            joined(10_000.0 ** (-i / width)),
        "the frequencies grow with i; the exponent needs a minus": joined(10_000.0 ** (i / half)),
        "all cosines and no sines": torch.cat([cos, cos], dim=-1),
        "all sines and no cosines": torch.cat([sin, sin], dim=-1),
        "the angles are in whole turns; leave out 2 pi": joined(2 * math.pi * usual),
        "these are the angles; their cosines and sines are asked": angles(usual).repeat(1, 2),
    }, tolerance=2e-3)  # fmt: skip


def norm(answer: Any) -> str:
    """The check of 08.3."""
    draw, groups, eps = seeded(8), 4, 0.2
    x = torch.randn(3, 12, 2, 3, generator=draw) * 1.5 + 0.7
    x = x * torch.linspace(0.5, 2, 12)[:, None, None]  # channels of different size

    g = rearrange(x, "b (g c) h w -> b g (c h w)", g=groups)
    mean, var = g.mean(-1, keepdim=True), g.var(-1, keepdim=True, unbiased=False)

    def back(v: Tensor) -> Tensor:
        return v.reshape(x.shape)

    mixed = rearrange(x, "b (c g) h w -> b g (c h w)", g=groups)
    mixed = F.layer_norm(mixed, mixed.shape[-1:], eps=eps)
    batch = rearrange(x, "b (g c) h w -> g (b c h w)", g=groups)
    batch = F.layer_norm(batch, batch.shape[-1:], eps=eps)
    return compare(call(answer, x, groups, eps), F.group_norm(x, groups, eps=eps), {
        "the mean is not subtracted": back(g / (var + eps).sqrt()),
        "it is divided by the variance; divide by its square root": back((g - mean) / (var + eps)),
        "eps is missing": back((g - mean) / var.sqrt()),
        "eps is added to the standard deviation; it belongs under the root":
            back((g - mean) / (var.sqrt() + eps)),
        "var and std divide by n - 1 unless they are told unbiased=False":
            back((g - mean) / (g.var(-1, keepdim=True) + eps).sqrt()),
        "every channel is normalised alone; a group is several channels together":
            F.group_norm(x, 12, eps=eps),
        "all channels are normalised together; each group has a mean of its own":
            F.group_norm(x, 1, eps=eps),
        "groups is taken for the size of a group; it is how many groups there are":
            F.group_norm(x, 12 // groups, eps=eps),
        "a group is made of every so-many-th channel; it is made of neighbours, (g c)":
            rearrange(mixed, "b g (c h w) -> b (c g) h w", h=2, w=3),
        "the mean is taken over the whole batch; every picture has its own":
            rearrange(batch, "g (b c h w) -> b (g c) h w", b=3, h=2, w=3),
    })  # fmt: skip


def counted(answer: Any) -> str:
    """The check of 08.5."""
    if not isinstance(answer, (list, tuple)) or len(answer) != 3:
        return "give three numbers: (residual blocks, concatenations, parameters)"
    unet, up = official(), len(way_up())
    resnets = sum(isinstance(module, ResnetBlock) for module in unet.modules())
    tensors = [parameter.numel() for parameter in unet.parameters()]
    total = sum(tensors)
    for name, given, right, known, other in (
        ("residual blocks", answer[0], resnets, {
            resnets - 2: "two more are in the middle",
            up: "that is the way up alone",
            up + 2: "the way down has some too",
        }, "count the modules of class ResnetBlock"),
        ("concatenations", answer[1], up, {
            up - 4: "conv_in and the three downsamplings make skips too",
            up - 3: "the three downsamplings make skips too",
            up - 1: "conv_in makes a skip too",
            resnets: "only the blocks of the way up concatenate",
        }, "there is one for every residual block of the way up"),
        ("parameters", answer[2], total, {
            4 * total: "these are bytes in float32; a parameter has four of them",
            2 * total: "these are bytes in float16; a parameter has two of them",
            len(tensors): "these are the tensors; add up their numel()",
            total + OTHERS: "these are all three networks of the pipeline",
        }, "add up p.numel() over unet.parameters()"),
    ):  # fmt: skip
        if int(given) != right:
            return f"{name}: {known.get(int(given), other)}"
    return ""


EXERCISES = {
    "08.1": Exercise(
        "predict",
        "how many channels go into each of the twelve residual blocks of SD's way up? A list of "
        "twelve numbers, in the order of computation",
        concatenated,
        "the skips are read in reverse order, and a level's last one is narrower where the level "
        "above is",
    ),
    "08.2": Exercise(
        "fill-in",
        "write waves(t, width): timesteps t (b,) to (b, width), first all cosines, then all sines",
        waves,
        "the same waves as the library's: fast ones first, slow ones last",
    ),
    "08.3": Exercise(
        "fill-in",
        "write group_norm(x, groups, eps): x (b, c, h, w) to the same shape, every group of every "
        "picture with mean 0 and variance 1, without weight and bias",
        norm,
        "groups of neighbouring channels, each picture by itself",
    ),
    "08.4": Exercise(
        "open",
        "the UNet is told wrong timesteps: what did you expect, what do the pictures show, why?",
        sentences(),
        "to compare: the steps' arithmetic was right, only the UNet was misled. It can see in x_t "
        "itself how much noise there is; the wrong number shifts its features, and spoils a part "
        "of the prediction",
    ),
    "08.5": Exercise(
        "predict",
        "SD's UNet: how many residual blocks, concatenations and parameters? A tuple of three",
        counted,
        "your classes with the official sizes are Stable Diffusion's UNet, to the last parameter",
    ),
}  # fmt: skip
