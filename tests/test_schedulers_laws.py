"""What must hold of every scheduler, whatever the reference does: purity, exactness, order."""

import dataclasses
import json
import math
from itertools import pairwise

import pytest
import torch

from minisd import checkpoint
from minisd.config import ScheduleConfig
from minisd.pipeline import Step
from minisd.schedulers import SCHEDULERS, NoiseSchedule, Span, by_name, name_of

COUNTS = (1, 2, 3, 7, 50, 333, 999)
PREDICTIONS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing")
DETERMINISTIC = ("ddim", "pndm", "euler", "heun", "dpm++")
RANDOM = ("ddpm", "euler-a", "dpm++-sde")  # lcm needs a model distilled for it
MULTISTEP = ("pndm", "heun", "dpm++", "dpm++-sde")  # they read the history
TWICE = ("pndm", "heun")  # they call the model again at a level that they have reached


def make(name, **more):
    return by_name(name, ScheduleConfig(**more))


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def run(scheduler, plan, x, model, seed=0, eta=0.0):
    """The steps of a run, where model(x, span) is the model's output at an x_t."""
    generator, history, steps = torch.Generator().manual_seed(seed), (), []
    for span in plan:
        output = model(x, span)
        x_prev, x_0 = scheduler.step(output, span, x, history=history, generator=generator, eta=eta)
        _, eps = scheduler.predict(output, span, x)
        steps.append(Step(span.index, span.t, x, x_0, eps, x_prev))
        history = tuple(steps[-4:])
        x = x_prev
    return steps


def answer(scheduler, x_0, eps, alpha_bar):
    """The output of a model that knows the picture and the noise, of the schedule's type."""
    velocity = alpha_bar**0.5 * eps - (1 - alpha_bar) ** 0.5 * x_0
    kind = scheduler.config.prediction_type
    return {"epsilon": eps, "sample": x_0, "v_prediction": velocity}[kind]


def smooth(scheduler):
    """A model that is a formula, different at every t."""
    return lambda x, span: torch.tanh(scheduler.scale_input(x, span)) + 0.2 * math.cos(span.t / 130)


