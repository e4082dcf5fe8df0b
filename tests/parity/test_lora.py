"""LoRA: one adapter, the same picture here and in the reference, whoever made the file."""

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minisd.lora import ATTENTION, adaptable, fresh
from parity import models
from weights_convert.adapters import WEIGHT_NAME

peft = pytest.importorskip("peft", reason="the parity tests need tests/requirements.txt")
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::RuntimeWarning:peft")
PROMPT = "a red boat on the sea"
CALL = {"num_inference_steps": 3, "guidance_scale": 5.0, "height": 64, "width": 64}
MORE = (*ATTENTION, "fc1", "fc2", "gate_up", "down", "proj_in", "proj_out", "conv1", "conv2",
        "shortcut", "time_proj", "conv_in", "downsample", "upsample")  # fmt: skip
THEIR_UNET = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1", "ff.net.0.proj",
              "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv"]  # fmt: skip
THEIR_TEXT = ["q_proj", "v_proj", "out_proj", "fc1"]


def picture(pipe):
    generator = torch.Generator().manual_seed(0)
    return pipe(PROMPT, **CALL, generator=generator, output_type="np").images


def assert_same_pictures(ours, theirs, plain):
    """Within one of 255 levels of each other, and far from the picture without an adapter."""
    ours, theirs = picture(ours), picture(theirs)
    assert np.abs(ours - theirs).max() < 1e-3
    assert np.abs((ours * 255).round() - (theirs * 255).round()).max() <= 1
    assert np.abs(ours - plain).max() > 0.1


def randomise(matrices, seed):
    """Matrices whose product is about a fifth of a layer's own weights."""
    generator = torch.Generator().manual_seed(seed)
    for matrix in matrices:
        spread = 0.3 * matrix[0].numel() ** -0.5
        matrix.data = spread * torch.randn(matrix.shape, generator=generator)


@pytest.fixture(scope="module")
def plain(pipelines):
    return picture(pipelines[0])


@pytest.fixture
def both(pipelines):
    """The two pipelines, without an adapter before and after each test."""
    ours, theirs = pipelines
    # models.py lends the text encoder an attribute that makes the reference expect older names.
    lent = theirs.text_encoder.__dict__.pop("text_model", None)
    yield pipelines
    if ours.adapters.originals:
        ours.unfuse_lora()
    ours.unload_lora_weights()
    theirs.unload_lora_weights()
    if lent is not None:
        theirs.text_encoder.__dict__["text_model"] = lent


def make_ours(ours, folder, seed=0, rank=3, factor=1.0, targets=MORE, keep=False):
    """Write an adapter of our own, and `keep` it or not; the file's state dict."""
    layers = adaptable(ours.networks)
    loras = fresh(layers, rank, torch.Generator().manual_seed(seed), targets)
    randomise([m for lora in loras.values() for m in (lora.A, lora.B)], seed)
    for lora in loras.values():
        lora.factor = factor
    ours.adapters.add(layers, loras, "made")
    ours.save_lora_weights(folder)
    if not keep:
        ours.unload_lora_weights()
    return load_file(folder / WEIGHT_NAME)


def make_theirs(theirs, folder, **settings):
    """Write an adapter made by peft, with the reference's own function and metadata."""
    networks = {
        "unet": (theirs.unet, THEIR_UNET),
        "text_encoder": (theirs.text_encoder, THEIR_TEXT),
    }
    packed = {}
    for name, (network, targets) in networks.items():
        config = peft.LoraConfig(target_modules=targets, init_lora_weights=False, **settings)
        network.add_adapter(config, "made")
        found = [value for key, value in network.named_parameters() if "lora_" in key]
        randomise(found, seed=len(found))
        state = peft.get_peft_model_state_dict(network, adapter_name="made")
        packed[f"{name}_lora_layers"] = {key: value.clone() for key, value in state.items()}
        about = network.peft_config["made"].to_dict()
        packed[f"{name}_lora_adapter_metadata"] = {
            key: sorted(value) if isinstance(value, set) else value for key, value in about.items()
        }
    theirs.save_lora_weights(folder, **packed)
    theirs.unload_lora_weights()


