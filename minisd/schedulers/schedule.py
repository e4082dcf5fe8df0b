"""The noise schedule: how much of the picture is left, and how much noise is there, at each t."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from minisd.arguments import number, whole
from minisd.config import ScheduleConfig


@dataclass(frozen=True)
class Span:
    """One step of a sampling plan: from level `t` to level `t_prev`, as a scheduler sees it.

    sigma is the noise-to-signal ratio sqrt((1 - alpha_bar) / alpha_bar) of a level; t_prev is -1
    after the last step. sigma_before is the level of the step before this one, which multistep
    methods look back to; None at the start of the plan.
    """

    index: int
    t: float
    t_prev: float
    sigma: float
    sigma_prev: float
    sigma_before: float | None = None

    @property
    def corrects(self) -> bool:
        """Whether this call looks again at the level just reached, to retake the step to it."""
        return (self.t, self.sigma) == (self.t_prev, self.sigma_prev)

    @property
    def alpha_bar(self) -> float:
        """The share of the picture's variance at t, 1 / (1 + sigma^2)."""
        return 1 / (1 + self.sigma**2)

    @property
    def alpha_bar_prev(self) -> float:
        return 1 / (1 + self.sigma_prev**2)


def make_betas(config: ScheduleConfig) -> Tensor:
    """The variance of the noise added at each timestep, (num_train_timesteps,). [DDPM Eq. 2]"""
    n, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.beta_schedule == "linear":
        betas = torch.linspace(start, end, n, dtype=torch.float32)
    elif config.beta_schedule == "scaled_linear":  # LDM; CompVis' configs call this one "linear"
        betas = torch.linspace(start**0.5, end**0.5, n, dtype=torch.float32) ** 2
    else:  # squaredcos_cap_v2, the cosine schedule. [Improved DDPM Eq. 17]
        level = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
        betas = torch.tensor([min(1 - level[i + 1] / level[i], 0.999) for i in range(n)])
    return zero_terminal_snr(betas) if config.rescale_betas_zero_snr else betas


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that nothing of the picture is left at the last t.

    betas: (n,). Returns (n,). [Common Diffusion Noise Schedules are Flawed, Algorithm 1]
    """
    signal = torch.cumprod(1 - betas, dim=0).sqrt()
    first, last = signal[0].clone(), signal[-1].clone()
    alphas_bar = ((signal - last) * (first / (first - last))) ** 2
    alphas = torch.cat([alphas_bar[:1], alphas_bar[1:] / alphas_bar[:-1]])
    return 1 - alphas


def sigma_from_alpha_bar(alpha_bar: float) -> float:
    """The noise-to-signal ratio; infinite where nothing of the picture is left."""
    return math.sqrt((1 - alpha_bar) / alpha_bar) if alpha_bar > 0 else math.inf


def _factors(alpha_bar: float, prediction: str) -> tuple[float, float]:
    """Those of the picture and of the noise. Raises ValueError for an unknown `prediction`."""
    if prediction not in (kinds := ("epsilon", "sample", "v_prediction")):
        raise ValueError(f"prediction is {prediction!r:.60}, expected one of {kinds}")
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


def predict_x_0(model_output: Tensor, x_t: Tensor, alpha_bar: float, prediction: str) -> Tensor:
    """The clean picture that the model's output implies. [DDPM Eq. 15; Progressive Distillation D]

    model_output, x_t: (b, c, h, w); `prediction` is "epsilon", "sample" or "v_prediction". Raises
    ValueError for any other.
    """
    signal, noise = _factors(alpha_bar, prediction)
    if prediction == "epsilon":
        if alpha_bar == 0:
            raise ValueError(
                "this step starts from pure noise, where predicted noise says nothing of the "
                "picture; zero terminal SNR needs a model of prediction type 'v_prediction'"
            )
        return (x_t - noise * model_output) / signal
    if prediction == "sample":
        return model_output
    return signal * x_t - noise * model_output  # v = signal * eps - noise * x_0


def predict_eps(model_output: Tensor, x_t: Tensor, alpha_bar: float, prediction: str) -> Tensor:
    """The noise that the model's output implies; the counterpart of predict_x_0."""
    signal, noise = _factors(alpha_bar, prediction)
    if prediction == "epsilon":
        return model_output
    if prediction == "sample":
        return (x_t - signal * model_output) / noise
    return signal * model_output + noise * x_t


