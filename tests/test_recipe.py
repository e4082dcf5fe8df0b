"""The recipe of the shipped model, at a size that takes seconds."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minisd import StableDiffusionPipeline, machine
from minisd.autoencoder import Autoencoder
from minisd.config import PICTUREBOOK
from minisd.picturebook import data, exam, stages, train, world
from minisd.picturebook.clip import CLIP, SIZE, contrastive_loss, open_clip
from minisd.picturebook.recipe import Recipe
from minisd.tokenizer import Tokenizer


def units(seed: int, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_the_contrastive_loss_is_the_cross_entropy_of_rows_and_columns():
    images, texts, scale = units(0, 4, 8), units(1, 4, 8), torch.tensor(1.0)
    logits = [[(scale.exp() * i @ t).item() for t in texts] for i in images]
    loss = 0.0
    for k in range(4):
        row, column = np.array(logits[k]), np.array([r[k] for r in logits])
        loss += np.log(np.exp(row).sum()) - row[k] + np.log(np.exp(column).sum()) - column[k]
    assert contrastive_loss(images, texts, scale).item() == pytest.approx(loss / 8, rel=1e-5)


def test_wrong_texts_make_the_task_harder():
    images, texts, scale = units(0, 4, 8), units(1, 4, 8), torch.tensor(1.0)
    plain = contrastive_loss(images, texts, scale)
    assert contrastive_loss(images, texts, scale, wrong_texts=images) > plain


def test_the_sentence_vector_does_not_see_the_padding():
    torch.manual_seed(0)
    tokens = Tokenizer.train(["a red boat at sunset"], 10)
    model = CLIP(PICTUREBOOK.text_encoder).eval()
    ids = tokens(["a red boat", "a boat at sunset in the sea"])
    whole = model.text(ids)[0, (ids[0] == tokens.end_id).int().argmax()]
    whole = F.normalize(model.text_projection(whole), dim=-1)
    torch.testing.assert_close(model.embed_text(ids, tokens.end_id)[0], whole)


def test_a_wrong_caption_says_one_thing_else_about_the_same_picture():
    rng, renamed = np.random.default_rng(0), 0
    for i in range(200):
        scene = world.example(i, size=8).scene
        wrong = data.hard_negative(scene, rng)
        assert (wrong.things, wrong.relation) != (scene.things, scene.relation)
        changed = [a != b for a, b in zip(named(scene), named(wrong))]
        if any(changed):  # another object, and all else as it was
            renamed += 1
            same = [dataclasses.replace(t, object="") for t in scene.things]
            assert [dataclasses.replace(t, object="") for t in wrong.things] == same
            assert len({a for a, c in zip(named(scene), changed) if c}) == 1
            assert wrong.relation == scene.relation
    assert 40 < renamed < 95


def named(scene):
    return [thing.object for thing in scene.things]


def test_batches_are_the_same_in_every_process_and_differ_between_steps():
    crops = data.Crops(batch_size=2, crop_steps=1)
    assert crops[0].shape == (8, 3, 64, 64)
    assert crops[1].shape == (2, 3, 128, 128)
    assert torch.equal(crops[0], data.Crops(2, 1)[0])
    pairs = data.Pairs(4, 64)
    assert pairs[3][1] == data.Pairs(4, 64)[3][1]
    assert pairs[3][1] != pairs[4][1]


def test_the_decoder_sees_settings_and_groups_oftener(monkeypatch):
    busy = data.Busy(batch_size=12, seed=3)
    assert busy[0].shape == (12, 3, 128, 128)
    assert torch.equal(busy[1], data.Busy(12, 3)[1])
    assert not torch.equal(busy[0], busy[1])

    kinds = [world.example(i, 3, size=8).scene.kind for i in range(360)]
    drawn = []
    example = world.example

    def spy(index, seed, **size):
        drawn.extend([] if size else [index])  # a size is given to look at the kind alone
        return example(index, seed, size=8)

    monkeypatch.setattr(world, "example", spy)
    for step in range(10):
        busy[step]
    assert len(set(drawn)) == 120
    many = [kinds[i] in ("scene", "count") for i in drawn]
    assert sum(many) / 120 > 1.3 * sum(k in ("scene", "count") for k in kinds) / 360


def test_standardizing_changes_the_latents_and_not_the_pictures():
    torch.manual_seed(0)
    vae = Autoencoder(PICTUREBOOK.vae).eval().requires_grad_(False)
    vae.quant_conv.bias += 3.0
    pictures = data.to_range(data.Pairs(8, 64)[0][0])
    before = vae(pictures)
    vae = stages.standardize(vae, pictures)
    torch.testing.assert_close(vae(pictures), before, atol=1e-5, rtol=1e-5)
    latents = vae.encode(pictures).sample() * vae.config.scaling_factor
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 0.1
    assert latents.std().item() == pytest.approx(1.0, abs=0.05)


def test_all_stages_make_a_pipeline_that_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SHARD", 6)
    monkeypatch.setattr(stages, "LOOK", 4)
    monkeypatch.setattr(stages, "PROMPTS", ("a red boat",))
    options = ["--steps", "2", "--batch-size", "2", "--examples", "12", "--workers", "0"]
    train.main(["all", "--out", str(tmp_path), "--device", "cpu", "--threads", "1", *options])
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "weights")
    pipe.set_progress_bar_config(disable=True)
    (picture,) = pipe("a red boat", num_inference_steps=1).images
    assert picture.size == (world.IMAGE_SIZE, world.IMAGE_SIZE)

    further = tmp_path / "further"
    train.main(["latents", "unet", "export", "--start", str(tmp_path / "weights"), "--out",
                str(further), "--device", "cpu", "--threads", "1", "--learning-rate", "1e-9",
                *options, "--precision", "float32", "--seed", "1"])  # fmt: skip
    assert not (further / "vae.safetensors").exists()
    on = StableDiffusionPipeline.from_pretrained(further / "weights")
    for name, network in pipe.networks.items():
        for ours, theirs in zip(on.networks[name].parameters(), network.parameters()):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)

    text, image = tmp_path / "text_encoder.safetensors", tmp_path / "clip_image.safetensors"
    before, first = text.read_bytes(), image.read_bytes()
    train.main(["image_encoder", "--out", str(tmp_path), "--device", "cpu", "--threads", "1",
                *options, "--seed", "1"])  # fmt: skip
    assert text.read_bytes() == before
    assert image.read_bytes() != first
    clip = open_clip(pipe.text_encoder, image)
    found = exam.retrieval(clip, pipe.tokenizer, SIZE, among=4)
    assert set(found) == {"found", "above the wrong", "among"}


@pytest.mark.parametrize("here", [True, False])
def test_the_precision_is_the_one_that_the_machine_is_quick_in(here, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(machine, "has_bfloat16", lambda device: here)
    recipe = Recipe(tmp_path, device="cpu", threads=torch.get_num_threads())
    assert recipe.where()["precision"] == (torch.bfloat16 if here else torch.float32)
    assert not caplog.text
    asked = dataclasses.replace(recipe, precision="bfloat16").where()
    assert asked["precision"] == torch.bfloat16
    assert ("no instructions for bfloat16" in caplog.text) != here


def test_the_shipped_clip_finds_captions_and_names_colors():
    pipe = StableDiffusionPipeline.from_pretrained()
    clip = open_clip(pipe.text_encoder)
    found = exam.retrieval(clip, pipe.tokenizer, SIZE)
    assert found["found"] >= 0.97
    assert found["above the wrong"] >= 0.9
    right = exam.zero_shot(clip, pipe.tokenizer, SIZE, 100)
    assert right["color"] >= 0.9
    assert right["object"] >= 0.3  # of 19


def test_what_is_encoded_once_is_what_the_text_encoder_says_of_each_caption():
    pipe = StableDiffusionPipeline.from_pretrained()
    colors, things = ("red", "blue", "green", "white"), ("boat", "star", "fish", "moon", "car")
    captions = [f"{i % 9} {c} {t}" for i in range(13) for c in colors for t in things][:258]
    states = stages.encode_once(pipe, captions, torch.device("cpu"))
    assert states.dtype == torch.float16
    assert len(states) == len(captions)
    for i in (0, 7, 255, 256, 257):
        alone = pipe.encode_prompt(captions[i])[0][0]
        assert torch.allclose(states[i].float(), alone, atol=5e-3, rtol=1e-3)
        others = [
            abs(states[j].float() - alone).max() for j in range(i) if captions[j] != captions[i]
        ]
        assert not others or min(others) > 0.05
