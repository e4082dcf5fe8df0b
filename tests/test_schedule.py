"""The schedule, the plans and the steps of every scheduler: laws, without the reference."""

import math

import pytest
import torch

from minisd import DDIMScheduler, DDPMScheduler
from minisd.config import ScheduleConfig
from minisd.schedulers.schedule import predict_eps, predict_x_0, zero_terminal_snr

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


# ---- the noise schedule ----


def test_the_signal_falls_from_each_timestep_to_the_next():
    alphas_bar = DDPMScheduler().alphas_bar
    assert (alphas_bar.diff() < 0).all()
    assert 0 < alphas_bar[-1] < alphas_bar[0] < 1


def test_noising_step_by_step_is_the_closed_form():
    """[DDPM Eq. 2] iterated has the mean and the variance of [DDPM Eq. 4]."""
    scheduler, t = DDPMScheduler(), 400
    mean, variance = torch.tensor(1.0).double(), torch.tensor(0.0).double()
    for beta in scheduler.betas[: t + 1].double():
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
    one, zero = torch.ones(1), torch.zeros(1)
    closed_mean = scheduler.add_noise(one, zero, torch.tensor([t]))
    closed_variance = scheduler.add_noise(zero, one, torch.tensor([t])) ** 2
    assert closed_mean.item() == pytest.approx(mean.item(), rel=1e-5)
    assert closed_variance.item() == pytest.approx(variance.item(), rel=1e-5)


def test_unit_variance_stays_unit_variance_at_every_timestep():
    scheduler, t = DDPMScheduler(), torch.arange(1000)
    one, zero = torch.ones(1000), torch.zeros(1000)
    variance = scheduler.add_noise(one, zero, t) ** 2 + scheduler.add_noise(zero, one, t) ** 2
    torch.testing.assert_close(variance, one, **CLOSE)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_every_kind_of_prediction_gives_back_picture_and_noise(kind):
    scheduler, x_0, eps = DDPMScheduler(), normal(1, 4, 4, 4), normal(1, 4, 4, 4, seed=1)
    t = torch.tensor(600)
    x_t, alpha_bar = scheduler.add_noise(x_0, eps, t), scheduler.alphas_bar[600].item()
    output = {"epsilon": eps, "sample": x_0, "v_prediction": scheduler.velocity(x_0, eps, t)}[kind]
    torch.testing.assert_close(predict_x_0(output, x_t, alpha_bar, kind), x_0, **CLOSE)
    torch.testing.assert_close(predict_eps(output, x_t, alpha_bar, kind), eps, **CLOSE)


@pytest.mark.parametrize("solve", [predict_x_0, predict_eps])
def test_an_unknown_kind_of_prediction_is_refused(solve):
    with pytest.raises(ValueError, match=r"prediction is 'eps', expected one of .*'epsilon'"):
        solve(normal(1), normal(1), 0.5, "eps")


@pytest.mark.parametrize("t", [-1, 1000, 250.0, [3, -1], [True, False]])
def test_a_timestep_that_the_schedule_lacks_is_refused(t):
    two = normal(2, 4), normal(2, 4)
    for mix in (DDPMScheduler().add_noise, DDPMScheduler().velocity):
        with pytest.raises(ValueError, match="expected whole numbers 0 to 999"):
            mix(*two, torch.tensor(t))


def test_zero_terminal_snr_leaves_nothing_and_keeps_the_first_level():
    betas = DDPMScheduler().betas
    alphas_bar = torch.cumprod(1 - zero_terminal_snr(betas), 0)
    assert alphas_bar[-1] == 0
    assert alphas_bar[0].item() == pytest.approx(1 - betas[0].item(), abs=1e-6)


def test_predicted_noise_at_zero_signal_is_refused():
    with pytest.raises(ValueError, match="v_prediction"):
        predict_x_0(torch.ones(1), torch.ones(1), 0.0, "epsilon")


# ---- plans and steps ----


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 50, 333, 999, 1000])
def test_a_plan_is_a_chain_of_falling_timesteps(n, spacing):
    plan = DDIMScheduler(ScheduleConfig(timestep_spacing=spacing)).plan(n)
    assert len(plan) == n
    assert [span.index for span in plan] == list(range(n))
    assert [span.t for span in plan[1:]] == [span.t_prev for span in plan[:-1]]
    assert [span.sigma for span in plan[1:]] == [span.sigma_prev for span in plan[:-1]]
    assert all(999 >= span.t > span.t_prev >= -1 for span in plan)


