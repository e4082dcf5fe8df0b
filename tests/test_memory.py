"""The switches against too little memory: each gives the plain path's picture, and its figure."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import pipeline

from minisd import StableDiffusionPipeline, images, machine, memory
from minisd.attention import Attention, attend, attend_plain

LINUX = pytest.mark.skipif(platform.system() != "Linux", reason="only Linux tells the peak")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed))


def calls(pipe):
    """The pictures of all three calls, of two prompts each."""
    image, mask = images.to_pil(noise(1, 3, 64, 48))[0], torch.zeros(64, 48)
    mask[20:40, 20:40] = 1
    common = {"prompt": ["a red boat", "a yellow star"], "output_type": "pt"}
    return (
        pipe(**common, generator=seeded()).images,
        pipe.image_to_image(**common, image=image, strength=0.6, generator=seeded()).images,
        pipe.inpaint(**common, image=image, mask_image=mask, generator=seeded()).images,
    )


def methods(network):
    return {layer.method for layer in network.modules() if isinstance(layer, Attention)}


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="only Linux tells the instructions")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors name theirs otherwise")
def test_bfloat16_is_there_if_the_processor_has_instructions_for_it():
    flags = Path("/proc/cpuinfo").read_text()
    if "avx512_bf16" in flags:
        assert machine.has_bfloat16("cpu")
    if not any(wide in flags for wide in ("avx512", "avx_ne_convert", "amx")):
        assert not machine.has_bfloat16("cpu")
    assert not machine.has_bfloat16("mps")


# ---- attention ----


@pytest.mark.parametrize("switch", [
    lambda pipe: pipe.enable_attention_slicing(),
    lambda pipe: pipe.enable_attention_slicing("max"),
    lambda pipe: pipe.enable_attention_slicing(2),
    lambda pipe: pipe.enable_xformers_memory_efficient_attention(),
    lambda pipe: pipe.enable_vae_slicing(),
    lambda pipe: pipe.enable_model_cpu_offload("cpu"),
], ids=["auto", "max", "2", "efficient", "vae slicing", "offload"])  # fmt: skip
def test_a_switch_changes_no_picture(switch):
    pipe = pipeline()
    expected = calls(pipe)
    switch(pipe)
    for ours, plain in zip(calls(pipe), expected):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_slices_of_any_number_of_heads_are_the_formula(size, monkeypatch):
    q, k, v = noise(2, 4, 9, 8), noise(2, 4, 7, 8, seed=1), noise(2, 4, 7, 8, seed=2)
    expected, widths = attend_plain(q, k, v), []

    def spy(q, *more):
        widths.append(q.shape[0])
        return attend_plain(q, *more)

    monkeypatch.setattr("minisd.attention.attend_plain", spy)
    torch.testing.assert_close(attend(q, k, v, False, "sliced", size), expected)
    assert widths == [min(size, 8 - head) for head in range(0, 8, size)]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a switch of glibc")
def test_reused_memory_is_not_asked_for_again():
    """In a process of its own, as the switch is for the whole of one."""
    code = """
import resource, sys, torch
from minisd import memory
def asked(n=20):  # for pages, for blocks of 8 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        torch.zeros(2**21), torch.ones(2**21)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
assert memory.reuse_memory()
asked(3)
print(asked())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 81_920 / 4  # pages


def test_attention_slicing_counts_a_layers_own_heads():
    pipe = pipeline()  # 2 and 4 heads

    def sizes():
        layers = memory.attentions([pipe.unet])
        return {(layer.heads, layer.slice_size) for layer in layers if layer.method == "sliced"}

    pipe.enable_attention_slicing()
    assert sizes() == {(2, 1), (4, 2)}
    pipe.enable_attention_slicing("max")
    assert sizes() == {(2, 1), (4, 1)}
    pipe.enable_attention_slicing(2)
    assert sizes() == {(2, 2), (4, 2)}


@pytest.mark.parametrize("size", [0, 3, -1, "half", None])
def test_a_slice_that_some_layer_does_not_have_is_refused(size):
    with pytest.raises(ValueError, match="expected 'auto', 'max' or a number of heads from 1 to 2"):
        pipeline().enable_attention_slicing(size)


def test_the_attention_switches_reach_their_networks_and_go_back():
    pipe = pipeline()
    pipe.enable_attention_slicing()
    assert [methods(n) for n in pipe.networks.values()] == [{"fused"}, {"sliced"}, {"fused"}]
    pipe.disable_xformers_memory_efficient_attention()  # which is not on
    assert methods(pipe.unet) == {"sliced"}
    pipe.enable_xformers_memory_efficient_attention()
    assert [methods(n) for n in pipe.networks.values()] == [{"efficient"}] * 3
    pipe.disable_attention_slicing()  # which is not on any more
    assert methods(pipe.unet) == {"efficient"}
    pipe.disable_xformers_memory_efficient_attention()
    assert [methods(n) for n in pipe.networks.values()] == [{"fused"}] * 3
    pipe.enable_attention_slicing()
    pipe.disable_attention_slicing()
    assert methods(pipe.unet) == {"fused"}


