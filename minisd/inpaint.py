"""Inpainting: the masked part of a picture drawn anew. Outpainting: the same beyond its edges.

An ordinary model does not know that a part is given. After every step its latents are replaced,
outside the mask, by the picture's own at the same noise level. [Blended Latent Diffusion, Sec. 4]
A model made for inpainting (9 channels) sees the mask and the rest of the picture in every step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minisd import call, images
from minisd.arguments import shape_of, whole
from minisd.call import Callback, Output
from minisd.image_to_image import encode, spread
from minisd.noise import Generators, draw_noise, seeded
from minisd.pipeline import StableDiffusionPipeline, Step
from minisd.schedulers import Span

Pictures = images.Picture | Sequence[images.Picture] | None


def inpaint(
    pipe: StableDiffusionPipeline,
    prompt: str | Sequence[str] | None = None,
    image: Pictures = None,
    mask_image: Pictures = None,
    strength: float = 1.0,
    *,
    paste: bool = True,
    feather: int = 4,
    height: int | None = None,
    width: int | None = None,
    output_type: str = "pil",
    **settings: Any,
) -> Output:
    """Pictures whose masked part is drawn after the prompt; the arguments of `fill`, and:

    mask_image: of the picture's size; what is 0.5 or more is drawn anew. strength: 1 starts from
    noise alone, less from the noised picture. height, width: the size to resize to, multiples of 8.

    paste: all that is not masked is the original's, exactly, and a size that is not divisible by 8
    comes back as it was; over the outermost `feather` pixels inside the mask the new fades in.
    Without it the picture is diffusers': changed everywhere by the autoencoder, of a size rounded
    down to multiples of 8, and new only in those 8 x 8 cells whose first pixel is masked. Raises
    ValueError for arguments that do not fit.
    """
    images.check_output_type(output_type)
    check_sizes(images.to_tensor(image), to_mask(mask_image))
    side = pipe.vae.config.downscale
    pixels = images.to_tensor(image, height, width, side)
    mask = to_mask(mask_image, *pixels.shape[-2:])
    latents, seed = fill(pipe, pixels, mask, prompt, strength, whole_cells=paste, **settings)
    if output_type == "latent" or not paste:
        return Output(call.finish(pipe, latents, output_type), seed)
    original = images.to_tensor(image, height, width)
    mask = to_mask(mask_image, *original.shape[-2:])
    pasted = paste_back(pipe.decode_latents(latents), original, mask, feather)
    return Output(images.to_output(pasted, output_type), seed)


def outpaint(
    pipe: StableDiffusionPipeline,
    prompt: str | Sequence[str] | None = None,
    image: Pictures = None,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    *,
    strength: float = 1.0,
    feather: int = 4,
    output_type: str = "pil",
    **settings: Any,
) -> Output:
    """Pictures continued beyond their edges by so many pixels; the arguments of `fill`, and:

    The given pixels are kept exactly, and any size is allowed: the canvas is worked on up to the
    next multiples of 8, at its right and bottom, and cut to the asked size afterwards ("latent"
    stays uncut). The new area starts as the picture's mirror image, which strength below 1 builds
    upon and the outermost `feather` pixels fade out of. Raises ValueError for arguments that do not
    fit.
    """
    images.check_output_type(output_type)
    pixels, side = images.to_tensor(image), pipe.vae.config.downscale
    for name, n in (("left", left), ("right", right), ("top", top), ("bottom", bottom)):
        whole(name, n)
    height, width = pixels.shape[-2] + top + bottom, pixels.shape[-1] + left + right
    canvas, new = extend(pixels, left, right, top, bottom, side)
    latents, seed = fill(pipe, canvas, new, prompt, strength, whole_cells=True, **settings)
    if output_type == "latent":
        return Output(latents, seed)
    pasted = paste_back(pipe.decode_latents(latents), canvas, new, feather)
    return Output(images.to_output(pasted[..., :height, :width], output_type), seed)


def fill(
    pipe: StableDiffusionPipeline,
    pixels: Tensor,
    mask: Tensor,
    prompt: str | Sequence[str] | None,
    strength: float,
    *,
    whole_cells: bool = False,
    negative_prompt: str | Sequence[str] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    num_images_per_prompt: int = 1,
    eta: float = 0.0,
    generator: Generators = None,
    latents: Tensor | None = None,
    prompt_embeds: Tensor | None = None,
    negative_prompt_embeds: Tensor | None = None,
    clip_skip: int | None = None,
    guidance_rescale: float = 0.0,
    callback_on_step_end: Callback | None = None,
) -> tuple[Tensor, int | None]:
    """The scaled latents of n pictures, filled in where the mask is 1, and the seed drawn, if any.

    pixels: (k, 3, h, w) in [-1, 1]; mask: (1 or k, 1, h, w) of 0 and 1. whole_cells: a latent cell
    is new if any of its pixels is masked, else if its first one is. latents: the noise to use,
    (n, 4, h/8, w/8). The others are those of a call of the pipeline.
    """
    plan = pipe.scheduler.plan(pipe.steps(num_inference_steps), strength)
    cond, uncond = call.conditions(
        pipe, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, clip_skip,
        num_images_per_prompt,
    )  # fmt: skip
    generator, seed = seeded(generator)
    n, blend = len(cond), pipe.unet.config.in_channels == pipe.vae.config.latent_channels

    # The reference's order of draws, and an ordinary model makes the last one in vain as there: the
    # picture's latents, noise, the masked picture's latents.
    x_0 = None
    if blend or strength < 1:
        x_0 = encode(pipe, pixels, n, num_images_per_prompt, generator)
    noise = read_noise(pipe, latents, n, pixels, generator)
    masked = encode(pipe, pixels * (1 - mask), n, num_images_per_prompt, generator)

    cells = latent_mask(mask, pipe.vae.config.downscale, whole_cells)
    cells = spread(cells, n, num_images_per_prompt, "masks").to(pipe.device, pipe.dtype)
    if strength == 1:
        x_t = noise * pipe.scheduler.init_noise_sigma(plan)
    else:
        x_t = pipe.scheduler.noised(x_0, noise, plan[0].sigma) if plan else x_0
    x_0 = call.run(
        pipe, x_t, cond, uncond, num_inference_steps, guidance_scale, callback_on_step_end,
        strength=strength, eta=eta, generator=generator, guidance_rescale=guidance_rescale,
        adjust=keep_known(pipe, x_0, noise, cells, plan) if blend else None,
        extra_channels=None if blend else torch.cat([cells, masked], dim=1),
    )  # fmt: skip
    return x_0, seed


def keep_known(
    pipe: StableDiffusionPipeline, x_0: Tensor, noise: Tensor, cells: Tensor, plan: tuple[Span, ...]
) -> Callable[[Step], Tensor]:
    """What replaces x_prev after a step: where cells is 0, the picture at the level just reached.

    x_0, noise: (n, 4, h/8, w/8); cells: (n, 1, h/8, w/8). After the last step, that is clean.
    """
    spans = {span.index: span for span in plan}

    def blend(step: Step) -> Tensor:
        span = spans[step.index]
        known = x_0 if span is plan[-1] else pipe.scheduler.noised(x_0, noise, span.sigma_prev)
        return (1 - cells) * known + cells * step.x_prev

    return blend


def read_noise(
    pipe: StableDiffusionPipeline,
    latents: Tensor | None,
    n: int,
    pixels: Tensor,
    generator: Generators,
) -> Tensor:
    """The noise of a run, (n, 4, h/8, w/8): drawn, or the caller's."""
    side = pipe.vae.config.downscale
    h, w = pixels.shape[-2] // side, pixels.shape[-1] // side
    shape = (n, pipe.vae.config.latent_channels, h, w)
    if latents is None:
        return draw_noise(shape, generator, pipe.device, pipe.dtype)
    if not isinstance(latents, Tensor) or latents.shape != shape:
        raise ValueError(f"latents have shape {shape_of(latents)}, expected {shape}, a tensor")
    return latents.to(pipe.device, pipe.dtype)


