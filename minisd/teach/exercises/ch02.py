"""Chapter 02: forward diffusion and noise schedules."""

from typing import Any

import torch

from minisd.config import ScheduleConfig
from minisd.schedulers.schedule import NoiseSchedule
from minisd.teach.checks import Exercise, call, compare, draws, number, seeded, sentences

SD = NoiseSchedule()


def _first_below(schedule: NoiseSchedule, level: float) -> int:
    return int((schedule.alphas_bar < level).nonzero()[0])


def mix(answer: Any) -> str:
    """The check of 02.2."""
    g = seeded(2)
    x_0, eps = torch.randn(
        2, 4, 3, 4, 4, generator=g
    )  # b = w: a wrong axis does not stop by itself
    t = torch.tensor([10, 200, 500, 900])
    a = SD.alphas_bar[t]
    right, each = SD.add_noise(x_0, eps, t), a[:, None, None, None]
    signal, noise = each.sqrt(), (1 - each).sqrt()
    return draws(answer, x_0, eps, a) or compare(call(answer, x_0, eps, a), right, {
        "both square roots are missing: alpha_bar is a share of the variance, and the numbers "
        "themselves are scaled by its root": each * x_0 + (1 - each) * eps,
        "the square root on the noise is missing": signal * x_0 + (1 - each) * eps,
        "the square root on the picture is missing": each * x_0 + noise * eps,
        "picture and noise are swapped: at t = 0 there should be almost no noise":
            noise * x_0 + signal * eps,
        "the sign of the noise is wrong: it is added": signal * x_0 - noise * eps,
        "the wrong axis: alpha_bar has one number for each picture, and broadcasting put it along "
        "the width; give it the shape (b, 1, 1, 1)": a.sqrt() * x_0 + (1 - a).sqrt() * eps,
        "the two factors do not add to 1, their squares do: the noise's is sqrt(1 - alpha_bar)":
            signal * x_0 + (1 - signal) * eps,
        "the noise is at full strength: it needs the factor sqrt(1 - alpha_bar), or the variance "
        "grows": signal * x_0 + eps,
    })  # fmt: skip


def cumulate(answer: Any) -> str:
    """The check of 02.3."""
    betas = SD.betas
    right = SD.alphas_bar
    return compare(call(answer, betas), right, {
        "this is the product of the betas; what is left after a step is 1 - beta":
            betas.cumprod(0),
        "a sum where a product belongs: every step keeps a share of what is still there":
            (1 - betas).cumsum(0),
        "1 - (sum of the betas) counts every share of the whole picture; each step takes its "
        "share of what is left": 1 - betas.cumsum(0),
        "these are the alphas of single steps; multiply them up": 1 - betas,
        "this is sqrt(alpha_bar), the factor of the picture; alpha_bar is its square": right.sqrt(),
        "this is 1 - alpha_bar, the share of the noise": 1 - right,
        "one step too late: at t = 0 one step of noise has been added already":
            torch.cat([torch.ones(1), right[:-1]]),
    }, tolerance=1e-5)  # fmt: skip


EXERCISES = {
    "02.1": Exercise(
        "predict",
        "at which timestep of Stable Diffusion's schedule is as much noise as picture (SNR = 1)?",
        number(_first_below(SD, 0.5), 3, {
            "half of the way is not half of the noise: look at where alpha_bar crosses 1/2": 500,
            "there sqrt(alpha_bar) is 1/2; SNR = 1 means that alpha_bar itself is 1/2":
                _first_below(SD, 0.25),
            "that is DDPM's linear schedule from 0.0001 to 0.02; Stable Diffusion's is "
            "scaled_linear from 0.00085 to 0.012": _first_below(NoiseSchedule(ScheduleConfig(
                beta_schedule="linear", beta_start=0.0001, beta_end=0.02)), 0.5),
            "that is a ratio; a timestep is wanted, a whole number from 0 to 999": 1.0,
        }, "SNR = alpha_bar / (1 - alpha_bar); search NoiseSchedule().snr() for 1"),
        "there alpha_bar is 1/2, well before the middle",
    ),
    "02.2": Exercise(
        "fill-in",
        "write q_sample(x_0, eps, alpha_bar): x_0, eps (b, c, h, w), alpha_bar (b,)",
        mix,
        "one jump to any t, and the variance stays 1",
    ),
    "02.3": Exercise(
        "fill-in",
        "write alphas_bar(betas), (n,) to (n,): the share of the picture's variance left after t",
        cumulate,
        "alpha_bar is what a thousand small steps leave over",
    ),
    "02.4": Exercise(
        "predict",
        "by which number is the picture multiplied at the last timestep, t = 999?",
        number(float(SD.alphas_bar[-1].sqrt()), 0.0006, {
            "that is alpha_bar; the picture is multiplied by its square root":
                float(SD.alphas_bar[-1]),
            "not pure noise: Stable Diffusion's last timestep keeps some of the picture": 0.0,
            "that is the factor of the noise": float((1 - SD.alphas_bar[-1]).sqrt()),
            "that is the last small step alone; a thousand of them came together":
                float((1 - SD.betas[-1]).sqrt()),
            "rounded too far: three decimals are asked": 0.07,
        }, "it is sqrt(alpha_bar) at t = 999"),
        "0.068: sampling starts from pure noise, which training never showed the model",
    ),
    "02.5": Exercise(
        "open",
        "what goes wrong if one simply adds noise and rescales to [-1, 1] afterwards?",
        sentences(),
        "to compare: the factor would depend on the noise that happened to be drawn, so that no "
        "formula gives x_t from x_0 and none leads back; sqrt(alpha_bar) is known in advance",
    ),
}  # fmt: skip
