"""Random numbers as the reference draws them: same seed, same picture, on every device."""

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def draw_noise(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal numbers of this shape (b, ...).

    They are drawn on the generator's device and then moved, so that a CPU generator gives the same
    numbers for every `device`. A list of generators gives each row its own, so that a picture does
    not depend on its neighbours. Raises ValueError if the list's length is not b.
    """
    if generator is None or isinstance(generator, torch.Generator):
        source = device if generator is None else generator.device
        return torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype).to(device)
    if len(generator) != shape[0]:
        raise ValueError(
            f"{len(generator)} generators were given for {shape[0]} pictures; "
            "give one generator, or one for each picture"
        )
    rows = [draw_noise((1, *shape[1:]), one, device, dtype) for one in generator]
    return torch.cat(rows)
