"""A student's own part in the real model, with its weights: equal numbers, or where they part."""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minisd.attention import Attention
from minisd.layers import ResnetBlock
from minisd.pipeline import StableDiffusionPipeline
from minisd.schedulers import NoiseSchedule
from minisd.teach.checks import compare
from minisd.teach.mistakes import attention_hint, resnet_hint, step_hint

TOLERANCE = 1e-4  # relative and absolute; the same formula in another order differs by about 1e-6
STEPS = 4  # of a scheduler that is compared


@dataclass(frozen=True)
class Swap:
    """`pipe` is a copy with the student's part (None if it could not be built in); `passed` is True
    for equal numbers, False, or None as long as there is nothing; `where` they first differ.
    """

    pipe: StableDiffusionPipeline | None
    passed: bool | None
    hint: str
    where: str = ""

    def __bool__(self) -> bool:
        return bool(self.passed)

    def __str__(self) -> str:
        word = {True: "identical", False: "not identical", None: "not yet"}[self.passed]
        return f"{word}: {self.hint}"

    def _ipython_display_(self) -> None:
        """Nothing: `swap` has printed it already."""


class Guest(nn.Module):
    """A student's module in the place of one of ours; it need not know of `record`."""

    def __init__(self, inner: nn.Module, path: str):
        super().__init__()
        self.inner, self.path = inner, path

    def forward(self, x: Tensor, other: Tensor | None = None, record: Any = None) -> Tensor:
        out = self.inner(x) if other is None else self.inner(x, other)
        if not isinstance(out, Tensor):
            raise ValueError(f"forward returns a {type(out).__name__}, expected a tensor")
        if record is not None:
            record[self.path] = out
        return out


def attention_arguments(module: Attention) -> tuple[int, int, int]:
    """width, heads, context_width"""
    return module.q.in_features, module.heads, module.k.in_features


def resnet_arguments(module: ResnetBlock) -> tuple[int, int, int, float, int | None]:
    """c_in, c_out, groups, eps, time_width"""
    time_width = None if module.time_proj is None else module.time_proj.in_features
    norm = module.norm1
    return (
        module.conv1.in_channels,
        module.conv1.out_channels,
        norm.num_groups,
        norm.eps,
        time_width,
    )


PARTS: dict[str, tuple[type, Callable, Callable]] = {
    "attention": (Attention, attention_arguments, attention_hint),
    "resnet": (ResnetBlock, resnet_arguments, resnet_hint),
}


def swap(kind: str, mine: Any, pipe: StableDiffusionPipeline) -> Swap:
    """Put `mine` into a copy of the pipeline and compare; prints how it went.

    kind "attention": a Module of (width, heads, context_width), forward(x, context=None), with the
    layers q, k, v (no bias), out. kind "resnet": a Module of (c_in, c_out, groups, eps,
    time_width), forward(x, time), with norm1, conv1, time_proj, norm2, conv2, shortcut. kind
    "scheduler": a function step(model_output, span, x_t) -> (x_prev, x_0), or a scheduler class.
    Raises ValueError for another kind; mistakes in `mine` become hints.
    """
    if kind not in (*PARTS, "scheduler"):
        raise ValueError(f"kind is {kind!r}, expected one of {[*PARTS, 'scheduler']}")
    if mine is None or mine is ...:
        result = Swap(None, None, f"write your own {kind} and give it to swap")
    else:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                build = swap_scheduler if kind == "scheduler" else swap_modules
                result = build(kind, mine, pipe)
        except NotImplementedError:
            result = Swap(None, None, "there is a NotImplementedError left in it")
        except Exception as error:
            result = Swap(None, False, f"your code stopped with {type(error).__name__}: {error}")
    print(f"{kind} {result}")
    return result


