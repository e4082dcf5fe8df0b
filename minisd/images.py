"""Pictures: tensors in [-1, 1], PIL images, and PNG files that know how they were made."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from minisd.arguments import whole

Picture = Image.Image | np.ndarray | Tensor
OUTPUT_TYPES = ("pil", "np", "pt", "latent")
SETTINGS_KEY = "minisd"  # the PNG text chunk that holds the settings as JSON
PARAMETERS_KEY = "parameters"  # the same as text, where AUTOMATIC1111's web UI and viewers read it
SAMPLERS = {"ddim": "DDIM", "ddpm": "DDPM", "pndm": "PLMS", "euler": "Euler", "euler-a": "Euler a",
            "heun": "Heun", "dpm++": "DPM++ 2M", "dpm++-sde": "DPM++ 2M SDE", "lcm": "LCM",
}  # fmt: skip


def to_numpy(images: Tensor) -> np.ndarray:
    """(b, 3, h, w) in [-1, 1], overshoot cut off, to (b, h, w, 3) float32 in [0, 1]."""
    zero_one = (images.float() / 2 + 0.5).clamp(0, 1)
    return rearrange(zero_one, "b c h w -> b h w c").cpu().numpy()


def to_pil(images: Tensor) -> list[Image.Image]:
    """(b, 3, h, w) in [-1, 1] to b pictures, rounded to 8 bits as the reference does."""
    return [Image.fromarray(image) for image in (to_numpy(images) * 255).round().astype("uint8")]


def check_output_type(output_type: str) -> None:
    """Raises ValueError unless to_output, or the pipeline, knows this output type."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type is {output_type!r}, expected one of {OUTPUT_TYPES}")


def to_output(images: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    """(b, 3, h, w) in [-1, 1] as "pil", or in [0, 1] as "np" (b, h, w, 3) or "pt" (b, 3, h, w)."""
    if output_type == "pil":
        return to_pil(images)
    return to_numpy(images) if output_type == "np" else (images / 2 + 0.5).clamp(0, 1)


def from_pil(images: Image.Image | Sequence[Image.Image]) -> Tensor:
    """Pictures of one size, of any mode, to (b, 3, h, w) float32 in [-1, 1].

    Transparent parts become white. Raises ValueError if the sizes differ.
    """
    images = [images] if isinstance(images, Image.Image) else list(images)
    sizes = {image.size for image in images}
    if len(sizes) != 1:
        raise ValueError(f"the pictures have sizes {sorted(sizes)}, expected one size; resize them")
    pixels = np.stack([np.asarray(flatten_alpha(image), dtype=np.float32) for image in images])
    return rearrange(torch.from_numpy(pixels), "b h w c -> b c h w").contiguous() / 127.5 - 1


def to_tensor(
    pictures: Picture | Sequence[Picture],
    height: int | None = None,
    width: int | None = None,
    multiple: int = 1,
) -> Tensor:
    """Pictures of any kind, one or several, to (b, 3, h, w) float32 in [-1, 1].

    PIL pictures of any mode; arrays (h, w), (h, w, 3) or (b, h, w, 3); tensors (3, h, w) or
    (b, 3, h, w). Whole numbers are 0..255; others are in [0, 1], or in [-1, 1] if any is negative,
    as the reference reads them. A size left out is the picture's own, rounded down to `multiple`.
    What has another size is resized as in the reference: Lanczos, floats by nearest neighbour.
    Raises ValueError for what is no picture, and for several sizes but with height and width given.
    """
    singles = _singles(pictures)
    sizes = {one.size[::-1] if isinstance(one, Image.Image) else one.shape[1:] for one in singles}
    if len(sizes) > 1 and None in (height, width):
        names = ", ".join(f"{h} x {w}" for h, w in sorted(sizes))
        raise ValueError(f"the pictures have sizes {names}, expected one size; resize them")
    h, w = sizes.pop()
    h = h - h % multiple if height is None else whole("height", height)
    w = w - w % multiple if width is None else whole("width", width)
    if h < 1 or w < 1 or h % multiple or w % multiple:
        raise ValueError(f"the picture would be {h} x {w}, expected multiples of {multiple}")
    if isinstance(singles[0], Image.Image):
        rgb = [flatten_alpha(one) for one in singles]
        return from_pil([one.resize((w, h), Image.Resampling.LANCZOS) for one in rgb])
    x = torch.cat([F.interpolate(one[None], size=(h, w)) for one in singles])
    return x if x.min() < 0 else 2 * x - 1


def _singles(pictures: Picture | Sequence[Picture]) -> list[Image.Image] | list[Tensor]:
    """Any pictures as a list: all of PIL, or all float tensors (3, h, w)."""
    if isinstance(pictures, Image.Image):
        return [pictures]
    if isinstance(pictures, (list, tuple)) and pictures:
        singles = [one for some in pictures for one in _singles(some)]
        if len({isinstance(one, Image.Image) for one in singles}) > 1:
            raise ValueError("the pictures are some 8-bit and some float, expected one kind")
        return singles
    if not isinstance(pictures, (np.ndarray, Tensor)):
        raise ValueError(
            f"the picture is {type(pictures).__name__}, expected a PIL picture, an array, a tensor "
            "or a list of them"
        )
    x = torch.asarray(pictures, copy=True).detach().cpu()
    if x.ndim == 2:
        x = x.expand(1, 1, *x.shape)
    elif isinstance(pictures, np.ndarray):
        x = x.movedim(-1, -3)
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4 or x.numel() == 0 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"the picture has shape {tuple(pictures.shape)}, expected (b, 3, h, w) as a tensor or "
            "(b, h, w, 3) as an array"
        )
    low, high, whole = x.min().item(), x.max().item(), not x.is_floating_point()
    if not (0 <= low and high <= 255 if whole else -2 <= low and high <= 2):  # room for overshoot
        expected = "0..255" if whole else "[-1, 1] or [0, 1]"
        raise ValueError(f"the picture has values from {low:g} to {high:g}, expected {expected}")
    x = x.expand(-1, 3, -1, -1)
    if whole:
        return [Image.fromarray(one) for one in x.movedim(1, -1).to(torch.uint8).numpy()]
    return list(x.float())