@pytest.mark.parametrize("n", [0, -1, 1001])
def test_a_plan_of_an_impossible_length_is_refused(n):
    with pytest.raises(ValueError, match="1 to 1000"):
        DDIMScheduler().plan(n)


@pytest.mark.parametrize(
    ("n", "strength", "kept"),
    [(10, 0.5, 5), (50, 0.8, 40), (10, 1.0, 10), (10, 0.01, 0), (7, 0.5, 3), (10, 0.0, 0)],
)
def test_strength_keeps_the_last_steps_of_the_plan(n, strength, kept):
    scheduler = DDIMScheduler()
    assert scheduler.plan(n, strength) == scheduler.plan(n)[n - kept :]


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_a_strength_outside_0_to_1_is_refused(strength):
    with pytest.raises(ValueError, match="strength"):
        DDIMScheduler().plan(10, strength)


def variance_of(step):
    """The variance of a step's noise, from many draws at once."""
    zeros = torch.zeros(1, 1, 400, 400)
    return step(zeros, zeros, seeded())[0].var().item()


@pytest.mark.parametrize("index", [0, 5, 18])
def test_ddim_with_eta_one_has_the_ddpm_variance_and_mean(index):
    """[DDIM Eq. 16]: eta 1 is the ancestral sampler."""
    clean = ScheduleConfig(set_alpha_to_one=True)
    ddim, ddpm = DDIMScheduler(clean), DDPMScheduler(clean)
    span, x_t, eps = ddim.plan(20)[index], normal(1, 4, 6, 6), normal(1, 4, 6, 6, seed=1)
    a, _ = ddim.step(eps, span, x_t, generator=seeded(), eta=1.0)
    b, _ = ddpm.step(eps, span, x_t, generator=seeded())
    torch.testing.assert_close(a, b, **CLOSE)


def test_ddpm_noise_has_the_posteriors_variance():
    """[DDPM Eq. 7], measured over 160,000 draws."""
    scheduler = DDPMScheduler()
    span = scheduler.plan(20)[4]
    beta = 1 - span.alpha_bar / span.alpha_bar_prev
    expected = beta * (1 - span.alpha_bar_prev) / (1 - span.alpha_bar)
    measured = variance_of(lambda eps, x, g: scheduler.step(eps, span, x, generator=g))
    assert measured == pytest.approx(expected, rel=0.02)


def test_ddim_without_eta_draws_nothing():
    scheduler, generator = DDIMScheduler(), seeded()
    before = generator.get_state()
    eps, x_t = normal(1, 4, 4, 4), normal(1, 4, 4, 4, seed=1)
    scheduler.step(eps, scheduler.plan(5)[0], x_t, generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_ddpms_last_step_ends_on_the_predicted_picture():
    scheduler = DDPMScheduler()
    x_prev, x_0 = scheduler.step(
        normal(1, 4, 4, 4), scheduler.plan(9)[-1], normal(1, 4, 4, 4, seed=1)
    )
    torch.testing.assert_close(x_prev, x_0, **CLOSE)


def test_with_the_true_noise_ddim_finds_the_picture_in_any_number_of_steps():
    scheduler = DDIMScheduler(ScheduleConfig(set_alpha_to_one=True))
    x_0, eps = normal(1, 4, 4, 4).double(), normal(1, 4, 4, 4, seed=1).double()
    for n in (1, 3, 50):
        plan = scheduler.plan(n)
        x = scheduler.add_noise(x_0, eps, torch.tensor(plan[0].t))
        for span in plan:
            x, _ = scheduler.step(eps, span, x)
        torch.testing.assert_close(x, x_0, rtol=1e-6, atol=1e-6)


def test_clipping_holds_the_prediction_in_its_range():
    scheduler = DDIMScheduler(ScheduleConfig(clip_sample=True, clip_sample_range=0.5))
    _, x_0 = scheduler.step(normal(1, 4, 8, 8), scheduler.plan(5)[0], normal(1, 4, 8, 8, seed=1))
    assert x_0.abs().max() == 0.5
