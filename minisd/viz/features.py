"""The way through the UNet in pictures: feature maps down, across and up, with the skips."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minisd.viz.figure import CATEGORIES, INK, QUIET, SIGNED, Figure, Sheet, sheet
from minisd.viz.module_map import skip_sources
from minisd.viz.shapes import shape_walk

MAP, GAP, TOP = 44, 4, 40  # pixels: a feature map, the space after it, above the first row
ROW = MAP + 8
NAMES, MIDDLE = 138, 120  # pixels: for the names in front of the maps, between the two columns


class Place(NamedTuple):
    """A module of the walk: its number in the order of computation, and its row's left corner."""

    path: str
    number: int
    x: float
    y: float


def liveliest(maps: Tensor, count: int) -> Tensor:
    """maps: (c, h, w). The numbers of the `count` channels that vary most, in their order."""
    spread = maps.float().flatten(1).var(dim=1)
    return spread.topk(min(count, len(maps))).indices.sort().values


def feature_walk(
    record: Mapping[str, Any], *, alt: str, channels: int = 4, caption: str = ""
) -> Figure:
    """Every block of the UNet by the feature maps that it made, of the first picture of a record:
    down on the left, up on the right, read upwards; dashed lines are the skips.

    Of each block the `channels` that vary most are drawn, each on a scale of its own: red above the
    channel's mean, blue below. Raises ValueError for a record without the UNet's skips.
    """
    skips, walk = skip_sources(record), [path for path, _ in shape_walk(record)]
    turn = next(i for i, path in enumerate(walk) if path.startswith("up."))
    down, up = walk[:turn], walk[turn:][::-1]
    rows, width = max(len(down), len(up)), NAMES + channels * (MAP + GAP)
    with sheet(20 + 2 * width + MIDDLE, TOP + ROW * rows + 6, alt, caption) as page:
        places = {}
        for column, x, title in ((down, 10, "down and across"), (up, 10 + width + MIDDLE, "up")):
            page.text(x, 22, title, fontsize=10, fontweight="bold")
            for i, path in enumerate(column, rows - len(column)):
                places[path] = Place(path, walk.index(path) + 1, x, TOP + ROW * i)
        _draw_line(page, places[down[-1]], places[up[-1]], width, color=INK)  # the turn
        for reader, maker in skips.items():
            style = {"color": CATEGORIES[0], "linestyle": "--"}
            _draw_line(page, places[maker], places[reader], width, **style)
        for place in places.values():
            _draw_maps(page, place, record[place.path][0].detach().float().cpu(), channels)
        return page.finish()


def _draw_maps(page: Sheet, place: Place, maps: Tensor, channels: int) -> None:
    """Number, name and shape of a block, and its liveliest channels."""
    middle = place.y + MAP / 2
    shape = " x ".join(map(str, maps.shape))
    page.text(place.x, middle - 2, f"{place.number}  {place.path}", fontsize=7.5, color=INK)
    page.text(place.x, middle + 3, shape, fontsize=7.5, color=QUIET, va="top")
    for i, one in enumerate(maps[liveliest(maps, channels)]):
        one = one - one.mean()
        limit = max(torch.quantile(one.abs().flatten(), 0.98).item(), 1e-12)
        axes = page.picture(place.x + NAMES + i * (MAP + GAP), place.y, MAP, MAP)
        axes.imshow(one.numpy(), SIGNED, vmin=-limit, vmax=limit, interpolation="nearest",
                    aspect="auto")  # fmt: skip


def _draw_line(page: Sheet, start: Place, end: Place, width: float, **style: Any) -> None:
    """From the maps of a block in the left column to the name of one in the right column."""
    axes = page.picture(0, 0, page.width, page.height)
    axes.set(xlim=(0, page.width), ylim=(page.height, 0))
    x, y = (start.x + width, end.x - 6), (start.y + MAP / 2, end.y + MAP / 2)
    axes.plot(x, y, linewidth=1.2, **style)
