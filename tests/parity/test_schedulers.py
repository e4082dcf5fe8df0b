"""Schedules and trajectories against the reference's, with a model that is a formula."""

import math

import pytest
import torch

from minisd import DDIMScheduler, DDPMScheduler
from minisd.config import ScheduleConfig
from minisd.schedulers.schedule import make_betas, zero_terminal_snr
from parity import models

COUNTS = (1, 2, 3, 5, 7, 20, 30, 50, 333, 999)
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
OURS = {"DDIMScheduler": DDIMScheduler, "DDPMScheduler": DDPMScheduler}
FLOOR = 1e-8  # relative to the largest value in float64; the reference's last noise is 1e-10


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def model(x, t):
    """A stand-in for the UNet: smooth, bounded, and different at every t."""
    return 0.7 * torch.tanh(x) + 0.2 * math.cos(t / 130) + 0.1 * torch.sin(3 * x) * t / 1000


def pair(kind, **more):
    """The reference's scheduler and ours, made from its config.

    The reference works out its factors in float32, where 1 - alpha of a short step has four digits
    left; from the same schedule in float64 it must agree with ours to many more.
    """
    theirs = models.reference_scheduler(kind, **more)
    ours = OURS[kind].from_config(dict(theirs.config))
    assert models.relative_error(ours.alphas_bar, theirs.alphas_cumprod) < 1e-6
    theirs.alphas_cumprod = ours.alphas_bar.double()
    theirs.one = torch.tensor(1.0).double()
    first = theirs.one if theirs.config.get("set_alpha_to_one") else theirs.alphas_cumprod[0]
    theirs.final_alpha_cumprod = first
    return ours, theirs


def our_trajectory(scheduler, n, x, eta=0.0, seed=0):
    generator, levels = torch.Generator().manual_seed(seed), []
    for span in scheduler.plan(n):
        x, x_0 = scheduler.step(model(x, span.t), span, x, generator=generator, eta=eta)
        levels.append((x, x_0))
    return levels


def reference_trajectory(scheduler, n, x, seed=0, **more):
    generator, levels = torch.Generator().manual_seed(seed), []
    scheduler.set_timesteps(n)
    for t in scheduler.timesteps:
        step = scheduler.step(model(x, t.item()), t, x, generator=generator, **more)
        x = step.prev_sample
        levels.append((x, step.pred_original_sample))
    return levels


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, reference in zip(ours, theirs):
        for a, b in zip(mine, reference):
            assert models.relative_error(a, b) < FLOOR


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", COUNTS)
def test_ddim_takes_the_references_steps(n, eta, prediction):
    ours, theirs = pair("DDIMScheduler", prediction_type=prediction)
    x = normal(2, 4, 3, 3)
    assert_same(our_trajectory(ours, n, x, eta), reference_trajectory(theirs, n, x, eta=eta))


@pytest.mark.parametrize("kind", OURS)
def test_in_float32_the_trajectories_stay_together(kind):
    theirs = models.reference_scheduler(kind)
    ours, x = OURS[kind].from_config(dict(theirs.config)), normal(2, 4, 3, 3).float()
    mine, reference = our_trajectory(ours, 50, x), reference_trajectory(theirs, 50, x)
    assert mine[-1][0].dtype == torch.float32
    assert models.relative_error(mine[-1][0], reference[-1][0]) < 2e-5


@pytest.mark.parametrize("n", [1, 2, 5, 20, 50, 1000])
def test_ddim_takes_the_references_steps_with_trailing_where_n_divides_1000(n):
    ours, theirs = pair("DDIMScheduler", timestep_spacing="trailing", prediction_type="sample")
    x = normal(2, 4, 3, 3)
    assert_same(our_trajectory(ours, n, x), reference_trajectory(theirs, n, x))


@pytest.mark.parametrize("settings", [
    {"set_alpha_to_one": True}, {"clip_sample": True}, {"beta_schedule": "linear"},
    {"clip_sample": True, "clip_sample_range": 0.5}, {"beta_schedule": "squaredcos_cap_v2"},
    {"steps_offset": 0}, {"num_train_timesteps": 400},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction",
     "timestep_spacing": "trailing"},
], ids=str)  # fmt: skip
def test_ddim_follows_its_settings(settings):
    ours, theirs = pair("DDIMScheduler", **settings)
    x = normal(2, 4, 3, 3)
    assert_same(our_trajectory(ours, 10, x, 0.3), reference_trajectory(theirs, 10, x, eta=0.3))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n", COUNTS)
def test_ddpm_takes_the_references_steps(n, spacing, prediction):
    settings = {"timestep_spacing": spacing, "prediction_type": prediction}
    ours, theirs = pair("DDPMScheduler", **settings)
    x = normal(2, 4, 3, 3)
    assert_same(our_trajectory(ours, n, x), reference_trajectory(theirs, n, x))


