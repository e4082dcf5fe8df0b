"""The autoencoder's work in parts, for less memory at once: picture by picture, tile by tile."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

Work = Callable[[Tensor], Tensor]


def one_by_one(work: Work, x: Tensor) -> Tensor:
    """work(x) for each of x: (b, ...) alone: the same numbers, a b-th of the memory."""
    return torch.cat([work(one) for one in x.split(1)])


def blend(before: Tensor, tile: Tensor, fade: int, dim: int) -> Tensor:
    """The tile, (b, c, h, w); over its first `fade` rows (dim 2) or columns (dim 3) it takes over
    from the last ones of `before`, its neighbour.
    """
    fade = min(before.shape[dim], tile.shape[dim], fade)
    share = torch.arange(fade, device=tile.device, dtype=tile.dtype) / fade
    share = share[:, None] if dim == 2 else share
    old = before.narrow(dim, before.shape[dim] - fade, fade)
    new, rest = tile.split([fade, tile.shape[dim] - fade], dim)
    return torch.cat([(1 - share) * old + share * new, rest], dim)


def in_tiles(work: Work, x: Tensor, side: int, side_out: int) -> Tensor:
    """work(x) by tiles that overlap by a quarter and fade into their neighbours, as in diffusers.

    x: (b, c, h, w); side: of a tile of x, side_out: of what work makes of it, both multiples of 4.
    What fits into one tile is worked on whole. A tile knows nothing beyond its edge, so that the
    result is not that of work(x), only close to it.
    """
    if max(x.shape[-2:]) <= side:
        return work(x)
    step, fade = side - side // 4, side_out // 4
    kept = side_out - fade
    rows: list[Tensor] = []
    above: list[Tensor] = []
    for top in range(0, x.shape[-2], step):
        row: list[Tensor] = []
        for left in range(0, x.shape[-1], step):
            tile = work(x[..., top : top + side, left : left + side])
            if above:
                tile = blend(above[len(row)], tile, fade, dim=2)
            if row:
                tile = blend(row[-1], tile, fade, dim=3)
            row.append(tile)
        rows.append(torch.cat([tile[..., :kept, :kept] for tile in row], dim=3))
        above = row
    return torch.cat(rows, dim=2)


class InParts:
    """What the autoencoder has from here: its switches, under diffusers' names, and their work."""

    slicing = False
    tile_size: int | None = None  # pixels

    def enable_slicing(self) -> None:
        """Encode and decode the pictures of a batch one by one."""
        self.slicing = True

    def disable_slicing(self) -> None:
        self.slicing = False

    def enable_tiling(self, tile_size: int = 512) -> None:
        """Encode and decode larger pictures than tile_size x tile_size pixels in tiles of that.

        Raises ValueError unless a quarter of a tile is a whole number of latent cells.
        """
        quarter = 4 * self.config.downscale
        if tile_size < quarter or tile_size % quarter:
            raise ValueError(f"tile_size is {tile_size} pixels, expected a multiple of {quarter}")
        self.tile_size = tile_size

    def disable_tiling(self) -> None:
        self.tile_size = None

    def in_parts(
        self, work: Work, x: Tensor, cell: int, cell_out: int, record: dict[str, Any] | None
    ) -> Tensor:
        """work(x) as the switches say; whole if it is recorded, as a record is of the whole.

        x: (b, c, h, w); a cell of x, and of what work makes of it, covers so many pixels a side.
        """
        if record is not None:
            return work(x)
        if self.tile_size is not None:
            sides = self.tile_size // cell, self.tile_size // cell_out
            work = partial(in_tiles, work, side=sides[0], side_out=sides[1])
        return one_by_one(work, x) if self.slicing and len(x) > 1 else work(x)
