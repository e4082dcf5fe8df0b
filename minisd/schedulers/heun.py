"""Heun: an Euler step, a look at where it ends, and the step again with the mean slope."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from minisd.noise import Generators
from minisd.schedulers.schedule import NoiseSchedule, Span
from minisd.schedulers.sigmas import interpolated_levels


class HeunDiscreteScheduler(NoiseSchedule):
    """EDM's second-order sampler. n steps cost 2n - 1 calls of the model. [EDM Algorithm 1]

    x_t = x_0 + sigma eps, as in euler.py. The plan has two spans for each step: a predictor, and a
    corrector at the level that the predictor reached. The last step ends without noise, where the
    model has no slope to give, so it has a predictor only.
    """

    in_sigma_space = True
    default_spacing = "linspace"
    class_defaults: ClassVar[Mapping[str, Any]] = {
        **NoiseSchedule.class_defaults,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
    }
    unsupported: ClassVar[Mapping[str, Any]] = {
        "trained_betas": None,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
    }

    def levels(self, n: int) -> list[tuple[float, float]]:
        """The (t, sigma) of n steps; with use_karras_sigmas in the spacing of [EDM Eq. 5]."""
        return interpolated_levels(
            self.timesteps(n), self.alphas_bar, self.config.use_karras_sigmas
        )

    def final_sigma(self) -> float:
        return 0.0

    def plan(self, n: int, strength: float = 1.0) -> tuple[Span, ...]:
        """Predictor, corrector, predictor, corrector, ..., predictor."""
        spans: list[Span] = []
        for step in super().plan(n, strength):
            t, sigma, index = step.t_prev, step.sigma_prev, 2 * step.index
            spans.append(Span(index, step.t, t, step.sigma, sigma, step.sigma_before))
            if sigma > 0:
                spans.append(Span(index + 1, t, t, sigma, sigma, step.sigma))
        return tuple(spans)

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
        """One predictor [EDM Algorithm 1, line 8] or corrector [line 11].

        model_output, x_t: (b, c, h, w). `history`: its last step is the predictor that a corrector
        corrects. Returns (x_prev, x_0), both (b, c, h, w). `generator` and `eta` have no meaning
        for Heun. Raises ValueError for a corrector without history.
        """
        x_0, _ = self.predict(model_output, span, x_t)
        if self.config.clip_sample:
            x_0 = x_0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        slope = (x_t - x_0) / span.sigma  # dx / dsigma, which is eps
        if not span.corrects:
            return x_t + (span.sigma_prev - span.sigma) * slope, x_0

        if not history:
            raise ValueError("this step corrects the one before it, which history lacks")
        before, sigma_before = history[-1], span.sigma_before
        mean_slope = ((before.x_t - before.x_0) / sigma_before + slope) / 2
        return before.x_t + (span.sigma - sigma_before) * mean_slope, x_0
