"""Fine-tuning: the reference draws the same picture with what we trained, and would train alike."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from minisd.config import Defaults
from minisd.finetune import methods
from minisd.finetune.pictures import Captioned
from minisd.lora import ATTENTION, adaptable, fresh
from minisd.training import TrainConfig, noise_prediction_loss
from parity import models
from weights_convert.names import DIFFUSERS, OURS, table

pytest.importorskip("peft", reason="the parity tests need tests/requirements.txt")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::RuntimeWarning:peft")
PROMPT = "a <toy> on the sea"
CALL = {"num_inference_steps": 3, "guidance_scale": 5.0, "height": 64, "width": 64}
CONFIG = TrainConfig(8, 2, 3e-2, warmup_steps=1, save_every=8)


def picture(pipe):
    generator = torch.Generator().manual_seed(0)
    return pipe(PROMPT, **CALL, generator=generator, output_type="np").images


@pytest.fixture
def both(pipelines, monkeypatch):
    """The two pipelines, without adapters and learned words before and after each test."""
    monkeypatch.setattr(methods, "draw", lambda *arguments: None)
    ours, theirs = pipelines
    ours = dataclasses.replace(ours, defaults=Defaults(3, 5.0, 64, 64))
    # models.py lends the text encoder an attribute that makes the reference expect older names.
    lent = theirs.text_encoder.__dict__.pop("text_model", None)
    yield ours, theirs
    for pipe in (ours, theirs):
        pipe.unload_lora_weights()
        pipe.unload_textual_inversion()
    if lent is not None:
        theirs.text_encoder.__dict__["text_model"] = lent


@pytest.fixture
def examples():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    return [Captioned(Image.fromarray(one), PROMPT) for one in pixels]


def assert_same_pictures(ours, theirs, plain):
    ours, theirs = picture(ours), picture(theirs)
    assert np.abs((ours * 255).round() - (theirs * 255).round()).max() <= 1
    assert np.abs(ours - plain).max() > 0.02


@pytest.mark.parametrize("text_encoder", [False, True])
def test_a_lora_trained_here_gives_the_reference_the_same_picture(
    both, examples, tmp_path, text_encoder
):
    ours, theirs = both
    plain = picture(ours)
    path = methods.train_lora(ours, examples, CONFIG, tmp_path, text_encoder=text_encoder)
    theirs.load_lora_weights(path.parent, weight_name=path.name)
    assert_same_pictures(ours, theirs, plain)


def test_a_word_learned_here_gives_the_reference_the_same_picture(both, examples, tmp_path):
    ours, theirs = both
    plain = picture(ours)
    word = {"token": "<toy>", "init_word": "sea", "vectors": 2}
    path = methods.train_word(ours, examples, CONFIG, tmp_path, **word)
    theirs.load_textual_inversion(path)
    assert_same_pictures(ours, theirs, plain)


def test_a_loras_gradients_are_those_of_peft(both, tmp_path):
    """One training step on the same noise: the loss, and its gradient in every A and B."""
    ours, theirs = both
    layers = {k: v for k, v in adaptable(ours.networks).items() if k.startswith("unet.")}
    loras = fresh(layers, 4, torch.Generator().manual_seed(0), ATTENTION)
    for i, lora in enumerate(loras.values()):
        noise = torch.randn(lora.B.shape, generator=torch.Generator().manual_seed(i))
        lora.B.data = 0.1 * noise
    ours.adapters.add(layers, loras, "one")
    ours.save_lora_weights(tmp_path)
    theirs.load_lora_weights(tmp_path, adapter_name="one")

    draw = torch.Generator().manual_seed(1)
    x_0, context = (torch.randn(shape, generator=draw) for shape in ((2, 4, 8, 8), (2, 77, 32)))
    alpha_bars = theirs.scheduler.alphas_cumprod  # as their training scripts weight the loss
    draw = torch.Generator().manual_seed(2)
    loss = noise_prediction_loss(ours.unet, ours.scheduler, x_0, context, draw)
    loss.backward()

    draw = torch.Generator().manual_seed(2)
    t, eps = torch.randint(0, 1000, (2,), generator=draw), torch.randn(x_0.shape, generator=draw)
    their_parameters = dict(theirs.unet.named_parameters())
    for name, value in their_parameters.items():
        value.requires_grad_("lora_" in name)
    out = theirs.unet(theirs.scheduler.add_noise(x_0, eps, t), t, context).sample
    snr = alpha_bars[t] / (1 - alpha_bars[t])
    error = (out - eps).square().mean(dim=(1, 2, 3)) * snr.clamp(max=5.0) / snr
    error.mean().backward()
    assert loss.item() == pytest.approx(error.mean().item(), rel=1e-5)
    names = {ours: name for name, ours in table("unet", ours.unet.config, DIFFUSERS, OURS).items()}
    for path, lora in loras.items():
        name = names[path.removeprefix("unet.")]
        for role in "AB":
            mine = getattr(lora, role).grad
            other = their_parameters[f"{name}.lora_{role}.one.weight"].grad
            assert models.relative_error(mine, other) < 1e-3
