"""Never a silent black picture: NaN and infinity are found, and mended where that can be."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
WIDER = "load the model with torch_dtype=torch.float32, or torch.bfloat16, which has its range"
DAMAGED = "its weights, or an adapter's, are damaged, or what it was given is far too large"


def is_finite(x: Any) -> bool:
    """No NaN, no infinity in a tensor, or in a dataclass of tensors such as DiagonalGaussian.

    On a GPU this waits for all the work that was given to it, so it is asked only at the end.
    """
    tensors = [x] if isinstance(x, Tensor) else vars(x).values()
    return all(bool(torch.isfinite(one).all()) for one in tensors)


def check_latents(latents: Tensor, start: Tensor, cond: Tensor) -> None:
    """Raises ValueError, which says where it began, if the latents of a run are not finite.

    latents, start: (b, 4, h/8, w/8) after and before the loop; cond: (b, m, d) its text.
    """
    if is_finite(latents):
        return
    source = f"the UNet, in {latents.dtype}, made NaN or infinity"
    if not is_finite(cond):
        source = f"the text's embeddings hold NaN or infinity; the text encoder is in {cond.dtype}"
    if not is_finite(start):
        source = "the latents that the run began with hold NaN or infinity"
    advice = WIDER if latents.dtype == torch.float16 else DAMAGED
    raise ValueError(f"{source}, which would give a black picture; {advice}")


def in_safe_precision(autoencoder: nn.Module, work: Callable[[Tensor], T], x: Tensor) -> T:
    """work(x), which uses the autoencoder; in float32 if half precision overflows.

    The activations of some autoencoders pass 65504, the largest number of float16. Afterwards the
    autoencoder is in its own precision again, bit by bit. Raises ValueError if the result holds NaN
    or infinity even so.
    """
    result, dtype = work(x), next(autoencoder.parameters()).dtype
    if is_finite(result):
        return result
    if not is_finite(x):
        raise ValueError("the latents or pixels given to the autoencoder hold NaN or infinity")
    if dtype in (torch.float16, torch.bfloat16):
        autoencoder.float()
        try:
            result = work(x.float())
        finally:
            autoencoder.to(dtype)
    if not is_finite(result):
        tried = f"{dtype}, and in torch.float32 too," if dtype.itemsize < 4 else f"{dtype}"
        raise ValueError(f"the autoencoder in {tried} made NaN or infinity; {DAMAGED}")
    return result
