"""LoRA: what adapters add, how they go together, and the files that they come from."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import picture_book, pipeline

from minisd import StableDiffusionPipeline
from minisd.__main__ import main
from minisd.images import read_settings
from minisd.layers import Downsample, Upsample
from minisd.lora import ATTENTION, LoRA, adaptable, fresh
from minisd.options import lora_file
from weights_convert.adapters import WEIGHT_NAME, read_lora, write_lora
from weights_convert.names import DIFFUSERS, OURS, table

LAYERS = {
    "linear": torch.nn.Linear(6, 10),
    "convolution": torch.nn.Conv2d(6, 10, 3, padding=1),
    "strided": Downsample(6),
    "resized": Upsample(6),
    "1 x 1": torch.nn.Conv2d(6, 10, 1),
}
EVERY = (*ATTENTION, "fc1", "fc2", "gate_up", "down", "proj_in", "proj_out", "conv1", "conv2",
         "shortcut", "time_proj", "conv_in", "conv_out", "downsample", "upsample")  # fmt: skip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_loras(pipe, seed=0, rank=2, targets=EVERY):
    """An adapter whose B is not zero any more."""
    loras = fresh(adaptable(pipe.networks), rank, seeded(seed), targets)
    for lora in loras.values():
        lora.B.data = 0.05 * torch.randn(lora.B.shape, generator=seeded(seed + 1))
        lora.requires_grad_(False)
    return loras


def load(pipe, name="style", seed=0, scale=1.0, **which):
    pipe.adapters.add(adaptable(pipe.networks), random_loras(pipe, seed, **which), name, scale)
    return pipe


def latents(pipe):
    call = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "latent"}
    return pipe("a red boat", generator=seeded(), **call).images


def weights(pipe):
    return {
        f"{name}.{key}": value
        for name, network in pipe.networks.items()
        for key, value in network.state_dict().items()
    }


def assert_same_weights(mine, theirs):
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.fixture(scope="module")
def plain():
    """The latents without any adapter."""
    return latents(pipeline())


# One layer


@pytest.mark.parametrize("name", LAYERS)
def test_adding_at_the_output_is_adding_the_product_to_the_weights(name):
    layer = LAYERS[name].double()
    lora = LoRA(layer, rank=3, alpha=1.5).double()
    lora.A.data, lora.B.data = (torch.randn_like(w) for w in (lora.A, lora.B))
    x = torch.randn(2, 5, 6) if name == "linear" else torch.randn(2, 6, 7, 8)
    x, more = x.double(), {"size": (13, 16)} if name == "resized" else {}
    out = layer(x, **more)
    changed = {"weight": layer.weight + lora.product(), "bias": layer.bias}
    assert lora.product().shape == layer.weight.shape
    expected = torch.func.functional_call(layer, changed, x, more)
    torch.testing.assert_close(out + lora(x, layer, out), expected, rtol=1e-10, atol=1e-10)


def test_the_product_is_alpha_over_r_b_a():
    lora = LoRA(torch.nn.Linear(4, 3), rank=2, alpha=6)
    lora.A.data, lora.B.data = torch.randn(2, 4), torch.randn(3, 2)
    torch.testing.assert_close(lora.product(), 6 / 2 * lora.B @ lora.A)


def test_every_linear_layer_and_convolution_can_have_an_adapter():
    pipe = pipeline()
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    networks = (pipe.text_encoder, pipe.unet)
    count = sum(isinstance(m, kinds) for network in networks for m in network.modules())
    assert len(adaptable(pipe.networks)) == count


# A whole pipeline


def test_a_new_adapter_changes_nothing(plain):
    pipe = pipeline()
    layers = adaptable(pipe.networks)
    pipe.adapters.add(layers, fresh(layers, 4, seeded(), EVERY))
    assert torch.equal(latents(pipe), plain)


def test_gradients_reach_a_and_b_and_no_weight():
    pipe = pipeline()
    layers = adaptable(pipe.networks)
    loras = fresh(layers, 2, seeded())
    pipe.adapters.add(layers, loras)
    for lora in loras.values():
        lora.B.data += 0.1
    cond = pipe.text_encoder(pipe.tokenizer(["a boat"]))
    pipe.unet(torch.randn(1, 4, 8, 8), 500, cond).square().mean().backward()
    assert all(lora.A.grad.abs().max() > 0 for path, lora in loras.items() if "unet" in path)
    assert all(lora.B.grad.abs().max() > 0 for path, lora in loras.items() if "unet" in path)
    assert not any(value.requires_grad for value in weights(pipe).values())


def test_scale_nought_and_unloading_give_the_plain_picture(plain):
    pipe = load(pipeline())
    assert (latents(pipe) - plain).abs().max() > 1e-3
    pipe.set_adapters("style", 0.0)
    assert torch.equal(latents(pipe), plain)
    pipe.set_adapters("style")
    pipe.unload_lora_weights()
    assert torch.equal(latents(pipe), plain)
    assert not any(module._forward_hooks for module in pipe.unet.modules())


def test_the_same_adapter_twice_at_half_scale_is_the_adapter_once():
    pipe = load(load(pipeline(), "a"), "b")
    pipe.set_adapters(["a", "b"], [0.5, 0.5])
    twice = latents(pipe)
    pipe.set_adapters("b")
    torch.testing.assert_close(twice, latents(pipe), rtol=0, atol=1e-4)


def test_the_order_of_adapters_does_not_matter():
    one = load(load(pipeline(), "a", 0), "b", 7, rank=3)
    other = load(load(pipeline(), "b", 7, rank=3), "a", 0)
    for pipe in (one, other):
        pipe.set_adapters(["a", "b"], [0.7, -0.4])
    torch.testing.assert_close(latents(one), latents(other), rtol=0, atol=1e-4)


def test_fused_adapters_give_the_same_picture():
    pipe = load(load(pipeline(), "a", 0, 0.7), "b", 7, 0.4, targets=("q", "conv1"))
    beside = latents(pipe)
    pipe.fuse_lora()
    torch.testing.assert_close(latents(pipe), beside, rtol=0, atol=1e-4)


def test_lora_scale_scales_all_that_is_fused():
    pipe = load(pipeline())
    pipe.set_adapters("style", 0.25)
    quarter = latents(pipe)
    pipe.set_adapters("style", 0.5)
    pipe.fuse_lora(lora_scale=0.5)
    torch.testing.assert_close(latents(pipe), quarter, rtol=0, atol=1e-4)


def test_unfusing_gives_back_every_weight_bit_by_bit():
    pipe = load(pipeline())
    before, beside = weights(pipeline()), latents(pipe)
    pipe.fuse_lora(0.7)
    assert any(not torch.equal(before[key], value) for key, value in weights(pipe).items())
    pipe.unfuse_lora()
    assert_same_weights(weights(pipe), before)
    assert torch.equal(latents(pipe), beside)


def test_what_was_fused_stays_after_unloading():
    pipe = load(pipeline())
    beside = latents(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(latents(pipe), beside, rtol=0, atol=1e-4)


def test_a_deleted_adapter_leaves_the_others_and_the_picture_without_it():
    pipe = load(load(pipeline(), "a", 0), "b", 7, 0.4)
    pipe.delete_adapters("a")
    assert torch.equal(latents(pipe), latents(load(pipeline(), "b", 7, 0.4)))
    pipe.delete_adapters(["b"])
    assert torch.equal(latents(pipe), latents(pipeline()))
    assert not any(layer._forward_hooks for layer in adaptable(pipe.networks).values())
    assert not pipe.adapters.layers
    with pytest.raises(ValueError, match="no adapter is loaded"):
        pipe.fuse_lora()


def test_of_several_to_delete_none_goes_if_one_is_not_there():
    pipe = load(load(pipeline(), "a", 0), "b", 7)
    with pytest.raises(ValueError, match=r"no adapter 'c' is loaded, only \['a', 'b'\]"):
        pipe.delete_adapters(["a", "c"])
    assert pipe.get_active_adapters() == ["a", "b"]


def test_an_adapter_without_a_name_gets_one_that_is_free():
    pipe = load(load(pipeline(), None, 0), None, 7)
    pipe.delete_adapters("default_0")
    loaded = load(load(pipe, None), None).adapters.loras
    assert list(loaded) == ["default_1", "default_2", "default_3"]


def test_disabled_adapters_change_nothing_until_they_are_enabled(plain):
    pipe = load(load(pipeline(), "a", 0), "b", 7, 0.4)
    both = latents(pipe)
    pipe.disable_lora()
    assert torch.equal(latents(pipe), plain)
    pipe.set_adapters(["a", "b"], [1.0, 0.4])
    assert torch.equal(latents(pipe), plain)
    assert pipe.get_active_adapters() == []
    pipe.enable_lora()
    assert torch.equal(latents(pipe), both)
    assert pipe.get_active_adapters() == ["a", "b"]
    pipe.set_adapters("b")
    assert pipe.get_active_adapters() == ["b"]


def test_disabled_adapters_are_not_fused_and_fused_ones_not_disabled(plain):
    pipe = load(pipeline())
    pipe.disable_lora()
    pipe.fuse_lora()
    assert_same_weights(weights(pipe), weights(pipeline()))
    pipe.unfuse_lora()
    pipe.enable_lora()
    pipe.fuse_lora()
    for call in (pipe.disable_lora, lambda: pipe.delete_adapters("style")):
        with pytest.raises(ValueError, match=r"fused into the weights; call unfuse_lora"):
            call()


def test_names_and_hash_stay_the_models_own_with_an_adapter_beside():
    pipe = load(pipeline())
    assert_same_weights(weights(pipe), weights(pipeline()))
    assert pipe.hash == pipeline().hash


def test_a_saved_pipeline_has_the_base_weights_and_with_a_fused_adapter_the_fused(tmp_path):
    pipe = load(pipeline())
    pipe.save_pretrained(tmp_path / "beside")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "beside")
    assert_same_weights(weights(again), weights(pipeline()))
    pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "fused")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "fused")
    assert_same_weights(weights(again), weights(pipe))


def test_adapters_follow_the_pipeline_to_another_precision():
    pipe = load(pipeline()).to(torch.bfloat16)
    x, context = torch.randn(1, 4, 8, 8).bfloat16(), torch.randn(1, 77, 24).bfloat16()
    assert pipe.unet(x, 500, context).dtype == torch.bfloat16


# Files


@pytest.fixture
def state(tmp_path):
    """An adapter in diffusers' names, as it is in the file that was written."""
    load(pipeline()).save_lora_weights(tmp_path)
    return load_file(tmp_path / WEIGHT_NAME)


