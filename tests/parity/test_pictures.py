"""Every scheduler x steps x prediction type x spacing: pictures within 1/255 of the reference's.

By default a sample in which every prediction type and every spacing meets every scheduler, every
number of steps and each other; all of them are slow. What settings of one scheduler change stands
in test_more_schedulers.py.
"""

import itertools
import random

import numpy as np
import pytest
import torch

import minisd
from parity import models
from parity.test_more_schedulers import PREDICTIONS, SPACINGS, has_reference

KINDS = sorted(name for name in minisd.__all__ if name.endswith("Scheduler"))
STEPS = (1, 2, 5, 7, 20, 50)
Case = tuple[str, int, str, str]


def is_compared(kind: str, n: int, prediction: str, spacing: str) -> bool:
    """Not where the reference refuses, or by its fault takes another step: tested elsewhere."""
    if kind == "DDPMScheduler":
        return True
    if kind == "DDIMScheduler":  # t - 1000 // n must be the next t
        return n == 1 or spacing == "leading" or (spacing == "trailing" and 1000 % n == 0)
    return has_reference(kind, n, spacing, prediction, {})


ALL = [case for case in itertools.product(KINDS, STEPS, PREDICTIONS, SPACINGS)
       if is_compared(*case)]  # fmt: skip


def pairs(case: Case) -> set[tuple]:
    """What meets in a case; not scheduler and steps, whose pairs alone are 48 cases."""
    return set(itertools.combinations(enumerate(case), 2)) - {((0, case[0]), (1, case[1]))}


def sample(cases: list[Case]) -> list[Case]:
    """Some of the cases, with every pair of values that there is in all of them."""
    shuffled, chosen, met = random.Random(0).sample(cases, len(cases)), [], set()
    for wanted in (5, 4, 3, 2, 1):  # of the five pairs of a case, how many are new
        for case in shuffled:
            if len(pairs(case) - met) >= wanted:
                chosen.append(case)
                met |= pairs(case)
    return chosen


def test_the_sample_has_every_pair_of_values():
    met = set().union(*map(pairs, sample(ALL)))
    assert met == set().union(*map(pairs, ALL))
    singles = {value for pair in met for value in pair}
    assert {value for _, value in singles} == {*KINDS, *STEPS, *PREDICTIONS, *SPACINGS}
    assert len(sample(ALL)) < 40


@pytest.fixture
def draw(pipelines):
    """A function that draws with the same scheduler in both pipelines."""
    ours, theirs = pipelines
    before = ours.scheduler, theirs.scheduler

    def pictures(kind, n, prediction, spacing):
        settings = {"prediction_type": prediction, "timestep_spacing": spacing}
        if kind == "PNDMScheduler":
            settings["skip_prk_steps"] = True
        reference = getattr(models.diffusers, kind)
        theirs.scheduler = reference(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            **{"clip_sample": False} if "DD" in kind else {},
            steps_offset=1,
            **settings,
        )  # fmt: skip
        ours.scheduler = getattr(minisd, kind).from_config(dict(theirs.scheduler.config))
        call = {"prompt": "a red boat on the sea", "num_inference_steps": n, "height": 32,
                "width": 32, "guidance_scale": 4.0, "output_type": "np"}  # fmt: skip
        return [pipe(**call, generator=torch.Generator().manual_seed(3)).images for pipe in
                (ours, theirs)]  # fmt: skip

    yield pictures
    ours.scheduler, theirs.scheduler = before


def assert_same(ours, theirs):
    assert np.abs((ours * 255).round() - (theirs * 255).round()).max() <= 1
    assert ours.std() > 0.02


@pytest.mark.parametrize("case", sample(ALL), ids=str)
def test_pictures_are_the_references(draw, case):
    assert_same(*draw(*case))


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL, ids=str)
def test_all_pictures_are_the_references(draw, case):
    assert_same(*draw(*case))
