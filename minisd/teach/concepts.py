"""What chapter 13 teaches the model: a thing that it has never seen, a word that it has lost."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from minisd.finetune.methods import NewWord
from minisd.finetune.pictures import Captioned, Latents
from minisd.lora import LoRA, adaptable, fresh
from minisd.picturebook import world
from minisd.picturebook.captions import article
from minisd.picturebook.drawing import stands_out
from minisd.pipeline import StableDiffusionPipeline
from minisd.textual_inversion import add_token, remove_tokens
from minisd.training import TrainConfig, descend, noise_prediction_loss

THING, TRAINED, UNSEEN = "mushroom", 16, 48  # what is new to the model; numbers of pictures
PLAN = TrainConfig(240, 8, 2e-3, warmup_steps=20)
TOO_MUCH = TrainConfig(400, 8, 6e-3, warmup_steps=20)  # too fast, for too long
WORD_PLAN = TrainConfig(300, 4, 2e-2, warmup_steps=10)
RANKS = (1, 2, 4, 8, 16, 32)
MOMENTS = (50, 100, 200, 400)  # steps of TOO_MUCH after which to look
DRAWS = 4  # of timestep and noise for each picture, where errors are compared
PROMPTS = ("a yellow mushroom on a blue background", "a blue fish in the water",
           "a red boat on the sea at sunset")  # fmt: skip


def pictures(thing: str, count: int, seed: int = 0, word: str = "") -> list[Captioned]:
    """Pictures of one thing on a plain ground, "a red mushroom on a white background".

    `word` is what the captions call it, if not by its name.
    """
    generator = torch.Generator().manual_seed(seed)

    def pick(options: Sequence[str]) -> str:
        return options[int(torch.randint(len(options), (1,), generator=generator))]

    made = []
    for _ in range(count):
        color = pick(world.COLORS)
        ground = pick([c for c in world.COLORS if stands_out(color, f"plain:{c}")])
        x, y, size = torch.rand(3, generator=generator).tolist()
        place = 0.44 + 0.12 * x, 0.44 + 0.12 * y, 0.26 + 0.1 * size
        scene = world.Scene("one", (world.Thing(thing, color, "", *place),), f"plain:{ground}")
        caption = f"{article(color)} {word or thing} on {article(ground)} background"
        made.append(Captioned(Image.fromarray(world.render(scene)), caption))
    return made


def familiar(count: int, seed: int = 1) -> list[Captioned]:
    """Pictures such as the model was trained on, with captions of every kind."""
    examples = [world.example(i, seed) for i in range(count)]
    return [Captioned(Image.fromarray(e.image), e.caption) for e in examples]


def learn(
    pipe: StableDiffusionPipeline, part: nn.Module, batches: Latents, plan: TrainConfig
) -> Iterator[float]:
    """Train `part`, which the pipeline uses already, and nothing else; yields each step's loss."""
    optimizer = torch.optim.AdamW(part.parameters(), weight_decay=plan.weight_decay)
    generator = torch.Generator().manual_seed(plan.seed)
    for step in range(plan.steps):
        mean, _, captions = batches[step]
        x_0 = pipe.vae.config.scaling_factor * mean.to(pipe.device)
        context = pipe.text_encoder(pipe.tokenizer(captions).to(pipe.device))
        loss = noise_prediction_loss(pipe.unet, pipe.scheduler, x_0, context, generator)
        descend(part, loss, optimizer, plan.rate(step), f"step {step}")
        yield loss.item()


@torch.no_grad()
def error(pipe: StableDiffusionPipeline, unseen: Latents) -> float:
    """The loss on pictures, with the same timesteps and noise at every call."""
    generator, total = torch.Generator().manual_seed(0), 0.0
    x_0 = pipe.vae.config.scaling_factor * unseen.mean.to(pipe.device)
    context = pipe.text_encoder(pipe.tokenizer(unseen.captions).to(pipe.device))
    for _ in range(DRAWS):
        loss = noise_prediction_loss(pipe.unet, pipe.scheduler, x_0, context, generator)
        total += loss.item() / DRAWS
    return total


@torch.no_grad()
def latents(pipe: StableDiffusionPipeline, prompts: Sequence[str] = PROMPTS) -> Tensor:
    """What the model draws, number i from seed i, as small latents (n, 4, h/8, w/8) to be kept."""
    seeds = [torch.Generator().manual_seed(i) for i in range(1, len(prompts) + 1)]
    return pipe(list(prompts), generator=seeds, output_type="latent").images.half().cpu()


