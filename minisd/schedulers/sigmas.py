"""Noise levels between those of training, for the schedulers that think in sigma. [EDM]"""

import math

import numpy as np
import torch
from torch import Tensor


def finite_sigmas(alphas_bar: Tensor) -> np.ndarray:
    """The noise-to-signal ratio of every timestep, (num_train_timesteps,) float32, increasing.

    A level without any picture gets the largest finite ratio instead of infinity: 4096.
    """
    smallest = 2.0**-24  # the reference's: the smallest positive number of half precision
    alphas_bar = torch.where(alphas_bar == 0, smallest, alphas_bar)
    return ((1 - alphas_bar) / alphas_bar).sqrt().numpy()


def karras_sigmas(sigma_max: float, sigma_min: float, n: int, rho: float = 7.0) -> list[float]:
    """n levels from sigma_max down to sigma_min, most of them near sigma_min. [EDM Eq. 5]"""
    start, end = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return [(start + share * (end - start)) ** rho for share in np.linspace(0, 1, n).tolist()]


def t_of_sigma(sigma: float, sigmas: np.ndarray) -> float:
    """The fractional timestep of a level, by interpolation in log(sigma)."""
    return float(np.interp(math.log(sigma), np.log(sigmas), np.arange(len(sigmas))))


def interpolated_levels(
    ts: list[float], alphas_bar: Tensor, karras: bool = False
) -> list[tuple[float, float]]:
    """(t, sigma) at timesteps that may lie between those of training, noisiest first.

    With `karras`, as many levels over the same range, spaced as karras_sigmas says.
    """
    sigmas = finite_sigmas(alphas_bar)
    levels = np.interp(ts, np.arange(len(sigmas)), sigmas).tolist()
    if not karras:
        return list(zip(ts, levels))
    levels = karras_sigmas(levels[0], levels[-1], len(levels))
    return [(t_of_sigma(sigma, sigmas), sigma) for sigma in levels]
