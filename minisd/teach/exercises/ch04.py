"""Chapter 04: sampling, from noise to image."""

from typing import Any

import torch
from torch import Tensor

from minisd.schedulers import DDIMScheduler
from minisd.teach.checks import Exercise, call, compare, number, seeded
from minisd.teach.mistakes import step_hint
from minisd.teach.swapping import own_scheduler

SD = DDIMScheduler()
SPAN = SD.plan(10)[4]
EXACT = 1e-5
SAMPLERS = ("DDPM", "DDIM", "Euler", "Heun", "DPM++ 2M")


def _draw(seed: int) -> tuple[Tensor, Tensor]:
    eps, x_t = torch.randn(2, 2, 3, 4, 4, generator=seeded(seed))
    return eps, x_t


def ddim(answer: Any) -> str:
    """The check of 04.1."""
    eps, x_t = _draw(4)
    given = call(answer, eps, SPAN, x_t)
    if said := step_hint(own_scheduler(answer, SD), SD, SPAN, x_t):
        return said
    x_prev, x_0 = SD.step(eps, SPAN, x_t)
    noise = (1 - SPAN.alpha_bar) ** 0.5
    return compare(given[0], x_prev, {}, EXACT) or compare(given[1], x_0, {
        "the second of the pair is x_t again; it should be the predicted clean picture x_0": x_t,
        "the pair is (x_prev, x_prev); the second should be the predicted clean picture": x_prev,
        "the x_0 that you return is not divided by sqrt(alpha_bar)": x_t - noise * eps,
    }, EXACT)  # fmt: skip


def noisy(answer: Any) -> str:
    """The check of 04.2."""
    eps, x_t = _draw(44)
    z = torch.randn(x_t.shape, generator=seeded(5))

    def right(eta: float) -> Tensor:
        same_z = seeded(5)
        return SD.step(eps, SPAN, x_t, eta=eta, generator=same_z)[0]

    def given(eta: float) -> Tensor:
        return call(answer, eps, SPAN, x_t, eta, z)

    if said := compare(given(0.7), right(0.7), _noisy_mistakes(eps, x_t, 0.7, z), EXACT):
        return said
    for eta in (0.0, 1.0):
        if compare(given(eta), right(eta), {}, EXACT):
            return (
                f"right for eta = 0.7, but not for eta = {eta:g}: is eta a fixed number somewhere?"
            )
    return ""


def _noisy_mistakes(eps: Tensor, x_t: Tensor, eta: float, z: Tensor) -> dict[str, Tensor]:
    a, b, x_0 = SPAN.alpha_bar, SPAN.alpha_bar_prev, SD.step(eps, SPAN, x_t)[1]
    largest = ((1 - b) / (1 - a) * (1 - a / b)) ** 0.5
    short, std = eta * (1 - a / b) ** 0.5, eta * largest
    rest = (1 - b - std**2) ** 0.5

    def mixed(direction: float, fresh: float) -> Tensor:
        return b**0.5 * x_0 + direction * eps + fresh * z

    return {
        "the fresh noise is missing: + sigma z": mixed(rest, 0),
        "the fresh noise comes on top, which is too much noise: take sigma^2 out of "
        "1 - alpha_bar_prev": mixed((1 - b) ** 0.5, std),
        "sigma stands under the root where its square belongs: variances add":
            mixed((1 - b - std) ** 0.5, std),
        "sigma is taken from the other factor; variances add, standard deviations do not":
            mixed((1 - b) ** 0.5 - std, std),
        "z is multiplied by the variance; it needs the standard deviation, its root":
            mixed(rest, std**2),
        "eta is not used: this is the step of eta = 1": mixed((1 - b - largest**2) ** 0.5, largest),
        "eta stands under the root: sigma = eta times the root, so that eta^2 scales the variance":
            mixed((1 - b - eta * largest**2) ** 0.5, eta**0.5 * largest),
        "the first factor of sigma is missing: sqrt((1 - alpha_bar_prev) / (1 - alpha_bar))":
            mixed((1 - b - short**2) ** 0.5, short),
    }  # fmt: skip


