"""The forward process: a picture, noise, how much of each, and their sum."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from minisd.schedulers.schedule import NoiseSchedule
from minisd.viz.curves import line_styles
from minisd.viz.figure import CATEGORIES, INK, QUIET, Figure, Sheet, as_pil, sheet

CELL, SIGN = 188, 34  # pixels: a panel, and the room for an operator beside it


def forward_panels(
    x_0: Tensor,
    eps: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int],
    *,
    alt: str,
    caption: str = "",
) -> Figure:
    """A row for each timestep: the picture, the noise, the amount, the weighted sum. [DDPM Eq. 4]

    x_0: (3, h, w) in [-1, 1], eps: (3, h, w). Noise is drawn at a third of its size, so that most
    of it stays within black and white; the sum is cut off at black and white.
    """
    rows = list(timesteps)
    width = 20 + 4 * CELL + 3 * SIGN + 20
    with sheet(width, 34 + len(rows) * (CELL + 34), alt, caption) as page:
        for j, title in enumerate(("1  picture", "2  noise", "3  amount", "4  sum")):
            page.text(20 + j * (CELL + SIGN), 22, title, fontsize=11, fontweight="bold")
        for i, t in enumerate(rows):
            _forward_row(page, 34 + i * (CELL + 34), x_0, eps, schedule, t)
        return page.finish()


def _forward_row(
    page: Sheet, top: float, x_0: Tensor, eps: Tensor, schedule: NoiseSchedule, t: int
) -> None:
    signal, noise = (float(v) for v in _coefficients(schedule, t))
    x_t = schedule.add_noise(x_0[None], eps[None], torch.tensor([t]))[0]
    left = [20 + j * (CELL + SIGN) for j in range(4)]
    for j, picture in ((0, x_0), (1, eps / 3), (3, x_t)):
        page.picture(left[j], top, CELL, CELL).imshow(np.asarray(as_pil(picture)))
    _amount(page, left[2] + 26, top + 24, CELL - 30, CELL - 56, schedule, t)
    middle = {"fontsize": 18, "ha": "center", "va": "center", "color": QUIET}
    for x, sign in ((left[1] - SIGN / 2, "+"), (left[2] - SIGN / 2, ""), (left[3] - SIGN / 2, "=")):
        page.text(x, top + CELL / 2, sign, **middle)
    under = {"va": "top", "fontsize": 10}
    page.text(left[0], top + CELL + 4, rf"$\times\ \sqrt{{\bar\alpha_t}} = {signal:.3f}$", **under)
    page.text(left[1], top + CELL + 4, rf"$\times\ \sqrt{{1-\bar\alpha_t}} = {noise:.3f}$", **under)
    page.text(left[3], top + CELL + 4, f"$x_t$ at t = {t}", **under)


def _coefficients(schedule: NoiseSchedule, t: int) -> tuple[Tensor, Tensor]:
    alpha_bar = schedule.alphas_bar[t]
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def _amount(
    page: Sheet, x: float, y: float, width: float, height: float, schedule: NoiseSchedule, t: int
) -> None:
    """The two coefficients over all timesteps, with a mark at t."""
    axes = page.axes(x, y, width, height)
    alphas_bar = schedule.alphas_bar.numpy()
    curves = {"picture": np.sqrt(alphas_bar), "noise": np.sqrt(1 - alphas_bar)}
    for (name, y_values), style in zip(curves.items(), line_styles(2)):
        axes.plot(y_values, label=name, **style)
        axes.plot(t, y_values[t], "o", color=style["color"], markersize=6)
    axes.axvline(t, color=INK, linewidth=0.8)
    axes.set(xlabel=f"t = {t}", ylim=(0, 1.05), xticks=[0, len(alphas_bar)], yticks=[0, 1])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 0.98), ncols=2, fontsize=8, handlelength=2)


def schedules(named: Mapping[str, NoiseSchedule], *, alt: str, caption: str = "") -> Figure:
    """alpha_bar and the signal-to-noise ratio over the timesteps, a line for each schedule.

    The dotted lines mark SNR = 1: as much picture as noise, alpha_bar = 1/2.
    """
    with sheet(880, 330, alt, caption) as page:
        left, right = page.axes(66, 34, 350, 240), page.axes(510, 34, 350, 240)
        for (name, schedule), style in zip(named.items(), line_styles(len(named))):
            left.plot(schedule.alphas_bar.numpy(), label=name, **style)
            right.plot(schedule.snr().clamp(min=1e-12).numpy(), label=name, **style)
        left.axhline(0.5, color=QUIET, linewidth=1, linestyle=":")
        right.axhline(1.0, color=QUIET, linewidth=1, linestyle=":")
        left.set(ylim=(0, 1.02), xlabel="timestep t", title=r"share of the picture $\bar\alpha_t$")
        right.set(yscale="log", xlabel="timestep t", ylim=(1e-5, None))
        right.set_title(r"signal-to-noise ratio $\bar\alpha_t\,/\,(1-\bar\alpha_t)$")
        if len(named) > 1:
            right.legend(loc="lower left", handlelength=3, fontsize=8)
        return page.finish()


def noise_rows(
    true: Tensor, predicted: Tensor, titles: Sequence[str], *, alt: str, limit: float = 3.0,
    caption: str = "",
) -> Figure:  # fmt: skip
    """Noise that was added over noise that was predicted, channel 0, with their correlation.

    true, predicted: (b, c, h, w), one column for each of b. `limit` is the end of the scale.
    """
    pairs = [x.detach().cpu().float() for x in (true, predicted)]
    b, gap = len(true), 8
    cell = min(150, (900 - 100 - 70) / b - gap)
    with sheet(100 + b * (cell + gap) + 70, 30 + 2 * (cell + gap) + 24, alt, caption) as page:
        for j in range(b):
            x = 100 + j * (cell + gap)
            for i, batch in enumerate(pairs):
                axes = page.picture(x, 30 + i * (cell + gap), cell, cell)
                mapped = axes.imshow(batch[j, 0].numpy(), "RdBu_r", vmin=-limit, vmax=limit)
            r = torch.corrcoef(torch.stack([p[j].flatten() for p in pairs]))[0, 1].item()
            page.text(x + cell / 2, 24, titles[j], ha="center")
            page.text(x + cell / 2, 32 + 2 * (cell + gap), f"r = {r:.2f}", ha="center", va="top")
        for i, name in enumerate(("added", "predicted")):
            y = 30 + i * (cell + gap) + cell / 2
            page.text(90, y, name, ha="right", va="center", color=CATEGORIES[6])
        page.color_bar(mapped, 100 + b * (cell + gap) + 6, 30, 2 * cell + gap)
        return page.finish()
