"""The small autoencoders of chapter 05: how one grows out of another, and the shipped results."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minisd.teach import autoencoders
from minisd.training import decibels

RESULTS = Path(__file__).parents[1] / "notebooks" / "results"
TWO_STEPS = replace(autoencoders.PLAN, steps=2)


def shaken(f):
    """A network all of whose weights are somewhere else than at their beginning."""
    vae, draw = autoencoders.small(f), torch.Generator().manual_seed(f)
    with torch.no_grad():
        for weight in vae.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=draw)
    return vae


@pytest.mark.parametrize("f", autoencoders.FACTORS)
def test_a_cell_of_the_latent_covers_f_pixels_a_side(f):
    posterior = autoencoders.small(f).encode(torch.zeros(1, 3, 32, 48))
    assert posterior.mean.shape == (1, 4, 32 // f, 48 // f)


def test_a_network_begins_the_same_every_time_and_leaves_the_random_numbers_be():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    one, other = autoencoders.small(8).state_dict(), autoencoders.small(8).state_dict()
    assert torch.equal(torch.rand(2), expected)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_residual_blocks_begin_by_adding_nothing():
    vae, x = autoencoders.small(8), torch.randn(1, 8, 4, 4)
    assert torch.equal(vae.encoder.down[0].resnets[0](x), x)


def test_the_resampling_begins_by_keeping_pixels_as_they_are():
    vae, x = autoencoders.small(4), torch.randn(1, 32, 4, 6)
    assert torch.equal(vae.decoder.up[0].upsample(x)[..., ::2, ::2], x)
    x = torch.randn(1, 8, 4, 6)
    assert torch.equal(vae.encoder.down[0].downsample(x), x[..., 1::2, 1::2])


def test_all_layers_of_the_smaller_network_are_taken_over_and_the_new_level_is_inside():
    smaller = shaken(4)
    grown = autoencoders.small(8, smaller).state_dict()
    fresh = autoencoders.small(8).state_dict()
    named = autoencoders.one_level_in(smaller.state_dict())
    assert all(torch.equal(grown[name], weight) for name, weight in named.items())
    added = set(grown) - set(named)
    new = {re.match(r"(encoder\.down|decoder\.up)\.\d", name)[0] for name in added}
    assert new == {"encoder.down.2", "encoder.down.3", "decoder.up.0"}  # down.2: its downsample
    assert all(torch.equal(grown[name], fresh[name]) for name in added)


def test_another_factor_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match=r"5, expected one of \(4, 8, 16\)"):
        autoencoders.small(5)


def test_a_batch_is_one_part_of_several_pictures():
    book = autoencoders.pictures(3)
    assert book.shape == (3, 3, 64, 64)
    assert -1 <= book.min() < 0 < book.max() <= 1
    places = torch.arange(64.0 * 64).reshape(1, 1, 64, 64).expand(3, 3, 64, 64)
    draw = torch.Generator().manual_seed(2)
    corners = {divmod(int(autoencoders.crops(places, draw)[0, 0, 0, 0]), 64) for _ in range(9)}
    assert len(corners) > 5
    assert any(y != x for y, x in corners)
    batch = autoencoders.crops(places, draw)
    assert batch.shape == (8, 3, 32, 32)
    assert torch.equal(batch, batch[:1].expand(8, -1, -1, -1))
    assert torch.equal(batch[0, 0].diff(dim=0), torch.full((31, 32), 64.0))


def test_training_is_repeatable_and_its_result_loads():
    result = autoencoders.train(4, plan=TWO_STEPS)
    again = autoencoders.train(4, plan=TWO_STEPS)
    assert result["errors"] == again["errors"]
    assert len(result["errors"]) == 2
    vae = autoencoders.load(4, result)
    moved = F.mse_loss(vae.quant_conv.weight, autoencoders.small(4).quant_conv.weight)
    assert 0 < moved < 1e-3
    assert not any(weight.requires_grad for weight in vae.parameters())


def test_the_shipped_results_keep_more_the_more_numbers_they_keep():
    unseen, quality = autoencoders.pictures(24, seed=1), []
    for f in autoencoders.FACTORS:
        path = RESULTS / f"05_autoencoder_f{f}.pt"
        assert path.stat().st_size < 800_000
        vae = autoencoders.load(f, torch.load(path, weights_only=True))
        quality.append(decibels(F.mse_loss(vae(unseen).clamp(-1, 1), unseen).item()))
    assert quality[0] > quality[1] + 1 > quality[2] + 2, quality
    assert quality[2] > 14
