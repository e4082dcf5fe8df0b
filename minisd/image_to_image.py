"""Image to image: a picture, noised up to the middle of the plan, and from there denoised. [SDEdit]

The more noise, the less of the picture survives, and the more the prompt decides.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minisd import call, images
from minisd.call import Callback, Output
from minisd.noise import Generators, draw_noise, seeded
from minisd.pipeline import StableDiffusionPipeline


def image_to_image(
    pipe: StableDiffusionPipeline,
    prompt: str | Sequence[str] | None = None,
    image: images.Picture | Sequence[images.Picture] | None = None,
    strength: float = 0.8,
    *,
    negative_prompt: str | Sequence[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    num_images_per_prompt: int = 1,
    eta: float = 0.0,
    generator: Generators = None,
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    clip_skip: int | None = None,
    guidance_rescale: float = 0.0,
    output_type: str = "pil",
    callback_on_step_end: Callback | None = None,
) -> Output:
    """Pictures like `image`, drawn after the prompt; the arguments of a call of the pipeline, and:

    image: one for all, one for each prompt or one for each picture, of any kind that
    images.to_tensor reads, or scaled latents (b, 4, h/8, w/8). strength in [0, 1]: of n steps the
    last int(n * strength) are run, as in diffusers; with none left, the picture comes back as the
    autoencoder sees it. height, width: the size to resize to, multiples of 8; left out, the
    picture's own, rounded down. Raises ValueError for arguments that do not fit.
    """
    images.check_output_type(output_type)
    plan = pipe.scheduler.plan(pipe.steps(num_inference_steps), strength)
    cond, uncond = call.conditions(
        pipe, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, clip_skip,
        num_images_per_prompt,
    )  # fmt: skip
    generator, seed = seeded(generator)
    x_0 = read_latents(pipe, image, height, width, len(cond), num_images_per_prompt, generator)
    x_t = x_0
    if plan:
        noise = draw_noise(x_0.shape, generator, pipe.device, pipe.dtype)
        x_t = pipe.scheduler.noised(x_0, noise, plan[0].sigma)
    latents = call.run(
        pipe, x_t, cond, uncond, num_inference_steps, guidance_scale, callback_on_step_end,
        strength=strength, eta=eta, generator=generator, guidance_rescale=guidance_rescale,
    )  # fmt: skip
    return Output(call.finish(pipe, latents, output_type), seed)


def read_latents(
    pipe: StableDiffusionPipeline,
    image: images.Picture | Sequence[images.Picture] | None,
    height: int | None,
    width: int | None,
    n: int,
    per_prompt: int,
    generator: Generators,
) -> Tensor:
    """The scaled latents of n pictures, (n, 4, h/8, w/8); `image` may be latents already."""
    channels = pipe.vae.config.latent_channels
    if isinstance(image, Tensor) and image.ndim == 4 and image.shape[1] == channels:
        return spread(image.to(pipe.device, pipe.dtype), n, per_prompt, "latents")
    pixels = images.to_tensor(image, height, width, pipe.vae.config.downscale)
    return encode(pipe, pixels, n, per_prompt, generator)


def encode(
    pipe: StableDiffusionPipeline, pixels: Tensor, n: int, per_prompt: int, generator: Generators
) -> Tensor:
    """Pictures (k, 3, h, w) to scaled latents (n, 4, h/8, w/8), sampled.

    One generator draws once for each given picture, and copies share the draw; of a list of
    generators each draws for its own copy. So does the reference.
    """
    if isinstance(generator, torch.Generator):
        spread(pixels, n, per_prompt, "pictures")  # a wrong number is an error before the work
        return spread(pipe.encode_image(pixels, generator), n, per_prompt, "pictures")
    return pipe.encode_image(spread(pixels, n, per_prompt, "pictures"), generator)


def spread(rows: Tensor, n: int, per_prompt: int, what: str) -> Tensor:
    """k rows to n: one for all, one for each prompt (repeated for its pictures), or one for each.

    diffusers deals them out in turn instead: two pictures for two prompts of two pictures each
    reach the wrong prompts there. Raises ValueError for any other k.
    """
    prompts = n // per_prompt
    if len(rows) not in (1, prompts, n):
        raise ValueError(
            f"{len(rows)} {what} were given for {prompts} prompts of {per_prompt} pictures each; "
            "give one for all, one for each prompt or one for each picture"
        )
    return rows.repeat_interleave(n // len(rows), dim=0)
