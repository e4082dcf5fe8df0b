"""The solvers' trajectories against the reference's, step by step, and a picture of each.

Where the reference itself is wrong or refuses, ours goes by its own laws (test_schedulers_laws.py)
and the comparison stands here as an expected failure: `pytest --runxfail` shows the differences,
and a release of the reference that mends a fault turns its line into a failure.
"""

import importlib
import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import minisd
from minisd.pipeline import Step
from minisd.schedulers.sigmas import finite_sigmas, t_of_sigma
from parity import models

COUNTS = (1, 2, 3, 5, 7, 20, 30, 50)
LARGE = (333, 999)
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
MODULES = {
    "PNDMScheduler": "pndm",
    "EulerDiscreteScheduler": "euler_discrete",
    "EulerAncestralDiscreteScheduler": "euler_ancestral_discrete",
    "HeunDiscreteScheduler": "heun_discrete",
    "DPMSolverMultistepScheduler": "dpmsolver_multistep",
    "LCMScheduler": "lcm",
}
PNDM, EULER, EULER_A, HEUN, DPM, LCM = MODULES
KARRAS, SDE = {"use_karras_sigmas": True}, {"algorithm_type": "sde-dpmsolver++"}
TO_SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
VARIANTS = [
    (PNDM, {}), (PNDM, {"set_alpha_to_one": True}),
    (EULER, {}), (EULER, KARRAS), (EULER, TO_SIGMA_MIN),
    (EULER_A, {}),
    (HEUN, {}), (HEUN, KARRAS), (HEUN, {"clip_sample": True, "clip_sample_range": 0.8}),
    (DPM, {}), (DPM, KARRAS), (DPM, SDE), (DPM, SDE | KARRAS), (DPM, {"solver_order": 1}),
    (DPM, TO_SIGMA_MIN), (DPM, SDE | TO_SIGMA_MIN | {"lower_order_final": False}),
    (DPM, TO_SIGMA_MIN | {"euler_at_final": True}),
    (DPM, TO_SIGMA_MIN | {"lower_order_final": False}),
    (LCM, {}), (LCM, {"original_inference_steps": 1000, "timestep_scaling": 3.0}),
    (LCM, {"clip_sample": True}),
]  # fmt: skip
FLOOR = 1e-8  # relative to the largest value, in float64


class Float64Torch:
    """torch, but what asks for float32 gets float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def exact_reference(monkeypatch):
    """Lets the reference's steps count in float64; they cast x_t to float32 otherwise."""
    for name in MODULES.values():
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{name}")
        monkeypatch.setattr(module, "torch", Float64Torch())


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def model(x, t):
    """A stand-in for the UNet: smooth, bounded, and different at every t."""
    return 0.7 * torch.tanh(x) + 0.2 * math.cos(t / 130) + 0.1 * torch.sin(3 * x) * t / 1000


def reference(kind, **more):
    """A scheduler with Stable Diffusion's settings."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
                "steps_offset": 1}  # fmt: skip
    if kind == PNDM:
        settings["skip_prk_steps"] = True
    return getattr(models.diffusers, kind)(**{**settings, **more})


def pair(kind, **more):
    """The reference's scheduler and ours, made from its config, and both on our float32 schedule:
    small sigmas are only as good as the last digits of alpha_bar.
    """
    theirs = reference(kind, **more)
    ours = getattr(minisd, kind).from_config(dict(theirs.config))
    error = (ours.alphas_bar - theirs.alphas_cumprod).abs().max()
    assert error < 1e-6
    if ours.alphas_bar[-1] > 0:  # or both give the last level their least alpha_bar
        theirs.alphas_cumprod = ours.alphas_bar.to(theirs.alphas_cumprod.dtype)
    else:
        theirs.alphas_cumprod[:-1] = ours.alphas_bar[:-1]
    to_one = theirs.config.get("set_alpha_to_one")
    theirs.final_alpha_cumprod = torch.tensor(1.0) if to_one else theirs.alphas_cumprod[0]
    return ours, theirs


def midway(scheduler, span):
    """Whether float32's last digits decide to which of two whole timesteps a level is rounded."""
    rounds = isinstance(scheduler, minisd.DPMSolverMultistepScheduler)
    if not (rounds and scheduler.config.use_karras_sigmas):
        return False
    return abs(t_of_sigma(span.sigma, finite_sigmas(scheduler.alphas_bar)) % 1 - 0.5) < 2e-4