def swap_modules(kind: str, mine: type, pipe: StableDiffusionPipeline) -> Swap:
    """Every module of that kind in a copy of the UNet replaced, its weights carried over."""
    original, arguments, hint = PARTS[kind]
    unet = copy.deepcopy(pipe.unet)
    places = [(p, m) for p, m in unet.named_modules() if type(m) is original]
    for path, module in places:
        inner = mine(*arguments(module))
        if problem := misfit(module.state_dict(), inner.state_dict()):
            return Swap(None, False, f"its weights do not fit at {path}: {problem}", path)
        inner.load_state_dict(module.state_dict())
        inner.to(pipe.device, pipe.dtype).eval().requires_grad_(False)
        parent, _, name = path.rpartition(".")
        setattr(unet.get_submodule(parent), name, Guest(inner, path))
    for path, module in places:  # each alone first: there a typical mistake shows itself
        if said := hint(module, unet.get_submodule(path)):
            return Swap(dataclasses.replace(pipe, unet=unet), False, f"at {path}: {said}", path)
    where = first_difference(pipe.unet, unet)
    own = dataclasses.replace(pipe, unet=unet)
    if where:
        return Swap(own, False, f"the first block that differs is {where}", where)
    return Swap(own, True, f"{len(places)} modules are yours, and the UNet's output is the same")


def misfit(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """The first difference between two sets of weights in words; "" if they fit."""
    for key, value in wanted.items():
        if key not in given:
            return f"{key} {tuple(value.shape)} is missing, yours has {list(given)}"
        if given[key].shape != value.shape:
            return f"{key} is {tuple(given[key].shape)}, expected {tuple(value.shape)}"
    extra = [key for key in given if key not in wanted]
    return f"{extra[0]} is not in the model" if extra else ""


def first_difference(reference: nn.Module, own: nn.Module) -> str:
    """The first block, in the order of computation, at which two UNets part; "" if at none."""
    config, like = reference.config, next(reference.parameters())
    draw = torch.Generator().manual_seed(0)
    x_t = torch.randn(1, config.in_channels, 8, 8, generator=draw).to(like)
    context = torch.randn(1, 77, config.context_width, generator=draw).to(like)
    right, given = {}, {}
    right["the output"] = reference(x_t, 500, context, record=right)
    given["the output"] = own(x_t, 500, context, record=given)
    for path, value in right.items():
        same = path not in given or torch.allclose(value, given[path], TOLERANCE, TOLERANCE)
        if not same:
            return path
    return ""


def own_scheduler(mine: Any, like: NoiseSchedule) -> NoiseSchedule:
    """The student's scheduler: a class as it is, a step as the only method that differs."""
    if isinstance(mine, type):
        return mine(like.config)

    class Own(type(like)):
        def step(self, model_output: Tensor, span: Any, x_t: Tensor, **rest: Any) -> Any:
            return mine(model_output, span, x_t)

    return Own(like.config)


def swap_scheduler(kind: str, mine: Any, pipe: StableDiffusionPipeline) -> Swap:
    """A short run with the student's step beside one with the pipeline's own."""
    own = dataclasses.replace(pipe, scheduler=own_scheduler(mine, pipe.scheduler))
    config, draw = pipe.unet.config, torch.Generator().manual_seed(0)
    x_T = torch.randn(1, config.in_channels, 8, 8, generator=draw).to(pipe.device, pipe.dtype)
    cond = torch.randn(1, 77, config.context_width, generator=draw).to(x_T)

    def steps(one: StableDiffusionPipeline) -> Any:
        return one.denoise(x_T, cond, None, STEPS, generator=torch.Generator().manual_seed(1))

    plan = pipe.scheduler.plan(STEPS)
    first = mine(x_T, plan[0], x_T) if not isinstance(mine, type) else ()
    if first is None or first is ...:
        return Swap(None, None, "step returns nothing yet")
    if said := step_hint(own.scheduler, pipe.scheduler, plan[1], x_T):
        return Swap(own, False, said, f"t = {plan[1].t}")
    for right, given in zip(steps(pipe), steps(own)):
        for name in ("x_prev", "x_0"):
            if said := compare(getattr(given, name), getattr(right, name), {}, TOLERANCE):
                place = f"{name} at step {right.index}, t = {right.t}"
                return Swap(own, False, f"{place}: {said}", place)
    return Swap(own, True, f"{STEPS} steps of yours give the same latents")