def kohya(state, alpha=None):
    """The same adapter as kohya's scripts would write it."""
    short = {"text_encoder": "lora_te_", "unet": "lora_unet_"}
    out = {}
    for key, value in state.items():
        network, _, module = key.rsplit(".lora_", 1)[0].partition(".")
        name = short[network] + module.replace(".", "_")
        down = ".lora_A." in key
        rank = value.shape[0 if down else 1]
        out[f"{name}.lora_{'down' if down else 'up'}.weight"] = value
        out[f"{name}.alpha"] = torch.tensor(float(alpha or rank))
    return out


def old_diffusers(state):
    """The names of diffusers before peft, for attention alone."""
    out = {}
    for key, value in state.items():
        key = key.replace(".lora_A.", "_lora.down.").replace(".lora_B.", "_lora.up.")
        for n in ("attn1", "attn2"):
            key = key.replace(f"{n}.to_out.0_lora", f"{n}.processor.to_out_lora")
            key = key.replace(f"{n}.to_", f"{n}.processor.to_")
        for letter in ("q", "k", "v", "out"):
            key = key.replace(f"self_attn.{letter}_proj_lora", f"self_attn.to_{letter}_lora")
        out[key] = value
    return out


def renamed(state, *pairs):
    out = {}
    for key, value in state.items():
        for old, new in pairs:
            key = key.replace(old, new)
        out[key] = value
    return out