def test_switches_leave_the_model_as_it_is(tmp_path):
    pipe = pipeline()
    names, digest = [list(n.state_dict()) for n in pipe.networks.values()], pipe.hash
    pipe.enable_attention_slicing()
    pipe.enable_vae_slicing()
    pipe.enable_vae_tiling()
    pipe.enable_model_cpu_offload("cpu")
    pipe("a red boat")
    assert [list(n.state_dict()) for n in pipe.networks.values()] == names
    assert pipe.hash == digest
    pipe.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    assert again.hash == digest
    assert (again.vae.slicing, again.vae.tile_size, again.offload) == (False, None, None)
    assert methods(again.unet) == {"fused"}


# ---- offload ----


@pytest.fixture
def moves(monkeypatch):
    """A pipeline offloaded to an imagined second CPU, and its networks' moves in order."""
    pipe, log = pipeline(), []
    move = torch.nn.Module.to
    names = {network: name for name, network in pipe.networks.items()}

    def spy(network, device, memory_format=None):
        moved = torch.device(device) != here.get(network, torch.device("cpu"))
        here[network] = torch.device(device)
        if moved:
            log.append(f"{names[network]} {'in' if here[network].index == 0 else 'out'}")
        return move(network, device)

    here = {}
    monkeypatch.setattr(torch.nn.Module, "to", spy)
    pipe.enable_model_cpu_offload("cpu:0")
    return pipe, log


TEXT, UNET, VAE = (
    [f"{name} in", f"{name} out"] for name in ("text_encoder", "unet", "vae")
)  # fmt: skip


def test_each_network_is_on_the_accelerator_only_while_it_works(moves):
    pipe, log = moves
    pipe("a red boat")
    assert log == TEXT + UNET + VAE


def test_image_to_image_moves_the_autoencoder_twice(moves):
    pipe, log = moves
    picture = images.to_pil(noise(1, 3, 64, 48))[0]
    pipe.image_to_image("a red boat", picture, generator=seeded())
    assert log == TEXT + VAE + UNET + VAE


def test_latents_asked_for_leave_nothing_on_the_accelerator(moves):
    pipe, log = moves
    pipe("a red boat", output_type="latent")
    assert log == TEXT + UNET


def test_tiles_do_not_move_the_autoencoder_again(moves):
    pipe, log = moves
    pipe.enable_vae_tiling(32)
    pipe("a red boat")
    assert log == TEXT + UNET + VAE


def test_the_text_encoder_may_be_used_by_itself(moves):
    pipe, log = moves
    pipe.text_encoder(pipe.tokenizer(["a red boat"]))
    assert log == TEXT[:1]
    pipe("a red boat")
    assert log == TEXT + UNET + VAE


def test_the_work_is_done_on_the_accelerator(moves):
    pipe, _ = moves
    assert pipe.device == torch.device("cpu", 0)


def test_offloading_ends_on_request_and_when_a_device_is_given(moves):
    pipe, log = moves
    pipe.text_encoder(pipe.tokenizer(["a red boat"]))
    pipe.disable_model_cpu_offload()
    assert log == TEXT
    pipe("a red boat")
    assert log == TEXT
    assert (pipe.offload, pipe.device) == (None, torch.device("cpu"))
    pipe.enable_model_cpu_offload("cpu:0")
    pipe.to("cpu")
    assert pipe.offload is None


def test_a_change_of_precision_does_not_end_offloading():
    pipe = pipeline()
    pipe.enable_model_cpu_offload("cpu:0")
    pipe.to(torch.bfloat16)
    assert pipe.offload is not None
    assert pipe("a red boat", output_type="pt").images.dtype == torch.bfloat16


def test_offloading_without_an_accelerator_is_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    pipe = pipeline()
    pipe.enable_model_cpu_offload()
    assert "no accelerator" in caplog.text
    assert (pipe.offload, pipe.device) == (None, torch.device("cpu"))
    with pytest.raises(ValueError, match="PyTorch finds none"):
        pipe.enable_model_cpu_offload("cuda")


@pytest.mark.gpu
def test_offloading_takes_less_of_a_gpu_and_gives_the_same_picture():
    peaks, pictures = [], []
    for offload in (False, True):
        pipe = pipeline()
        with memory.measure_peak("cuda") as peak:
            pipe.enable_model_cpu_offload("cuda") if offload else pipe.to("cuda")
            pictures.append(pipe("a red boat", generator=seeded(), output_type="pt").images.cpu())
        peaks.append(peak.above)
        del pipe
    assert peaks[1] < peaks[0]
    assert torch.equal(*pictures)


# ---- the peak ----


@LINUX
def test_the_peak_is_what_the_work_took():
    """In a process of its own: one that keeps freed memory takes nothing new for the work."""
    code = """
import torch
from minisd import memory
with memory.measure_peak() as peak:
    torch.ones(64 * 2**18)  # 64 MiB, freed at once
with memory.measure_peak() as after:
    pass
print(peak.above, after.above, peak.highest - after.highest)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    above, after, given_back = map(int, done.stdout.split())
    assert 60 < above / 2**20 < 80
    assert after < 10 * 2**20
    assert given_back > 0


def test_a_system_that_does_not_tell_the_peak_is_an_error(monkeypatch):
    def missing(path, text):
        raise FileNotFoundError(path)

    monkeypatch.setattr(memory.Path, "write_text", missing)
    with pytest.raises(ValueError, match="does not tell the peak"), memory.measure_peak():
        pass