def same_levels(scheduler, theirs, n, strength=1.0):
    """Compare timesteps and sigmas; returns our plan and the reference's timesteps.

    Its float32 numbers agree to seven digits. Then it gets all of ours, so that the steps can be
    compared to many more.
    """
    plan = scheduler.plan(n, strength)
    theirs.set_timesteps(n)
    choose = models.diffusers.StableDiffusionImg2ImgPipeline.get_timesteps
    ts, _ = choose(SimpleNamespace(scheduler=theirs), n, strength, "cpu")
    agreed = [t if midway(scheduler, span) else span.t for t, span in zip(ts.tolist(), plan)]
    np.testing.assert_allclose(agreed, ts.tolist(), rtol=0, atol=2e-4)
    assert np.abs([span.t for span in plan] - ts.numpy()).max() < 1.001
    if hasattr(theirs, "sigmas"):
        whole = scheduler.plan(n)
        sigmas = [span.sigma for span in whole] + [whole[-1].sigma_prev]
        np.testing.assert_allclose(sigmas, theirs.sigmas.tolist(), rtol=1e-6)
        theirs.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    return plan, ts


def our_trajectory(scheduler, plan, x, seed=0, model=model):
    generator, history, levels = torch.Generator().manual_seed(seed), (), []
    for span in plan:
        output = model(scheduler.scale_input(x, span), span.t)
        x_prev, x_0 = scheduler.step(output, span, x, history=history, generator=generator)
        _, eps = scheduler.predict(output, span, x)
        history = (*history[-3:], Step(span.index, span.t, x, x_0, eps, x_prev))
        levels.append((x_prev, x_0))
        x = x_prev
    return levels


def reference_trajectory(theirs, ts, told, x, seed=0):
    """`told`: the timesteps that the model is told, ours, as float32 keeps a few digits less."""
    takes_generator = "generator" in inspect.signature(theirs.step).parameters
    more = {"generator": torch.Generator().manual_seed(seed)} if takes_generator else {}
    levels = []
    for t, span_t in zip(ts, told):
        output = model(theirs.scale_model_input(x, t), span_t)
        whole = t.item() if isinstance(theirs, models.diffusers.LCMScheduler) else t
        step = theirs.step(output, whole, x, **more)
        x, x_0 = step.prev_sample, step.get("pred_original_sample", step.get("denoised"))
        levels.append((x, x_0))
    return levels


def compare(kind, n, strength=1.0, **settings):
    ours, theirs = pair(kind, **settings)
    plan, ts = same_levels(ours, theirs, n, strength)
    x = normal(2, 4, 3, 3)
    if strength == 1:
        assert abs(ours.init_noise_sigma(plan) / float(theirs.init_noise_sigma) - 1) < 1e-6
        x = x * ours.init_noise_sigma(plan)
    mine = our_trajectory(ours, plan, x)
    theirs = reference_trajectory(theirs, ts, [span.t for span in plan], x)
    assert len(mine) == len(theirs)
    for step, (a, b) in enumerate(zip(mine, theirs)):
        assert models.relative_error(a[0], b[0]) < FLOOR, f"{n} steps, x_prev of step {step}"
        if b[1] is not None:
            assert models.relative_error(a[1], b[1]) < FLOOR, f"{n} steps, x_0 of step {step}"


def has_reference(kind, n, spacing, prediction, settings):
    """Whether the reference runs this, and by the rules that it states itself."""
    if prediction == "sample" and kind in (PNDM, EULER_A):
        return False  # refused
    if kind == PNDM:
        # t - 1000 // n must be the next t, and velocities may not be averaged over levels
        early = settings.get("set_alpha_to_one") and n > 500  # 1 - 1 is 0, not the end
        steady = spacing == "leading" or (spacing == "trailing" and 1000 % n == 0)
        return n < 1000 and steady and not early and (prediction == "epsilon" or n == 1)
    if kind == LCM:
        return n <= settings.get("original_inference_steps", 50)
    if spacing == "leading" and (kind != DPM or not settings.get("use_karras_sigmas")):
        return n < (999 if kind == DPM else 1000)  # from there a timestep is 1000, out of range
    if spacing == "leading":
        return True
    if (kind, n, spacing) == (DPM, 1000, "linspace"):
        return settings.get("use_karras_sigmas") or settings.get("solver_order") == 1
    # np.arange gives some counts one timestep too many, which is -1
    return spacing != "trailing" or len(np.arange(1000, 0, -1000 / n)) == n


@pytest.mark.usefixtures("exact_reference")
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("kind", "settings"), VARIANTS, ids=str)
def test_trajectories_are_the_references(kind, settings, spacing, prediction):
    for n in COUNTS:
        if has_reference(kind, n, spacing, prediction, settings):
            compare(kind, n, timestep_spacing=spacing, prediction_type=prediction, **settings)


