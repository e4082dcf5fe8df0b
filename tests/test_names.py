"""The table of names: complete, one to one, and true to the official single file."""

import json
from pathlib import Path

import pytest

from minisd.autoencoder import Autoencoder
from minisd.checkpoint import NETWORKS, build
from minisd.config import PICTUREBOOK, SD15, SD21, AutoencoderConfig, UNetConfig
from minisd.unet import UNet
from weights_convert.names import COMPVIS, DIFFUSERS, OURS, WALKS, rename, table

KEYS = Path(__file__).parents[2] / "shared" / "data" / "sd15_single_file.json"
PREFIXES = {
    "text_encoder": "cond_stage_model.transformer.",
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
}
UNETS = [
    SD15.unet, SD21.unet, PICTUREBOOK.unet,
    UNetConfig(widths=(8,), attention=(False,), heads=(2,), norm_groups=2, layers_per_level=1),
    UNetConfig(widths=(8, 8, 4), attention=(False, True, False), heads=(2, 1, 4), norm_groups=2,
               layers_per_level=3),
]  # fmt: skip
VAES = [SD15.vae, PICTUREBOOK.vae, AutoencoderConfig(widths=(8,), norm_groups=2),
        AutoencoderConfig(widths=(8, 8, 4, 8, 2), norm_groups=2, layers_per_level=1)]  # fmt: skip


def modules(network):
    return {key.rpartition(".")[0] for key in network.state_dict()}


@pytest.mark.parametrize("config", UNETS, ids=lambda config: str(config.widths))
def test_the_walk_visits_every_module_of_the_unet_once(config):
    ours = [names[OURS] for names in WALKS["unet"](config)]
    assert sorted(ours) == sorted(modules(build(UNet, config)))


@pytest.mark.parametrize("config", VAES, ids=lambda config: str(config.widths))
def test_the_walk_visits_every_module_of_the_autoencoder_once(config):
    ours = [names[OURS] for names in WALKS["vae"](config)]
    assert sorted(ours) == sorted(modules(build(Autoencoder, config)))


@pytest.mark.parametrize("family", [SD15, SD21, PICTUREBOOK], ids=["SD15", "SD21", "picture book"])
def test_the_walk_visits_every_module_of_the_text_encoder_once(family):
    kind = NETWORKS["text_encoder"][0]
    ours = [names[OURS] for names in WALKS["text_encoder"](family.text_encoder)]
    assert sorted(ours) == sorted(modules(build(kind, family.text_encoder)))


@pytest.mark.parametrize("dialect", [DIFFUSERS, COMPVIS])
@pytest.mark.parametrize("network", WALKS)
def test_no_two_modules_share_a_name(network, dialect):
    names = [names[dialect] for names in WALKS[network](getattr(SD15, network))]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("network", WALKS)
def test_renaming_there_and_back_changes_nothing(network):
    config = getattr(SD15, network)
    for key in build(NETWORKS[network][0], config).state_dict():
        theirs = rename(key, table(network, config, OURS, COMPVIS))
        assert rename(theirs, table(network, config, COMPVIS, OURS)) == key


def test_a_name_that_is_in_no_table_stays():
    assert rename("alphas_cumprod", {"a": "b"}) == "alphas_cumprod"


@pytest.mark.skipif(not KEYS.is_file(), reason="the official list of keys is not in shared/data")
@pytest.mark.parametrize("network", WALKS)
def test_the_official_single_file_has_exactly_these_keys_and_shapes(network):
    config, prefix = getattr(SD15, network), PREFIXES[network]
    official = {key.removeprefix(prefix): shape
                for key, shape in json.loads(KEYS.read_text()).items()
                if key.startswith(prefix) and not key.endswith("position_ids")}  # fmt: skip
    mine = {rename(key, table(network, config, OURS, COMPVIS)): list(value.shape)
            for key, value in build(NETWORKS[network][0], config).state_dict().items()}  # fmt: skip
    assert mine.keys() == official.keys()
    for key, shape in official.items():
        linear = shape[:2] if network == "vae" and "attn_1" in key else shape  # a 1x1 convolution
        assert mine[key] in (shape, linear), key
