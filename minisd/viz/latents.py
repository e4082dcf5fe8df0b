"""Latents: the four signed maps that the UNet sees, and a quick guess of the picture in them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minisd.viz.figure import SIGNED, WIDTH, Figure, Picture, as_pil, sheet, wrap


def latent_channels(
    latents: Tensor,
    row_titles: Sequence[str] = (),
    *,
    alt: str,
    before: Sequence[Picture] = (),
    after: Sequence[Picture] = (),
    limit: float = 3.0,
    size: int = 150,
    caption: str = "",
) -> Figure:
    """Every channel of every latent as a map: red above zero, white at zero, blue below.

    latents: (c, h, w) or (b, c, h, w), one row each. `before`: b pictures that were encoded, drawn
    on the left; `after`: b pictures that were decoded, on the right. `limit` is the end of the
    scale: keep it the same where figures are compared; 3 suits scaled latents, whose standard
    deviation is 1. Raises ValueError for another shape, or not b titles or pictures.
    """
    maps = latents.detach().cpu().float()
    maps = maps[None] if maps.ndim == 3 else maps
    if maps.ndim != 4:
        raise ValueError(f"latents have shape {tuple(latents.shape)}, expected (b, c, h, w)")
    b, c, h, w = maps.shape
    for name, given in (("row_titles", row_titles), ("before", before), ("after", after)):
        if len(given) not in (0, b):
            raise ValueError(f"{len(given)} {name} were given for {b} latents")
    left, gap, bar = 10 + 110 * bool(row_titles), 8, 62
    first, columns = bool(len(before)), c + bool(len(before)) + bool(len(after))
    wide = min(size * w / max(h, w), (WIDTH - left - bar - gap) / columns - gap)
    high, pitch = wide * h / w, wide + gap
    end = left + (first + c) * pitch  # of the maps
    with sheet(left + columns * pitch + bar, 30 + b * (high + gap), alt, caption) as page:
        names = ["encoded"] * first + [f"channel {j}" for j in range(c)]
        for j, name in enumerate(names):
            page.text(left + j * pitch + wide / 2, 22, name, ha="center")
        for i in range(b):
            y = 28 + i * (high + gap)
            for x, pictures in ((left, before), (end + bar, after)):
                if len(pictures):
                    page.picture(x, y, wide, high).imshow(np.asarray(as_pil(pictures[i])))
            for j in range(c):
                axes = page.picture(left + (first + j) * pitch, y, wide, high)
                mapped = axes.imshow(maps[i, j].numpy(), SIGNED, vmin=-limit, vmax=limit)
            if row_titles:
                page.text(left - 8, y + high / 2, wrap(row_titles[i], 104), ha="right", va="center")
        if len(after):
            page.text(end + bar + wide / 2, 22, "decoded", ha="center")
        page.color_bar(mapped, end, 28, b * (high + gap) - gap)
        return page.finish()


@dataclass(frozen=True)
class Preview:
    """A linear guess at the picture in a latent: one colour for each latent cell, no decoder.

    weight: (c, 3), bias: (3,). `explained` is the share of the pictures' variance it caught.
    """

    weight: Tensor
    bias: Tensor
    explained: float

    def __call__(self, latents: Tensor, scale: int = 8) -> Tensor:
        """latents: (b, c, h, w). Returns pictures (b, 3, scale * h, scale * w) in [-1, 1]."""
        pixels = torch.einsum("bchw,cr->brhw", latents.detach().cpu().float(), self.weight)
        small = (pixels + self.bias[:, None, None]).clamp(-1, 1)
        return F.interpolate(small, scale_factor=scale, mode="nearest")


def fit_preview(latents: Tensor, pictures: Tensor) -> Preview:
    """The best linear map from a latent cell to the mean colour under it, by least squares.

    latents: (b, c, h, w), pictures: (b, 3, H, W) in [-1, 1], their own. Raises ValueError if b
    differs or there are fewer cells than unknowns.
    """
    z, x = latents.detach().cpu().float(), pictures.detach().cpu().float()
    b, c, h, w = z.shape
    if len(x) != b or b * h * w <= c:
        raise ValueError(
            f"{b} latents of {h} x {w} cells and {len(x)} pictures were given, expected as many "
            f"of both and more than {c} cells"
        )
    target = rearrange(F.adaptive_avg_pool2d(x, (h, w)), "b r h w -> (b h w) r")
    cells = rearrange(z, "b c h w -> (b h w) c")
    cells = torch.cat([cells, torch.ones(len(cells), 1)], dim=1)  # (b h w, c + 1)
    solution = torch.linalg.lstsq(cells, target).solution
    left_over = (target - cells @ solution).square().sum()
    total = (target - target.mean(dim=0)).square().sum()
    return Preview(solution[:-1], solution[-1], float(1 - left_over / total))
