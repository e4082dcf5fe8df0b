"""A model as a tree: networks, their modules, and how many parameters are in each."""

from collections.abc import Mapping
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import nn

from minisd.viz.figure import CATEGORIES, INK, QUIET, Figure, sheet

ROW, GAP, TOP = 28, 3, 34  # pixels: a module's box, the space around it, above the first row
COLUMNS = (10, 200), (214, 230), (448, 442)  # x and width: the whole, its networks, their modules
COLORS = {"text_encoder": CATEGORIES[0], "unet": CATEGORIES[4], "vae": CATEGORIES[1]}


class Row(NamedTuple):
    """A module of a network: its name, its class and its number of parameters."""

    name: str
    kind: str
    size: int


def size(module: nn.Module) -> int:
    """How many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


def rows(network: nn.Module) -> list[Row]:
    """The modules that a network is made of; a list of modules of one class is one row."""
    found = []
    for name, child in network.named_children():
        listed = isinstance(child, nn.ModuleList) and len(child) > 0
        kind = f"{len(child)} x {type(child[0]).__name__}" if listed else type(child).__name__
        found.append(Row(name, kind, size(child)))
    return found


def module_tree(
    networks: Mapping[str, nn.Module], *, alt: str, name: str = "the model", caption: str = ""
) -> Figure:
    """Three columns of boxes: the whole, its networks, their modules, with parameters in each.

    The dark part of a module's box is its share of all parameters. A text encoder is blue, a UNet
    pink, an autoencoder orange (`text_encoder`, `unet` and `vae`); others take turns.
    """
    made = {key: rows(network) for key, network in networks.items()}
    total = sum(size(network) for network in networks.values())
    count = sum(map(len, made.values()))
    with sheet(900, TOP + ROW * count + 10, alt, caption) as page:
        axes = page.picture(0, 0, page.width, page.height)
        axes.set(xlim=(0, page.width), ylim=(page.height, 0))
        for (x, _), title in zip(COLUMNS, ("all together", "networks", "their modules")):
            page.text(x, 22, title, color=QUIET)
        _box(axes, COLUMNS[0], TOP, ROW * count, "#f4f4f4", f"{name}\n\n{total:,}\nparameters")
        y = TOP
        for i, (key, modules) in enumerate(made.items()):
            color, high = COLORS.get(key, CATEGORIES[i % len(CATEGORIES)]), ROW * len(modules)
            label = f"{key}\n{type(networks[key]).__name__}\n{size(networks[key]):,}"
            _box(axes, COLUMNS[1], y, high, color, label)
            for module in modules:
                _module(axes, y, color, module, total)
                y += ROW
        return page.finish()


def _box(
    axes: Axes, column: tuple[float, float], y: float, high: float, color: str, text: str
) -> None:
    x, width = column
    spot = (x, y + GAP), width, high - 2 * GAP
    axes.add_patch(Rectangle(*spot, facecolor=color, alpha=0.35, linewidth=0))
    axes.add_patch(Rectangle(*spot, facecolor="none", edgecolor=QUIET, linewidth=0.8))
    axes.text(x + width / 2, y + high / 2, text, ha="center", va="center", color=INK,
              fontweight="bold", linespacing=1.5)  # fmt: skip


def _module(axes: Axes, y: float, color: str, module: Row, total: int) -> None:
    """A box whose strong part is the module's share of the whole model."""
    (x, width), high = COLUMNS[2], ROW - 2 * GAP
    for share, alpha in ((1, 0.15), (module.size / total, 0.55)):
        axes.add_patch(Rectangle((x, y + GAP), width * share, high, facecolor=color, alpha=alpha,
                                 linewidth=0))  # fmt: skip
    axes.add_patch(Rectangle((x, y + GAP), width, high, facecolor="none", edgecolor=QUIET,
                             linewidth=0.8))  # fmt: skip
    style = {"va": "center", "color": INK}
    axes.text(x + 8, y + ROW / 2, module.name, fontweight="bold", **style)
    axes.text(x + 172, y + ROW / 2, module.kind, fontsize=8, **style)
    axes.text(x + width - 8, y + ROW / 2, f"{module.size:,}", ha="right", **style)
