"""LoRA and textual inversion: the model rests, and little beside it learns."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minisd import images
from minisd.finetune.pictures import Captioned, Latents
from minisd.lora import ATTENTION, adaptable, fresh
from minisd.pipeline import StableDiffusionPipeline
from minisd.textual_inversion import add_token
from minisd.training import TrainConfig, noise_prediction_loss, train
from minisd.unet import UNet

LOOKS = 4  # pictures drawn at every save
LORA_FILE = "pytorch_lora_weights.safetensors"  # as diffusers calls them
WORD_FILE = "learned_embeds.safetensors"


def draw(pipe: StableDiffusionPipeline, captions: Sequence[str], path: Path) -> None:
    """A sheet of LOOKS pictures of the captions, picture i from seed i."""
    prompts = list(islice(cycle(dict.fromkeys(captions)), LOOKS))
    quiet = dataclasses.replace(pipe, progress_bar={"disable": True})
    made = [
        quiet(prompt, generator=torch.Generator().manual_seed(i)).images[0]
        for i, prompt in enumerate(prompts)
    ]
    images.save_png(images.grid(made, LOOKS), path, {"prompts": prompts})


@contextmanager
def borrowed(part: nn.Module, other: nn.Module) -> Iterator[None]:
    """For a while the parameters of `part` are those of `other`."""
    own = [parameter.data for parameter in part.parameters()]
    for parameter, lent in zip(part.parameters(), other.parameters()):
        parameter.data = lent.data
    try:
        yield
    finally:
        for parameter, data in zip(part.parameters(), own):
            parameter.data = data


def recompute_stages(unet: UNet) -> None:
    """Keep no activations from inside a stage for the way back, but work them out again there:
    less memory, a third more work. [Training Deep Nets with Sublinear Memory Cost, section 4]
    """
    for stage in (*unet.down, unet.mid, *unet.up):
        stage.forward = partial(checkpoint, stage.forward, use_reentrant=False)


def fit(
    pipe: StableDiffusionPipeline,
    part: nn.Module,
    examples: Sequence[Captioned],
    config: TrainConfig,
    folder: Path,
    precision: torch.dtype,
    write: Callable[[], None],
) -> None:
    """Train `part`, which the pipeline uses already, to predict the noise on the examples.

    `write` puts it into a file; pictures are drawn before the first step and at every save.
    No caption is dropped: guidance needs the empty text as the model knows it, not the examples.
    """
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise ValueError("this model inpaints: its UNet sees 9 channels; fine-tuning expects 4")
    batches = Latents(pipe, examples, config.batch_size, config.seed)
    factor, device = pipe.vae.config.scaling_factor, pipe.device

    def loss(_: nn.Module, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict]:
        mean, logvar = batch[0].to(device), batch[1].to(device)
        noise = torch.randn(mean.shape, generator=generator, device=device)
        x_0 = factor * (mean + torch.exp(0.5 * logvar) * noise)
        context = pipe.text_encoder(pipe.tokenizer(batch[2]).to(device))
        return noise_prediction_loss(pipe.unet, pipe.scheduler, x_0, context, generator), {}

    def look(average: nn.Module, step: int) -> None:
        with borrowed(part, average):
            write()
            draw(pipe, batches.captions, folder / f"look-{step:06}.png")

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "state.pt").exists():
        draw(pipe, batches.captions, folder / "look-000000.png")
    where = {"device": device, "precision": precision, "workers": 0}
    average = train(part, loss, batches, config, folder, on_save=look, **where)
    part.load_state_dict(average.state_dict())
    part.eval().requires_grad_(False)
    write()


def train_lora(
    pipe: StableDiffusionPipeline,
    examples: Sequence[Captioned],
    config: TrainConfig,
    folder: Path | str,
    *,
    rank: int = 8,
    text_encoder: bool = False,
    precision: torch.dtype = torch.float32,
    adapter_name: str = "trained",
) -> Path:
    """Train a LoRA of the UNet's attention, and with `text_encoder` of that one's too.

    alpha is the rank. The adapter stays in the pipeline; returns the file that holds it, for
    load_lora_weights here and in diffusers. [LoRA 4.1-4.2]
    """
    networks = ("unet.", "text_encoder.") if text_encoder else ("unet.",)
    layers = {k: v for k, v in adaptable(pipe.networks).items() if k.startswith(networks)}
    loras = fresh(layers, rank, torch.Generator().manual_seed(config.seed), ATTENTION)
    for lora in loras.values():
        lora.to(pipe.device)
    pipe.adapters.add(layers, loras, adapter_name)

    def write() -> None:
        pipe.save_lora_weights(folder, adapter_name, LORA_FILE)

    fit(pipe, nn.ModuleList(loras.values()), examples, config, Path(folder), precision, write)
    return Path(folder) / LORA_FILE


class NewWord(nn.Module):
    """The vectors of a new word, in the place of its rows of the text encoder's table.

    They alone learn: the table rests, and with it every other word.
    """

    def __init__(self, first: int, vectors: Tensor):
        """first: the id of the word's first part; vectors: (n, d)."""
        super().__init__()
        self.first = first
        self.vectors = nn.Parameter(vectors.detach().clone().float())

    def forward(self, table: nn.Embedding, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """The hook of the table: what it looked up, (b, m, d), with the word's own vectors."""
        row = inputs[0] - self.first  # (b, m)
        count = len(self.vectors)
        learned = self.vectors[row.clamp(0, count - 1)].to(out.dtype)  # (b, m, d)
        return torch.where(((row >= 0) & (row < count))[..., None], learned, out)


def train_word(
    pipe: StableDiffusionPipeline,
    examples: Sequence[Captioned],
    config: TrainConfig,
    folder: Path | str,
    *,
    token: str,
    init_word: str,
    vectors: int = 1,
    precision: torch.dtype = torch.float32,
) -> Path:
    """Train the vectors of a new word, `token`, which every caption has to contain.

    They start as that of `init_word`. The word stays in the pipeline; returns the file that holds
    it, for load_textual_inversion here and in diffusers. Raises ValueError for an `init_word` that
    the tokenizer splits. [An Image is Worth One Word, section 3]
    """
    for example in examples:
        if token.lower() not in example.caption.lower():
            raise ValueError(f"the caption {example.caption!r} lacks the token {token!r}")
    ids = pipe.tokenizer.ids(init_word)
    if len(ids) != 1:
        pieces = ", ".join(pipe.tokenizer.tokens(init_word))
        raise ValueError(
            f"the model knows no word {init_word!r}: to its tokenizer it is {len(ids)} pieces "
            f"({pieces}); give a word that is one"
        )
    table = pipe.text_encoder.token_embedding
    rows = add_token(pipe, token, table.weight[ids * vectors])
    word = NewWord(rows[0], table.weight[rows]).to(pipe.device)

    def write() -> None:
        table.weight.data[rows] = word.vectors.data.to(table.weight)
        pipe.save_textual_inversion(folder, token, WORD_FILE)

    hook = table.register_forward_hook(word)
    try:
        fit(pipe, word, examples, config, Path(folder), precision, write)
    finally:
        hook.remove()
    return Path(folder) / WORD_FILE