def largest(x):
    return x.abs().max().item()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_step_with_the_same_arguments_gives_the_same_result(name):
    scheduler = make(name)
    plan, x = scheduler.plan(6), normal(2, 4, 3, 3)
    steps = run(scheduler, plan, x, smooth(scheduler))
    for index in (0, 1, 4):
        history, x_t = tuple(steps[:index][-4:]), steps[index].x_t
        output = smooth(scheduler)(x_t, plan[index])
        before = [t.clone() for t in (output, x_t, *[step.eps for step in history])]

        def take(output=output, span=plan[index], x_t=x_t, history=history):
            generator = torch.Generator().manual_seed(7)
            return scheduler.step(output, span, x_t, history=history, generator=generator)

        for a, b in zip(take(), take()):
            assert torch.equal(a, b)
        after = [output, x_t, *[step.eps for step in history]]
        assert all(torch.equal(a, b) for a, b in zip(before, after))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_runs_of_one_scheduler_do_not_touch_each_other(name):
    scheduler, x = make(name), normal(2, 4, 3, 3)
    first = run(scheduler, scheduler.plan(8), x, smooth(scheduler))
    run(scheduler, scheduler.plan(3, 0.7), x, smooth(scheduler))
    again = run(scheduler, scheduler.plan(8), x, smooth(scheduler))
    assert torch.equal(first[-1].x_prev, again[-1].x_prev)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_only_the_last_four_steps_of_history_matter(name):
    scheduler, x = make(name), normal(1, 4, 3, 3)
    plan = scheduler.plan(9)
    steps = run(scheduler, plan, x, smooth(scheduler))
    span, x_t = plan[8], steps[8].x_t
    output = smooth(scheduler)(x_t, span)
    results = [
        scheduler.step(output, span, x_t, history=tuple(steps[start:8]),
                       generator=torch.Generator().manual_seed(0))[0]
        for start in (0, 4)
    ]  # fmt: skip
    assert torch.equal(*results)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_history_is_read_by_multistep_methods_and_no_others(name):
    scheduler, x = make(name), normal(1, 4, 3, 3)
    plan = scheduler.plan(9)
    steps = run(scheduler, plan, x, smooth(scheduler))
    index = next(i for i in range(4, 9) if plan[i].corrects or name != "heun")
    span, x_t = plan[index], steps[index].x_t
    past = tuple(steps[index - 4 : index])
    other = (*past[:-1], dataclasses.replace(past[-1], eps=past[-1].eps + 1, x_0=past[-1].x_0 + 1))
    results = [
        scheduler.step(smooth(scheduler)(x_t, span), span, x_t, history=history,
                       generator=torch.Generator().manual_seed(0))[0]
        for history in (past, other)
    ]  # fmt: skip
    assert torch.equal(*results) is (name not in MULTISTEP)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_predict_takes_x_t_apart_into_what_it_was_made_of(name, prediction):
    scheduler = make(name, prediction_type=prediction)
    x_0, eps = normal(2, 4, 3, 3), normal(2, 4, 3, 3, seed=1)
    for span in scheduler.plan(7):
        x_t = scheduler.noised(x_0, eps, span.sigma)
        found = scheduler.predict(answer(scheduler, x_0, eps, span.alpha_bar), span, x_t)
        for a, b in zip(found, (x_0, eps)):
            assert largest(a - b) < 1e-10


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_model_sees_unit_variance_at_every_level(name):
    scheduler, x_0, eps = make(name), normal(9), normal(9, seed=1)
    for span in scheduler.plan(9):
        unit = scheduler.scale_input(scheduler.noised(x_0, eps, span.sigma), span)
        direct = span.alpha_bar**0.5 * x_0 + (1 - span.alpha_bar) ** 0.5 * eps
        assert largest(unit - direct) < 1e-12


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noised_is_add_noise_at_the_timesteps_of_training(name):
    scheduler = make(name, timestep_spacing="leading")
    x_0, eps = normal(1, 4, 3, 3), normal(1, 4, 3, 3, seed=1)
    for span in scheduler.plan(5):
        x_t = scheduler.scale_input(scheduler.noised(x_0, eps, span.sigma), span)
        assert largest(x_t - scheduler.add_noise(x_0, eps, torch.tensor(int(span.t)))) < 1e-6


SOLVERS = [
    *((name, {}) for name in DETERMINISTIC),
    ("euler", {"use_karras_sigmas": True}), ("euler", {"final_sigmas_type": "sigma_min"}),
    ("heun", {"use_karras_sigmas": True}), ("dpm++", {"use_karras_sigmas": True}),
    ("dpm++", {"solver_order": 1}), ("dpm++", {"final_sigmas_type": "sigma_min"}),
    ("pndm", {"set_alpha_to_one": True}),
]  # fmt: skip


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("name", "settings"), SOLVERS, ids=str)
def test_with_the_true_noise_every_step_lands_on_its_level(name, settings, spacing, prediction):
    """The exactness that the reference's PNDM misses for v-prediction, linspace and trailing."""
    scheduler = make(name, timestep_spacing=spacing, prediction_type=prediction, **settings)
    x_0, eps = normal(1, 4, 2, 2), normal(1, 4, 2, 2, seed=1)
    for n, strength in ((1, 1), (2, 1), (7, 1), (20, 1), (20, 0.5), (1000, 0.03), (999, 0.01)):
        plan = scheduler.plan(n, strength)
        start = scheduler.noised(x_0, eps, plan[0].sigma)
        steps = run(
            scheduler, plan, start, lambda x, span: answer(scheduler, x_0, eps, span.alpha_bar)
        )
        for span, step in zip(plan, steps):
            level = scheduler.noised(x_0, eps, span.sigma_prev)
            assert largest(step.x_prev - level) < 1e-9, (n, span.index)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_count_has_a_plan_that_only_goes_down(name, spacing):
    scheduler = make(name, timestep_spacing=spacing)
    for n in (*COUNTS, 1000):
        if name == "lcm" and n > 50:
            continue
        plan = [span for span in scheduler.plan(n) if name not in TWICE or not span.corrects]
        assert len(plan) == n
        assert all(0 <= span.t <= 999 for span in plan)
        assert all(math.isfinite(span.sigma) for span in plan)
        twice = sum(span.sigma == span.sigma_prev for span in plan if span.t_prev >= 0)
        assert twice == (n == 1000 and spacing == "linspace" and name in ("dpm++", "dpm++-sde"))
        assert all(span.sigma >= span.sigma_prev or span.t_prev == -1 for span in plan)
        assert [span.t for span in plan[1:]] == [span.t_prev for span in plan[:-1]]
        assert plan[-1].t_prev == -1
        assert [span.sigma_before for span in plan[1:]] == [span.sigma for span in plan[:-1]]


