"""minisd: Stable Diffusion 1.x, written to be read."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minisd.noise import slerp
    from minisd.pipeline import StableDiffusionPipeline
    from minisd.schedulers import (
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        LCMScheduler,
        PNDMScheduler,
    )

__version__ = "0.1.0"
__all__ = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "StableDiffusionPipeline",
    "slerp",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line can speak at once."""
    if name not in __all__:
        raise AttributeError(f"module 'minisd' has no attribute {name!r}")
    homes = {"StableDiffusionPipeline": "minisd.pipeline", "slerp": "minisd.noise"}
    return getattr(import_module(homes.get(name, "minisd.schedulers")), name)