class NoiseSchedule:
    """alpha_bar over the training timesteps, and what follows from it. The forward process.

    `betas`, `alphas_bar`: (num_train_timesteps,) float32. [DDPM Eq. 2-4] Without a config it is
    Stable Diffusion's; another is NoiseSchedule(ScheduleConfig(beta_schedule="linear")).
    """

    default_spacing: ClassVar[str] = "leading"
    # Whether x_t is x_0 + sigma * eps, whose noise grows over a picture that keeps its size, and
    # not the unit-variance x_t of DDPM, which is that divided by sqrt(1 + sigma^2).
    in_sigma_space: ClassVar[bool] = False
    class_defaults: ClassVar[Mapping[str, Any]] = {  # what diffusers' classes assume if not told
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "steps_offset": 0,
        "set_alpha_to_one": True,
        "clip_sample": True,
    }
    unsupported: ClassVar[Mapping[str, Any]] = {  # settings that may not differ from this
        "trained_betas": None,
        "thresholding": False,
    }

    def __init__(self, config: ScheduleConfig = ScheduleConfig()):
        self.config = config
        self.betas = make_betas(config)
        self.alphas_bar = torch.cumprod(1 - self.betas, dim=0)

    @classmethod
    def from_config(cls, config: ScheduleConfig | Mapping[str, Any], **changes: Any) -> Self:
        """A scheduler of this class from another's config or from diffusers' scheduler_config.json,
        with `changes`, such as use_karras_sigmas=True.

        In a dictionary, a missing key means the class's own default, and keys of other classes are
        ignored. Raises ValueError for a setting that would change the result and is not supported.
        """
        if isinstance(config, ScheduleConfig):
            config = dataclasses.asdict(config)
        if not isinstance(config, Mapping):
            raise ValueError(
                f"config is {type(config).__name__}, expected a dictionary or a scheduler's "
                "config, for example pipe.scheduler.config"
            )
        known = {field.name for field in dataclasses.fields(ScheduleConfig)}
        if unknown := sorted(set(changes) - known - set(cls.unsupported)):
            raise ValueError(f"no scheduler has the settings {unknown}, expected {sorted(known)}")
        given = {**config, **changes}
        for name, off in cls.unsupported.items():
            if given.get(name, off) != off:
                raise ValueError(f"{name}={given[name]!r} is not supported, expected {off!r}")
        given = {name: value for name, value in given.items() if name in known}
        return cls(ScheduleConfig(**{**cls.class_defaults, **given}))

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps. [DDPM Eq. 4]

        x_0, eps: (b, ...), t: whole timesteps, () or (b,). Returns (b, ...). Raises ValueError for
        a t that is not one; on an accelerator its size is not looked at, which would wait for it.
        """
        alpha_bar = self._at(t, x_0)
        return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps

    def velocity(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0. [Progressive Distillation D]"""
        alpha_bar = self._at(t, x_0)
        return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0

    def snr(self) -> Tensor:
        """The signal-to-noise ratio alpha_bar / (1 - alpha_bar) of every timestep."""
        return self.alphas_bar / (1 - self.alphas_bar)

    @property
    def spacing(self) -> str:
        return self.config.timestep_spacing or self.default_spacing

    def check_count(self, n: int) -> int:
        """num_train_timesteps. Raises ValueError unless 1 <= n <= num_train_timesteps."""
        total = self.config.num_train_timesteps
        if not 1 <= whole("num_inference_steps", n) <= total:
            raise ValueError(f"num_inference_steps is {n}, expected 1 to {total}")
        return total

    def timesteps(self, n: int) -> list[float]:
        """n timesteps, noisiest first, in this schedule's spacing. [Common Diffusion..., Table 2]

        They are whole, but for linspace in sigma space. Raises ValueError unless 1 <= n <=
        num_train_timesteps.
        """
        total = self.check_count(n)
        if self.spacing == "leading":
            offset = min(self.config.steps_offset, total - 1 - (n - 1) * (total // n))
            return [i * (total // n) + offset for i in reversed(range(n))]
        if self.spacing == "linspace" and self.in_sigma_space:
            return np.linspace(0, total - 1, n, dtype=np.float32)[::-1].tolist()
        if self.spacing == "linspace":
            return [round(t) for t in reversed(np.linspace(0, total - 1, n).tolist())]
        return [round(t) - 1 for t in np.arange(total, 0, -total / n)[:n].tolist()]  # trailing

    def levels(self, n: int) -> list[tuple[float, float]]:
        """The (t, sigma) at which a run of n steps calls the model, noisiest first."""
        return [(t, sigma_from_alpha_bar(self.alphas_bar[t].item())) for t in self.timesteps(n)]

    def plan(self, n: int, strength: float = 1.0) -> tuple[Span, ...]:
        """The n steps of a run, of which `strength` in [0, 1] keeps the last int(n * strength)."""
        number("strength", strength, 0, 1)
        ts, sigmas = zip(*self.levels(n))
        ends, befores = [*sigmas[1:], self.final_sigma()], [None, *sigmas[:-1]]
        spans = zip(range(n), ts, [*ts[1:], -1], sigmas, ends, befores)
        return tuple(Span(*span) for span in spans)[n - min(int(n * strength), n) :]

    def calls(self, n: int, strength: float = 1.0) -> int:
        """How often a run of n steps calls the model: n times, more for PNDM and for Heun."""
        return len(self.plan(n, strength))

    def final_sigma(self) -> float:
        """The noise that remains after the last step: none, or that of timestep 0."""
        alpha_bar = 1.0 if self.config.set_alpha_to_one else self.alphas_bar[0].item()
        return sigma_from_alpha_bar(alpha_bar)

    def init_noise_sigma(self, plan: tuple[Span, ...]) -> float:
        """What standard normal noise is multiplied by to start a run."""
        if not self.in_sigma_space:
            return 1.0
        sigma = plan[0].sigma
        return sigma if self.spacing != "leading" else (sigma**2 + 1) ** 0.5  # the reference's rule

    def scale_input(self, x_t: Tensor, span: Span) -> Tensor:
        """x_t as the model wants to see it: with unit variance."""
        return x_t * span.alpha_bar**0.5 if self.in_sigma_space else x_t

    def noised(self, x_0: Tensor, eps: Tensor, sigma: float) -> Tensor:
        """The x_t of this scheduler at a level of its plan: span.sigma, or span.sigma_prev after.

        x_0, eps: (b, ...). Unlike add_noise, it holds between the timesteps of training too.
        """
        alpha_bar = 1 / (1 + sigma**2)
        if self.in_sigma_space:
            return x_0 + sigma * eps
        return alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps

    def predict(self, model_output: Tensor, span: Span, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """What the model's output says of x_t: the clean picture x_0 and the noise eps in it.

        model_output, x_t: (b, c, h, w). Returns (x_0, eps), both (b, c, h, w).
        """
        seen, kind = self.scale_input(x_t, span), self.config.prediction_type
        x_0 = predict_x_0(model_output, seen, span.alpha_bar, kind)
        return x_0, predict_eps(model_output, seen, span.alpha_bar, kind)

    def _at(self, t: Tensor, like: Tensor) -> Tensor:
        t, last = torch.as_tensor(t), len(self.alphas_bar) - 1
        fits = not (t.is_floating_point() or t.dtype == torch.bool)
        if fits and t.device.type == "cpu":
            fits = bool(((t >= 0) & (t <= last)).all())
        if not fits:
            raise ValueError(f"t is {t.tolist()!r:.60}, expected whole numbers 0 to {last}")
        alpha_bar = self.alphas_bar.to(like.device, like.dtype)[t]
        return alpha_bar.reshape(-1, *[1] * (like.ndim - 1)) if alpha_bar.ndim else alpha_bar
