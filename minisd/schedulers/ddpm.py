"""DDPM: the reverse of the forward process, one small random step at a time. [DDPM Algorithm 2]"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from minisd.noise import Generators, draw_noise
from minisd.schedulers.schedule import NoiseSchedule, Span


class DDPMScheduler(NoiseSchedule):
    """Ancestral sampling from q(x_prev | x_t, x_0), also with fewer steps than in training."""

    def final_sigma(self) -> float:
        return 0.0  # DDPM ends on the clean picture, whatever set_alpha_to_one says

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
        """One step from span.t to span.t_prev. [DDPM Eq. 6-7]

        model_output, x_t: (b, c, h, w). Returns (x_prev, x_0), both (b, c, h, w). `history` and
        `eta` have no meaning for DDPM.
        """
        alpha_bar, alpha_bar_prev = span.alpha_bar, span.alpha_bar_prev
        x_0, _ = self.predict(model_output, span, x_t)
        if self.config.clip_sample:
            x_0 = x_0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)

        alpha = alpha_bar / alpha_bar_prev  # of the whole span, several training steps long
        beta = 1 - alpha
        weight_x_0 = alpha_bar_prev**0.5 * beta / (1 - alpha_bar)
        weight_x_t = alpha**0.5 * (1 - alpha_bar_prev) / (1 - alpha_bar)
        mean = weight_x_0 * x_0 + weight_x_t * x_t

        variance = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
        if variance == 0:
            return mean, x_0
        noise = draw_noise(x_t.shape, generator, x_t.device, x_t.dtype)
        return mean + variance**0.5 * noise, x_0