@pytest.mark.usefixtures("exact_reference")
@pytest.mark.parametrize("n", LARGE)
@pytest.mark.parametrize(("kind", "spacing"), [
    (PNDM, "leading"), (EULER, "linspace"), (EULER_A, "leading"), (HEUN, "linspace"),
    (DPM, "trailing"),
])  # fmt: skip
def test_long_trajectories_are_the_references(kind, spacing, n):
    compare(kind, n, timestep_spacing=spacing)


@pytest.mark.slow
@pytest.mark.usefixtures("exact_reference")
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("kind", "settings"), VARIANTS, ids=str)
def test_all_long_trajectories_are_the_references(kind, settings, spacing, prediction):
    for n in (*LARGE, 1000):
        if has_reference(kind, n, spacing, prediction, settings):
            compare(kind, n, timestep_spacing=spacing, prediction_type=prediction, **settings)


@pytest.mark.slow
@pytest.mark.usefixtures("exact_reference")
@pytest.mark.parametrize("first", range(1, 1001, 100))
@pytest.mark.parametrize(("kind", "settings"), VARIANTS, ids=str)
def test_every_count_takes_the_references_steps(kind, settings, first):
    for n in range(first, first + 100):
        if has_reference(kind, n, "leading", "epsilon", settings):
            compare(kind, n, timestep_spacing="leading", **settings)


@pytest.mark.slow
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("kind", "settings"), VARIANTS, ids=str)
def test_every_count_has_the_references_levels(kind, settings, spacing):
    ours, theirs = pair(kind, timestep_spacing=spacing, **settings)
    for n in range(1, 1001):
        like = EULER if kind == PNDM else kind  # PNDM's timesteps are right, its steps are not
        if has_reference(like, n, spacing, "epsilon", settings):
            same_levels(ours, theirs, n)


@pytest.mark.usefixtures("exact_reference")
@pytest.mark.parametrize("strength", [0.04, 0.3, 0.5, 0.75, 1.0])
@pytest.mark.parametrize(("kind", "settings"), [v for v in VARIANTS if v[0] != PNDM], ids=str)
def test_image_to_image_starts_where_the_reference_does(kind, settings, strength):
    for n in (7, 30):
        if int(n * strength) > 0:
            compare(kind, n, strength, **settings)


@pytest.mark.usefixtures("exact_reference")
@pytest.mark.parametrize("kind", [EULER, EULER_A, DPM, LCM])
def test_zero_terminal_snr_is_the_references(kind):
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for n in (1, 5, 20):
        compare(kind, n, prediction_type="v_prediction", **settings)


@pytest.mark.usefixtures("exact_reference")
@pytest.mark.parametrize("kind", [EULER, HEUN])
@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
def test_other_schedules_are_the_references(kind, beta_schedule):
    compare(kind, 10, beta_schedule=beta_schedule)


@pytest.mark.parametrize("kind", MODULES)
def test_a_config_without_keys_means_the_references_defaults(kind):
    theirs = getattr(models.diffusers, kind)()
    config = getattr(minisd, kind).class_defaults
    for name, value in config.items():
        assert theirs.config.get(name, value) == value, name
    spacing = getattr(minisd, kind).default_spacing
    assert theirs.config.timestep_spacing == spacing
    if kind != PNDM:  # whose Runge-Kutta steps are refused
        ours = getattr(minisd, kind).from_config({})
        assert models.relative_error(ours.alphas_bar, theirs.alphas_cumprod) < 1e-6
        for name in theirs.config:
            if hasattr(ours.config, name) and name != "timestep_spacing":
                assert getattr(ours.config, name) == theirs.config[name], name


@pytest.mark.parametrize(("kind", "settings"), VARIANTS, ids=str)
def test_the_noised_start_is_the_references(kind, settings):
    ours, theirs = pair(kind, **settings)
    x_0, eps = normal(2, 4, 3, 3).float(), normal(2, 4, 3, 3, seed=1).float()
    theirs.set_timesteps(10)
    plan = ours.plan(10)
    for index in (0, 4):
        if hasattr(theirs, "set_begin_index"):
            theirs.set_begin_index(index)
        noised = theirs.add_noise(x_0, eps, theirs.timesteps[index : index + 1])
        error = models.relative_error(ours.noised(x_0, eps, plan[index].sigma), noised)
        assert error < 1e-6


# What follows is where the reference has faults.