DIALECTS = {
    "peft with the adapter's name": lambda s: renamed(
        s, ("lora_A.weight", "lora_A.default.weight"), ("lora_B.weight", "lora_B.default.weight")
    ),
    "diffusers": lambda s: renamed(s, ("lora_A", "lora.down"), ("lora_B", "lora.up")),
    "diffusers, text encoder": lambda s: renamed(
        s, ("lora_A", "lora_linear_layer.down"), ("lora_B", "lora_linear_layer.up")
    ),
    "without text_model": lambda s: renamed(s, ("text_model.", "")),
    "without networks": lambda s: renamed(s, ("unet.", ""), ("text_encoder.", "")),
    "peft's own file": lambda s: renamed(
        s, ("unet.", "base_model.model."), ("text_encoder.", "base_model.model.")
    ),
    "kohya": kohya,
    "kohya, as diffusers writes it": lambda s: renamed(kohya(s), ("lora_te_", "lora_te1_")),
}


def assert_same_loras(mine, theirs):
    assert mine.keys() == theirs.keys()
    for path, lora in mine.items():
        torch.testing.assert_close(lora.product(), theirs[path].product())


@pytest.mark.parametrize("dialect", DIALECTS)
def test_all_names_of_a_layer_mean_the_same(state, dialect):
    pipe = pipeline()
    assert state.keys() != DIALECTS[dialect](state).keys()
    again = read_lora(DIALECTS[dialect](state), None, pipe.networks)
    assert_same_loras(again, random_loras(pipe))


