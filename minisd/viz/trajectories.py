"""Points and arrows in the plane: paths of samples, and what guidance does to the prediction."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minisd.viz.figure import CATEGORIES, INK, QUIET, Figure, Sheet, numbers, sheet


def trajectories(
    paths: Mapping[str, Any],
    data: Any | None = None,
    *,
    alt: str,
    limit: float | None = None,
    caption: str = "",
) -> Figure:
    """A panel for each sampler: n paths from their start (ring) to their end (dot), over the data.

    paths: name -> (steps, n, 2), the noisiest first. data: (points, 2). `limit`: half the width of
    the plane that is shown.
    """
    walks = {name: _planar(name, path, 3) for name, path in paths.items()}
    points = None if data is None else _planar("data", data, 2)
    every = [*walks.values(), *([] if points is None else [points])]
    limit = limit or 1.05 * max(np.abs(v).max() for v in every)
    side = min(400, (900 - 20) // len(walks) - 40)
    with sheet(20 + len(walks) * (side + 40), side + 66, alt, caption) as page:
        for i, (name, walk) in enumerate(walks.items()):
            axes = _plane(page, 44 + i * (side + 40), 30, side, limit)
            axes.set_title(name, fontsize=10)
            if points is not None:
                axes.plot(*points.T, ".", color="#b5b5b5", markersize=3, zorder=1)
            for j in range(walk.shape[1]):
                color = CATEGORIES[j % len(CATEGORIES)]
                axes.plot(*walk[:, j].T, color=color, linewidth=1, alpha=0.8, zorder=2)
                axes.plot(*walk[0, j], "o", color=color, mfc="white", markersize=5, zorder=3)
                axes.plot(*walk[-1, j], "o", color=color, markersize=5, zorder=4)
        return page.finish()


def clouds(
    points: Mapping[str, Any],
    data: Any | None = None,
    *,
    alt: str,
    limit: float | None = None,
    caption: str = "",
) -> Figure:
    """A panel for each cloud of points, name -> (n, 2), all on one scale, over the data (n, 2)."""
    planes = {name: _planar(name, cloud, 2) for name, cloud in points.items()}
    behind = None if data is None else _planar("data", data, 2)
    limit = limit or 1.05 * max(np.abs(cloud).max() for cloud in planes.values())
    side = min(300, (900 - 20) // len(planes) - 34)
    with sheet(20 + len(planes) * (side + 34), side + 66, alt, caption) as page:
        for i, (name, cloud) in enumerate(planes.items()):
            axes = _plane(page, 40 + i * (side + 34), 30, side, limit)
            axes.set_title(name, fontsize=10)
            if behind is not None:
                axes.plot(*behind.T, ".", color="#b5b5b5", markersize=3)
            axes.plot(*cloud.T, ".", color=CATEGORIES[0], markersize=2.5, alpha=0.6)
        return page.finish()


def _planar(name: str, values: Any, ndim: int) -> np.ndarray:
    array = numbers(values)
    if array.ndim != ndim or array.shape[-1] != 2:
        expected = "(steps, n, 2)" if ndim == 3 else "(n, 2)"
        raise ValueError(f"{name!r} has shape {array.shape}, expected {expected}")
    return array


def _plane(page: Sheet, x: float, y: float, side: float, limit: float) -> Any:
    axes = page.axes(x, y, side, side)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    return axes


def guidance_plane(eps_uncond: Any, eps_cond: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both predictions as points of the plane that they span, where every guided one lies too.

    eps_uncond, eps_cond: tensors of one shape. Returns two (2,): the x axis runs along eps_uncond,
    lengths and angles are the true ones, divided by the root of the number of values.
    """
    u, c = (numbers(eps).ravel() for eps in (eps_uncond, eps_cond))
    length = np.linalg.norm(u)
    along = u / length if length > 0 else np.eye(1, len(u))[0]
    rest = c - (c @ along) * along
    scale = 1.0 if len(u) == 2 else len(u) ** 0.5
    return np.array([length, 0.0]) / scale, np.array([c @ along, np.linalg.norm(rest)]) / scale


def guidance_arrows(
    eps_uncond: Any,
    eps_cond: Any,
    scales: Sequence[float] = (1.0, 3.0, 7.5),
    *,
    alt: str,
    caption: str = "",
) -> Figure:
    """The prediction without text, with text, and guided ones on the line through both.

    eps_w = eps_uncond + w (eps_cond - eps_uncond). [Classifier-Free Diffusion Guidance, Eq. 6]
    Tensors of any one shape; they are drawn in the plane that they span, nothing is left out.
    """
    u, c = guidance_plane(eps_uncond, eps_cond)
    guided = {w: u + w * (c - u) for w in scales}
    ends = np.stack([np.zeros(2), u, c, *guided.values()])
    spread = max(np.ptp(ends, axis=0).max(), 1e-9)
    with sheet(640, 500, alt, caption) as page:
        axes = page.axes(80, 20, 530, 430)
        for end, color, line, name in (
            (u, CATEGORIES[0], "-", "without text"),
            (c, CATEGORIES[3], "-", "with text"),
        ):
            _arrow(axes, np.zeros(2), end, color, line)
            axes.plot([], [], color=color, label=name)
        far = u + max(*scales, 1.0) * (c - u)
        axes.plot(*np.stack([u, far]).T, color=QUIET, linewidth=1, linestyle=":")
        for w, end in guided.items():
            axes.plot(*end, "o", color=CATEGORIES[2], markersize=7, zorder=4)
            axes.annotate(f"w = {w:g}", end, (9, 3), textcoords="offset points", fontsize=10)
        axes.plot([], [], "o", color=CATEGORIES[2], label="guided")
        axes.plot(0, 0, "o", color=INK, markersize=5)
        x, y = (ends.min(axis=0) + ends.max(axis=0)) / 2
        half = 0.62 * spread
        axes.set(xlim=(x - half * 530 / 430, x + half * 530 / 430), ylim=(y - half, y + half))
        axes.set(xlabel="along eps without text", ylabel="across it")
        axes.legend(loc="best")
        return page.finish()


def _arrow(axes: Any, start: np.ndarray, end: np.ndarray, color: str, line: str) -> None:
    look = {"arrowstyle": "-|>", "color": color, "linewidth": 2.2, "linestyle": line,
            "shrinkA": 0, "shrinkB": 0, "mutation_scale": 16}  # fmt: skip
    axes.annotate("", end, start, arrowprops=look)
