"""Schedulers: how the noise grows in training, and one whole sampling algorithm in each file."""

from minisd.schedulers.ddim import DDIMScheduler
from minisd.schedulers.ddpm import DDPMScheduler
from minisd.schedulers.schedule import NoiseSchedule, Span

SCHEDULERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}  # the names of the command line

__all__ = ["SCHEDULERS", "DDIMScheduler", "DDPMScheduler", "NoiseSchedule", "Span"]
