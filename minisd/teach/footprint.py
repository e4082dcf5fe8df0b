"""How much memory a network's work takes, worked out from shapes: without weights, without work."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minisd.checkpoint import Uninitialised


def storage(value: Tensor) -> int:
    """A number for the memory behind a tensor; views of one tensor share it."""
    return StorageWeakRef(value.untyped_storage()).cdata


class Alive(TorchDispatchMode):
    """Sees every tensor that PyTorch makes; `highest` is the most bytes that were alive at once,
    those of `weights` not counted.
    """

    def __init__(self, weights: set[int]):
        super().__init__()
        self.weights, self.highest = weights, 0
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor) and storage(value) not in self.weights:
                memory = value.untyped_storage()
                self.held[storage(value)] = StorageWeakRef(memory), memory.nbytes()
        self.held = {key: one for key, one in self.held.items() if not one[0].expired()}
        self.highest = max(self.highest, sum(size for _, size in self.held.values()))
        return out


@torch.no_grad()
def footprint(
    kind: type[nn.Module],
    config: Any,
    work: Callable[[nn.Module], Any],
    prepare: Callable[[nn.Module], Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[int, int]:
    """Bytes of the weights, and of all other tensors at most at once while work(network) runs.

    kind, config: as UNet and SD15.unet. work makes its own inputs, as torch.zeros(2, 4, 64, 64);
    prepare sets switches. All tensors in them are fakes: they have a shape and a dtype, no numbers.
    What a kernel needs inside is not counted, and the kernels are the CPU's.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode():
            with Uninitialised():
                network = kind(config).requires_grad_(False).eval()
            if prepare is not None:
                prepare(network)
            weights = list(network.parameters())
            with Alive({storage(value) for value in weights}) as alive:
                work(network)
    finally:
        torch.set_default_dtype(before)
    return sum(value.nbytes for value in weights), alive.highest
