"""Each network against the reference's, on random weights, in float32, whole and block by block."""

import json

import pytest
import torch

from minisd.autoencoder import Autoencoder
from parity import models
from weights_convert.names import DIFFUSERS, OURS, table

FLOOR = 1e-5  # relative to the largest value; a correct network is off by 5e-6 at most
SMALL = 0.02  # spread of inputs at which an eps of 1e-5 differs from one of 1e-6


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=models.UNETS)
def unets(request, tmp_path_factory):
    theirs = models.reference_unet(request.param)
    return models.convert(theirs, "unet", tmp_path_factory.mktemp("unet")), theirs


@pytest.fixture(scope="module", params=models.VAES)
def vaes(request, tmp_path_factory):
    theirs = models.reference_vae(request.param)
    return models.convert(theirs, "vae", tmp_path_factory.mktemp("vae")), theirs


@pytest.fixture(scope="module", params=models.CLIPS)
def clips(request, tmp_path_factory):
    theirs = models.reference_clip(request.param)
    return models.convert(theirs, "text_encoder", tmp_path_factory.mktemp("clip")), theirs


def unet_inputs(theirs, size, scale=1.0):
    x_t = scale * normal(3, theirs.config.in_channels, *size)
    context = scale * normal(3, 7, theirs.config.cross_attention_dim, seed=1)
    return x_t, torch.tensor([981, 1, 500]), context


def hooked(theirs, names):
    """Outputs of the reference's modules by name, filled in while it runs."""
    seen = {}

    def keep(name):
        def hook(_module, _inputs, output):
            output = output[0] if isinstance(output, tuple) else output
            seen[name] = getattr(output, "sample", output)

        return hook

    modules = dict(theirs.named_modules())
    for name in names:
        modules[name].register_forward_hook(keep(name))
    return seen


def block_names(network, config):
    """Our names of the blocks that `record` holds to the reference's."""
    parents = {}
    for ours, theirs in table(network, config, OURS, DIFFUSERS).items():
        if ours.endswith((".norm2", ".proj_in", ".mlp.fc1")) and ".block." not in ours:
            parts = 2 if ".mlp." in ours else 1
            parents[ours.rsplit(".", parts)[0]] = theirs.rsplit(".", parts)[0]
    return parents


@torch.no_grad()
def unet_block_errors(ours, theirs):
    """The relative error of every block of the UNet on inputs of small variance."""
    names = block_names("unet", ours.config)
    seen, record = hooked(theirs, names.values()), {}
    x_t, t, context = unet_inputs(theirs, (9, 11), SMALL)
    theirs(x_t, t, context)
    ours(x_t, t, context, record)
    return {a: models.relative_error(record[a], seen[b]) for a, b in names.items()}


@pytest.mark.parametrize("size", [(8, 8), (9, 11), (16, 24)])
@torch.no_grad()
def test_unet_agrees_with_a_timestep_for_each_picture(unets, size):
    ours, theirs = unets
    x_t, t, context = unet_inputs(theirs, size)
    assert models.relative_error(ours(x_t, t, context), theirs(x_t, t, context).sample) < FLOOR


@torch.no_grad()
def test_unet_agrees_with_one_fractional_timestep_for_all(unets):
    ours, theirs = unets
    x_t, _, context = unet_inputs(theirs, (8, 8))
    mine, reference = ours(x_t, 978.61, context), theirs(x_t, 978.61, context).sample
    assert models.relative_error(mine, reference) < FLOOR


@torch.no_grad()
def test_unet_agrees_whichever_way_attention_is_computed(unets):
    ours, theirs = unets
    x_t, t, context = unet_inputs(theirs, (9, 11))
    reference = theirs(x_t, t, context).sample
    assert models.relative_error(ours(x_t, t, context, record={}), reference) < FLOOR


def test_every_unet_block_agrees_on_inputs_of_small_variance(unets):
    errors = unet_block_errors(*unets)
    assert len(errors) >= 5
    assert max(errors.values()) < FLOOR, errors


@pytest.mark.parametrize("kind", ["first residual block", "transformer"])
def test_the_block_comparison_catches_a_swapped_eps(kind, tmp_path):
    theirs = models.reference_unet("like SD 1")
    ours = models.convert(theirs, "unet", tmp_path)
    if kind == "transformer":
        ours.down[0].attentions[0].norm.eps = 1e-5
    else:
        ours.down[0].resnets[0].norm1.eps = 1e-6
    assert max(unet_block_errors(ours, theirs).values()) > FLOOR


@torch.no_grad()
def vae_block_errors(ours, theirs):
    """The relative error of every block of encoder and decoder on inputs of small variance."""
    names = {a: b for a, b in block_names("vae", ours.config).items() if "resnet" in a}
    seen, record = hooked(theirs, names.values()), {}
    image = SMALL * normal(2, 3, 32, 40)
    z = SMALL * normal(2, ours.config.latent_channels, 5, 6)
    theirs.encode(image)
    theirs.decode(z)
    ours.encode(image, record)
    ours.decode(z, record)
    return {a: models.relative_error(record[a], seen[b]) for a, b in names.items()}


@torch.no_grad()
def test_encoder_agrees(vaes):
    ours, theirs = vaes
    image = normal(2, 3, 32, 40).clamp(-1, 1)
    mine, reference = ours.encode(image), theirs.encode(image).latent_dist
    assert models.relative_error(mine.mean, reference.mean) < FLOOR
    assert models.relative_error(mine.logvar, reference.logvar) < FLOOR


@torch.no_grad()
def test_the_sampled_latent_is_the_references(vaes):
    ours, theirs = vaes
    image = normal(2, 3, 32, 40).clamp(-1, 1)
    mine = ours.encode(image).sample(torch.Generator().manual_seed(3))
    reference = theirs.encode(image).latent_dist.sample(torch.Generator().manual_seed(3))
    assert models.relative_error(mine, reference) < FLOOR


