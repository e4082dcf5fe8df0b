"""LCM: for models distilled to jump from any level to the picture, a few jumps in all."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from minisd.arguments import whole
from minisd.noise import Generators, draw_noise
from minisd.schedulers.schedule import NoiseSchedule, Span


class LCMScheduler(NoiseSchedule):
    """Jump to the picture, add fresh noise of the next level, and jump again. [LCM Algorithm 3]

    Needs a latent consistency model, or an LCM-LoRA on another one: 4 steps, guidance 1 to 2.
    """

    class_defaults: ClassVar[Mapping[str, Any]] = {
        **NoiseSchedule.class_defaults,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
    }
    sigma_data = 0.5  # EDM: the standard deviation of the data

    def timesteps(self, n: int) -> list[float]:
        """n of the timesteps used in distillation, which were `original_inference_steps`, evenly.

        timestep_spacing has no meaning here. Raises ValueError for more than there are.
        """
        total, original = self.config.num_train_timesteps, self.config.original_inference_steps
        if not 1 <= whole("num_inference_steps", n) <= original <= total:
            raise ValueError(
                f"num_inference_steps is {n} and original_inference_steps {original}, expected "
                f"1 <= num_inference_steps <= original_inference_steps <= {total}"
            )
        chosen = np.floor(np.linspace(0, original, n, endpoint=False)).astype(int).tolist()
        return [(original - i) * (total // original) - 1 for i in chosen]

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
        """One jump to the picture, and back to span.t_prev.

        model_output, x_t: (b, c, h, w). Returns (x_prev, x_0), both (b, c, h, w), where x_0 is the
        consistency function f = c_skip x_t + c_out x_0: x_t itself at t = 0. [LCM Eq. 9] `history`
        and `eta` have no meaning for LCM.
        """
        predicted, _ = self.predict(model_output, span, x_t)
        if self.config.clip_sample:
            reach = self.config.clip_sample_range
            predicted = predicted.clamp(-reach, reach)

        scaled_t = self.config.timestep_scaling * span.t
        c_skip = self.sigma_data**2 / (scaled_t**2 + self.sigma_data**2)
        c_out = scaled_t / (scaled_t**2 + self.sigma_data**2) ** 0.5
        x_0 = c_skip * x_t + c_out * predicted
        if span.t_prev < 0:
            return x_0, x_0

        noise = draw_noise(x_t.shape, generator, x_t.device, x_t.dtype)
        return self.noised(x_0, noise, span.sigma_prev), x_0
