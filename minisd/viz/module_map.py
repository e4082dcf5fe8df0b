"""A map of the whole model: every module that ran, in its order, with the shape that it made."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from minisd.viz.figure import CATEGORIES, INK, QUIET, Figure, sheet

ROW, BOX = 22, 17  # pixels: from row to row, and the height of a box
TEXT, DOWN, UP, DECODER = (10, 130), (172, 212), (444, 212), (694, 196)  # x, width of a column
TOP = 58  # pixels above the first row
LATER = (".probabilities", ".skip")  # not the output of a module
Record = Mapping[str, Any]


class Box(NamedTuple):
    """A module on the map: its place in the order of calls, and its box in pixels."""

    path: str
    number: int
    shape: tuple[int, ...]
    x: float
    y: float
    width: float

    @property
    def middle(self) -> float:
        return self.y + BOX / 2


def module_map(
    text: Record, unet: Record, decoder: Record, *, steps: int, alt: str, caption: str = ""
) -> Figure:
    """Text encoder, UNet and decoder from the records of one call each, numbered as they ran.

    Blue boxes are residual blocks, orange ones attend; grey lines are the skips, found in the
    record of the UNet; green lines bring the text. `steps`: how often the UNet runs.
    Raises ValueError for a record without the UNet's skips.
    """
    skips = skip_sources(unet)
    columns = _columns(text, unet, decoder)
    rows = max(map(len, columns.values()))
    with sheet(900, TOP + ROW * rows + 16, alt, caption) as page:
        axes = page.picture(0, 0, page.width, page.height)
        axes.set(xlim=(0, page.width), ylim=(page.height, 0))
        _draw_skips(axes, columns, skips)
        _draw_text_lines(axes, columns)
        _draw_loop(axes, columns, steps)
        for box in (box for boxes in columns.values() for box in boxes):
            _draw_box(axes, box)
        for x, title in ((TEXT[0], "text encoder"), (DOWN[0], "UNet, down and across"),
                         (UP[0], "UNet, up (read upwards)"), (DECODER[0], "decoder")):  # fmt: skip
            page.text(x, 18, title, fontsize=10, fontweight="bold")
        return page.finish()


def skip_sources(unet: Record) -> dict[str, str]:
    """For every block of the way up that reads a skip, the module whose output the skip is.

    They are told by identity: both entries of the record are one and the same tensor. Raises
    ValueError if there are none.
    """
    made = {id(v): path for path, v in unet.items() if not path.endswith(LATER)}
    skips = {path: v for path, v in unet.items() if path.endswith(".skip")}
    if not skips:
        raise ValueError("the record holds no skips; pass record={} to the UNet first")
    return {path.removesuffix(".skip"): made[id(skip)] for path, skip in skips.items()}


def _columns(text: Record, unet: Record, decoder: Record) -> dict[str, list[Box]]:
    """The boxes of each column; the UNet's two meet at the bottom, where it turns."""
    walks, number = [], 0
    for record in (text, unet, decoder):
        walk = [(p, tuple(v.shape)) for p, v in record.items()
                if isinstance(v, Tensor) and not p.endswith(LATER)]  # fmt: skip
        walks.append([(path, number + i, shape) for i, (path, shape) in enumerate(walk, 1)])
        number += len(walk)
    words, net, pixels = walks
    up = next(i for i, (path, *_) in enumerate(net) if path.startswith("up."))
    down, up = net[:up], net[up:][::-1]  # the way up is drawn upwards
    rows = max(len(down), len(up))

    def place(walk: list, column: tuple[float, float], first: int = 0) -> list[Box]:
        x, width = column
        return [Box(*module, x, TOP + ROW * (first + i), width) for i, module in enumerate(walk)]

    return {
        "text": place(words, TEXT),
        "down": place(down, DOWN, rows - len(down)),
        "up": place(up, UP, rows - len(up)),
        "decoder": place(pixels, DECODER),
    }


