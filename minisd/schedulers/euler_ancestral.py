"""Euler ancestral: Euler steps that go too far down, and fresh noise that makes up for it."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from minisd.noise import Generators, draw_noise
from minisd.schedulers.schedule import NoiseSchedule, Span
from minisd.schedulers.sigmas import interpolated_levels


class EulerAncestralDiscreteScheduler(NoiseSchedule):
    """k-diffusion's "euler_ancestral": DDPM's random steps, in the coordinates of Euler.

    x_t = x_0 + sigma eps, as in euler.py. Each step draws noise, so more steps do not come closer
    to one picture: they make another one.
    """

    in_sigma_space = True
    default_spacing = "linspace"
    unsupported: ClassVar[Mapping[str, Any]] = {"trained_betas": None}

    def levels(self, n: int) -> list[tuple[float, float]]:
        return interpolated_levels(self.timesteps(n), self.alphas_bar)

    def final_sigma(self) -> float:
        return 0.0

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
        """One step from span.sigma to span.sigma_prev, of which sigma_up is fresh noise.

        The noise left by the Euler step and the fresh noise add up to the level:
        sigma_down^2 + sigma_up^2 = sigma_prev^2, where sigma_up^2 is the variance of DDPM's
        q(x_prev | x_t, x_0). [DDPM Eq. 7, with x_t / sqrt(alpha_bar) for x_t]

        model_output, x_t: (b, c, h, w). Returns (x_prev, x_0), both (b, c, h, w). `history` and
        `eta` have no meaning here.
        """
        x_0, eps = self.predict(model_output, span, x_t)
        sigma, sigma_prev = span.sigma, span.sigma_prev
        sigma_down = sigma_prev**2 / sigma
        sigma_up = sigma_prev * (1 - (sigma_prev / sigma) ** 2) ** 0.5

        x_prev = x_t + (sigma_down - sigma) * eps
        noise = draw_noise(x_t.shape, generator, x_t.device, x_t.dtype)
        return x_prev + sigma_up * noise, x_0