def test_a_level_given_twice_does_not_divide_by_zero():
    """Rounding gives a linspace of as many steps as in training one timestep twice, where the
    reference's DPM-Solver++ divides 0 by 0.
    """
    scheduler = make("dpm++")
    plan = scheduler.plan(1000)
    assert len({span.t for span in plan}) == 999
    x = run(scheduler, plan, normal(1, 4, 2, 2), smooth(scheduler))[-1].x_prev
    assert torch.isfinite(x).all()


def gaussian(scheduler, mean=0.3, std=0.7):
    """The exact model of normally distributed pictures, and the solution of their equation.

    In sigma space dx / dsigma = sigma (x - mean) / (std^2 + sigma^2), so x - mean is proportional
    to sqrt(std^2 + sigma^2).
    """

    def scale(x, sigma):
        return x if scheduler.in_sigma_space else x * (1 + sigma**2) ** 0.5

    def model(x, span):
        eps = span.sigma * (scale(x, span.sigma) - mean) / (std**2 + span.sigma**2)
        x_0 = scale(x, span.sigma) - span.sigma * eps
        return answer(scheduler, x_0, eps, span.alpha_bar)

    def solution(x, sigma, sigma_end):
        spread = ((std**2 + sigma_end**2) / (std**2 + sigma**2)) ** 0.5
        return mean + (scale(x, sigma) - mean) * spread

    return model, solution, scale


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("name", "settings", "order"), [
    ("ddim", {}, 1), ("euler", {}, 1), ("euler", {"use_karras_sigmas": True}, 1),
    ("heun", {"use_karras_sigmas": True}, 2), ("dpm++", {"use_karras_sigmas": True}, 2),
    ("dpm++", {"use_karras_sigmas": True, "solver_order": 1}, 1), ("pndm", {}, 2),
], ids=str)  # fmt: skip
def test_halving_the_steps_divides_the_error_by_two_to_the_order(name, settings, order, prediction):
    """The error where the last step begins: the jump from there to zero noise is first order."""
    scheduler = make(name, timestep_spacing="leading", prediction_type=prediction, **settings)
    model, solution, scale = gaussian(scheduler)
    errors = []
    for n in (125, 250, 500):
        plan = scheduler.plan(n)
        x = scheduler.noised(normal(4), normal(4, seed=1), plan[0].sigma)
        last = run(scheduler, plan, x, model)[-1]
        exact = solution(x, plan[0].sigma, plan[-1].sigma)
        errors.append(largest(scale(last.x_t, plan[-1].sigma) - exact))
    found = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(each - order) < 0.25 for each in found), found


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", RANDOM)
def test_random_steps_draw_from_the_distribution_of_the_pictures(name, prediction):
    scheduler = make(name, timestep_spacing="trailing", prediction_type=prediction)
    model, _, _ = gaussian(scheduler)
    plan = scheduler.plan(200)
    x = normal(20000) * scheduler.init_noise_sigma(plan)
    drawn = run(scheduler, plan, x, model)[-1].x_prev
    assert abs(drawn.mean().item() - 0.3) < 0.03
    assert abs(drawn.std().item() / 0.7 - 1) < 0.03


