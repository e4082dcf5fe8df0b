"""pipe.compile: each faster way gives the plain path's picture, and notices what changes."""

import dataclasses
import shutil

import pytest
import torch
from test_memory import calls
from tiny import UNET, pipeline, randomise

from minisd import memory, replay
from minisd.lora import adaptable, fresh
from minisd.unet import UNet

ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(seed=0):
    return noise(2, 4, 8, 8, seed=seed), 500.0, noise(2, 77, 24, seed=seed + 1)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.fixture
def pipes():
    """The same small pipeline twice: plain, and compiled to a recording."""
    config = dataclasses.replace(UNET, widths=(8, 16), attention=(False, True), layers_per_level=1)
    plain, fast = (pipeline(unet=randomise(UNet(config), 0)) for _ in range(2))
    fast.compile("replay")
    with torch.no_grad():
        yield plain, fast


def recording(pipe):
    (one,) = pipe.unet._compiled_call_impl.recordings.values()
    return one


def picture(pipe):
    arguments = {"prompt": "a red boat", "num_inference_steps": 2, "output_type": "pt"}
    return pipe(**arguments, generator=torch.Generator().manual_seed(0)).images


@pytest.mark.parametrize("free", [0.0, 100.0], ids=["as they are", "packed"])
def test_a_recording_changes_no_picture(pipes, monkeypatch, free):
    monkeypatch.setattr(replay.machine, "memory_gib", lambda: (100.0, free))
    plain, fast = map(picture, pipes)
    close(fast, plain)
    assert recording(pipes[1]).packed == (free > 0 and torch.backends.mkldnn.is_available())


@ONEDNN
def test_every_convolution_and_linear_layer_is_packed(pipes, monkeypatch):
    replaced, instead = [], replay.instead
    monkeypatch.setattr(replay, "instead", lambda *more: replaced.append(more[0]) or instead(*more))
    pipes[1].unet(*inputs())
    kinds = torch.nn.Conv2d | torch.nn.Linear
    assert len(replaced) == sum(isinstance(layer, kinds) for layer in pipes[1].unet.modules())


@ONEDNN
def test_in_bfloat16_a_recording_is_as_near_as_the_plain_path():
    exact, plain, fast = (pipeline() for _ in range(3))
    fast.to(torch.bfloat16).compile()
    exact, plain, fast = map(picture, (exact, plain.to(torch.bfloat16), fast))
    assert 0 < (fast.float() - exact).std() < 1.5 * (plain.float() - exact).std()


@pytest.mark.slow
def test_a_recording_changes_no_call(pipes):
    for plain, fast in zip(*map(calls, pipes)):
        close(fast, plain)


def test_other_texts_times_and_sizes_give_other_numbers(pipes):
    plain, fast = pipes
    x, t, text = inputs()
    for case in ((x, t, text), (x, 1.0, text), (x, torch.tensor(7), text), (x, t, text + 1),
                 (x[:1], t, text[:1])):  # fmt: skip
        close(fast.unet(*case), plain.unet(*case))


def test_a_text_changed_in_place_is_noticed(pipes):
    plain, fast = pipes
    x, t, text = inputs()
    fast.unet(x, t, text)
    text += 1
    close(fast.unet(x, t, text), plain.unet(x, t, text))


def test_text_and_time_are_worked_out_once(pipes, monkeypatch):
    fast = pipes[1]
    x, t, text = inputs()
    fast.unet(x, t, text)
    made, seen = recording(fast), []
    for kind, work in made.parts.items():
        monkeypatch.setitem(
            made.parts, kind, lambda known, kind=kind, work=work: seen.append(kind) or work(known)
        )
    for step in (t, 1.0, t, 1.0):
        fast.unet(x, step, text.clone())
    assert (seen.count("weights"), seen.count("text"), seen.count("time")) == (0, 0, 1)
    assert seen.count("picture") == 4


def test_keys_and_values_of_the_text_are_what_depends_on_it_alone(pipes):
    fast = pipes[1]
    fast.unet(*inputs())
    layers = [m for m in memory.attentions([fast.unet]) if m.path.endswith("cross_attn")]
    assert len(recording(fast).of_text) == 2 * len(layers)


def change_in_place(pipe):
    pipe.unet.conv_in.weight.mul_(2)


def change_layer(pipe):
    pipe.unet.conv_in.bias = torch.nn.Parameter(noise(8), requires_grad=False)


def load_other(pipe):
    other = randomise(UNet(pipe.unet.config), 5)
    pipe.unet.load_state_dict(other.state_dict(), assign=True)


def add_lora(pipe):
    layers = adaptable(pipe.networks)
    loras = fresh(layers, 2, torch.Generator().manual_seed(0))
    for lora in loras.values():
        lora.B.data = 0.1 + lora.B.data
    pipe.adapters.add(layers, loras, "one")