@torch.no_grad()
def test_the_kl_divergence_is_the_references(vaes):
    ours, theirs = vaes
    image = normal(2, 3, 32, 40).clamp(-1, 1)
    mine, reference = ours.encode(image).kl(), theirs.encode(image).latent_dist.kl()
    assert models.relative_error(mine, reference) < FLOOR


@pytest.mark.parametrize("size", [(4, 4), (5, 7)])
@torch.no_grad()
def test_decoder_agrees(vaes, size):
    ours, theirs = vaes
    z = normal(2, ours.config.latent_channels, *size)
    assert models.relative_error(ours.decode(z), theirs.decode(z).sample) < FLOOR


def test_every_autoencoder_block_agrees_on_inputs_of_small_variance(vaes):
    errors = vae_block_errors(*vaes)
    assert len(errors) >= 7
    assert max(errors.values()) < FLOOR, errors


def test_the_block_comparison_catches_a_swapped_eps_in_the_autoencoder(tmp_path):
    theirs = models.reference_vae("like SD")
    ours = models.convert(theirs, "vae", tmp_path)
    ours.encoder.down[0].resnets[0].norm1.eps = 1e-5
    assert max(vae_block_errors(ours, theirs).values()) > FLOOR


@torch.no_grad()
def test_text_encoder_agrees(clips):
    ours, theirs = clips
    ids = torch.randint(theirs.config.vocab_size, (3, 77), generator=torch.manual_seed(0))
    assert models.relative_error(ours(ids), theirs(ids).last_hidden_state) < FLOOR


@torch.no_grad()
def test_every_text_layer_agrees(clips):
    ours, theirs = clips
    ids = torch.randint(theirs.config.vocab_size, (2, 77), generator=torch.manual_seed(1))
    record: dict = {}
    ours(ids, record=record)
    hidden = theirs(ids, output_hidden_states=True).hidden_states
    mine = [record["embeddings"], *(record[f"layers.{i}"] for i in range(len(ours.layers)))]
    assert len(mine) == len(hidden)
    for a, b in zip(mine, hidden):
        assert models.relative_error(a, b) < FLOOR


@pytest.mark.parametrize("skip", [0, 1])
@torch.no_grad()
def test_clip_skip_takes_an_earlier_layer_through_the_final_norm(clips, skip):
    ours, theirs = clips
    ids = torch.randint(theirs.config.vocab_size, (2, 20), generator=torch.manual_seed(2))
    hidden = theirs(ids, output_hidden_states=True).hidden_states[-(skip + 1)]
    assert models.relative_error(ours(ids, skip), theirs.final_layer_norm(hidden)) < FLOOR


@pytest.mark.parametrize("network", ["unet", "vae", "text_encoder"])
def test_a_model_read_and_written_again_has_the_same_tensors(network, pipelines, tmp_path):
    ours, theirs = pipelines
    original = getattr(theirs, network).state_dict()
    modules = table(network, getattr(ours, network).config, OURS, DIFFUSERS)
    for key, value in getattr(ours, network).state_dict().items():
        module, leaf = key.rsplit(".", 1)
        name = f"{modules[module]}.{leaf}".removeprefix("text_model.")
        assert torch.equal(value, original.pop(name))
    assert not original


def old_dialect(state):
    """The autoencoder's keys as old releases wrote them, attention as 1x1 convolutions."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, value in state.items():
        for new, old in names.items():
            if f".attentions.0.{new}." in key:
                key = key.replace(new, old)
                value = value[:, :, None, None] if value.ndim == 2 else value
        renamed[key] = value
    return renamed


def test_the_old_dialect_of_the_autoencoder_gives_the_same_weights(tmp_path):
    from safetensors.torch import load_file, save_file

    from weights_convert.diffusers import read_network

    theirs = models.reference_vae("like SD")
    new: Autoencoder = models.convert(theirs, "vae", tmp_path)
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    state = {key: value.contiguous() for key, value in old_dialect(load_file(path)).items()}
    assert any("proj_attn" in key for key in state)
    save_file(state, path)
    old = read_network(tmp_path / "vae", torch.float32, None)
    for key, value in old.state_dict().items():
        assert torch.equal(value, new.state_dict()[key])


def test_keys_with_and_without_text_model_give_the_same_weights(tmp_path):
    from safetensors.torch import load_file, save_file

    from weights_convert.diffusers import read_network

    theirs = models.reference_clip("like SD 1")
    bare = models.convert(theirs, "text_encoder", tmp_path)
    path = tmp_path / "text_encoder" / "model.safetensors"
    state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in load_file(path).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state, path)
    prefixed = read_network(tmp_path / "text_encoder", torch.float32, None)
    for key, value in prefixed.state_dict().items():
        assert torch.equal(value, bare.state_dict()[key])


@pytest.mark.parametrize(
    "change",
    [{"class_embed_type": "timestep"}, {"dual_cross_attention": True}, {"freq_shift": 1},
     {"addition_embed_type": "text_time"}, {"transformer_layers_per_block": [1, 2, 10]},
     {"resnet_time_scale_shift": "scale_shift"}, {"flip_sin_to_cos": False},
     {"down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"]},
     {"norm_eps": 1e-6}, {"num_attention_heads": 8}, {"layers_per_block": [1, 2, 2]},
     {"block_out_channels": 7}, {"attention_head_dim": [4, 4]}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_an_unsupported_unet_is_refused_and_its_file_named(change, tmp_path):
    from weights_convert.diffusers import read_network

    values = {**models.UNETS["like SD 1"], **change}
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"config\.json"):
        read_network(tmp_path / "unet", torch.float32, None)
