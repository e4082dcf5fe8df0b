"""Chapter 14: official weights, and performance."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from minisd.teach.checks import Exercise, NotYet, Wrong, call, number, seeded, sentences

Parts = Mapping[str, tuple[int, float]]  # name -> (calls, seconds of one call)
UNET = 859_520_964  # parameters of SD 1.5's UNet
PAIR = "it returns {!r:.60}, expected a pair: (name, how many times faster the whole becomes)"


def memory(answer: Any) -> str:
    """The check of 14.1: decimal gigabytes, or binary ones."""
    if abs(float(answer) - UNET * 2 / 2**30) < 0.02:  # GiB, as many programs count
        return ""
    return number(UNET * 2 / 1e9, 0.05, {
        "4 bytes are float32; float16 has 16 bits, and a byte has 8": UNET * 4 / 1e9,
        "those are gigabits: a byte has 8 bits": UNET * 16 / 1e9,
        "2 bits or 2 bytes? A float16 number has 16 bits": UNET * 2 / 8 / 1e9,
        "that is one byte for each; float16 has 16 bits": UNET / 1e9,
        "those are megabytes; a gigabyte has a thousand of them": UNET * 2 / 1e6,
        "those are bytes; a gigabyte has 1,000,000,000 of them": float(UNET * 2),
        "8 bytes are float64; float16 has 16 bits": UNET * 8 / 1e9,
    }, "parameters x bytes for each of them, in 1,000,000,000 bytes")(answer)  # fmt: skip


FIXED = (  # in neither is the longest call the bottleneck; in the second nor the most frequent one
    {"text": (2, 0.03), "loop": (40, 0.11), "picture": (1, 0.9), "file": (1, 0.05)},
    {"text": (60, 0.002), "loop": (20, 0.4), "picture": (1, 3.0), "file": (1, 0.1)},
)


def tables(count: int = 4) -> list[dict[str, tuple[int, float]]]:
    """Timing tables: two that tell mistakes apart, then some with random numbers."""
    found = [dict(table) for table in FIXED]
    for seed in range(count):
        calls = torch.randint(1, 40, (4,), generator=seeded(seed)).tolist()
        seconds = (0.02 + torch.rand(4, generator=seeded(seed))).tolist()
        found.append(dict(zip(FIXED[0], zip(calls, seconds))))
    return found


def gain(parts: Parts, name: str) -> float:
    """How many times faster all parts together are if one of them takes half its time."""
    total = {part: calls * seconds for part, (calls, seconds) in parts.items()}
    return sum(total.values()) / (sum(total.values()) - total[name] / 2)


def right_bottleneck(parts: Parts) -> tuple[str, float]:
    name = max(parts, key=lambda part: math.prod(parts[part]))
    return name, gain(parts, name)


def _share(parts: Parts, name: str) -> float:
    return math.prod(parts[name]) / sum(math.prod(part) for part in parts.values())


def _longest(parts: Parts) -> str:
    return max(parts, key=lambda part: parts[part][1])


def _called(parts: Parts) -> str:
    return max(parts, key=lambda part: parts[part][0])


WRONG_NAMES: dict[str, Callable[[Parts], str]] = {
    "that is the part with the longest single call; some parts are called many times": _longest,
    "that is the part that is called most often; look also at how long a call takes": _called,
    "that is the part with the least time in all":
        lambda parts: min(parts, key=lambda part: math.prod(parts[part])),
}  # fmt: skip
WRONG_GAINS: dict[str, Callable[[Parts, str], float]] = {
    "only this part becomes twice as fast; the others take as long as before":
        lambda parts, name: 2.0,
    "upside down: the old time over the new one is more than 1":
        lambda parts, name: 1 / gain(parts, name),
    "that is the share of the part, not what is gained": _share,
    "that is how much time is saved; asked is the old time over the new one":
        lambda parts, name: math.prod(parts[name]) / 2,
    "half of the part's time is left; you took all of it away":
        lambda parts, name: 1 / (1 - _share(parts, name)),
    "the calls are missing in the times of the parts": lambda parts, name: gain(
        {part: (1, seconds) for part, (_, seconds) in parts.items()}, name
    ),
    "1 plus half of the share is only right for small shares: divide the old time by the new one":
        lambda parts, name: 1 + _share(parts, name) / 2,
}  # fmt: skip


def _as_pair(given: Any) -> tuple[str, float]:
    """Raises Wrong for anything but a name and a number."""
    if isinstance(given, str) or not isinstance(given, (tuple, list)) or len(given) != 2:
        raise Wrong(PAIR.format(given))
    name, factor = given
    if name is None and factor is None:
        raise NotYet
    if not isinstance(name, str):
        raise Wrong("the first of the pair is the name of the part, as a string")
    return name, float(factor)


def bottleneck(answer: Any) -> str:
    """The check of 14.2."""
    for parts in tables():
        name, factor = _as_pair(call(answer, dict(parts)))
        right, right_factor = right_bottleneck(parts)
        if name not in parts:
            return f"{name!r} is no part of this table; it has {list(parts)}"
        if name != right:
            wrong = [hint for hint, rule in WRONG_NAMES.items() if rule(parts) == name]
            return wrong[0] if wrong else f"in {parts}, {name!r} does not take the most time"
        if not math.isclose(factor, right_factor, rel_tol=1e-3):
            close = [hint for hint, rule in WRONG_GAINS.items()
                     if math.isclose(factor, rule(parts, right), rel_tol=1e-3)]  # fmt: skip
            said = f"the name is right; in {parts} the whole does not become {factor:.3g} times "
            return close[0] if close else said + "as fast: what is its time before, and after?"
    return ""


LEVELS, DEPTH = 4, 2  # of SD 1.5's UNet
BLOCKS = [f"down.{i}.{kind}.{j}" for i in range(LEVELS) for j in range(DEPTH)
          for kind in ("resnets", "attentions") if i < 3 or kind == "resnets"]  # fmt: skip
NAMES = BLOCKS + [f"down.{i}.downsample" for i in range(LEVELS - 1)]


def official(
    name: str, start: int = 1, each: int = DEPTH + 1, op: str = ".0.op", place: str = "01"
) -> str:
    """CompVis' name of a block on the way down, or what becomes of it by a mistake."""
    _, i, kind, *rest = name.split(".")
    if kind == "downsample":
        return f"input_blocks.{int(i) * each + DEPTH + start}{op}"
    number = int(i) * each + int(rest[0]) + start
    return f"input_blocks.{number}.{place[kind == 'attentions']}"