def test_the_old_names_of_attention_mean_the_same(tmp_path):
    pipe = load(pipeline(), targets=ATTENTION)
    pipe.save_lora_weights(tmp_path)
    old = old_diffusers(load_file(tmp_path / WEIGHT_NAME))
    block = "unet.mid_block.attentions.0.transformer_blocks.0"
    assert f"{block}.attn1.processor.to_out_lora.down.weight" in old
    assert "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight" in old
    assert_same_loras(read_lora(old, None, pipe.networks), pipe.adapters.loras["style"])


def test_alpha_scales_by_alpha_over_r(state):
    pipe = pipeline()
    halved = read_lora(kohya(state, alpha=1.0), None, pipe.networks)
    for path, lora in random_loras(pipe).items():
        torch.testing.assert_close(halved[path].product(), lora.product() / 2)  # rank 2


def test_pefts_settings_in_the_metadata_scale_as_in_peft(state, tmp_path):
    pipe, path = pipeline(), tmp_path / "settings.safetensors"
    settings = {"unet.lora_alpha": 6, "unet.alpha_pattern": {"conv_in": 10},
                "text_encoder.lora_alpha": 6, "text_encoder.use_rslora": True}  # fmt: skip
    save_file(state, path, {"lora_adapter_metadata": json.dumps(settings)})
    loras = read_lora(path, None, pipe.networks)
    assert {lora.factor for p, lora in loras.items() if p.startswith("unet.d")} == {3.0}
    assert loras["unet.conv_in"].factor == 5.0
    assert loras["text_encoder.layers.0.attn.q"].factor == pytest.approx(6 / 2**0.5)


def test_a_linear_layers_adapter_fits_a_1_x_1_convolution_and_back(state):
    pipe = pipeline()
    flat = {key: value.flatten(1) for key, value in state.items() if "proj_in" in key}
    square = {key: value[..., None, None] for key, value in state.items() if "to_q" in key}
    for changed in (flat, square):
        for path, lora in read_lora(changed, None, pipe.networks).items():
            torch.testing.assert_close(lora.product(), random_loras(pipe)[path].product())


def test_saving_and_loading_gives_the_same_picture_whatever_alpha(tmp_path):
    pipe = load(pipeline())
    for lora in pipe.adapters.loras["style"].values():
        lora.factor = 0.3
    pipe.save_lora_weights(tmp_path)
    again = pipeline()
    again.load_lora_weights(tmp_path)
    torch.testing.assert_close(latents(again), latents(pipe), rtol=0, atol=1e-4)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".safetensors"])
def test_files_of_every_kind_are_read(state, tmp_path, suffix):
    path = tmp_path / f"style{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    pipe = pipeline()
    pipe.load_lora_weights(path, adapter_name="x", scale=0.5)
    pipe.load_lora_weights(tmp_path, weight_name=path.name)
    pipe.load_lora_weights(state)
    assert pipe.adapters.scales == {"x": 0.5, "default_1": 1.0, "default_2": 1.0}


