"""One network of Stable Diffusion 1.5's size, ours and the reference's."""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import measure
import torch
from measure import Work
from torch import nn

from minisd import memory, replay
from minisd.checkpoint import NETWORKS, build, load_state

Call = Callable[[nn.Module, str, int, int], Work]  # (network, whose, batch, pixels a side)
COLUMNS = [
    "", "seconds", "times as fast as diffusers", "of the matrix rate", "peak above the weights",
    "differs by",
]  # fmt: skip


class Way(NamedTuple):
    """One way to run a network: whose it is, and how."""

    who: str
    channels_last: bool = False
    compiled: bool = False
    replay: bool = False  # pipe.compile() on the CPU: of the UNet alone


PLAIN = {
    "minisd": Way("minisd"),
    "minisd, channels-last": Way("minisd", channels_last=True),
    "diffusers": Way("diffusers"),
    "diffusers, channels-last": Way("diffusers", channels_last=True),
}
REPLAY = {"minisd, compile()": Way("minisd", replay=True)}
COMPILED = {
    f"{label}, compiled": way._replace(compiled=True)
    for label, way in PLAIN.items()
    if way.channels_last
}


def sharing(name: str, network: nn.Module) -> nn.Module:
    """Another network with the same weights, which are there once until one changes its own."""
    other = build(NETWORKS[name][0], network.config)
    return load_state(other, network.state_dict(), "the weights")


def ways(name: str, given: argparse.Namespace) -> dict[str, Way]:
    """What is compared, by its name in the tables."""
    on_cpu = measure.place(given)[0].type == "cpu"
    chosen = PLAIN | (REPLAY if name == "unet" and on_cpu else {})
    return chosen | (COMPILED if given.compile else {})


def prepare(name: str, way: Way, network: nn.Module, call: Call, size: tuple[int, int]) -> Work:
    """The work of one way, ready to be timed."""
    ours = way.who == "minisd"
    network = sharing(name, network) if ours else measure.reference(name, network)
    if way.channels_last:
        network.to(memory_format=torch.channels_last)
    if way.replay:
        network._compiled_call_impl = replay.Replay(network)
    if way.compiled:
        on_gpu = next(network.parameters()).is_cuda
        part = network if name == "unet" else network.decoder
        part.compile(mode="reduce-overhead" if on_gpu else None)
    return torch.no_grad()(call(network, way.who, *size))


def once(name: str, call: Call, given: argparse.Namespace) -> dict[str, float]:
    """In a process of its own: the peak of a call above the weights, and a later one's seconds."""
    label, batch, side = given.child
    device, dtype = measure.place(given)
    network = measure.random_network(name, dtype).to(device)
    way = (PLAIN | REPLAY | COMPILED)[label]
    work = prepare(name, way, network, call, (int(batch), int(side)))
    del network
    if way.compiled:
        work()  # compiling takes memory of its own
    peak = measure.above_weights(work, device)
    seconds = measure.in_turn({"": work}, given.repeats, given.clock, device)[""]
    return {"seconds": min(seconds), "peak": peak}


def in_child(given: argparse.Namespace, label: str, size: tuple[int, int]) -> dict[str, float]:
    dtype = str(measure.place(given)[1]).removeprefix("torch.")
    chosen = {"--device": given.device, "--dtype": dtype, "--clock": given.clock, "--repeats": "1"}
    flags = [word for pair in chosen.items() for word in pair]
    flags += ["--tiling"] * given.tiling + ["--reuse-memory"] * given.reuse_memory
    return measure.in_child(sys.argv[0], label, *map(str, size), *flags)


def compare(name: str, call: Call, size: tuple[int, int], given: argparse.Namespace) -> str:
    """All ways in one process, in turn, after their results were compared; peaks in others."""
    device, dtype = measure.place(given)
    base = measure.random_network(name, dtype).to(device)
    works = {k: prepare(name, way, base, call, size) for k, way in ways(name, given).items()}
    results = {label: work().clone() for label, work in works.items()}
    far = measure.check_equal(results, measure.tolerance(dtype))
    memory.choose_attention([base], "plain")  # kernels are not counted
    amount = measure.flops(torch.no_grad()(call(base, "minisd", *size)))
    rate = measure.matrix_rate(device, dtype, given.clock)
    times = measure.in_turn(works, given.repeats, given.clock, device)
    del base, works, results  # the children need the memory
    rows = []
    for label, seconds in times.items():
        middle = statistics.median(seconds)
        ratio = statistics.median(times["diffusers"]) / middle
        peak = in_child(given, label, size)["peak"] / 1e9
        cells = [f"{ratio:.2f}", f"{amount / middle / rate:.0%}", f"{peak:.2f} GB"]
        rows.append([label, measure.spread(seconds), *cells, f"{far[label]:.0e}"])
    about = f"{amount / 1e12:.3f} TFLOP; the matrix rate is {rate / 1e12:.3f} TFLOP/s."
    return f"{about}\n\n{measure.table(COLUMNS, rows)}"


def scale(name: str, sizes: Sequence[tuple[int, int]], given: argparse.Namespace) -> str:
    """Time and memory against the size and the batch, each in a process of its own, once warm."""
    rows, chosen = [], ways(name, given)
    first: dict[str, float] = {}
    for batch, side in sizes:
        for label in (label for label, way in chosen.items() if not way.channels_last):
            found = in_child(given, label, (batch, side))
            first.setdefault(label, found["seconds"])
            cells = [f"{found['seconds']:.2f}", f"{found['seconds'] / first[label]:.1f}"]
            rows.append(
                [f"{batch}", f"{side} x {side}", label, *cells, f"{found['peak'] / 1e9:.2f}"]
            )
    columns = ["batch", "pixels", "", "seconds", "times the first", "GB above the weights"]
    return measure.table(columns, rows)


def main(name: str, call: Call, about: str, batch: int, scaled: Sequence[tuple[int, int]]) -> None:
    """The command line of a benchmark of one network."""
    parser = measure.options(about, repeats=5)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--scale", action="store_true", help="against sizes and batches instead")
    parser.add_argument("--tiling", action="store_true", help="decode in tiles of 512")
    given = measure.parse(parser)
    if given.child:
        return print(json.dumps(once(name, call, given)))
    print(measure.machine(measure.place(given)[0]), "\n", flush=True)
    if given.scale:
        return print(scale(name, scaled, given))
    print(compare(name, call, (given.batch, given.side), given))