@pytest.mark.parametrize("settings", [
    {"clip_sample": True}, {"steps_offset": 0}, {"beta_schedule": "linear"},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction",
     "timestep_spacing": "trailing"},
], ids=str)  # fmt: skip
def test_ddpm_follows_its_settings(settings):
    ours, theirs = pair("DDPMScheduler", **settings)
    x = normal(2, 4, 3, 3)
    assert_same(our_trajectory(ours, 10, x), reference_trajectory(theirs, 10, x))


@pytest.mark.parametrize("kind", OURS)
def test_a_list_of_generators_gives_the_references_noise(kind):
    ours, theirs = pair(kind)
    x, plan = normal(2, 4, 3, 3), ours.plan(10)
    theirs.set_timesteps(10)
    more = {"eta": 1.0} if kind == "DDIMScheduler" else {}
    for row in range(2):
        one = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
        mine, _ = ours.step(model(x, plan[0].t), plan[0], x, generator=one, **more)
        alone = torch.Generator().manual_seed(4 + row)
        x_row = x[row : row + 1]
        step = theirs.step(
            model(x_row, plan[0].t), theirs.timesteps[0], x_row, generator=alone, **more
        )
        assert models.relative_error(mine[row : row + 1], step.prev_sample) < FLOOR


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_betas_and_alphas_bar_are_the_references(schedule):
    theirs = models.reference_scheduler("DDPMScheduler", beta_schedule=schedule)
    ours = DDPMScheduler.from_config(dict(theirs.config))
    assert models.relative_error(ours.betas, theirs.betas) < 1e-6
    assert models.relative_error(ours.alphas_bar, theirs.alphas_cumprod) < 1e-6


def test_the_rescale_to_zero_terminal_snr_is_the_references():
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = make_betas(ScheduleConfig())
    assert models.relative_error(zero_terminal_snr(betas), rescale_zero_terminal_snr(betas)) < 1e-6


def test_add_noise_and_velocity_are_the_references():
    ours, theirs = pair("DDPMScheduler")
    x_0, eps = normal(3, 4, 5, 5), normal(3, 4, 5, 5, seed=1)
    t = torch.tensor([0, 500, 999])
    assert models.relative_error(ours.add_noise(x_0, eps, t), theirs.add_noise(x_0, eps, t)) < 1e-6
    velocity = theirs.get_velocity(x_0, eps, t)
    assert models.relative_error(ours.velocity(x_0, eps, t), velocity) < 1e-6


def lands(scheduler, n, step):
    """With the true noise as the model's answer, where each step ends and where it should."""
    x_0, eps = normal(1, 4, 3, 3), normal(1, 4, 3, 3, seed=1)
    spans = scheduler.plan(n)
    last = scheduler.alphas_bar[0].double()
    for span in spans:
        x_t = scheduler.add_noise(x_0, eps, torch.tensor(span.t))
        target = last.sqrt() * x_0 + (1 - last).sqrt() * eps
        if span.t_prev >= 0:
            target = scheduler.add_noise(x_0, eps, torch.tensor(span.t_prev))
        yield models.relative_error(step(eps, span, x_t), target)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n", [*COUNTS, 1000])
def test_ddim_lands_on_the_next_level_of_its_plan(n, spacing):
    """A law, for there is no reference: diffusers 0.42 goes to t - 1000 // n, which is not the next
    timestep of linspace, nor of trailing if n does not divide 1000; leading crashes at 1000.
    """
    ours, _ = pair("DDIMScheduler", timestep_spacing=spacing)
    errors = lands(ours, n, lambda eps, span, x_t: ours.step(eps, span, x_t)[0])
    assert max(errors) < FLOOR


@pytest.mark.parametrize(("spacing", "n"), [("linspace", 7), ("trailing", 7)])
def test_the_references_ddim_misses_the_next_level_of_linspace_and_trailing(spacing, n):
    """The fault (diffusers#12633, #11347) for which test_ddim_lands_... stands in."""
    ours, theirs = pair("DDIMScheduler", timestep_spacing=spacing)
    theirs.set_timesteps(n)
    errors = lands(ours, n, lambda eps, span, x_t: theirs.step(eps, span.t, x_t).prev_sample)
    assert max(errors) > 1e-3


@pytest.mark.parametrize("kind", OURS)
def test_a_thousand_leading_steps_visit_every_timestep_where_the_reference_crashes(kind):
    ours, theirs = pair(kind)
    assert ours.timesteps(1000) == list(range(999, -1, -1))
    with pytest.raises(IndexError):
        reference_trajectory(theirs, 1000, normal(1, 4, 2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_count_has_the_references_timesteps(spacing):
    ours, theirs = pair("DDPMScheduler", timestep_spacing=spacing)
    for n in range(1, 1000):
        theirs.set_timesteps(n)
        reference = theirs.timesteps.tolist()
        assert len(reference) != n or ours.timesteps(n) == reference, n


@pytest.mark.slow
@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("first", range(1, 1000, 100))
def test_every_count_takes_the_references_steps(kind, first):
    ours, theirs = pair(kind)
    x = normal(1, 4, 2, 2)
    for n in range(first, min(first + 100, 1000)):
        assert_same(our_trajectory(ours, n, x), reference_trajectory(theirs, n, x))
