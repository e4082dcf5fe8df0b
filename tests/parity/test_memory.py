"""The memory switches, with the reference's on the same weights."""

import pytest
import torch

from parity import models


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def vaes(name, folder, tile):
    """The reference's autoencoder and ours, both in tiles of so many pixels."""
    theirs = models.reference_vae(name)
    ours = models.convert(theirs, "vae", folder)
    theirs.enable_tiling()
    theirs.tile_sample_min_size = tile
    theirs.tile_latent_min_size = tile // ours.config.downscale
    ours.enable_tiling(tile)
    return ours, theirs


SIZES = [(9, 8), (12, 31), (17, 17), (8, 21), (20, 25)]
TILES = [("like SD", 64), ("like SD", 32), ("wider latents", 32), ("two levels", 16)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "tile"), TILES)
def test_tiled_decoding_is_the_references(name, tile, size, tmp_path):
    ours, theirs = vaes(name, tmp_path, tile)
    z = noise(2, ours.config.latent_channels, *size)
    expected = theirs.decode(z).sample
    torch.testing.assert_close(ours.decode(z), expected, rtol=0, atol=1e-5)
    assert torch.equal(theirs.tiled_decode(z).sample, expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "tile"), TILES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_tiled_encoding_is_the_references(name, tile, size, tmp_path):
    ours, theirs = vaes(name, tmp_path, tile)
    image = noise(2, 3, *(ours.config.downscale * side for side in size))
    expected, posterior = theirs.encode(image).latent_dist, ours.encode(image)
    torch.testing.assert_close(posterior.mean, expected.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(posterior.logvar, expected.logvar, rtol=0, atol=1e-5)


def test_slicing_with_tiling_is_the_references(tmp_path):
    ours, theirs = vaes("like SD", tmp_path, 32)
    ours.enable_slicing()
    theirs.enable_slicing()
    z = noise(3, 4, 12, 9)
    torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample, rtol=0, atol=1e-5)


@pytest.mark.parametrize("slice_size", ["auto", "max", 2])
def test_pictures_with_sliced_attention_are_the_references(pipelines, slice_size):
    pictures = []
    for pipe in pipelines:
        pipe.enable_attention_slicing(slice_size)
        generator = torch.Generator().manual_seed(0)
        call = {"num_inference_steps": 3, "height": 64, "width": 64, "output_type": "np"}
        pictures.append(pipe("a red boat on the sea", **call, generator=generator).images)
        pipe.disable_attention_slicing()
    assert abs(pictures[0] - pictures[1]).max() < 2e-5
    assert pictures[0].std() > 0.05


def test_a_slice_of_more_heads_than_there_are_is_refused_as_in_the_reference(pipelines):
    for pipe in pipelines:
        with pytest.raises(ValueError, match="5"):
            pipe.enable_attention_slicing(5)
        pipe.disable_attention_slicing()