def latent_mask(mask: Tensor, side: int, whole_cells: bool) -> Tensor:
    """A mask (k, 1, h, w) in cells of side x side pixels, (k, 1, h/8, w/8)."""
    return F.max_pool2d(mask, side) if whole_cells else mask[..., ::side, ::side]


def to_mask(mask: Pictures, height: int | None = None, width: int | None = None) -> Tensor:
    """Masks to (k, 1, h, w) float32 of 0 and 1, where 1 is what was 0.5 or more.

    PIL pictures of any mode; arrays or tensors (h, w), (k, h, w) or (k, 1, h, w), an array's
    channel last: 0..255 if whole, else in [0, 1] or boolean. Resized as in images.to_tensor.
    """
    if isinstance(mask, (list, tuple)) and mask:
        return torch.cat([to_mask(one, height, width) for one in mask])
    if isinstance(mask, Image.Image):
        size = (width or mask.width, height or mask.height)
        gray = mask.resize(size, Image.Resampling.LANCZOS).convert("L")
        return torch.from_numpy(np.asarray(gray) >= 128)[None, None].float()  # 127.5 / 255 = 0.5
    if not isinstance(mask, (np.ndarray, Tensor)):
        raise ValueError(f"the mask is {type(mask).__name__}, expected a PIL picture or an array")
    x = torch.asarray(mask, copy=True).detach().cpu()
    x = x / 255 if not x.is_floating_point() and x.dtype != torch.bool else x.float()
    channel = -1 if isinstance(mask, np.ndarray) else 1
    if x.ndim == 4 and x.shape[channel] == 1:
        x = x.squeeze(channel)
    x = x[None] if x.ndim == 2 else x
    if x.ndim != 3 or x.numel() == 0 or not (0 <= x.min() and x.max() <= 1):
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)} and values from {mask.min()} to {mask.max()}, "
            "expected (h, w) or (k, h, w) and 0 to 1, or 0 to 255 if whole"
        )
    x = F.interpolate(x[:, None], size=(height or x.shape[-2], width or x.shape[-1]))
    return (x >= 0.5).float()


