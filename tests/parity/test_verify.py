"""--verify agrees where it should, and finds every kind of mistake that still draws pictures."""

import pytest
import torch

import weights_convert
from parity import models
from weights_convert import __main__ as cli
from weights_convert.verify import TOLERANCE, compare, reference

WHAT = ["text embeddings", "eps", "encoded mean", "encoded log variance", "decoded picture"]


def test_our_networks_agree_with_the_references(pipelines):
    ours, _ = pipelines
    errors = compare(ours.networks)
    assert list(errors) == WHAT
    assert max(errors.values()) < TOLERANCE, errors


def test_other_widths_and_nine_channels_agree(tmp_path):
    clip = models.convert(models.reference_clip("like SD 2"), "text_encoder", tmp_path)
    unet = models.reference_unet("one level, deep, nine channels in", cross_attention_dim=48)
    networks = {
        "text_encoder": clip,
        "unet": models.convert(unet, "unet", tmp_path),
        "vae": models.convert(models.reference_vae("wider latents"), "vae", tmp_path),
    }
    assert max(compare(networks).values()) < TOLERANCE


@pytest.fixture
def copied(pipelines, tmp_path):
    """Our networks, to damage."""
    weights_convert.save(pipelines[0], tmp_path / "model")
    return weights_convert.open(tmp_path / "model")


def test_the_references_modules_share_our_tensors(copied):
    theirs = reference("unet", copied.unet)
    mine = {value.data_ptr() for value in copied.unet.parameters()}
    assert {value.data_ptr() for value in theirs.parameters()} == mine


def wrong_eps(pipe):
    pipe.unet.down[0].attentions[0].norm.eps = 1e-3
    return "eps"


def other_gelu(pipe):
    pipe.text_encoder.layers[0].mlp.activation = "gelu"
    return "text embeddings"


def padded_on_all_sides(pipe):
    down = next(m for m in pipe.vae.encoder.modules() if getattr(m, "pad_end_only", False))
    down.pad_end_only, down.padding = False, (1, 1)
    return "encoded mean"


@pytest.mark.parametrize("damage", [wrong_eps, other_gelu, padded_on_all_sides])
def test_a_mistake_is_found_in_its_network_alone(copied, damage):
    found = damage(copied)
    errors = compare(copied.networks)
    wrong = [what for what, error in errors.items() if not error < TOLERANCE]
    assert found in wrong
    related = {"encoded mean": {"encoded mean", "encoded log variance"}}.get(found, {found})
    assert set(wrong) <= related


def test_the_command_line_verifies_every_layout(copied, tmp_path, capsys):
    weights_convert.save(copied.to(torch.float16), tmp_path / "half.safetensors", "single-file")
    for place in (tmp_path / "model", tmp_path / "half.safetensors"):
        assert cli.main([str(place), "--verify"]) == 0
        said = capsys.readouterr().out
        assert "All agree." in said
        assert all(what in said for what in WHAT)