def _draw_box(axes: Axes, box: Box) -> None:
    kind = 1 if "attention" in box.path else 0 if "resnet" in box.path else None
    face = "#f4f4f4" if kind is None else CATEGORIES[kind]
    style = {"boxstyle": "round,pad=0,rounding_size=3", "linewidth": 0.8, "edgecolor": QUIET}
    axes.add_patch(FancyBboxPatch((box.x, box.y), box.width, BOX, facecolor="white", **style))
    alpha = 1.0 if kind is None else 0.3
    axes.add_patch(FancyBboxPatch((box.x, box.y), box.width, BOX, facecolor=face, alpha=alpha,
                                  **style))  # fmt: skip
    name = box.path.removeprefix("decoder.")
    text = {"va": "center", "fontsize": 7, "color": INK}
    axes.text(box.x + 4, box.middle, f"{box.number}  {name}", **text)
    shape = " x ".join(map(str, box.shape[1:]))
    axes.text(box.x + box.width - 4, box.middle, shape, ha="right", **text)


def _draw_skips(axes: Axes, columns: Mapping[str, list[Box]], skips: Mapping[str, str]) -> None:
    boxes = {box.path: box for name in ("down", "up") for box in columns[name]}
    for reader, source in skips.items():
        start, end = boxes[source], boxes[reader]
        x = start.x + start.width, end.x
        axes.plot(x, (start.middle, end.middle), color=QUIET, linewidth=1.1, zorder=0)


def _draw_text_lines(axes: Axes, columns: Mapping[str, list[Box]]) -> None:
    """The text, from the encoder's last layer to every attention block of the UNet."""
    color, floor = CATEGORIES[2], columns["down"][-1].y + BOX + 14
    last, left, right = columns["text"][-1], DOWN[0] - 14, UP[0] + UP[1] + 14
    line = {"color": color, "linewidth": 1.4, "zorder": 0}
    arrow = {"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
    axes.plot((last.x + last.width, left), (last.middle, last.middle), **line)
    axes.plot((left, right), (floor, floor), **line)
    for bus, name, side in ((left, "down", 0), (right, "up", 1)):
        readers = [box for box in columns[name] if "attention" in box.path]
        ends = [box.middle for box in readers] + ([last.middle] if name == "down" else [])
        axes.plot((bus, bus), (floor, min(ends, default=floor)), **line)
        for box in readers:
            end = box.x + side * box.width, box.middle
            axes.annotate("", end, (bus, box.middle), arrowprops=arrow)


def _draw_loop(axes: Axes, columns: Mapping[str, list[Box]], steps: int) -> None:
    """Across, from the UNet's end back to its start, `steps` times, and then to the decoder."""
    first, last, decoder = columns["down"][0], columns["up"][0], columns["decoder"][0]
    low, turn = columns["down"][-1], columns["up"][-1]
    arrow = {"arrowstyle": "-|>", "color": INK, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 10}
    across = {**arrow, "linewidth": 1.2}
    axes.annotate("", (turn.x, turn.middle), (low.x + low.width, low.middle), arrowprops=across)
    for box in columns["up"][:-1]:  # between the boxes: this column is read upwards
        axes.plot(box.x + box.width / 2, box.y + BOX + (ROW - BOX) / 2, "^", color=INK, ms=4)
    back, x = last.x + 60, first.x + first.width - 60
    axes.plot((back, back, x), (last.y, 36, 36), color=INK, linewidth=1.2)
    axes.annotate("", (x, first.y), (x, 36), arrowprops=arrow)
    axes.text((back + x) / 2, 33, f"scheduler step, {steps} times", ha="center", fontsize=8)
    bend = decoder.x - 14
    axes.plot((last.x + last.width, bend, bend), (last.middle, last.middle, decoder.middle),
              color=INK, linewidth=1.2)  # fmt: skip
    axes.annotate("", (decoder.x, decoder.middle), (bend, decoder.middle), arrowprops=arrow)
