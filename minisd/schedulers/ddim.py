"""DDIM: the same model in far fewer steps, with as much fresh noise as one likes. [DDIM Eq. 12]"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from minisd.noise import Generators, draw_noise
from minisd.schedulers.schedule import NoiseSchedule, Span


class DDIMScheduler(NoiseSchedule):
    """Jump to the predicted picture, and back out to the next noise level.

    eta 0 adds no noise: the start alone decides the picture. eta 1 has DDPM's variance.
    """

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
        """One step from span.t to span.t_prev. [DDIM Eq. 12, 16]

        model_output, x_t: (b, c, h, w), eta in [0, 1]. Returns (x_prev, x_0), both (b, c, h, w).
        `history` has no meaning for DDIM.
        """
        alpha_bar, alpha_bar_prev = span.alpha_bar, span.alpha_bar_prev
        x_0, eps = self.predict(model_output, span, x_t)
        if self.config.clip_sample:
            x_0 = x_0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)

        variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        std = eta * variance**0.5
        x_prev = alpha_bar_prev**0.5 * x_0 + (1 - alpha_bar_prev - std**2) ** 0.5 * eps
        if eta > 0:
            x_prev = x_prev + std * draw_noise(x_t.shape, generator, x_t.device, x_t.dtype)
        return x_prev, x_0
