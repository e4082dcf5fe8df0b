"""What each stage of the recipe does. [LDM 3.1 and 3.3; CLIP 2.3]"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from minisd import images
from minisd.autoencoder import Autoencoder
from minisd.checkpoint import load_network, replacing, save_network
from minisd.config import PICTUREBOOK
from minisd.memory import choose_attention
from minisd.picturebook import data, world
from minisd.picturebook.clip import CLIP, SIZE, contrastive_loss, gathered
from minisd.picturebook.data import Busy, Crops, Latents, Pairs, Rendered, cache_latents, to_range
from minisd.picturebook.judge import Judge, Marked, judge_loss
from minisd.picturebook.losses import picture_loss, reconstruction_loss
from minisd.picturebook.recipe import Recipe
from minisd.pipeline import Defaults, StableDiffusionPipeline
from minisd.schedulers import DDIMScheduler
from minisd.tokenizer import Tokenizer
from minisd.training import (
    TrainConfig,
    decibels,
    drop_captions,
    noise_prediction_loss,
    rank_and_world,
    train,
)
from minisd.unet import UNet

logger = logging.getLogger(__name__)
UNSEEN = 1  # the seed of the pictures that no stage trains on
MERGES = 254  # 768 pieces in all: every common word is one, longer ones split
LOOK = 256  # unseen pairs among which the retrieval of CLIP is measured
PROMPTS = (
    "a red boat at sunset", "a small blue star on a yellow background", "a yellow fish",
    "a green triangle above a red circle", "a purple butterfly over a meadow",
    "an orange heart inside a blue square", "a white house in the snow at night",
    "two red balloons on a white background", "a pink flower in a meadow", "a yellow moon",
    "a blue car beside a green tree", "a brown mountain in the evening",
)  # fmt: skip


def tokenizer(recipe: Recipe) -> None:
    """Learn the byte pairs of 20,000 captions."""
    recipe.out.mkdir(parents=True, exist_ok=True)
    captions = [world.example(i, recipe.seed, size=8).caption for i in range(20_000)]
    learned = Tokenizer.train(captions, MERGES)
    learned.save(recipe.out / "tokenizer.json")
    logger.info("tokenizer: %d pieces", learned.vocab_size)


def vae(recipe: Recipe) -> None:
    """Train the autoencoder: on crops, and at the end on whole pictures."""
    torch.manual_seed(recipe.seed)
    plan = recipe.plan(9000, 8, 5e-4, decay_fraction=1.0)
    folder, where = recipe.out / "vae", recipe.where()
    look = look_at_unseen(lambda average, x: average(x), folder, where["device"])
    batches = Crops(plan.batch_size, plan.steps * 9 // 10, recipe.seed)
    network = Autoencoder(PICTUREBOOK.vae)
    network = train(network, reconstruction_loss, batches, plan, folder, on_save=look, **where)
    seen = Pairs(256, world.IMAGE_SIZE, recipe.seed)[0][0]
    network = standardize(network, to_range(seen.to(where["device"])))
    save_network(network, recipe.out / "vae.safetensors")


def look_at_unseen(
    reconstruct: Callable[[nn.Module, Tensor], Tensor], folder: Path, device: torch.device
) -> Callable[[nn.Module, int], None]:
    """An `on_save` of `train`: PSNR on 24 unseen pictures, and folder/look.png of them."""
    unseen = to_range(Pairs(24, world.IMAGE_SIZE, UNSEEN)[0][0].to(device))

    @torch.no_grad()
    def look(average: nn.Module, step: int) -> None:
        out = reconstruct(average, unseen)
        logger.info("unseen: %.2f dB", decibels(F.mse_loss(out, unseen).item()))
        pairs = torch.stack([p for two in zip(unseen, out) for p in two])
        images.save_png(images.grid(images.to_pil(pairs), 8), folder / "look.png")

    return look


def decoder(recipe: Recipe) -> None:
    """Train the decoder on: the encoder rests, so that latents and UNet stay as they are."""
    where = recipe.where()
    network = load_network(recipe.part("vae.safetensors"), device=str(where["device"]))
    half = nn.ModuleDict({"quant": network.post_quant_conv, "decoder": network.decoder})

    def decode(half: nn.Module, z: Tensor) -> Tensor:
        return half["decoder"](half["quant"](z))

    def loss(half: nn.Module, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict]:
        x = to_range(batch.to(where["device"]))
        with torch.no_grad():
            posterior = network.encode(x)
        noise = torch.randn(posterior.mean.shape, generator=generator, device=x.device)
        z = posterior.mean + torch.exp(0.5 * posterior.logvar) * noise
        value, mse = picture_loss(decode(half, z), x)
        return value, {"psnr": decibels(mse)}

    plan, folder = recipe.plan(9000, 8, 3e-4, decay_fraction=0.8), recipe.out / "decoder"
    look = look_at_unseen(
        lambda average, x: decode(average, network.encode(x).mode()), folder, where["device"]
    )
    batches = Busy(plan.batch_size, recipe.seed + 2)
    half = train(half, loss, batches, plan, folder, on_save=look, **where)
    network.post_quant_conv, network.decoder = half["quant"], half["decoder"]
    save_network(network, recipe.out / "vae.safetensors")


def judge(recipe: Recipe) -> None:
    """Train the network that marks pictures in the evaluation."""
    torch.manual_seed(recipe.seed)
    plan = recipe.plan(5200, 48, 2e-3, decay_fraction=0.6, ema_decay=0.995)
    batches = Marked(plan.batch_size, recipe.seed)
    network = train(Judge(), judge_loss, batches, plan, recipe.out / "judge", **recipe.where())
    state = {key: value.half().cpu() for key, value in network.state_dict().items()}
    with replacing(recipe.out / "judge.safetensors") as part:
        save_file(state, part)


@torch.no_grad()
def standardize(vae: Autoencoder, pictures: Tensor) -> Autoencoder:
    """Centre every latent channel on zero and note 1 / std of all as the scaling factor.

    The means move into the biases of the two 1x1 convolutions, so that decode(encode(x)) stays the
    same; the factor is in the config, as for Stable Diffusion. [LDM, Appendix G]
    """
    samples = torch.cat([vae.encode(p).sample() for p in pictures.split(32)])
    mean = samples.mean(dim=(0, 2, 3))  # (c,)
    vae.quant_conv.bias[: len(mean)] -= mean
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    std = (samples - mean[:, None, None]).std().item()
    vae.config = dataclasses.replace(vae.config, scaling_factor=round(1 / std, 5))
    return vae


def clip(recipe: Recipe) -> None:
    """Train text and image encoder to agree; the text encoder is what the UNet will read."""
    torch.manual_seed(recipe.seed)
    model = agree(recipe, CLIP(PICTUREBOOK.text_encoder), recipe.plan(3000, 128, 1e-3), "clip")
    save_network(model.text, recipe.out / "text_encoder.safetensors")
    save_image_encoder(recipe, model)


def image_encoder(recipe: Recipe) -> None:
    """Train an image encoder anew for a text encoder that rests, to judge that one by it."""
    torch.manual_seed(recipe.seed)
    model = CLIP(PICTUREBOOK.text_encoder)
    del model.text  # no longer a part that learns
    device = str(recipe.where()["device"])
    text = load_network(recipe.part("text_encoder.safetensors"), device=device)
    model.text = torch.no_grad()(text.eval().forward)
    plan = recipe.plan(3000, 128, 1e-3)
    save_image_encoder(recipe, agree(recipe, model, plan, "image_encoder"))


def save_image_encoder(recipe: Recipe, model: CLIP) -> None:
    """All of CLIP but its text encoder, in half precision."""
    state = {k: v.half().cpu() for k, v in model.state_dict().items() if not k.startswith("text.")}
    with replacing(recipe.out / "clip_image.safetensors") as part:
        save_file(state, part)


def agree(recipe: Recipe, model: CLIP, plan: TrainConfig, name: str) -> CLIP:
    """Train CLIP on pictures, captions, and captions that say something else of the same."""
    tokens = Tokenizer.from_file(recipe.part("tokenizer.json"))
    where = recipe.where()
    unseen = Pairs(LOOK, SIZE, UNSEEN)[0]

    def loss(model: nn.Module, batch: Any, _: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        pictures, captions, wrong = batch
        ids = tokens(captions + wrong).to(where["device"])
        texts = model.embed_text(ids, tokens.end_id)
        seen = gathered(model.embed_image(to_range(pictures.to(where["device"]))))
        right, wrong_texts = (gathered(half) for half in texts.split(len(captions)))
        return contrastive_loss(seen, right, model.scale, wrong_texts), {}

    def look(average: nn.Module, step: int) -> None:
        with torch.no_grad():
            ids = tokens(unseen[1] + unseen[2]).to(where["device"])
            texts = average.embed_text(ids, tokens.end_id)
            scores = average.embed_image(to_range(unseen[0].to(where["device"]))) @ texts.T
        own = scores[:, :LOOK].diagonal()
        found = (scores[:, :LOOK].argmax(dim=1).cpu() == torch.arange(LOOK)).float().mean()
        told = (own > scores[:, LOOK:].diagonal()).float().mean()
        logger.info("retrieval among %d: %.3f, right above wrong: %.3f", LOOK, found, told)

    batches = Pairs(plan.batch_size, SIZE, recipe.seed)
    return train(model, loss, batches, plan, recipe.out / name, on_save=look, **where)


def latents(recipe: Recipe) -> None:
    """Encode pictures once, so that the UNet's training does not wait for the autoencoder."""
    where = recipe.where()
    network = load_network(recipe.part("vae.safetensors"), device=str(where["device"]))
    folder = recipe.out / "latents"
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(-(-recipe.examples // data.SHARD))
    missing = [n for n in numbers if not (folder / f"{n:05}.safetensors").exists()]
    rank, world_size = rank_and_world()
    missing = missing[rank::world_size]
    loader = DataLoader(
        Rendered(recipe.seed), batch_size=None, sampler=missing, num_workers=recipe.workers
    )
    for number, (pictures, captions) in zip(missing, loader):
        path = folder / f"{number:05}.safetensors"
        half = where["precision"] != torch.float32
        with torch.autocast(where["device"].type, where["precision"], enabled=half):
            cache_latents(network, pictures, list(captions), path, where["device"])
        logger.info("latents: %d of %d", number + 1, len(numbers))


def unet(recipe: Recipe) -> None:
    """Train the noise predictor on the cached latents and the frozen text encoder."""
    torch.manual_seed(recipe.seed)
    where = recipe.where()
    network = UNet(PICTUREBOOK.unet)
    if recipe.start is not None:
        network = load_network(recipe.start / "unet.safetensors")
    pipe = assemble(recipe, network, where["device"])
    if where["device"].type == "cpu" and where["precision"] == torch.bfloat16:
        choose_attention([pipe.unet], "plain")  # the kernel's way back is several times slower
    plan = recipe.plan(16_000, 32, 1e-3, decay_fraction=0.75)
    factor = pipe.vae.config.scaling_factor
    folder = recipe.out / "unet"
    batches = Latents(recipe.out / "latents", plan.batch_size, recipe.seed)
    row = {caption: i for i, caption in enumerate(sorted({"", *batches.captions}))}
    contexts = encode_once(pipe, list(row), where["device"])

    def loss(model: nn.Module, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict]:
        mean, logvar = batch[0].to(where["device"]), batch[1].to(where["device"])
        noise = torch.randn(mean.shape, generator=generator, device=where["device"])
        x_0 = factor * (mean + torch.exp(0.5 * logvar) * noise)
        captions = drop_captions(batch[2], 0.1, generator)
        context = contexts[[row[caption] for caption in captions]].float()
        return noise_prediction_loss(model, pipe.scheduler, x_0, context, generator), {}

    def look(average: nn.Module, step: int) -> None:
        made = draw_prompts(dataclasses.replace(pipe, unet=average), num_inference_steps=20)
        images.save_png(images.grid(made, 4), folder / f"look-{step:06}.png")

    network = train(pipe.unet, loss, batches, plan, folder, on_save=look, **{**where, "workers": 0})
    save_network(network, recipe.out / "unet.safetensors")


@torch.no_grad()
def encode_once(pipe: StableDiffusionPipeline, captions: list[str], device: torch.device) -> Tensor:
    """What the UNet reads of each of n captions: (n, 77, d) in half precision.

    The text encoder rests while the UNet learns, so that once is enough; 40,000 captions of 160
    features take 1 GB.
    """
    parts = [captions[i : i + 256] for i in range(0, len(captions), 256)]
    return torch.cat([pipe.text_encoder(pipe.tokenizer(p).to(device)).half() for p in parts])


def assemble(recipe: Recipe, network: UNet, device: torch.device) -> StableDiffusionPipeline:
    """The pipeline of the stages so far around a UNet."""
    return StableDiffusionPipeline(
        tokenizer=Tokenizer.from_file(recipe.part("tokenizer.json")),
        text_encoder=load_network(recipe.part("text_encoder.safetensors"), device=str(device)),
        unet=network.to(device),
        vae=load_network(recipe.part("vae.safetensors"), device=str(device)),
        scheduler=DDIMScheduler(PICTUREBOOK.schedule),
        defaults=Defaults(30, 4.0, world.IMAGE_SIZE, world.IMAGE_SIZE),
        family="picture-book",
    )


def export(recipe: Recipe) -> None:
    """Write everything as one native folder in half precision, out/weights, and its first pictures:
    out/samples.png, the PROMPTS row by row with the seeds 0, 1, 2, ...
    """
    network = load_network(recipe.part("unet.safetensors"))
    pipe = assemble(recipe, network, torch.device("cpu")).to(torch.float16)
    pipe.save_pretrained(recipe.out / "weights")
    logger.info("exported model %s to %s", pipe.hash, recipe.out / "weights")
    exported = StableDiffusionPipeline.from_pretrained(recipe.out / "weights")
    images.save_png(images.grid(draw_prompts(exported), 4), recipe.out / "samples.png")


def draw_prompts(pipe: StableDiffusionPipeline, **settings: Any) -> list[Image.Image]:
    """One picture for each of the PROMPTS, picture i from seed i."""
    seeds = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
    quiet = dataclasses.replace(pipe, progress_bar={"disable": True})
    return quiet(list(PROMPTS), generator=seeds, **settings).images
