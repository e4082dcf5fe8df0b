"""Chapter 13: LoRA and textual inversion."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minisd.lora import LoRA
from minisd.teach.checks import Exercise, NotYet, call, compare, number, seeded, sentences


def _layer(d_in: int, d_out: int, seed: int) -> nn.Linear:
    """A layer of weights near 1, so that nothing of it is small by chance."""
    draw, layer = seeded(seed), nn.Linear(d_in, d_out)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw)
    return layer.requires_grad_(False)


def _parts(module: nn.Module, layer: nn.Linear, rank: int) -> str:
    """What is wrong with the matrices of a new adapter; "" if nothing."""
    for name in ("A", "B"):
        if not isinstance(getattr(module, name, None), nn.Parameter):
            return f"{name} is no nn.Parameter, so that no optimizer would find it"
    given = tuple(module.A.shape), tuple(module.B.shape)
    expected = (rank, layer.in_features), (layer.out_features, rank)
    if given == expected[::-1] or given == tuple(shape[::-1] for shape in expected[::-1]):
        return "A and B are swapped: A goes down, (r, d_in), B goes up, (d_out, r)"
    if given != expected:
        return f"A and B have shapes {given}, expected (r, d_in) and (d_out, r), here {expected}"
    if module.B.any():
        return "B does not start at zero: a new adapter has to change nothing"
    if not module.A.any():
        return "A and B both start at zero: then neither ever gets a gradient; draw A at random"
    return ""


def adapted(answer: Any) -> str:
    """The check of 13.1."""
    draw, layer = seeded(13), _layer(6, 4, 131)
    x = torch.randn(3, 6, generator=draw)
    module = call(answer, layer, 2, 3.0)
    if not isinstance(module, nn.Module):
        return f"it makes a {type(module).__name__}, expected an nn.Module"
    out = module(x)
    if out is None or out is ...:
        raise NotYet
    return (
        _parts(module, layer, 2)
        or compare(out, layer(x), {"the layer's own output is missing": torch.zeros(3, 4)})
        or _formula(answer, draw)
    )


def _formula(answer: Any, draw: torch.Generator) -> str:
    """The same with numbers in B; all is 5 wide, so that a wrong order does not stop by itself."""
    layer, alpha, rank = _layer(5, 5, 132), 3.0, 5
    x, a, b = torch.randn(3, 5, 5, generator=draw)
    module, ours = call(answer, layer, rank, alpha), LoRA(layer, rank, alpha)
    for one in (module, ours):
        one.A.data, one.B.data = a.clone(), b.clone()
    out, part = layer(x), F.linear(F.linear(x, a), b)
    return compare(module(x), out + ours(x, layer, out), {
        "the factor alpha / r is missing": out + part,
        "alpha is there, and not divided by r": out + alpha * part,
        "alpha is missing: the factor is alpha / r": out + part / rank,
        "the factor is upside down: it is alpha / r": out + rank / alpha * part,
        "B comes first here; x goes down through A, then up through B":
            out + alpha / rank * F.linear(F.linear(x, b), a),
        "a transpose is missing: x is a row, so that W x is written x @ W.T":
            out + alpha / rank * x @ a @ b,
        "a transpose is missing: x is a row, so that B A x is written x @ A.T @ B.T":
            out + alpha / rank * x @ b @ a,
        "the layer's own output is missing": alpha / rank * part,
        "the layer's bias is missing: call the layer itself":
            out - layer.bias + alpha / rank * part,
    }, 1e-5)  # fmt: skip


def merged(answer: Any) -> str:
    """The check of 13.2."""
    draw, alpha, scale = seeded(133), 4.0, 0.7
    for d_out, d_in, rank in ((5, 5, 5), (4, 6, 2)):  # square first: no order stops by itself
        weight = torch.randn(d_out, d_in, generator=draw)
        a, b = torch.randn(rank, d_in, generator=draw), torch.randn(d_out, rank, generator=draw)
        product, s = b @ a, scale * alpha / rank
        wrong = {
            "alpha is missing: the factor is scale * alpha / r": weight + scale / rank * product,
            "alpha is there, and not divided by r": weight + scale * alpha * product,
            "the factor alpha / r is missing": weight + scale * product,
            "the scale is missing": weight + alpha / rank * product,
            "alpha is divided by d_in; it is divided by r, the number of rows of A":
                weight + scale * alpha / d_in * product,
            "the scale is the update's alone; W stays as it is":
                scale * (weight + alpha / rank * product),
            "the sign is wrong: the update is added": weight - s * product,
            "that is the update alone; add it to W": s * product,
        }  # fmt: skip
        if d_out == d_in == rank:
            wrong["A and B are swapped: it is B @ A, (d_out, r) times (r, d_in)"] = (
                weight + s * a @ b
            )
            wrong["the update is transposed"] = weight + s * product.T
        hint = compare(call(answer, weight, a, b, alpha, scale), weight + s * product, wrong, 1e-5)
        if hint:
            return hint
    return ""


def _with(rows: list[int], inside: Tensor, outside: Tensor) -> Tensor:
    """The rows of one table in the place of those of another."""
    table = outside.clone()
    table[rows] = inside[rows]
    return table


def one_row(answer: Any) -> str:
    """The check of 13.4."""
    draw, rows, rate = seeded(134), [7, 8], 0.1
    table, gradient = torch.randn(2, 12, 4, generator=draw)
    down = table - rate * gradient
    return compare(call(answer, table, gradient, rows, rate), _with(rows, down, table), {
        "every row has moved, and with them all the words of the captions": down,
        "the new word's rows rest and all others move: the other way round":
            _with(rows, table, down),
        "the sign is wrong: down the gradient is minus":
            _with(rows, table + rate * gradient, table),
        "the rate is missing": _with(rows, table - gradient, table),
        "only the first of the rows has moved: a word may have several":
            _with(rows[:1], down, table),
        "these are the new rows alone; return the whole table": down[rows],
        "nothing has moved": table,
        "the other rows are zero; they stay as they were":
            _with(rows, down, torch.zeros_like(table)),
    }, 1e-5)  # fmt: skip


EXERCISES = {
    "13.1": Exercise(
        "fill-in",
        "write Adapted(layer, rank, alpha), a module with A, B and forward(x): W x + b and "
        "alpha / r B A x",
        adapted,
        "at its start it changes nothing, and later it is the library's LoRA",
    ),
    "13.2": Exercise(
        "fill-in",
        "write merged(weight, A, B, alpha, scale): the weights with the adapter in them",
        merged,
        "one matrix again, as fast as before",
    ),
    "13.3": Exercise(
        "predict",
        'how many rows of the table get a gradient from the one caption "a <moon> and a star"?',
        number(6, 0.4, {
            "that is how many rows shall learn; a gradient goes to every row that was looked up":
                1,
            "those are the words; the tokenizer adds something before and behind them": 4,
            "nearly: there is a token before the words, and one behind them": 5,
            'a row that is looked up twice is still one row: "a" comes twice': 7,
            "77 positions are looked up, but many of them in the same row": 77,
        }, "count the different tokens, with those that the tokenizer adds"),
        "start, a, <moon>, and, star, end: five of them belong to others",
    ),
    "13.4": Exercise(
        "fill-in",
        "write step(table, gradient, rows, rate): the table (n, d) after one step down the "
        "gradient in which only these rows have moved",
        one_row,
        "all other words are exactly what they were",
    ),
    "13.5": Exercise(
        "open",
        "which rank would you choose for the mushroom, and by which of the figures?",
        sentences(),
        "to compare: the smallest rank whose error on unseen pictures is close to the best one; "
        "beyond it the file grows, and little is gained",
    ),
}  # fmt: skip
