"""CLIP at picture-book size: two encoders that learn to agree about pictures and captions."""

from collections.abc import Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, distributed, nn

from minisd.checkpoint import load_state
from minisd.config import TextEncoderConfig
from minisd.text_encoder import TextEncoder
from minisd.training import rank_and_world

SIZE = 64  # pixels a side that the image encoder sees
SHIPPED = "picturebook/clip_image.safetensors"


class ImageEncoder(nn.Module):
    """A small convolutional network: pictures (b, 3, side, side) in [-1, 1] to (b, width).

    Each of its layers halves the side.
    """

    def __init__(
        self, width: int, channels: Sequence[int] = (3, 32, 64, 128, 160), side: int = SIZE
    ):
        super().__init__()
        last = side >> (len(channels) - 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, 3, stride=2, padding=1) for c_in, c_out in pairwise(channels)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, c) for c in channels[1:])
        self.head = nn.Linear(channels[-1] * last * last, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, 3, side, side) in [-1, 1]. Returns (b, width)."""
        for conv, norm in zip(self.convs, self.norms):
            x = F.silu(norm(conv(x)))
        return self.head(x.flatten(1))


class CLIP(nn.Module):
    """A text encoder and an image encoder with a common space and a learned temperature. [CLIP 2.3]

    `scale` is the logarithm of 1 / temperature.
    """

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.text = TextEncoder(config)
        self.text_projection = nn.Linear(config.width, config.width, bias=False)
        self.image = ImageEncoder(config.width)
        self.scale = nn.Parameter(torch.tensor(1 / 0.07).log())  # CLIP 2.5

    def embed_text(self, ids: Tensor, end_id: int) -> Tensor:
        """ids: (b, m). Returns unit vectors (b, d): the text encoder's output at the end token."""
        ends = (ids == end_id).int().argmax(dim=1)  # the first of them; the rest is padding
        ids = ids[:, : int(ends.max()) + 1]  # causal: what stands behind the end changes nothing
        vectors = self.text(ids)[torch.arange(len(ids), device=ids.device), ends]
        return F.normalize(self.text_projection(vectors).float(), dim=-1)

    def embed_image(self, pictures: Tensor) -> Tensor:
        """pictures: (b, 3, side, side) in [-1, 1]. Returns unit vectors (b, d)."""
        return F.normalize(self.image(pictures).float(), dim=-1)


def open_clip(text: TextEncoder, path: Path | None = None) -> CLIP:
    """CLIP of a text encoder and what was trained beside it: the recipe's clip_image.safetensors,
    or for the shipped text encoder the shipped one. Raises ValueError if they do not fit.
    """
    with resources.as_file(resources.files("minisd").joinpath(SHIPPED)) as shipped:
        state = {key: value.float() for key, value in load_file(path or shipped).items()}
    state |= {f"text.{key}": value for key, value in text.state_dict().items()}
    return load_state(CLIP(text.config), state, path or SHIPPED)


class Gather(torch.autograd.Function):
    """Collects the rows of all processes; each row's gradient is the sum of what all made of it."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        rows = [torch.empty_like(x) for _ in range(rank_and_world()[1])]
        distributed.all_gather(rows, x.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        rank, world = rank_and_world()
        grad = grad.clone()
        distributed.all_reduce(grad)
        return grad.chunk(world)[rank]


def gathered(x: Tensor) -> Tensor:
    """The rows of all processes under torchrun, with their gradients; (b, d) to (world * b, d).

    The softmax runs over the whole batch, so every process needs the vectors of the others.
    """
    return x if rank_and_world()[1] == 1 else Gather.apply(x)


def contrastive_loss(
    images: Tensor, texts: Tensor, scale: Tensor, wrong_texts: Tensor | None = None
) -> Tensor:
    """Each picture must find its text among all, each text its picture. [CLIP, Figure 3]

    images, texts: (b, d) unit vectors, row i belongs to row i; scale: log of 1 / temperature;
    wrong_texts: (n, d) more texts that belong to no picture.
    """
    factor = scale.clamp(max=4.6052).exp()  # CLIP 2.5: never above 100
    candidates = texts if wrong_texts is None else torch.cat([texts, wrong_texts])
    labels = torch.arange(len(images), device=images.device)
    to_text = F.cross_entropy(factor * images @ candidates.T, labels)
    to_image = F.cross_entropy(factor * texts @ images.T, labels)
    return (to_text + to_image) / 2