@pytest.mark.parametrize(
    ("rank", "factor"), [(3, 1.0), (4, 0.4)], ids=["alpha is r", "alpha is not r"]
)
def test_our_adapter_gives_the_references_pipeline_the_same_picture(
    both, plain, tmp_path, rank, factor
):
    ours, theirs = both
    make_ours(ours, tmp_path, rank=rank, factor=factor, keep=True)
    theirs.load_lora_weights(tmp_path)
    assert_same_pictures(ours, theirs, plain)
    ours.unload_lora_weights()
    ours.load_lora_weights(tmp_path)
    assert_same_pictures(ours, theirs, plain)


SETTINGS = {
    "alpha": {"r": 3, "lora_alpha": 5},
    "alpha and rank by layer": {
        "r": 4, "lora_alpha": 2, "rank_pattern": {"to_q": 2, "fc1": 3},
        "alpha_pattern": {"to_k": 7, "q_proj": 3},
    },
    "rank-stabilised": {"r": 4, "lora_alpha": 2, "use_rslora": True},
}  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
def test_an_adapter_made_by_peft_gives_us_the_same_picture(both, plain, tmp_path, settings):
    make_theirs(both[1], tmp_path, **SETTINGS[settings])
    for pipe in both:
        pipe.load_lora_weights(str(tmp_path))
    assert_same_pictures(*both, plain)


def test_pefts_own_folder_has_its_alpha_in_a_file_of_its_own(both, plain, tmp_path):
    ours, theirs = both
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=THEIR_UNET, init_lora_weights=False)
    theirs.unet.add_adapter(config, "made")
    found = [value for key, value in theirs.unet.named_parameters() if "lora_" in key]
    randomise(found, seed=9)
    state = peft.get_peft_model_state_dict(theirs.unet, adapter_name="made")
    save_file(
        {f"base_model.model.{key}": value.contiguous() for key, value in state.items()},
        tmp_path / "adapter_model.safetensors",
    )
    config.save_pretrained(tmp_path)
    ours.load_lora_weights(tmp_path)
    assert_same_pictures(ours, theirs, plain)


@pytest.mark.parametrize("fused", [False, True], ids=["beside", "fused"])
def test_two_adapters_with_scales_give_the_references_picture(both, plain, tmp_path, fused):
    ours, theirs = both
    make_ours(ours, tmp_path / "a", seed=1)
    make_theirs(theirs, tmp_path / "b", r=2, lora_alpha=3)
    for pipe, name in itertools.product(both, "ab"):
        pipe.load_lora_weights(tmp_path / name, adapter_name=name)
    for pipe in both:
        pipe.set_adapters(["a", "b"], [0.8, -0.5])
        if fused:
            pipe.fuse_lora(lora_scale=0.7)
    assert_same_pictures(ours, theirs, plain)
    if fused:
        theirs.unfuse_lora()


def test_a_scale_given_while_loading_is_the_references_weight(both, plain, tmp_path):
    ours, theirs = both
    make_ours(ours, tmp_path)
    ours.load_lora_weights(tmp_path, adapter_name="a", scale=0.6)
    theirs.load_lora_weights(tmp_path, adapter_name="a")
    theirs.set_adapters("a", 0.6)
    assert_same_pictures(ours, theirs, plain)


def kohya(state, alpha):
    """The reference's own conversion to kohya's names, with another alpha."""
    renamed = convert_state_dict_to_kohya(dict(state))
    return {k: torch.tensor(alpha) if k.endswith(".alpha") else v for k, v in renamed.items()}


def test_kohyas_file_is_the_same_adapter_here_and_in_the_reference(both, plain, tmp_path):
    ours, theirs = both
    state = make_ours(ours, tmp_path, targets=(*ATTENTION, "fc1", "fc2", "conv1", "proj_in"))
    renamed = kohya(state, alpha=3.0)  # of rank 3
    ours.load_lora_weights(renamed)
    by_kohya = picture(ours)
    theirs.load_lora_weights(dict(renamed))
    assert_same_pictures(ours, theirs, plain)
    ours.unload_lora_weights()
    ours.load_lora_weights(state)
    assert np.abs(picture(ours) - by_kohya).max() < 1e-6
    ours.unload_lora_weights()
    theirs.unload_lora_weights()
    for pipe in both:
        pipe.load_lora_weights(kohya(state, alpha=1.5))
    assert_same_pictures(ours, theirs, plain)
    assert np.abs(picture(ours) - by_kohya).max() > 0.02


def test_the_reference_leaves_as_it_came(both, plain):
    assert np.abs(picture(both[1]) - plain).max() < 1e-3
    assert models.relative_error(*(torch.from_numpy(picture(p)) for p in both)) < 1e-3
