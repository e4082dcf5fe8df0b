"""Lines and counts: losses, anything against anything, histograms."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from minisd.viz.figure import (
    CATEGORIES,
    DASHES,
    FAINT,
    INK,
    QUIET,
    Figure,
    numbers,
    sheet,
    text_width,
)

Named = Mapping[str, Any]
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # colour is never the only cue


def line_styles(count: int) -> list[dict[str, Any]]:
    """A colour and a dash for each line, so that colour is never the only cue."""
    if count > len(CATEGORIES):
        raise ValueError(f"{count} lines in one plot, expected at most {len(CATEGORIES)}")
    return [{"color": c, "linestyle": d} for c, d in zip(CATEGORIES[:count], DASHES)]


def name_lines(axes: Axes, count: int) -> None:
    """A legend where there is more than one line."""
    if count > 1:
        axes.legend(handlelength=3)


def lines(
    x: Any,
    ys: Named,
    *,
    alt: str,
    x_label: str = "",
    y_label: str = "",
    log_x: bool = False,
    log_y: bool = False,
    y_limits: tuple[float, float] | None = None,
    markers: bool = False,
    errors: Named | None = None,
    caption: str = "",
) -> Figure:
    """One line for each of `ys` (name -> values) over x; `errors` (name -> +-) draws bars."""
    xs = numbers(x)
    with sheet(640, 360, alt, caption) as page:
        axes = page.axes(76, 16, 540, 280)
        for (name, y), style in zip(ys.items(), line_styles(len(ys))):
            error = None if errors is None or name not in errors else numbers(errors[name])
            marker = "o" if markers else None
            axes.errorbar(
                xs, numbers(y), error, label=name, marker=marker, markersize=5, capsize=3, **style
            )
        axes.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
        axes.set(xlabel=x_label, ylabel=y_label, ylim=y_limits)
        if log_y:
            plain_ticks(axes.yaxis)
        if markers and len(xs) <= 12:
            axes.set_xticks(xs, [f"{value:g}" for value in xs], minor=False)
            axes.set_xticks([], minor=True)
        name_lines(axes, len(ys))
        return page.finish()


def plain_ticks(axis: Any) -> None:
    """Numbers as 0.5, 1, 2 on a logarithmic axis, in place of powers of ten."""
    axis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")


def smoothed(values: Any, width: int) -> np.ndarray:
    """The mean of each value and its neighbours, `width` in all."""
    y = numbers(values)
    total = np.concatenate([[0.0], np.cumsum(y)])
    starts = np.maximum(np.arange(len(y)) - (width - 1) // 2, 0)
    ends = np.minimum(np.arange(len(y)) + width // 2 + 1, len(y))
    return (total[ends] - total[starts]) / (ends - starts)


def losses(
    runs: Named,
    *,
    alt: str,
    every: int = 1,
    smooth: int = 1,
    log: bool = True,
    floor: float | None = None,
    floor_label: str = "",
    caption: str = "",
) -> Figure:
    """Training losses, name -> one value for each `every` steps; faint as they are, strong as
    the mean of `smooth` neighbours. `floor` marks a value to compare with.
    """
    with sheet(640, 360, alt, caption) as page:
        axes = page.axes(76, 16, 540, 280)
        for (name, values), style in zip(runs.items(), line_styles(len(runs))):
            y = numbers(values)
            steps = np.arange(1, len(y) + 1) * every
            if smooth > 1:
                axes.plot(steps, y, color=style["color"], alpha=0.25, linewidth=0.8)
            axes.plot(steps, smoothed(y, smooth), label=name, **style)
        if floor is not None:
            axes.axhline(floor, color=INK, linewidth=1, linestyle=":", label=floor_label or None)
        axes.set(xlabel="training step", ylabel="loss", yscale="log" if log else "linear")
        if log:
            plain_ticks(axes.yaxis)
        name_lines(axes, len(runs) + bool(floor_label))
        return page.finish()


def histogram(
    samples: Named,
    *,
    alt: str,
    limits: tuple[float, float] | None = None,
    bins: int = 60,
    normal: bool = False,
    x_label: str = "value",
    caption: str = "",
) -> Figure:
    """How often each value occurs, name -> numbers of any shape, as densities over each other.

    `normal` adds the standard normal density. The legend gives the mean and standard deviation.
    """
    flat = {name: numbers(values).ravel() for name, values in samples.items()}
    low, high = limits or (
        min(v.min() for v in flat.values()), max(v.max() for v in flat.values())
    )  # fmt: skip
    edges = np.linspace(low, high, bins + 1)
    with sheet(640, 360, alt, caption) as page:
        axes = page.axes(76, 16, 540, 280)
        for (name, values), style in zip(flat.items(), line_styles(len(flat))):
            density, _ = np.histogram(values, edges, density=True)
            mean = round(values.mean().item(), 2) + 0.0  # 0.00 has no sign
            label = f"{name} (mean {mean:.2f}, std {values.std():.2f})"
            axes.stairs(density, edges, fill=True, color=style["color"], alpha=0.15)
            axes.stairs(density, edges, label=label, linewidth=1.8, **style)
        if normal:
            x = np.linspace(low, high, 200)
            y = np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
            axes.plot(x, y, color=INK, linewidth=1, linestyle=":", label="standard normal")
        axes.set(xlabel=x_label, ylabel="density", xlim=(low, high))
        axes.set_ylim(0, axes.get_ylim()[1] * (1.1 + 0.08 * len(flat)))  # room for the legend
        axes.legend(loc="upper left", handlelength=3)
        return page.finish()


def bars(
    values: Mapping[str, float],
    *,
    alt: str,
    x_label: str = "",
    numbers_format: str = "{:g}",
    groups: Sequence[int] = (),
    caption: str = "",
) -> Figure:
    """One bar for each name, its number at its end; `groups` gives each bar a colour's number."""
    names, lengths = list(values), numbers(list(values.values()))
    colors = [CATEGORIES[g % len(CATEGORIES)] for g in groups or [0] * len(names)]
    with sheet(720, 50 + 28 * len(names) + 16 * bool(x_label), alt, caption) as page:
        axes = page.axes(190, 12, 440, 28 * len(names))
        drawn = axes.barh(range(len(names)), lengths, color=colors, height=0.7)
        axes.bar_label(drawn, [numbers_format.format(v) for v in lengths], padding=4, color=INK)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.axvline(0, color=FAINT, linewidth=1)
        axes.set_xlabel(x_label)
        return page.finish()


