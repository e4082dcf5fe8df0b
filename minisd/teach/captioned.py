"""A UNet that is told what to draw, small enough to train while you wait (chapter 09).

The pictures show two shapes in two colours on grey, 16 x 16 pixels; the captions say which. A small
text encoder learns together with the UNet.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minisd.config import TextEncoderConfig, UNetConfig
from minisd.layers import Record
from minisd.picturebook import data, world
from minisd.picturebook.canvas import PALETTE
from minisd.picturebook.measures import auc
from minisd.schedulers import NoiseSchedule
from minisd.teach.text_encoders import COLORS, WORDS, Pair, captions, draw, scenes
from minisd.teach.toys import generate, seeded
from minisd.text_encoder import TextEncoder
from minisd.training import (
    TrainConfig,
    descend,
    noise_prediction_loss,
    step_generator,
    update_average,
)
from minisd.unet import UNet
from minisd.viz.attention import cross_layers, word_map

SIDE = 16  # pixels
FAR = 1_000_000  # seeds of pictures that training never draws
MOMENTS = (0, 100, 300, 600, 1000, 2000)  # training steps after which to look
PLAN = TrainConfig(2000, 32, 3e-3, warmup_steps=50, decay_fraction=0.5, ema_decay=0.99)
TEXT = TextEncoderConfig(len(WORDS), 9, width=32, layers=1, heads=4, mlp_width=128)
SMALL = UNetConfig(
    in_channels=3, out_channels=3, widths=(16, 32, 48), layers_per_level=1,
    attention=(False, True, True), heads=(2, 2, 2), context_width=TEXT.width, norm_groups=4,
)  # fmt: skip
NAMED = 2, 3, 6, 7  # places in a caption: colour and shape of the first thing, of the second


class Illustrator(nn.Module):
    """Text encoder and UNet in one: from noisy pictures and captions, the noise."""

    def __init__(self):
        super().__init__()
        self.text, self.unet = TextEncoder(TEXT), UNet(SMALL)

    def forward(self, x_t: Tensor, t: Tensor | float, ids: Tensor, record: Record = None) -> Tensor:
        """x_t: (b, 3, h, w), t: a timestep or one for each picture (b,), ids: (b, 9) captions.
        Returns (b, 3, h, w).
        """
        return self.unet(x_t, t, self.text(ids), record)


def examples(pairs: Sequence[Pair], count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """`count` pictures of pairs drawn at random: x_0 (count, 3, 16, 16) in [-1, 1], ids (count, 9),
    and where each of the two shapes is seen, (count, 2, 16, 16) bool.
    """
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(pairs), (count,), generator=generator).tolist()
    chosen = [pairs[i] for i in picked]
    drawn = [draw(pair, generator) for pair in chosen]
    x_0 = data.to_range(data.to_tensor([world.render(scene, SIDE) for scene in drawn]))
    masks = torch.stack([torch.from_numpy(world.masks(scene, SIDE)) for scene in drawn])
    return x_0, captions(chosen), masks


def read(ids: Tensor) -> list[str]:
    """Captions (b, 9) as words, without START and END."""
    return [" ".join(WORDS[i] for i in row[1:-1]) for row in ids.tolist()]


def training(plan: TrainConfig = PLAN) -> Iterator[tuple[int, float, nn.Module]]:
    """Train with new pictures at every step; yields steps made, the loss, the average model."""
    model, schedule, book = seeded(Illustrator), NoiseSchedule(), scenes()[0]
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=plan.weight_decay)
    for step in range(plan.steps):
        x_0, ids, _ = examples(book, plan.batch_size, seed=step)
        generator = step_generator(plan.seed, step, torch.device("cpu"))
        loss = noise_prediction_loss(model, schedule, x_0, ids, generator, snr_gamma=None)
        descend(model, loss, optimizer, plan.rate(step), f"step {step}")
        update_average(average, model, plan.ema_decay, step)
        yield step + 1, loss.item(), average


@torch.no_grad()
def paint(model: nn.Module, pairs: Sequence[Pair], x_T: Tensor, steps: int = 25) -> Tensor:
    """A picture of each pair, from noise x_T: (b, 3, 16, 16) both."""
    ids = captions(pairs)
    return generate(lambda x_t, t: model(x_t, t, ids), x_T, steps)


def colors_seen(pictures: Tensor) -> list[set[str]]:
    """The two colours that most of each picture's pixels are nearest to, the ground's grey left
    out; pictures: (b, 3, h, w) in [-1, 1].
    """
    palette = torch.tensor([PALETTE[name] for name in (*COLORS, "gray")])
    pixels = rearrange(pictures / 2 + 0.5, "b c h w -> b (h w) c")
    nearest = torch.cdist(pixels, palette.expand(len(pixels), -1, -1)).argmin(dim=-1)
    counts = F.one_hot(nearest, len(palette)).sum(dim=1)[:, : len(COLORS)]
    return [{COLORS[i] for i in row} for row in counts.topk(2).indices.tolist()]


@torch.no_grad()
def maps_found(model: nn.Module, count: int = 64, t: int = 300) -> dict[str, float]:
    """How well each cross-attention layer's maps of the four named words find the word's shape:
    mean AUC on pictures of pairs that training never saw.
    """
    x_0, ids, masks = examples(scenes()[1], count, seed=FAR)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(FAR))
    record: dict[str, Any] = {}
    model(NoiseSchedule().add_noise(x_0, eps, torch.tensor(t)), t, ids, record)
    found = {}
    for layer in cross_layers(record):
        p, values = record[f"{layer}.probabilities"], []
        for i in range(count):
            for place, mask in zip(NAMED, masks[i].repeat_interleave(2, dim=0)):
                small = word_map(p, [place], row=i)
                enlarged = F.interpolate(small[None, None], mask.shape)[0, 0]
                values.append(auc(enlarged, mask))
        found[layer] = sum(values) / len(values)
    return found


def train(plan: TrainConfig = PLAN, moments: Sequence[int] = MOMENTS) -> dict[str, Any]:
    """All of it, for train_or_load: "losses", the final "weights", and at each moment its "step",
    "maps" (see maps_found) and "pictures" of eight unseen pairs from one and the same noise.
    """
    exam = scenes()[1][::5][:8]
    x_T = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(FAR))
    x_T = x_T.expand(len(exam), -1, -1, -1)
    losses, rows = [], []

    def look(step: int, model: nn.Module) -> None:
        pictures = paint(model, exam, x_T).clamp(-1, 1).half()
        rows.append({"step": step, "maps": maps_found(model), "pictures": pictures})

    if 0 in moments:
        look(0, seeded(Illustrator))
    for step, loss, average in training(plan):
        losses.append(loss)
        if step in moments:
            look(step, average)
    weights = {name: w.half() for name, w in average.state_dict().items()}
    return {"losses": losses, "weights": weights, "moments": rows, "pairs": exam}