@pytest.mark.parametrize("name", [*RANDOM, "lcm"])
def test_the_generator_decides_the_noise(name):
    scheduler = make(name)
    span, x = scheduler.plan(5)[1], normal(2, 4, 3, 3)

    def take(seed):
        generator = torch.Generator().manual_seed(seed)
        return scheduler.step(x, span, x, generator=generator)[0]

    assert torch.equal(take(0), take(0))
    assert not torch.equal(take(0), take(1))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_eta_has_a_meaning_for_ddim_only(name):
    scheduler = make(name)
    x = normal(2, 4, 3, 3)
    plain, noisy = (
        run(scheduler, scheduler.plan(5), x, smooth(scheduler), eta=eta)[-1].x_prev
        for eta in (0.0, 1.0)
    )
    assert torch.equal(plain, noisy) is (name != "ddim")


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_deterministic_scheduler_leaves_the_generator_alone(name):
    scheduler, generator = make(name), torch.Generator().manual_seed(3)
    before = generator.get_state()
    plan = scheduler.plan(1)
    scheduler.step(normal(1, 4, 2, 2), plan[0], normal(1, 4, 2, 2), generator=generator)
    assert torch.equal(before, generator.get_state())


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("n", [1, 7, 20, 50])
def test_strength_keeps_the_last_steps(name, n):
    scheduler = make(name)
    whole = [span.t for span in scheduler.plan(n) if not span.corrects]
    for strength in (0.0, 0.01, 0.3, 0.55, 1.0):
        kept = int(n * strength)
        plan = scheduler.plan(n, strength)
        assert [span.t for span in plan if not span.corrects] == whole[n - kept :]
        assert len(plan) == scheduler.calls(n, strength)
        indices = [span.index for span in plan]
        assert indices == list(range(indices[0], indices[0] + len(plan))) if plan else not kept
    for strength in (-0.1, 1.1):
        with pytest.raises(ValueError, match="strength"):
            scheduler.plan(n, strength)


def test_calls_says_what_pndm_and_heun_cost():
    for name in SCHEDULERS:
        expected = {"pndm": 51, "heun": 99}.get(name, 50)
        assert make(name).calls(50) == expected
    assert [make("pndm").calls(n) for n in (1, 2, 3)] == [1, 3, 4]
    assert [make("heun").calls(n) for n in (1, 2, 3)] == [1, 3, 5]
    assert [make("pndm").calls(10, s) for s in (0, 0.1, 0.5)] == [0, 1, 6]
    assert [make("heun").calls(10, s) for s in (0, 0.1, 0.5)] == [0, 1, 9]


def test_pndm_and_heun_look_twice_at_a_level():
    def ts(name):
        return [span.t for span in make(name, timestep_spacing="leading").plan(50)]

    assert ts("pndm")[:5] == [981, 961, 961, 941, 921]
    assert ts("heun")[:6] == [981, 961, 961, 941, 941, 921]
    assert ts("pndm")[-1] == ts("heun")[-1] == 1


def test_golden_levels_of_stable_diffusion():
    """Numbers of diffusers 0.42.1 with Stable Diffusion 1.x's settings."""
    linspace, leading = (make("euler", timestep_spacing=s) for s in ("linspace", "leading"))
    plan = linspace.plan(50)
    assert [round(span.t, 2) for span in plan[:2]] == [999.0, 978.61]
    assert plan[0].sigma == pytest.approx(14.6146, abs=1e-4)
    assert linspace.init_noise_sigma(plan) == pytest.approx(14.6146, abs=1e-4)
    assert leading.init_noise_sigma(leading.plan(50)) == pytest.approx(13.1585, abs=1e-4)
    dpm = make("dpm++", timestep_spacing="leading").plan(50)
    assert [dpm[0].t, dpm[-1].t] == [951, 20]
    assert [span.t for span in make("lcm").plan(4)] == [999, 759, 499, 259]


def test_karras_sigmas_repeat_a_timestep_but_no_sigma():
    plan = make("dpm++", use_karras_sigmas=True).plan(50)
    assert len({span.t for span in plan}) < 50
    assert len({span.sigma for span in plan}) == 50
    roots = [span.sigma ** (1 / 7) for span in plan]
    steps = [a - b for a, b in pairwise(roots)]
    assert max(steps) - min(steps) < 1e-9


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "pndm"])
def test_zero_terminal_snr_stays_finite(name):
    scheduler = make(
        name, prediction_type="v_prediction", rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )  # fmt: skip
    for n in (1, 2, 20):
        plan = scheduler.plan(n)
        assert plan[0].t == 999
        x = normal(1, 4, 2, 2).float() * scheduler.init_noise_sigma(plan)
        for step in run(scheduler, plan, x, smooth(scheduler)):
            assert torch.isfinite(step.x_prev).all()
            assert torch.isfinite(step.x_0).all()
        if name != "heun":  # whose mean slope is no good over a step from 4096 to 1
            assert largest(step.x_prev) < 10


