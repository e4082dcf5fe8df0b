"""minisd: Stable Diffusion 1.x, written to be read."""

from minisd.pipeline import StableDiffusionPipeline
from minisd.schedulers import DDIMScheduler, DDPMScheduler

__version__ = "0.1.0"
__all__ = ["DDIMScheduler", "DDPMScheduler", "StableDiffusionPipeline"]
