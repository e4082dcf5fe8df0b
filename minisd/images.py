"""Pictures: tensors in [-1, 1], PIL images, and PNG files that know how they were made."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
SETTINGS_KEY = "minisd"  # the PNG text chunk that holds the settings as JSON


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


def save_png(
    image: Image.Image, path: Path | str, settings: Mapping[str, Any] | None = None
) -> None:
    """Write a PNG, with the settings that made it as text inside; all of it or nothing."""
    path, info = Path(path), PngInfo()
    if settings is not None:
        info.add_text(SETTINGS_KEY, json.dumps(dict(settings), ensure_ascii=True))
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
    return json.loads(text)
