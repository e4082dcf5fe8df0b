"""What a model is made of: family, parameters, precision, size and hash, in a few lines."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from weights_convert.folders import in_words

if TYPE_CHECKING:
    from minisd.pipeline import StableDiffusionPipeline


def describe(pipe: "StableDiffusionPipeline", place: Path) -> str:
    """place: the folder or file that the pipeline was read from, with torch_dtype=None."""
    defaults, scheduler = pipe.defaults, pipe.scheduler
    rows = [
        ("source", f"{place}, {kind_of(place)}, {in_words(size_on_disk(place))} on disk"),
        ("family", f"{pipe.family}, {purpose(pipe)}"),
        *((name, weights_in(network)) for name, network in pipe.networks.items()),
        ("together", weights_in(*pipe.networks.values())),
        ("scheduler", f"{type(scheduler).__name__}, {scheduler.config.prediction_type}"),
        ("defaults", f"{defaults.height} x {defaults.width} pixels, {defaults.num_inference_steps} "
                     f"steps, guidance {defaults.guidance_scale:g}"),
        ("hash", pipe.hash),
    ]  # fmt: skip
    return "\n".join(f"{name:<14}{text}" for name, text in rows)


def kind_of(place: Path) -> str:
    if place.is_file():
        return "single file"
    return "minisd folder" if (place / "pipeline.json").is_file() else "diffusers folder"


def size_on_disk(place: Path) -> int:
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)


def purpose(pipe: "StableDiffusionPipeline") -> str:
    """Whether the UNet takes latents alone, or a masked picture beside them."""
    channels, latent = pipe.unet.config.in_channels, pipe.vae.config.latent_channels
    return "text to image" if channels == latent else f"inpainting ({channels} channels in)"


def dtypes(networks: Iterable[nn.Module]) -> str:
    weights = (value for network in networks for value in network.parameters())
    return " and ".join(sorted({str(value.dtype).removeprefix("torch.") for value in weights}))


def weights_in(*networks: nn.Module) -> str:
    weights = [value for network in networks for value in network.parameters()]
    count, size = sum(value.numel() for value in weights), sum(value.nbytes for value in weights)
    return f"{count:,} parameters, {dtypes(networks)}, {in_words(size)}"