def test_pndm_refuses_to_start_from_pure_noise():
    scheduler = make("pndm", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="pure noise"):
        scheduler.plan(20)


def test_lcm_at_timestep_zero_returns_what_it_was_given():
    scheduler = make("lcm", original_inference_steps=1000)
    last, x = scheduler.plan(1000)[-1], normal(1, 4, 2, 2)
    assert last.t == 0
    assert torch.equal(scheduler.step(normal(1, 4, 2, 2, seed=1), last, x)[0], x)


@pytest.mark.parametrize(("name", "settings", "word"), [
    ("pndm", {"skip_prk_steps": False}, "skip_prk_steps"),
    ("pndm", {}, "skip_prk_steps"),  # missing means False, in diffusers
    ("dpm++", {"solver_order": 3}, "solver_order"),
    ("dpm++", {"algorithm_type": "dpmsolver"}, "algorithm_type"),
    ("dpm++", {"solver_type": "heun"}, "solver_type"),
    ("dpm++", {"use_lu_lambdas": True}, "use_lu_lambdas"),
    ("euler", {"use_beta_sigmas": True}, "use_beta_sigmas"),
    ("euler", {"timestep_type": "continuous"}, "timestep_type"),
    ("euler", {"final_sigmas_type": "one"}, "final_sigmas_type"),
    ("heun", {"use_exponential_sigmas": True}, "use_exponential_sigmas"),
    ("lcm", {"trained_betas": [0.1]}, "trained_betas"),
], ids=str)  # fmt: skip
def test_a_setting_that_is_not_supported_is_an_error(name, settings, word):
    with pytest.raises(ValueError, match=word):
        SCHEDULERS[name].from_config(settings)


@pytest.mark.parametrize("name", ["pndm", "heun"])
def test_a_corrector_without_history_is_an_error(name):
    scheduler = make(name)
    corrector = scheduler.plan(5)[1]
    assert corrector.corrects
    with pytest.raises(ValueError, match="history"):
        scheduler.step(normal(1, 4, 2, 2), corrector, normal(1, 4, 2, 2))


def test_too_many_steps_are_an_error():
    for name in SCHEDULERS:
        for n in (0, 1001):
            with pytest.raises(ValueError, match="num_inference_steps"):
                make(name).plan(n)
    with pytest.raises(ValueError, match="original_inference_steps"):
        make("lcm").plan(51)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_is_made_from_the_config_of_every_other(name, tmp_path):
    config = ScheduleConfig(prediction_type="v_prediction", use_karras_sigmas=True, steps_offset=0)
    for other in SCHEDULERS:
        scheduler = SCHEDULERS[name].from_config(by_name(other, config).config)
        assert scheduler.config == by_name(other, config).config
        assert by_name(name, scheduler.config).config.prediction_type == "v_prediction"
        checkpoint.save_scheduler(scheduler, tmp_path / "scheduler.json")
        back = checkpoint.load_scheduler(tmp_path / "scheduler.json")
        assert (type(back), back.config) == (type(scheduler), scheduler.config)
    assert ScheduleConfig.from_json(config.to_json()) == config


def test_every_name_comes_back():
    for name in SCHEDULERS:
        assert name_of(make(name)) == name
    with pytest.raises(ValueError, match="warp"):
        make("warp")


def test_stable_diffusions_own_scheduler_config_is_read():
    text = """{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
        "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1,
        "trained_betas": null, "clip_sample": false}"""
    for kind in set(SCHEDULERS.values()):
        assert kind.from_config(json.loads(text)).config == ScheduleConfig()


def test_a_span_made_by_hand_needs_no_past():
    span = Span(0, 500, 400, 2.0, 1.0)
    assert not span.corrects
    for name in SCHEDULERS:
        x, _ = make(name).step(normal(1, 4, 2, 2), span, normal(1, 4, 2, 2))
        assert torch.isfinite(x).all()


def test_the_training_schedule_is_the_same_for_every_scheduler():
    for name in SCHEDULERS:
        assert torch.equal(make(name).alphas_bar, NoiseSchedule().alphas_bar)