def points(
    places: Mapping[str, tuple[float, float]],
    *,
    alt: str,
    groups: Sequence[int] = (),
    linked: Sequence[Sequence[str]] = (),
    x_label: str = "",
    y_label: str = "",
    x_limits: tuple[float, float] | None = None,
    y_limits: tuple[float, float] | None = None,
    caption: str = "",
) -> Figure:
    """A named point for each (x, y); `groups` gives each a colour's and a marker's number.

    `linked`: names whose points are joined by a line, in this order.
    """
    kinds = list(groups) or [0] * len(places)
    with sheet(820, 440, alt, caption) as page:
        axes = page.axes(76, 16, 600, 360)
        for names in linked:
            axes.plot(*zip(*(places[name] for name in names)), color=FAINT, zorder=1)
        for (x, y), kind in zip(places.values(), kinds):
            style = {"color": CATEGORIES[kind % len(CATEGORIES)], "zorder": 3}
            axes.plot(x, y, MARKERS[kind % len(MARKERS)], markersize=8, **style)
        axes.set(xlabel=x_label, ylabel=y_label, ylim=y_limits)
        axes.set_xlim(*(x_limits or (0, 1.05 * max(x for x, _ in places.values()))))
        taken = [(*axes.transData.transform(place), 12.0) for place in places.values()]
        for name, place in sorted(places.items(), key=lambda item: item[1]):
            x, y = axes.transData.transform(place)  # pixels, upwards
            x, wide = x + 10, text_width(name, 8)
            while any(abs(y - b) < 12 and a - 6 < x + wide and x < a - 6 + w for a, b, w in taken):
                y -= 2
            taken.append((x + 6, y, wide + 6))
            axes.annotate(
                name, place, (x, y), textcoords="figure pixels", va="center", fontsize=8,
                arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.6, "shrinkA": 1,
                            "shrinkB": 4, "relpos": (0, 0.5)}, zorder=2,
            )  # fmt: skip
        return page.finish()
