"""DPM-Solver++: what can be integrated exactly is, and the rest follows the last two predictions.

In lambda = log(signal / noise) the sampling equation has an exact linear part; what remains is an
integral of the predicted clean picture x_0, which changes slowly. [DPM-Solver++ Eq. 8]
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from minisd.config import ScheduleConfig
from minisd.noise import Generators, draw_noise
from minisd.schedulers.schedule import NoiseSchedule, Span
from minisd.schedulers.sigmas import finite_sigmas, interpolated_levels, karras_sigmas, t_of_sigma


class DPMSolverMultistepScheduler(NoiseSchedule):
    """DPM-Solver++(2M), or its random variant SDE-DPM-Solver++(2M), by `algorithm_type`.

    Good pictures in about 20 steps; n steps cost n calls. x_t has unit variance, as in DDIM.
    """

    default_spacing = "linspace"
    unsupported: ClassVar[Mapping[str, Any]] = {
        **NoiseSchedule.unsupported,
        "solver_type": "midpoint",
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "lambda_min_clipped": -float("inf"),
        "variance_type": None,
    }

    def __init__(self, config: ScheduleConfig = ScheduleConfig()):
        super().__init__(config)
        for name, choices in (
            ("algorithm_type", ("dpmsolver++", "sde-dpmsolver++")),
            ("solver_order", (1, 2)),
        ):
            if getattr(config, name) not in choices:
                raise ValueError(f"{name} is {getattr(config, name)!r}, expected one of {choices}")

    def timesteps(self, n: int) -> list[float]:
        """n timesteps. Unlike in other classes, linspace and leading share the range out among
        n + 1, of which the last is not used: 50 leading steps are 951 ... 20 instead of 981 ... 1.
        """
        total = self.check_count(n)
        if self.spacing == "linspace":
            return [round(t) for t in np.linspace(0, total - 1, n + 1)[:0:-1].tolist()]
        if self.spacing == "leading":
            ratio = max(total // (n + 1), 1)
            offset = min(self.config.steps_offset, total - 1 - n * ratio)
            return [i * ratio + offset for i in range(n, 0, -1)]
        return super().timesteps(n)

    def levels(self, n: int) -> list[tuple[float, float]]:
        """The (t, sigma) of n steps; with use_karras_sigmas over the whole range of training, and
        the model is told the whole timestep nearest to each level.
        """
        ts = self.timesteps(n)
        if not self.config.use_karras_sigmas:
            return interpolated_levels(ts, self.alphas_bar)
        sigmas = finite_sigmas(self.alphas_bar)
        levels = karras_sigmas(sigmas[-1].item(), sigmas[0].item(), n)
        return [(round(t_of_sigma(sigma, sigmas)), sigma) for sigma in levels]

    def final_sigma(self) -> float:
        """The noise that remains: none, or that of timestep 0 ("sigma_min")."""
        if self.config.final_sigmas_type == "zero":
            return 0.0
        return finite_sigmas(self.alphas_bar)[0].item()

    def is_first_order(self, span: Span, history: Sequence[Any]) -> bool:
        """Whether this step must do with one prediction: the first has no other, and towards zero
        noise (lambda is infinite) or in a short run the last would trust the slope too far.
        """
        last, short = span.t_prev < 0, span.index < 14  # of the last step: a run of < 15
        careful = self.config.euler_at_final or (self.config.lower_order_final and short)
        alone = self.config.solver_order == 1 or not history or span.sigma_before == span.sigma
        return alone or (last and (careful or span.sigma_prev == 0))

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
        """One step from span.t to span.t_prev. [DPM-Solver++ Algorithm 2; Eq. 18 for the SDE]

        model_output, x_t: (b, c, h, w). `history`: its last step gives the slope of x_0. Returns
        (x_prev, x_0), both (b, c, h, w). `eta` has no meaning here.
        """
        x_0, _ = self.predict(model_output, span, x_t)
        mean_x_0 = x_0  # over the step
        if not self.is_first_order(span, history):
            h = math.log(
                span.sigma / span.sigma_prev
            )  # lambda_prev - lambda, as lambda = -log sigma
            h_before = math.log(span.sigma_before / span.sigma)
            mean_x_0 = x_0 + h / (2 * h_before) * (x_0 - history[-1].x_0)

        signal_prev, noise_prev = span.alpha_bar_prev**0.5, (1 - span.alpha_bar_prev) ** 0.5
        noise = (1 - span.alpha_bar) ** 0.5
        decay = span.sigma_prev / span.sigma  # exp(-h)
        if self.config.algorithm_type == "dpmsolver++":
            return noise_prev / noise * x_t + signal_prev * (1 - decay) * mean_x_0, x_0

        # The SDE forgets twice as fast, and fills up with fresh noise what it forgot.
        dtype = torch.promote_types(x_t.dtype, torch.float32)  # drawn so in half precision too
        fresh = draw_noise(x_t.shape, generator, x_t.device, dtype).to(x_t.dtype)
        x_prev = noise_prev / noise * decay * x_t + signal_prev * (1 - decay**2) * mean_x_0
        return x_prev + noise_prev * (1 - decay**2) ** 0.5 * fresh, x_0