@contextmanager
def adapter(
    pipe: StableDiffusionPipeline, rank: int, name: str = "passing"
) -> Iterator[dict[str, LoRA]]:
    """A new adapter of the UNet's attention, alone, for the length of a with block."""
    before = dict(pipe.adapters.scales)
    layers = {k: v for k, v in adaptable(pipe.networks).items() if k.startswith("unet.")}
    loras = fresh(layers, rank, torch.Generator().manual_seed(0))
    pipe.adapters.add(layers, loras, name)
    pipe.set_adapters(name)
    try:
        yield loras
    finally:
        pipe.delete_adapters(name)
        pipe.adapters.scales.update(before)


def compare_ranks(
    pipe: StableDiffusionPipeline, ranks: Sequence[int] = RANKS, plan: TrainConfig = PLAN
) -> list[dict[str, Any]]:
    """The same training at several ranks, for train_or_load: a row for each.

    "new" and "old": the errors on unseen pictures of the new thing and on familiar ones;
    "singular": of each layer's update, the largest first, (layers, rank); "latents".
    """
    batches = Latents(pipe, pictures(THING, TRAINED), plan.batch_size)
    new = Latents(pipe, pictures(THING, UNSEEN, seed=1), 1)
    old, rows = Latents(pipe, familiar(UNSEEN), 1), []
    for rank in ranks:
        with adapter(pipe, rank) as loras:
            part = nn.ModuleList(loras.values())
            for _ in learn(pipe, part, batches, plan):
                pass
            updates = [torch.linalg.svdvals(lora.product().detach()) for lora in part]
            rows.append({
                "rank": rank, "parameters": sum(p.numel() for p in part.parameters()),
                "new": error(pipe, new), "old": error(pipe, old),
                "singular": torch.stack([values[:rank] for values in updates]),
                "latents": latents(pipe),
            })  # fmt: skip
    return rows


def overdo(
    pipe: StableDiffusionPipeline,
    rank: int = 8,
    plan: TrainConfig = TOO_MUCH,
    moments: Sequence[int] = MOMENTS,
) -> list[dict[str, Any]]:
    """One training, too fast and for too long, for train_or_load: a row for each moment.

    "heart" is the error on the pictures that it learns from; "new", "old", "latents" as above.
    """
    batches = Latents(pipe, pictures(THING, TRAINED), plan.batch_size)
    new = Latents(pipe, pictures(THING, UNSEEN, seed=1), 1)
    old, rows = Latents(pipe, familiar(UNSEEN), 1), []
    with adapter(pipe, rank) as loras:
        steps = learn(pipe, nn.ModuleList(loras.values()), batches, plan)
        for step in range(plan.steps + 1):
            if step in (0, *moments):
                rows.append({
                    "step": step, "heart": error(pipe, batches), "new": error(pipe, new),
                    "old": error(pipe, old), "latents": latents(pipe),
                })  # fmt: skip
            next(steps, None)
    return rows


@contextmanager
def new_word(pipe: StableDiffusionPipeline, word: str, like: str) -> Iterator[NewWord]:
    """A word that starts as another and can be trained, for the length of a with block."""
    table = pipe.text_encoder.token_embedding
    (row,) = add_token(pipe, word, table.weight[pipe.tokenizer.ids(like)])
    vectors = NewWord(row, table.weight[[row]])
    hook = table.register_forward_hook(vectors)
    try:
        yield vectors
    finally:
        hook.remove()
        remove_tokens(pipe, [word])


def learn_word(
    pipe: StableDiffusionPipeline, thing: str, like: str, plan: TrainConfig = WORD_PLAN
) -> dict[str, Any]:
    """Textual inversion of a thing under a new word, "<thing>", for train_or_load.

    Returns "word", its "vector" (1, d), the "losses", and the errors "before" and "after" on unseen
    pictures.
    """
    name = f"<{thing}>"
    batches = Latents(pipe, pictures(thing, TRAINED, word=name), plan.batch_size)
    unseen = Latents(pipe, pictures(thing, UNSEEN, seed=1, word=name), 1)
    with new_word(pipe, name, like) as word:
        before, losses = error(pipe, unseen), list(learn(pipe, word, batches, plan))
        after, vector = error(pipe, unseen), word.vectors.detach().clone()
    return {"word": name, "vector": vector, "losses": losses, "before": before, "after": after}
