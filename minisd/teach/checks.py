"""Checking an answer: passed, not yet, or a hint that fits the mistake. A check never raises."""

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

Verify = Callable[[Any], str]  # an answer -> a hint, "" if it is right
_OWN_SEED = ContextVar("_OWN_SEED", default=0)


class NotYet(Exception):  # noqa: N818 - not an error
    """Raised inside a check when the student's function returns nothing."""


class Wrong(Exception):  # noqa: N818 - not an error
    """Raised inside a check with the hint, where there is nothing to compare."""


@dataclass(frozen=True)
class Exercise:
    """One exercise. kind: "predict" (a number before running), "fill-in" (a function) or "open"
    (a few sentences or a measurement); `task` is printed while there is no answer; `done` after it.
    """

    kind: str
    task: str
    verify: Verify
    done: str = ""


@dataclass(frozen=True)
class Result:
    """`passed` is True, False, or None as long as there is no answer."""

    key: str
    passed: bool | None
    hint: str = ""

    def __bool__(self) -> bool:
        return bool(self.passed)

    def __str__(self) -> str:
        word = {True: "passed", False: "not right", None: "not yet"}[self.passed]
        return f"{self.key} {word}" + (f": {self.hint}" if self.hint else "")

    def _ipython_display_(self) -> None:
        """Nothing: `check` has printed it already."""


def exercises(chapter: int) -> dict[str, Exercise]:
    """The exercises of a chapter, "02.1" -> Exercise; none for a chapter without a module."""
    name = f"minisd.teach.exercises.ch{chapter:02d}"
    try:
        return import_module(name).EXERCISES
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return {}


def find(key: str) -> Exercise:
    """Raises ValueError if there is no such exercise."""
    chapter = int(key[:2]) if re.fullmatch(r"\d\d\.\d+", key) else 0
    known = exercises(chapter)
    if key not in known:
        listed = ", ".join(known) or 'keys look like "02.1"'
        raise ValueError(f"there is no exercise {key!r}; {listed}")
    return known[key]


def check(key: str, answer: Any) -> Result:
    """Check an answer to an exercise ("05.2"), print how it went, return it as a Result.

    None or ... is "not yet". A mistake in the student's code becomes a hint, never an exception.
    """
    exercise = find(key)
    if answer is None or answer is ...:
        result = Result(key, None, exercise.task)
    else:
        result = _judge(key, exercise, answer)
    print(result)
    return result


@contextmanager
def inputs_of(name: str) -> Iterator[None]:
    """Inside, checks draw inputs of this name's own: the same name, the same inputs."""
    token = _OWN_SEED.set(zlib.crc32(name.encode()))
    try:
        yield
    finally:
        _OWN_SEED.reset(token)


def seeded(seed: int) -> torch.Generator:
    """What a check draws its inputs from: the same for everybody, but inside `inputs_of`."""
    return torch.Generator().manual_seed(seed + _OWN_SEED.get())


def _judge(key: str, exercise: Exercise, answer: Any) -> Result:
    try:
        with torch.random.fork_rng(devices=[]):  # a check leaves the notebook's random numbers be
            hint = exercise.verify(answer)
    except (NotYet, NotImplementedError):
        return Result(key, None, exercise.task)
    except Wrong as wrong:
        return Result(key, False, str(wrong))
    except Exception as error:
        return Result(key, False, f"your code stopped with {type(error).__name__}: {error}")
    return Result(key, not hint, hint or exercise.done)


def call(answer: Any, *arguments: Any) -> Any:
    """What the student's function returns for copies of the arguments. Raises NotYet for nothing,
    Wrong if the answer is not a function or changes what it was given.
    """
    if not callable(answer):
        raise Wrong(f"expected the function itself (without brackets), got {answer!r:.60}")
    copies = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    given = answer(*copies)
    if given is None or given is ...:
        raise NotYet
    for copy, original in zip(copies, arguments):
        if isinstance(original, Tensor) and not torch.equal(copy, original):
            raise Wrong("it changes the tensor that it was given; make a new one (no +=)")
    return given


def draws(answer: Any, *arguments: Any) -> str:
    """A hint if two calls with the same arguments differ: the answer draws noise by itself."""
    first, second = (as_numbers(call(answer, *arguments)) for _ in range(2))
    if first is None or second is None or first.shape != second.shape:
        return ""
    if torch.equal(first.nan_to_num(), second.nan_to_num()):
        return ""
    return "it gives something else every time: it draws noise of its own; use what it is given"


def as_numbers(given: Any) -> Tensor | None:
    """A tensor, number, array or list of them as a float tensor; None for anything else."""
    try:
        if isinstance(given, (list, tuple)):  # of numbers, tensors or arrays
            given = torch.stack([torch.as_tensor(one) for one in given])
        return torch.as_tensor(given).detach().float()
    except (TypeError, ValueError, RuntimeError):
        return None


def compare(
    given: Any, right: Tensor, mistakes: Mapping[str, Any], tolerance: float = 1e-4,
    advice: str = "try it by hand on a single number",
) -> str:  # fmt: skip
    """The hint for a result: none if it is `right`, else the key of `mistakes` whose value it is (a
    tuple holds several), else what can be said of the numbers: their shape, their sign, their size,
    with `advice` how to go on. `tolerance` is a share of the largest value.
    """
    numbers, right = as_numbers(given), right.detach().float()
    if numbers is None:
        return f"it returns a {type(given).__name__}, expected a tensor {tuple(right.shape)}"
    given = numbers
    if _same(given, right, tolerance):
        return ""
    for hint, wrong in mistakes.items():
        for one in wrong if isinstance(wrong, tuple) else (wrong,):
            if _same(given, torch.as_tensor(one).detach().float(), tolerance):
                return hint
    if given.shape != right.shape:
        return f"its shape is {tuple(given.shape)}, expected {tuple(right.shape)}"
    if not given.isfinite().all():
        return "it holds inf or nan: is there a division by zero, or the root of a negative number?"
    if _same(given, -right, tolerance):
        return "the sign is wrong: every number is minus what it should be"
    ratio = (given * right).sum() / right.square().sum().clamp(min=1e-12)
    if right.numel() > 1 and _same(given, ratio * right, tolerance):
        return f"right up to a factor: every number is {ratio.item():.3g} times what it should be"
    worst = (given - right).abs().max().item()
    return f"the numbers differ by up to {worst:.3g}; {advice}"


def _same(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.shape != b.shape:
        return False
    return torch.allclose(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


def number(right: float, tolerance: float, mistakes: Mapping[str, float], other: str) -> Verify:
    """A check of a number: right within `tolerance`, else the hint of the nearest known mistake
    within it, else `other`.
    """

    def verify(answer: Any) -> str:
        value = float(answer)
        if abs(value - right) <= tolerance:
            return ""
        near = [hint for hint, wrong in mistakes.items() if abs(value - wrong) <= tolerance]
        return near[0] if near else other

    return verify


def sentences(least: int = 12) -> Verify:
    """A check of an open question: some words of one's own. What is in them nobody grades."""

    def verify(answer: Any) -> str:
        count = len(answer.split()) if isinstance(answer, str) else 0
        return "" if count >= least else f"write it down in a string, at least {least} words"

    return verify