def theirs(name: str) -> str:
    """diffusers' name."""
    if name.endswith("downsample"):
        return name.replace("down.", "down_blocks.").replace("sample", "samplers.0.conv")
    return name.replace("down.", "down_blocks.")


WRONG_RULES: dict[str, Callable[[str], str]] = {
    "that is our own name, unchanged": lambda name: name,
    "that is diffusers' name; asked is CompVis', who numbers its blocks flat": theirs,
    "block 0 is conv_in: the first residual block is number 1": lambda n: official(n, start=0),
    "one too far: conv_in is block 0, and the first residual block is 1":
        lambda n: official(n, start=2),
    "each downsample is a block of its own and takes a number, so that a level has three":
        lambda n: official(n, each=DEPTH),
    "the attention block sits in the same numbered block as its residual block, at place 1":
        lambda n: official(n, place="00"),
    "the places are swapped: 0 is the residual block, 1 the attention block":
        lambda n: official(n, place="10"),
    "the downsample's convolution is called op, and sits at place 0: input_blocks.3.0.op":
        lambda n: official(n, op=".0"),
    "the downsample's convolution is at place 0 of its block: input_blocks.3.0.op":
        lambda n: official(n, op=".op"),
    "the downsample's convolution is called op there, not conv":
        lambda n: official(n, op=".0.conv"),
    "only CompVis' name is asked, without the prefix of the whole file":
        lambda n: "model.diffusion_model." + official(n),
    "the place inside the block is missing: .0 for a residual block, .1 for an attention block":
        lambda n: official(n) if n.endswith("sample") else official(n).rpartition(".")[0],
}  # fmt: skip


def rename(answer: Any) -> str:
    """The check of 14.3."""
    given = {name: call(answer, name) for name in NAMES}
    wrong = {name: one for name, one in given.items() if one != official(name)}
    if not wrong:
        return ""
    for hint, rule in WRONG_RULES.items():
        if all(given[name] == rule(name) for name in NAMES):
            return hint
    name, one = next(iter(wrong.items()))
    if not isinstance(one, str):
        return f"for {name!r} it returns {one!r:.60}, expected a string"
    for hint, rule in WRONG_RULES.items():  # right for most names, wrong for some
        if one == rule(name):
            return f"for {name!r}: {hint}"
    if re.fullmatch(r"input_blocks\.\d+\..*", one):
        return f"for {name!r}, {one!r} is not the block: count conv_in and every downsample too"
    return f"for {name!r} it returns {one!r:.60}, expected something like 'input_blocks.4.0'"


EXERCISES = {
    "14.1": Exercise(
        "predict",
        f"the UNet of SD 1.5 has {UNET:,} parameters: how many gigabytes are its weights in "
        "float16?",
        memory,
        "two bytes for each: 1.72 GB, or 1.60 GiB, as programs that count in 1024s say",
    ),
    "14.2": Exercise(
        "fill-in",
        "write bottleneck(parts): from name -> (calls, seconds of one call), the part that takes "
        "the most time in all, and how many times faster the whole is if that part takes half",
        bottleneck,
        "Amdahl's law: what is not made faster sets the limit",
    ),
    "14.3": Exercise(
        "fill-in",
        "write official(name): what CompVis calls our down.i.resnets.j, down.i.attentions.j and "
        "down.i.downsample of SD 1.5's UNet",
        rename,
        "that is how the walk in weights_convert/names.py counts",
    ),
    "14.4": Exercise(
        "open",
        "which of the ways to be faster would you use on your machine, and which numbers decide?",
        sentences(),
        "to compare: first what changes no picture (the fused kernel, one batch, perhaps the "
        "layout or the compiler), then half precision where the device is fast at it and the "
        "difference is below what you see; fewer steps last, for they change the picture most",
    ),
}  # fmt: skip