def heun(answer: Any) -> str:
    """The check of 04.3."""
    x = torch.linspace(-2, 2, 9)
    sigma, after = 2.0, 1.2
    h = after - sigma

    def slope(x: Tensor, sigma: float) -> Tensor:
        return sigma * x / (1 + sigma**2) + 0.2 * torch.tanh(x / sigma)

    first = slope(x, sigma)
    euler = x + h * first
    second = slope(euler, after)
    mean = (first + second) / 2
    return compare(call(answer, x, sigma, after, slope), x + h * mean, {
        "that is Euler's step; look at the slope where it ends, and take the mean of both": euler,
        "the slopes are added; their mean is half of that": x + h * (first + second),
        "only the slope at the end is used; take the mean of both": x + h * second,
        "the second slope is looked up at the old sigma": x + h * (first + slope(euler, sigma)) / 2,
        "the second slope is looked up at the old x; go there first, by Euler's step":
            x + h * (first + slope(x, after)) / 2,
        "the mean slope is added to the point where Euler's step ended; it starts from x again":
            euler + h * mean,
        "the sign is wrong: the step is sigma_next - sigma, a negative number": x - h * mean,
    }, EXACT)  # fmt: skip


def fewest(answer: Any) -> str:
    """The check of 04.5."""
    if not isinstance(answer, dict) or not answer:
        return 'give a dictionary, the number of calls for each sampler: {"DDIM": 30, ...}'
    if unknown := [name for name in answer if name not in SAMPLERS]:
        return f"{unknown[0]!r} is none of the samplers {', '.join(SAMPLERS)}"
    if missing := [name for name in SAMPLERS if name not in answer]:
        return f"no number is given for {', '.join(missing)}"
    if wrong := [name for name, n in answer.items() if not isinstance(n, int) or not 2 <= n <= 200]:
        return f"{wrong[0]}: {answer[wrong[0]]!r} is not a whole number of calls from 2 to 200"
    if answer["Heun"] % 2 == 0:
        return "Heun's n steps cost 2n - 1 calls, an odd number: count calls, not steps"
    return ""


EXERCISES = {
    "04.1": Exercise(
        "fill-in",
        "write step(model_output, span, x_t), one step of DDIM from span.alpha_bar to "
        "span.alpha_bar_prev: it returns the pair (x_prev, x_0)",
        ddim,
        "the library's step; now put it into the real pipeline",
    ),
    "04.2": Exercise(
        "fill-in",
        "write noisy_step(eps, span, x_t, eta, z), DDIM's step with fresh noise z: returns x_prev",
        noisy,
        "eta = 0 is plain DDIM, and eta = 1 has the variance of DDPM",
    ),
    "04.3": Exercise(
        "fill-in",
        "write heun(x, sigma, sigma_next, slope): Euler's step, a look at the slope where it ends, "
        "and the step from x again with the mean of both slopes",
        heun,
        "two looks for each step; the next cell shows what they buy",
    ),
    "04.4": Exercise(
        "predict",
        "twice as many steps: by which factor does Heun's error fall, once the steps are small?",
        number(4.0, 0.4, {
            "2 is the factor of Euler's method, whose error is in proportion to the step": 2.0,
            "the error becomes smaller; give the factor by which it falls, a number above 1": 0.25,
            "8 is the factor for the error of one step alone; now there are twice as many": 8.0,
            "16 belongs to methods of fourth order, which look four times a step": 16.0,
        }, "read two neighbouring points off Heun's line in the figure, and divide their errors"),
        "second order: half the step, a quarter of the error, at twice the calls",
    ),
    "04.5": Exercise(
        "open",
        "how many calls does each sampler need until 95 % of the points lie near the data?",
        fewest,
        "to compare: with our noise DPM++ 2M needed 13 calls, DDIM and Euler 14, DDPM 17 and Heun, "
        "with its two looks a step, 19",
    ),
}  # fmt: skip