FAULTS = [
    ("it goes to t - 1000 // n, which is not linspace's next t", PNDM, 7, "linspace", {}),
    ("it goes to t - 1000 // n, which is not trailing's next t", PNDM, 7, "trailing", {}),
    ("it averages velocities of several levels, converted at one", PNDM, 7, "leading",
     {"prediction_type": "v_prediction"}),
    ("it refuses the prediction type", PNDM, 7, "leading", {"prediction_type": "sample"}),
    ("it refuses the prediction type", EULER_A, 7, "leading", {"prediction_type": "sample"}),
    ("its first t is 1000, which does not exist", PNDM, 1000, "leading", {}),
    ("its first t is 1000, which does not exist", EULER, 1000, "leading", {}),
    ("its first t is 1000, which does not exist", HEUN, 1000, "leading", {}),
    ("its first t is 1000, which does not exist", DPM, 999, "leading", {}),
    ("it has one t a thousand times", DPM, 1000, "leading", {}),
    ("it has one t twice, and divides by the step between", DPM, 1000, "linspace", {}),
    ("it makes 62 steps, the last at t = -1", EULER, 61, "trailing", {}),
]  # fmt: skip


@pytest.mark.usefixtures("exact_reference")
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(("kind", "n", "spacing", "settings"), [
    pytest.param(*case, marks=pytest.mark.xfail(
        strict=True, reason=reason, raises=(AssertionError, IndexError, ValueError,
                                            NotImplementedError)))
    for reason, *case in FAULTS
], ids=str)  # fmt: skip
def test_known_faults_of_the_reference_where_ours_has_its_own_laws(kind, n, spacing, settings):
    compare(kind, n, timestep_spacing=spacing, **settings)


@pytest.mark.usefixtures("exact_reference")
@pytest.mark.xfail(strict=True, reason="it cuts the warm-up from the whole plan; the steps lag")
def test_known_fault_of_the_references_pndm_in_image_to_image():
    compare(PNDM, 20, strength=0.5)


@pytest.mark.usefixtures("exact_reference")
@pytest.mark.parametrize("kind", [HEUN, PNDM])
def test_known_fault_of_the_reference_that_ignores_zero_terminal_snr(kind):
    ours, theirs = pair(kind)
    with_rescale = getattr(minisd, kind).from_config(
        {**theirs.config, "rescale_betas_zero_snr": True}
    )
    assert "rescale_betas_zero_snr" not in theirs.config
    assert ours.alphas_bar[-1] > 0.004
    assert with_rescale.alphas_bar[-1] == 0


PICTURES = [
    (PNDM, {}), (EULER, {}), (EULER, KARRAS | {"timestep_spacing": "leading"}), (EULER_A, {}),
    (HEUN, {}), (HEUN, KARRAS), (DPM, {}), (DPM, KARRAS), (DPM, SDE), (DPM, SDE | KARRAS),
    (LCM, {}), (EULER, {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                        "timestep_spacing": "trailing"}),
    (DPM, {"prediction_type": "v_prediction"}), (HEUN, {"prediction_type": "sample"}),
]  # fmt: skip


@pytest.fixture
def with_scheduler(pipelines):
    """Both pipelines, and a function that gives them the same scheduler for one test."""
    ours, theirs = pipelines
    before = ours.scheduler, theirs.scheduler

    def give(kind, settings):
        ours.scheduler, theirs.scheduler = pair(kind, **settings)
        return pipelines

    yield give
    ours.scheduler, theirs.scheduler = before


@pytest.mark.parametrize(("kind", "settings"), PICTURES, ids=str)
def test_pictures_are_the_references(with_scheduler, kind, settings):
    call = {"prompt": "a red boat on the sea", "num_inference_steps": 5, "height": 32, "width": 32,
            "guidance_scale": 4.0, "num_images_per_prompt": 2, "output_type": "np"}  # fmt: skip
    ours, theirs = (
        pipe(**call, generator=torch.Generator().manual_seed(3)).images
        for pipe in with_scheduler(kind, settings)
    )
    assert np.abs(ours - theirs).max() < 1e-3
    assert np.abs((ours * 255).round() - (theirs * 255).round()).max() <= 1
    assert ours.std() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 5, 7, 20, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("kind", "settings"), VARIANTS, ids=str)
def test_all_pictures_are_the_references(with_scheduler, kind, settings, spacing, prediction, n):
    if not has_reference(kind, n, spacing, prediction, settings):
        pytest.skip("the reference refuses this, or has a fault")
    settings = {**settings, "timestep_spacing": spacing, "prediction_type": prediction}
    call = {"prompt": "a red boat on the sea", "num_inference_steps": n, "height": 32, "width": 32,
            "guidance_scale": 4.0, "output_type": "np"}  # fmt: skip
    ours, theirs = (
        pipe(**call, generator=torch.Generator().manual_seed(3)).images
        for pipe in with_scheduler(kind, settings)
    )
    assert np.abs((ours * 255).round() - (theirs * 255).round()).max() <= 1