def fuse_lora(pipe):
    add_lora(pipe)
    pipe.fuse_lora()


def slice_attention(pipe):
    pipe.enable_attention_slicing()


@pytest.mark.parametrize(
    "change", [change_in_place, change_layer, load_other, add_lora, fuse_lora, slice_attention]
)
def test_a_change_of_the_model_is_noticed(pipes, change):
    plain, fast = pipes
    fast.unet(*inputs())
    for pipe in pipes:
        change(pipe)
    close(fast.unet(*inputs()), plain.unet(*inputs()))


def test_a_compiled_unet_still_records(pipes):
    kept = [{}, {}]
    plain, fast = (pipe.unet(*inputs(), record) for pipe, record in zip(pipes, kept))
    assert torch.equal(fast, plain)
    assert kept[0].keys() == kept[1].keys() != set()


def test_a_compiled_unet_still_learns(pipes):
    unet = pipes[1].unet.requires_grad_(True)
    with torch.enable_grad():
        unet(*inputs()).sum().backward()
    assert all(p.grad is not None for p in unet.parameters())


def test_a_timestep_for_each_picture_goes_the_plain_way(pipes):
    plain, fast = pipes
    x, _, text = inputs()
    assert torch.equal(fast.unet(x, t := torch.tensor([3, 9]), text), plain.unet(x, t, text))


def test_another_precision_is_recorded_anew(pipes):
    plain, fast = pipes
    x, t, text = inputs()
    fast.unet(x, t, text)
    plain, fast = (pipe.to(torch.float64) for pipe in pipes)
    case = x.double(), t, text.double()
    close(fast.unet(*case), plain.unet(*case))


def test_uncompile_leaves_the_plain_path(pipes):
    plain, fast = pipes
    fast.unet(*inputs())
    fast.uncompile()
    assert torch.equal(fast.unet(*inputs()), plain.unet(*inputs()))


def test_compile_changes_no_name_of_a_weight_and_no_hash(pipes):
    plain, fast = pipes
    fast.unet(*inputs())
    assert fast.unet.state_dict().keys() == plain.unet.state_dict().keys()
    assert fast.hash == plain.hash


def test_inputs_that_lie_otherwise_in_memory_give_the_same(pipes):
    x, t, text = inputs()
    turned = x.to(memory_format=torch.channels_last), t, text.mT.contiguous().mT
    expected = pipes[0].unet(x, t, text)
    for case in ((x, t, text), turned):
        out = pipes[1].unet(*case)
        close(out, expected)
        assert out.is_contiguous()
    recording(pipes[1])  # there is one


def test_what_a_recording_made_is_not_kept(pipes):
    x, t, text = inputs()
    with replay.Recorder(x, torch.tensor(t), text) as recorder:
        kept = x + 1
        for _ in range(5):
            kept = kept + 1
    assert sorted(map(id, recorder.nodes)) == sorted(map(id, [x, text, kept]))


def test_what_changes_an_operand_cannot_be_recorded(pipes):
    x, t, text = inputs()
    with pytest.raises(ValueError, match="changes its operand"):
        with replay.Recorder(x, torch.tensor(t), text):
            x.mul_(2)


def test_wrong_calls_are_told():
    pipe = pipeline()
    with pytest.raises(ValueError, match="expected 'auto' or one of"):
        pipe.compile("tensorrt")
    pipe.enable_model_cpu_offload("cpu")
    with pytest.raises(ValueError, match="disable_model_cpu_offload"):
        pipe.compile()


@torch.no_grad()
def test_channels_last_changes_no_picture_and_no_hash():
    plain, turned = pipeline(), pipeline().to(memory_format=torch.channels_last)
    assert turned.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert turned.hash == plain.hash
    close(picture(turned), picture(plain))


@torch.no_grad()
def test_the_decoder_works_channels_last_and_gives_pictures_as_usual():
    record = {}
    picture = pipeline().vae.decode(noise(2, 4, 8, 6), record)
    assert picture.is_contiguous()
    maps = [value for path, value in record.items() if "resnet" in path]
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)
    assert maps
    assert not any(x.is_contiguous() for x in maps)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_torch_compile_changes_no_picture():
    plain, fast = pipeline(), pipeline()
    fast.compile("inductor")
    for ours, expected in zip(calls(fast), calls(plain)):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    fast.uncompile()
    for ours, expected in zip(calls(fast), calls(plain)):
        assert torch.equal(ours, expected)


@pytest.mark.gpu
@torch.no_grad()
def test_cuda_graphs_change_no_picture():
    plain, fast = pipeline().to("cuda"), pipeline().to("cuda")
    fast.compile()
    for ours, expected in zip(calls(fast), calls(plain)):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-3)
