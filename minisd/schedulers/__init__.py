"""Schedulers: how the noise grows in training, and one whole sampling algorithm in each file."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from minisd.config import ScheduleConfig
from minisd.schedulers.ddim import DDIMScheduler
from minisd.schedulers.ddpm import DDPMScheduler
from minisd.schedulers.dpm_solver import DPMSolverMultistepScheduler
from minisd.schedulers.euler import EulerDiscreteScheduler
from minisd.schedulers.euler_ancestral import EulerAncestralDiscreteScheduler
from minisd.schedulers.heun import HeunDiscreteScheduler
from minisd.schedulers.lcm import LCMScheduler
from minisd.schedulers.pndm import PNDMScheduler
from minisd.schedulers.schedule import NoiseSchedule, Span

SCHEDULERS = {  # the names of the command line
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-a": EulerAncestralDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "dpm++-sde": DPMSolverMultistepScheduler,
    "lcm": LCMScheduler,
}
SETTINGS = {  # what a name says beyond its class
    "pndm": {"skip_prk_steps": True},
    "dpm++": {"algorithm_type": "dpmsolver++"},
    "dpm++-sde": {"algorithm_type": "sde-dpmsolver++"},
}


def by_name(name: str, config: ScheduleConfig) -> NoiseSchedule:
    """The scheduler of a command line's name, on this schedule."""
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler {name!r} is unknown, try {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name](dataclasses.replace(config, **SETTINGS.get(name, {})))


def name_of(scheduler: NoiseSchedule) -> str:
    """The command line's name for a scheduler; the inverse of by_name."""

    def fits(settings: Mapping[str, Any]) -> bool:
        return all(getattr(scheduler.config, key) == value for key, value in settings.items())

    return next(
        name
        for name, kind in SCHEDULERS.items()
        if type(scheduler) is kind and fits(SETTINGS.get(name, {}))
    )


__all__ = [
    "SCHEDULERS",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "NoiseSchedule",
    "PNDMScheduler",
    "Span",
    "by_name",
    "name_of",
]
