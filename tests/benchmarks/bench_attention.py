"""Attention by itself: PyTorch's kernel, the formula, and the formula in blocks.

`python tests/benchmarks/bench_attention.py [--device cuda]`: the sizes of Stable Diffusion 1.5's
UNet (one guided call of 512 x 512) and of the shipped model's in training (32 pictures), float32
and bfloat16. Prints the machine in words and one table, in milliseconds.
"""

from collections.abc import Callable
from functools import partial

import measure
import torch
from torch import Tensor

from minisd.attention import attend, attend_blocks, attend_plain

SIZES = {  # title: batch, heads, queries, keys, width of a head
    "SD 1.5, 64 x 64, itself": (2, 8, 4096, 4096, 40),
    "SD 1.5, 64 x 64, text": (2, 8, 4096, 77, 40),
    "SD 1.5, 32 x 32, itself": (2, 8, 1024, 1024, 80),
    "SD 1.5, 16 x 16, itself": (2, 8, 256, 256, 160),
    "picture book, 8 x 8, itself": (32, 4, 64, 64, 28),
    "picture book, 8 x 8, text": (32, 4, 64, 77, 28),
}


WAYS = {
    "kernel": partial(attend, method="efficient"), "formula": attend_plain, "blocks": attend_blocks,
}  # fmt: skip


def main() -> None:
    given = measure.parse(measure.options(__doc__, repeats=9))
    device = measure.place(given)[0]
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for title, (batch, heads, n, m, d) in SIZES.items():
            q, k, v = (
                measure.normal(batch, length, heads, d, seed=i).to(device, dtype).transpose(1, 2)
                for i, length in enumerate((n, m, m))
            )
            there = {name: partial(way, q, k, v) for name, way in WAYS.items()}
            measure.check_equal({name: work() for name, work in there.items()}, 5e-2)
            trained = ("kernel", "formula") if title.startswith("picture book") else ()
            back = {name: there_and_back(WAYS[name], q, k, v) for name in trained}
            with torch.no_grad():
                times = measure.in_turn(there, given.repeats, given.clock, device)
            taken = measure.in_turn(back, given.repeats, given.clock, device)
            taken = {name: taken.get(name, []) for name in ("kernel", "formula")}
            cells = [
                measure.spread([1e3 * s for s in seconds]) if seconds else ""
                for seconds in (*times.values(), *taken.values())
            ]
            rows.append([str(dtype).removeprefix("torch."), title, *cells])
    print(measure.machine(device), "\n")
    columns = ["", "size", *WAYS, "kernel, there and back", "formula, there and back"]
    print(measure.table(columns, rows))


def there_and_back(way: Callable, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], None]:
    """One pass with its gradients, as training does it."""
    parts = [x.detach().requires_grad_(True) for x in (q, k, v)]
    return lambda: torch.autograd.grad(way(*parts).sum(), parts)


if __name__ == "__main__":
    main()