def open_picture(path: Path | str) -> Image.Image:
    """A picture file in its own mode, turned as the camera says.

    Raises FileNotFoundError if there is none, ValueError if it is no picture or damaged.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:  # a broken PNG is a SyntaxError
        raise ValueError(f"{path} is no picture or damaged: {error}") from error


def flatten_alpha(image: Image.Image) -> Image.Image:
    """Any picture as RGB; what is transparent shows white."""
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def grid(images: Sequence[Image.Image], columns: int | None = None, gap: int = 4) -> Image.Image:
    """Pictures of one size side by side, row by row, on white."""
    columns = columns or int(np.ceil(len(images) ** 0.5))
    rows = -(-len(images) // columns)
    w, h = images[0].size
    sheet = Image.new("RGB", (columns * (w + gap) - gap, rows * (h + gap) - gap), "white")
    for i, image in enumerate(images):
        sheet.paste(image, ((i % columns) * (w + gap), (i // columns) * (h + gap)))
    return sheet


def parameters(settings: Mapping[str, Any]) -> str:
    """Settings as picture viewers show them: the prompt, the negative prompt, and one line."""
    names = {"num_inference_steps": "Steps", "scheduler": "Sampler", "guidance_scale": "CFG scale",
             "seed": "Seed", "strength": "Denoising strength", "model": "Model hash"}  # fmt: skip
    given = {**settings, "scheduler": SAMPLERS.get(settings.get("scheduler"), "unknown")}
    line = [f"{name}: {given[key]}" for key, name in names.items() if given.get(key) is not None]
    if settings.get("width") and settings.get("height"):
        line.append(f"Size: {settings['width']}x{settings['height']}")
    line.append(f"Version: minisd {settings.get('version', '')}".strip())
    texts = [settings["prompt"]]
    if settings.get("negative_prompt"):
        texts.append(f"Negative prompt: {settings['negative_prompt']}")
    return "\n".join([*texts, ", ".join(line)])


def save_png(
    image: Image.Image, path: Path | str, settings: Mapping[str, Any] | None = None
) -> None:
    """Write a PNG, with the settings that made it as text inside; all of it or nothing."""
    path, info = Path(path), PngInfo()
    if settings is not None:
        info.add_text(SETTINGS_KEY, json.dumps(dict(settings), ensure_ascii=True))
        if "prompt" in settings:
            info.add_text(PARAMETERS_KEY, parameters(settings))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        image.save(part, format="PNG", pnginfo=info)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_settings(path: Path | str) -> dict[str, Any]:
    """The settings that save_png wrote into a PNG. Raises ValueError if it holds none."""
    with Image.open(path) as image:
        text = image.info.get(SETTINGS_KEY)
    if text is None:
        raise ValueError(f"{path} holds no settings; only pictures written by minisd do")
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"the settings in {path} are damaged: {error}") from error
