"""What every call of the pipeline does around its loop: arguments in, progress, pictures out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm

from minisd import guard, images
from minisd.arguments import shape_of, whole
from minisd.noise import Generators, draw_noise

if TYPE_CHECKING:
    from minisd.pipeline import StableDiffusionPipeline, Step

Callback = Callable[["StableDiffusionPipeline", int, float, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Output:
    """`images` in the asked output type; `seed` that made them if the pipeline drew one itself."""

    images: Any
    seed: int | None = None


def finish(pipe: "StableDiffusionPipeline", latents: Tensor, output_type: str = "pil") -> Any:
    """Scaled latents to what the caller asked for: "pil", "np", "pt" or "latent"."""
    if output_type == "latent":
        return latents
    return images.to_output(pipe.decode_latents(latents), output_type)


def conditions(
    pipe: "StableDiffusionPipeline",
    prompt: str | Sequence[str] | None,
    negative_prompt: str | Sequence[str] | None,
    prompt_embeds: Tensor | None,
    negative_prompt_embeds: Tensor | None,
    clip_skip: int | None = None,
    num_images_per_prompt: int = 1,
) -> tuple[Tensor, Tensor]:
    """cond and uncond from prompts or from their embeddings, (b, 77, d) each: one for each
    picture, those of a prompt together.
    """
    if whole("num_images_per_prompt", num_images_per_prompt) < 1:
        raise ValueError(f"num_images_per_prompt is {num_images_per_prompt}, expected at least 1")
    if (prompt is None) == (prompt_embeds is None):
        raise ValueError("give either a prompt or prompt_embeds, and not both")
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise ValueError("give either a negative_prompt or negative_prompt_embeds, not both")
    check_embeddings(pipe, "prompt_embeds", prompt_embeds)
    check_embeddings(pipe, "negative_prompt_embeds", negative_prompt_embeds)
    texts = [""] * len(prompt_embeds) if prompt is None else prompt
    cond, uncond = pipe.encode_prompt(texts, negative_prompt, clip_skip)
    if prompt_embeds is not None:
        cond = prompt_embeds.to(pipe.device, pipe.dtype)
    if negative_prompt_embeds is not None:
        uncond = negative_prompt_embeds.to(pipe.device, pipe.dtype)
    if cond.shape != uncond.shape:
        raise ValueError(
            f"the prompt's embeddings are {tuple(cond.shape)} and the negative prompt's "
            f"{tuple(uncond.shape)}, expected the same shape"
        )
    n = num_images_per_prompt
    return cond.repeat_interleave(n, dim=0), uncond.repeat_interleave(n, dim=0)


def check_embeddings(pipe: "StableDiffusionPipeline", name: str, given: Tensor | None) -> None:
    """Raises ValueError unless they are left out or (b, m, d), d as the UNet reads it."""
    d = pipe.unet.config.context_width
    if given is not None and not (
        isinstance(given, Tensor) and given.ndim == 3 and given.shape[2] == d and given.numel()
    ):
        raise ValueError(
            f"{name} have shape {shape_of(given)}, expected a tensor (b, 77, {d}) such as "
            "pipe.encode_prompt gives"
        )


def latent_shape(
    pipe: "StableDiffusionPipeline", batch: int, height: int | None, width: int | None
) -> tuple[int, int, int, int]:
    """(b, c, h/8, w/8) of a picture, the model's own size if none is given."""
    height = pipe.defaults.height if height is None else whole("height", height)
    width = pipe.defaults.width if width is None else whole("width", width)
    side = pipe.vae.config.downscale
    if height < side or width < side or height % side or width % side:
        raise ValueError(
            f"height x width is {height} x {width}, expected multiples of {side}; "
            f"try {max(side, height // side * side)} x {max(side, width // side * side)}"
        )
    return batch, pipe.vae.config.latent_channels, height // side, width // side


def start(
    pipe: "StableDiffusionPipeline",
    expected: tuple[int, int, int, int],
    latents: Tensor | None,
    generator: Generators,
    num_inference_steps: int | None,
) -> Tensor:
    """The noise that a run starts from: drawn, or the caller's, at the scheduler's level."""
    if latents is None:
        latents = draw_noise(expected, generator, pipe.device, pipe.dtype)
    if not isinstance(latents, Tensor) or latents.ndim != 4 or latents.shape[:2] != expected[:2]:
        raise ValueError(
            f"latents have shape {shape_of(latents)}, expected {expected[:2]} and h/8, w/8"
        )
    plan = pipe.scheduler.plan(pipe.steps(num_inference_steps))
    return latents.to(pipe.device, pipe.dtype) * pipe.scheduler.init_noise_sigma(plan)


def run(
    pipe: "StableDiffusionPipeline",
    x_t: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    num_inference_steps: int | None,
    guidance_scale: float | None,
    callback: Callback | None = None,
    *,
    strength: float = 1.0,
    adjust: Callable[["Step"], Tensor] | None = None,
    **settings: Any,
) -> Tensor:
    """All of `denoise` under a progress bar; returns the latents after the last step.

    After each step `adjust` has its say, then the callback of the caller.
    """

    def adjust_and_call(step: "Step") -> Tensor:
        """The latents (b, 4, h, w) with which the next step begins."""
        x_prev = step.x_prev if adjust is None else adjust(step)
        if callback is None:
            return x_prev
        tensors = {"latents": x_prev, "x_t": step.x_t, "x_0": step.x_0, "eps": step.eps}
        answer = callback(pipe, step.index, step.t, tensors)
        latents = (answer or {}).get("latents", x_prev)
        if shape_of(latents) != tuple(x_prev.shape):
            raise ValueError(
                f"callback_on_step_end returned latents of shape {shape_of(latents)}, expected "
                f"{tuple(x_prev.shape)}"
            )
        return latents

    start = x_t
    calls = pipe.scheduler.calls(pipe.steps(num_inference_steps), strength)
    steps = pipe.denoise(
        x_t, cond, uncond, num_inference_steps, guidance_scale,
        strength=strength, adjust=adjust_and_call, **settings,
    )  # fmt: skip
    for step in tqdm(steps, **{"total": calls, "desc": "denoising", **pipe.progress_bar}):
        x_t = step.x_prev
    guard.check_latents(x_t, start, cond)
    if pipe.offload is not None:
        pipe.offload.rest()
    return x_t
