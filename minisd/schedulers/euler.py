"""Euler: sampling as the numerical solution of a differential equation. [EDM Algorithm 1]"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from minisd.noise import Generators
from minisd.schedulers.schedule import NoiseSchedule, Span
from minisd.schedulers.sigmas import finite_sigmas, interpolated_levels


class EulerDiscreteScheduler(NoiseSchedule):
    """Straight steps along the probability-flow equation dx / dsigma = eps(x, sigma).

    Here x_t = x_0 + sigma eps: the picture keeps its size and the noise on it grows. The model,
    which learned at unit variance, is shown x_t / sqrt(1 + sigma^2) (`scale_input`). The levels may
    lie between the timesteps of training. As an algorithm this is DDIM, on other levels.
    """

    in_sigma_space = True
    default_spacing = "linspace"
    unsupported: ClassVar[Mapping[str, Any]] = {
        "trained_betas": None,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "interpolation_type": "linear",
        "timestep_type": "discrete",
        "sigma_min": None,
        "sigma_max": None,
    }

    def levels(self, n: int) -> list[tuple[float, float]]:
        """The (t, sigma) of n steps; with use_karras_sigmas in the spacing of [EDM Eq. 5]."""
        return interpolated_levels(
            self.timesteps(n), self.alphas_bar, self.config.use_karras_sigmas
        )

    def final_sigma(self) -> float:
        """The noise that remains: none, or that of timestep 0 ("sigma_min")."""
        if self.config.final_sigmas_type == "zero":
            return 0.0
        return float(finite_sigmas(self.alphas_bar)[0])

    def step(
        self,
        model_output: Tensor,
        span: Span,
        x_t: Tensor,
        *,
        history: Sequence[Any] = (),
        generator: Generators = None,
        eta: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """One step from span.sigma to span.sigma_prev. [EDM Algorithm 1, line 8]

        model_output, x_t: (b, c, h, w). Returns (x_prev, x_0), both (b, c, h, w). `history`,
        `generator` and `eta` have no meaning for Euler.
        """
        x_0, eps = self.predict(model_output, span, x_t)
        return x_t + (span.sigma_prev - span.sigma) * eps, x_0