@pytest.mark.parametrize(("weight_name", "asked"), [
    (None, ["pytorch_lora_weights.safetensors", "adapter_model.safetensors",
            "adapter_config.json"]),
    ("style.safetensors", ["style.safetensors"]),
])  # fmt: skip
def test_of_a_hub_id_only_the_adapters_file_is_downloaded(
    state, tmp_path, monkeypatch, weight_name, asked
):
    save_file(state, tmp_path / "style.safetensors")
    calls = []

    def download(hub_id, allow_patterns):
        calls.append((hub_id, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    pipe = pipeline()
    pipe.load_lora_weights("somebody/a-lora", weight_name=weight_name, adapter_name="x")
    assert_same_loras(pipe.adapters.loras["x"], random_loras(pipe))
    assert calls == [("somebody/a-lora", asked)]


def test_without_a_connection_the_file_to_fetch_is_named(monkeypatch):
    def download(*_arguments, **_more):
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ValueError, match=r"\(no connection\); fetch x.safetensors by hand"):
        pipeline().load_lora_weights("somebody/a-lora", weight_name="x.safetensors")
    with pytest.raises(ValueError, match=r"loras/x.safetensors does not exist; give a LoRA's"):
        pipeline().load_lora_weights("loras/x.safetensors")  # a file's name, and no hub id


# Bad input


def without(state, part):
    return {key: value for key, value in state.items() if part not in key}


BAD = {
    "an unknown key": (lambda s: {**s, "unet.elsewhere.lora_A.weight": s[next(iter(s))]},
                       ["unet.elsewhere.lora_A.weight", "no LoRA for this model"]),
    "SDXL": (lambda s: {**s, "lora_te2_text_model_x.lora_down.weight": s[next(iter(s))]},
             ["lora_te2_text_model_x.lora_down.weight"]),
    "DoRA": (lambda s: {**s, "unet.conv_in.lora_magnitude_vector": s[next(iter(s))]},
             ["unet.conv_in.lora_magnitude_vector"]),
    "a norm": (lambda s: {"unet.conv_norm_out.lora_A.weight": s[next(iter(s))]},
               ["unet.conv_norm_out.lora_A.weight"]),
    "another width": (lambda s: {key: torch.zeros(2, 320, *value.shape[2:]) if "to_k.lora_A" in key
                                 else value for key, value in s.items()},
                      ["attn1.to_k.lora_A.weight is (2, 320), expected (2, 16)"]),
    "ranks that differ": (lambda s: {key: torch.zeros(10, 5, 3, 3) if "conv_in.lora_B" in key
                                     else value for key, value in s.items()},
                          ["unet.conv_in.lora_B.weight is (10, 5, 3, 3), expected (16, 2, 1, 1)"]),
    "a number": (lambda s: {**s, "unet.conv_in.lora_A.weight": torch.tensor(1.0)},
                 ["unet.conv_in.lora_A.weight is ()"]),
    "one half": (lambda s: without(s, "conv_in.lora_B"), ["lacks matrix B of conv_in"]),
    "whole weights": (lambda s: {"conv_in.weight": s[next(iter(s))]}, ["conv_in.weight"]),
    "nothing": (lambda s: {}, ["no LoRA for this model"]),
}  # fmt: skip


@pytest.mark.parametrize("problem", BAD)
def test_a_lora_for_another_model_is_an_error_that_names_the_key(state, problem):
    spoil, parts = BAD[problem]
    pipe = pipeline()
    with pytest.raises(ValueError) as error:  # noqa: PT011
        pipe.load_lora_weights(spoil(state))
    assert all(part in str(error.value) for part in parts), error.value
    assert not pipe.adapters.loras


def test_many_unknown_keys_are_counted(state):
    state = {f"lora_te2_{i}.lora_up.weight": torch.zeros(2, 2) for i in range(9)}
    with pytest.raises(ValueError, match=r"lora_te2_4.lora_up.weight, and 4 more \(of 9\)"):
        pipeline().load_lora_weights(state)


def test_files_that_are_none_are_a_clear_error(tmp_path):
    pipe = pipeline()
    for name in ("a.safetensors", "b.bin"):
        (tmp_path / name).write_bytes(b"no tensors here")
        with pytest.raises(ValueError, match=f"{name} is damaged or no LoRA"):
            pipe.load_lora_weights(tmp_path / name)
    for source, weight_name in ((tmp_path / "c.safetensors", None), (tmp_path, "c.safetensors")):
        with pytest.raises(ValueError, match=r"c\.safetensors does not exist"):
            pipe.load_lora_weights(source, weight_name)
    (tmp_path / "c.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds 2 .*a\.safetensors.*weight_name"):
        pipe.load_lora_weights(tmp_path)


def test_what_does_not_go_together_is_a_clear_error(tmp_path):
    pipe = pipeline()
    for call, message in (
        (pipe.fuse_lora, "no adapter is loaded"),
        (pipe.unfuse_lora, "nothing is fused"),
        (lambda: pipe.save_lora_weights(tmp_path), "no adapter None is loaded"),
        (lambda: pipe.set_adapters("x"), r"adapters \['x'\] at weights \[1.0\] were asked for"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    pipe.unload_lora_weights()
    load(load(pipe, "a"), "b", 7)
    for call, message in (
        (lambda: load(pipe, "a"), "'a' is loaded already"),
        (lambda: pipe.set_adapters(["a", "b"], [1.0]), "give one weight for each"),
        (lambda: pipe.save_lora_weights(tmp_path), "no adapter None is loaded, only ..a., .b.."),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    pipe.fuse_lora()
    for call in (pipe.fuse_lora, lambda: load(pipe, "c"), lambda: pipe.set_adapters("a")):
        with pytest.raises(ValueError, match=r"fused into the weights; call unfuse_lora"):
            call()


def test_every_adaptable_layer_has_its_name_in_the_other_dialects():
    networks = pipeline().networks
    named = {
        f"{name}.{ours}"
        for name in ("text_encoder", "unet")
        for ours in table(name, networks[name].config, OURS, DIFFUSERS)
    }
    assert set(adaptable(networks)) <= named


# The command line


@pytest.mark.parametrize(("argument", "expected"), [
    ("style.safetensors", ("style.safetensors", 1.0)),
    ("style.safetensors:0.8", ("style.safetensors", 0.8)),
    ("style.safetensors:-1", ("style.safetensors", -1.0)),
    (r"C:\loras\style.safetensors", (r"C:\loras\style.safetensors", 1.0)),
    (r"C:\loras\style.safetensors:.5", (r"C:\loras\style.safetensors", 0.5)),
    ("C:5", ("C:5", 1.0)),
    ("folder:with:colons", ("folder:with:colons", 1.0)),
])  # fmt: skip
def test_a_scale_is_a_number_after_the_last_colon(argument, expected):
    assert lora_file(argument) == expected


def test_loras_of_the_command_line_are_in_the_png_and_come_back_from_it(tmp_path, capsys):
    pipe = picture_book()
    pipe.save_pretrained(tmp_path / "model")
    for name, seed in (("a", 0), ("b", 7)):
        loras = random_loras(pipe, seed)
        write_lora(loras, pipe.networks, tmp_path / f"{name}.safetensors")
    a, b = (f"{tmp_path / name}.safetensors" for name in "ab")
    common = ["--weights", str(tmp_path / "model"), "--steps", "2"]

    def draw(name, *more):
        assert main([*more, *common, "-o", str(tmp_path / name)]) == 0, capsys.readouterr().err
        return (tmp_path / name).read_bytes()

    plain = draw("plain.png", "a boat", "--seed", "1")
    both = draw("both.png", "a boat", "--seed", "1", "--lora", f"{a}:0.5", "--lora", b)
    assert both != plain
    assert read_settings(tmp_path / "both.png")["lora"] == [f"{a}:0.5", f"{b}:1.0"]
    assert draw("again.png", "--from-png", str(tmp_path / "both.png")) == both
    one = draw("one.png", "--from-png", str(tmp_path / "both.png"), "--lora", a)
    assert read_settings(tmp_path / "one.png")["lora"] == [f"{a}:1.0"]
    assert one != both


def test_a_lora_that_is_not_there_is_one_line(tmp_path, capsys):
    picture_book().save_pretrained(tmp_path)
    assert main(["a boat", "--weights", str(tmp_path), "--lora", "nowhere.safetensors:1"]) == 2
    err = capsys.readouterr().err
    assert err == (
        "minisd: error: nowhere.safetensors does not exist; give a LoRA's file or folder\n"
    )
