"""A walk through a network by the shapes of what it computed."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from minisd.viz.figure import CATEGORIES, FAINT, INK, QUIET, Figure, sheet

ROW = 20  # pixels


def shape_walk(record: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """Path and shape of every feature map (b, c, h, w) of a record, in the order of computation.

    Skips are left out: they are feature maps that come by a second time.
    """
    return [
        (path, tuple(value.shape))
        for path, value in record.items()
        if isinstance(value, Tensor)
        and value.ndim == 4
        and not path.endswith((".probabilities", ".skip"))
    ]


def shape_table(record: Mapping[str, Any], *, alt: str, caption: str = "") -> Figure:
    """The walk as a picture: a bar as long as the feature map is wide, and as dark as it is deep.

    Blue bars are residual blocks, orange ones attention. Raises ValueError for an empty record.
    """
    walk = shape_walk(record)
    if not walk:
        raise ValueError("the record holds no feature maps; pass record={} to the network first")
    widest = max(shape[-1] for _, shape in walk)
    deepest = max(shape[1] for _, shape in walk)
    with sheet(880, 46 + ROW * len(walk), alt, caption) as page:
        axes = page.picture(420, 34, 450, ROW * len(walk))
        axes.set(xlim=(0, 1), ylim=(len(walk), 0))
        for x, title in (
            (10, "block"),
            (240, "channels x height x width"),
            (420, "width (darker: more channels; blue: residual, orange: attention)"),
        ):
            page.text(x, 22, title, color=QUIET)
        for i, (path, (_, c, h, w)) in enumerate(walk):
            attention = "attention" in path
            color = CATEGORIES[1 if attention else 0]
            axes.barh(i + 0.5, w / widest, 0.72, color=color, alpha=0.35 + 0.65 * c / deepest)
            y = 34 + ROW * (i + 0.5)
            page.text(10, y, path, va="center", color=INK, family="DejaVu Sans Mono", fontsize=8.5)
            page.text(240, y, f"{c} x {h} x {w}", va="center", family="DejaVu Sans Mono",
                      fontsize=8.5)  # fmt: skip
            if i and walk[i - 1][1][-1] != w:  # a change of resolution
                axes.axhline(i, color=FAINT, linewidth=1)
        return page.finish()
