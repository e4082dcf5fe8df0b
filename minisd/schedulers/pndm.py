"""PNDM, in its form without Runge-Kutta steps (PLMS): DDIM steps on noise averaged over the past.

DDIM treats the predicted noise as constant over a step. It is not, and the predictions already made
say how it changes: a polynomial through the last four of them gives a better average over the step,
with no further call of the model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from minisd.config import ScheduleConfig
from minisd.noise import Generators
from minisd.schedulers.schedule import NoiseSchedule, Span

# The weights of the noise now, one step ago, ...: Adams-Bashforth of order 1 to 4. [PNDM Eq. 12]
WEIGHTS = (
    (1,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class PNDMScheduler(NoiseSchedule):
    """Stable Diffusion 1.x's own scheduler. n steps cost n + 1 calls of the model (1 step: 1).

    It starts with no past to look at, so the first step is taken twice: once with the noise at its
    start, then, from the same x_t, with the mean of the noise at its start and at its end. A run
    that starts later (strength < 1) is warmed up in the same way from the level where it starts.
    diffusers cuts the first calls from the whole plan instead: it then starts one level higher and
    takes the rest of its steps from x_t of one level with the noise of the next.
    """

    class_defaults: ClassVar[Mapping[str, Any]] = {
        **NoiseSchedule.class_defaults,
        "set_alpha_to_one": False,
        "skip_prk_steps": False,
    }

    def __init__(self, config: ScheduleConfig = ScheduleConfig()):
        super().__init__(config)
        if not config.skip_prk_steps:
            raise ValueError(
                "skip_prk_steps is False (or missing, which means False), but only PNDM without "
                "Runge-Kutta steps is supported, as Stable Diffusion uses it; set it to True"
            )

    def plan(self, n: int, strength: float = 1.0) -> tuple[Span, ...]:
        """The steps of a run, the second of which corrects the first."""
        spans = super().plan(n, strength)
        if spans and spans[0].sigma == float("inf"):
            raise ValueError(
                "PNDM cannot start from pure noise, where predicted noise says nothing of the "
                "picture; for zero terminal SNR use DDIM, or timestep_spacing 'leading'"
            )
        if len(spans) < 2:
            return spans
        first, *rest = spans
        t, sigma = first.t_prev, first.sigma_prev
        corrector = Span(first.index + 1, t, t, sigma, sigma, first.sigma)
        return (first, corrector, *(replace(span, index=span.index + 1) for span in rest))

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
        """One step from span.t to span.t_prev; a corrector takes the step before it again.

        model_output, x_t: (b, c, h, w). `history`: the steps before this one, newest last; the last
        4 matter, and without them the order is lower. Returns (x_prev, x_0), both (b, c, h, w).
        `generator` and `eta` have no meaning for PNDM. Raises ValueError for a corrector without
        history.
        """
        x_0, eps = self.predict(model_output, span, x_t)
        if span.corrects:
            if not history:
                raise ValueError("this step corrects the one before it, which history lacks")
            before, start = history[-1], replace(span, sigma=span.sigma_before)
            return self.transfer(before.x_t, (before.eps + eps) / 2, start), x_0

        # Of a level seen twice only the second look counts, which is at a better x_t.
        seen = {**{step.t: step.eps for step in history}, span.t: eps}
        newest_first = list(seen.values())[:-5:-1]
        weights = WEIGHTS[len(newest_first) - 1]
        mean_eps = sum(weight * noise for weight, noise in zip(weights, newest_first))
        return self.transfer(x_t, mean_eps, span), x_0

    def transfer(self, x_t: Tensor, eps: Tensor, span: Span) -> Tensor:
        """x_t with this noise, taken to the next level: a DDIM step. [PNDM Eq. 11]"""
        alpha_bar, alpha_bar_prev = span.alpha_bar, span.alpha_bar_prev
        x_0 = (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
        return alpha_bar_prev**0.5 * x_0 + (1 - alpha_bar_prev) ** 0.5 * eps
