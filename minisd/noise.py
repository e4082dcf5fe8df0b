"""Random numbers as the reference draws them: same seed, same picture, on every device."""

import secrets
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
    not depend on its neighbours. Raises ValueError if the list's length is not b, and for what is
    no generator.
    """
    if generator is None or isinstance(generator, torch.Generator):
        source = device if generator is None else generator.device
        return torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype).to(device)
    if isinstance(generator, str) or not isinstance(generator, Sequence):
        raise ValueError(
            f"generator is {generator!r:.60}, expected torch.Generator().manual_seed(a number), or "
            "a list of such"
        )
    if len(generator) != shape[0]:
        raise ValueError(
            f"{len(generator)} generators were given for {shape[0]} pictures; "
            "give one generator, or one for each picture"
        )
    rows = [draw_noise((1, *shape[1:]), one, device, dtype) for one in generator]
    return torch.cat(rows)


def seeded(generator: Generators = None) -> tuple[Generators, int | None]:
    """The caller's generators and None; or, without any, one with a fresh seed and that seed."""
    if generator is not None:
        return generator, None
    seed = secrets.randbits(32)
    return torch.Generator().manual_seed(seed), seed


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From a (share 0) to b (share 1) along the arc between them, at a steady angle.

    a, b: (b, ...), latents or prompt embeddings; each row is one vector. The straight line between
    two draws of noise passes through vectors too short to be noise; the arc does not. Rows that
    are nearly parallel or opposite, where no arc is defined, take the straight line. Raises
    ValueError if the shapes differ. [Shoemake, Animating rotation with quaternion curves, 1985]
    """
    if a.shape != b.shape:
        raise ValueError(
            f"slerp is given {tuple(a.shape)} and {tuple(b.shape)}, expected one shape"
        )
    u, v = a.flatten(1).double(), b.flatten(1).double()
    cosine = torch.nn.functional.cosine_similarity(u, v, dim=1).clamp(-1, 1)
    angle = torch.acos(cosine).reshape(-1, *[1] * (a.ndim - 1))
    arc_a = torch.sin((1 - share) * angle) / torch.sin(angle)
    arc_b = torch.sin(share * angle) / torch.sin(angle)
    straight = torch.sin(angle) < 1e-4
    weight_a = torch.where(straight, 1 - share, arc_a)
    weight_b = torch.where(straight, share, arc_b)
    return (weight_a * a.double() + weight_b * b.double()).to(a.dtype)
