"""What a caller gives, checked: a wrong kind of value is an error before any work begins."""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any


def texts(name: str, value: str | Sequence[str]) -> list[str]:
    """One text or several as a list. Raises ValueError for anything else."""
    found = [value] if isinstance(value, str) else value
    found = list(found) if isinstance(found, Iterable) else [found]
    if not all(isinstance(one, str) for one in found):
        raise ValueError(f"{name} is {value!r:.60}, expected a text or a list of texts")
    return found


def whole(name: str, value: int) -> int:
    """A whole number. Raises ValueError for anything else."""
    if not isinstance(value, Integral):
        raise ValueError(f"{name} is {value!r:.60}, expected a whole number")
    return value


def number(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from low to high. Raises ValueError for anything else."""
    try:
        fits = math.isfinite(value) and low <= value <= high
    except TypeError:  # a text, a list
        fits = False
    if not fits:
        expected = "a number" if math.isinf(low) else f"{low} to {high}"
        raise ValueError(f"{name} is {value!r:.60}, expected {expected}")
    return value


def shape_of(value: Any) -> tuple[int, ...] | str:
    """The shape of a tensor, or the name of what was given in its place, for an error's text."""
    return tuple(value.shape) if hasattr(value, "shape") else type(value).__name__