def check_sizes(pixels: Tensor, mask: Tensor) -> None:
    """Raises ValueError unless masks (k, 1, h, w) fit pictures (b, 3, h, w)."""
    if pixels.shape[-2:] != mask.shape[-2:] or 1 != len(mask) != len(pixels):
        picture, given = (f"{len(x)} of {x.shape[-2]} x {x.shape[-1]}" for x in (pixels, mask))
        raise ValueError(
            f"the masks are {given} and the pictures {picture}, expected one mask or one for each "
            "picture, and of the same size; resize or crop the mask"
        )


def extend(
    pixels: Tensor, left: int, right: int, top: int, bottom: int, side: int
) -> tuple[Tensor, Tensor]:
    """Pictures (k, 3, h, w) on a larger canvas, mirrored outwards, and the mask of what is new.

    Returns (k, 3, H, W) and (1, 1, H, W), H and W rounded up to multiples of `side`. Raises
    ValueError for negative numbers, and if all are 0.
    """
    if min(left, right, top, bottom) < 0 or not (left or right or top or bottom):
        raise ValueError(
            f"left, right, top, bottom are {left}, {right}, {top}, {bottom}, expected pixels to "
            "add: none negative, one at least above 0"
        )
    h, w = pixels.shape[-2:]
    bottom, right = bottom + -(top + h + bottom) % side, right + -(left + w + right) % side
    rows = np.pad(np.arange(h), (top, bottom), mode="symmetric")
    columns = np.pad(np.arange(w), (left, right), mode="symmetric")
    canvas = pixels[..., torch.from_numpy(rows), :][..., torch.from_numpy(columns)]
    new = torch.ones(1, 1, len(rows), len(columns))
    new[..., top : top + h, left : left + w] = 0
    return canvas, new


def paste_back(decoded: Tensor, original: Tensor, mask: Tensor, feather: int) -> Tensor:
    """The new picture where the mask is 1, the original, exactly, where it is 0.

    decoded: (n, 3, h, w) in [-1, 1], resized if it is smaller; original: (k, 3, H, W); mask: (1 or
    k, 1, H, W). The new one's share grows evenly over `feather` pixels from the edge inwards.
    """
    if whole("feather", feather) < 0:
        raise ValueError(f"feather is {feather}, expected a number of pixels, 0 or more")
    share = mask
    for _ in range(1, feather):
        mask = 1 - F.max_pool2d(1 - mask, 3, stride=1, padding=1)  # without its outermost pixels
        share = share + mask
    share = share / max(feather, 1)
    new, size = decoded.float().cpu().clamp(-1, 1), original.shape[-2:]
    if new.shape[-2:] != size:
        new = F.interpolate(new, size, mode="bicubic", antialias=True).clamp(-1, 1)
    times = len(new) // len(original)
    original = original.repeat_interleave(times, dim=0)
    share = share.repeat_interleave(len(new) // len(share), dim=0)
    return share * new + (1 - share) * original
