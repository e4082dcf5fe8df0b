"""What each memory switch saves at Stable Diffusion 1.5's size, with random weights, on the CPU.

`python tests/benchmarks/bench_memory.py [--only WORDS] [--keep]` does each piece of work in a fresh
process, first as it is, then with a switch. Prints one markdown table; --keep also writes it into
RESULTS.md beside this file. The peak, above the loaded weights, is given twice: the tensors alive
at once, worked out from their sizes (--no-runs: that alone, in a minute), and the main memory that
the process really took, which counts the kernels' own buffers too. Times are of the processor, all
threads together, which other programs disturb less than the clock's.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from measure import deviation, random_network
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minisd import memory
from minisd.checkpoint import NETWORKS
from minisd.config import SD15

RESULTS = Path(__file__).with_name("RESULTS.md")
TITLE = "Memory switches"


def nothing(network: torch.nn.Module) -> None:
    pass


def formula(network: torch.nn.Module) -> None:
    memory.choose_attention([network], "plain")


def efficient(network: torch.nn.Module) -> None:
    memory.choose_attention([network], "efficient")


def half_the_heads(network: torch.nn.Module) -> None:
    memory.slice_attention(network, "auto")


def one_head(network: torch.nn.Module) -> None:
    memory.slice_attention(network, "max")


def slicing(network: torch.nn.Module) -> None:
    network.enable_slicing()


def tiling(network: torch.nn.Module) -> None:
    network.enable_tiling(512)


class Alive(TorchDispatchMode):
    """Counts, while tensors without data are worked on, the bytes that they would have at once."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.weights = {self.key(value): value for value in network.parameters()}
        self.live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.highest = 0

    @staticmethod
    def key(value: torch.Tensor) -> int:
        return StorageWeakRef(value.untyped_storage()).cdata

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor) and self.key(value) not in self.weights:
                storage = value.untyped_storage()
                self.live[self.key(value)] = StorageWeakRef(storage), storage.nbytes()
        self.live = {key: held for key, held in self.live.items() if not held[0].expired()}
        self.highest = max(self.highest, sum(size for _, size in self.live.values()))
        return out


class Case(NamedTuple):
    """`work`: "unet", "decode" or "encode"; `switches`: the plain path first."""

    work: str
    batch: int
    side: int  # pixels
    dtype: str
    switches: dict[str, Callable[[torch.nn.Module], None]]


ATTENTION = {
    "the formula": formula, 'attention slicing, "auto"': half_the_heads,
    'attention slicing, "max"': one_head, "blocks (the default in bfloat16)": nothing,
    "PyTorch's kernel": efficient,
}  # fmt: skip
CASES = {
    "one guided UNet call": Case("unet", 2, 512, "bfloat16", ATTENTION),
    "decode 4": Case("decode", 4, 512, "bfloat16", {"all at once": nothing, "slicing": slicing}),
    "decode": Case("decode", 1, 1024, "bfloat16", {"whole": nothing, "tiling": tiling}),
    "encode": Case("encode", 1, 1024, "bfloat16", {"whole": nothing, "tiling": tiling}),
    "decode 4 (fp32)": Case(
        "decode", 4, 512, "float32", {"all at once": nothing, "slicing": slicing}
    ),
    "decode (fp32)": Case("decode", 1, 1024, "float32", {"whole": nothing, "tiling": tiling}),
}


def inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents or pictures (b, c, h, w), and a text (b, 77, 768) for the UNet."""
    dtype, generator = getattr(torch, case.dtype), torch.Generator().manual_seed(1)
    channels, cells = (3, case.side) if case.work == "encode" else (4, case.side // 8)
    x = torch.randn(case.batch, channels, cells, cells, generator=generator)
    return x.to(dtype), torch.randn(case.batch, 77, 768, generator=generator).to(dtype)


@torch.no_grad()
def work(case: Case, network: torch.nn.Module, x: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    if case.work == "unet":
        return network(x, 500.0, text)
    return network.decode(x) if case.work == "decode" else network.encode(x).mean


def alive(case: Case, switch: str) -> int:
    """Bytes of all tensors but the weights at once, without working anything out."""
    kind = "unet" if case.work == "unet" else "vae"
    with FakeTensorMode():
        torch.set_default_dtype(getattr(torch, case.dtype))
        network = NETWORKS[kind][0](getattr(SD15, kind)).requires_grad_(False)
        torch.set_default_dtype(torch.float32)
        case.switches[switch](network)
        x, text = inputs(case)
        with Alive(network) as count:
            work(case, network, x, text)
    return count.highest


def work_once(case: Case, switch: str, out: Path) -> dict[str, float]:
    """Bytes above the weights and processor seconds of one piece of work; its result to `out`."""
    dtype = getattr(torch, case.dtype)
    network = random_network("unet" if case.work == "unet" else "vae", dtype)
    case.switches[switch](network)
    x, text = inputs(case)
    begin = time.process_time()
    with memory.measure_peak() as peak:
        result = work(case, network, x, text)
    seconds = time.process_time() - begin
    torch.save(result.float()[..., ::4, ::4].clone(), out)
    return {"peak": peak.above, "seconds": seconds}


def rows(name: str, case: Case, folder: Path, runs: bool) -> list[str]:
    lines, plain, first = [], None, 0
    for i, switch in enumerate(case.switches):
        what = f"{name.split(' (')[0]} {case.side} x {case.side}, {case.dtype}" if i == 0 else ""
        computed = alive(case, switch)
        first = first or computed
        cells = [what, switch, f"{computed / 1e9:.2f} GB, {computed / first:.0%}"]
        if runs:
            out = folder / f"{i}.pt"
            command = [sys.executable, __file__, "--child", name, switch, str(out)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            figures = json.loads(done.stdout.splitlines()[-1])
            result = torch.load(out)
            plain = plain or (figures, result)
            share = f"{figures['peak'] / plain[0]['peak']:.0%}"
            ratio = f"{figures['seconds'] / plain[0]['seconds']:.2f}"
            differs = f"{deviation(result, plain[1]):.1e}" if i else ""
            cells += [f"{figures['peak'] / 1e9:.2f} GB, {share}", ratio, differs]
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def table(words: list[str], runs: bool) -> str:
    columns = ["work", "switch", "tensors above the weights"]
    columns += ["main memory above the weights", "its time", "differs by"] if runs else []
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            if all(word in name for word in words):
                lines += rows(name, case, Path(folder), runs)
    return "\n".join(lines)


def keep(section: str) -> None:
    """Write the section into RESULTS.md, in place of one of the same day."""
    text = RESULTS.read_text(encoding="utf8") if RESULTS.exists() else "# Measured\n"
    heading = section.splitlines()[0]
    before, _, after = text.partition(f"{heading}\n")
    _, mark, rest = after.partition("\n## ")
    part = RESULTS.with_suffix(f".{os.getpid()}.part")
    part.write_text(f"{before.rstrip()}\n\n{section.rstrip()}\n{mark}{rest}", encoding="utf8")
    part.replace(RESULTS)


def main() -> None:
    about = argparse.ArgumentParser(description=__doc__)
    about.add_argument("--only", nargs="*", default=[], help="words of the work's name")
    about.add_argument("--no-runs", action="store_true", help="only what is worked out")
    about.add_argument("--keep", action="store_true")
    about.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = about.parse_args()
    if given.child:
        name, switch, out = given.child
        return print(json.dumps(work_once(CASES[name], switch, Path(out))))
    shown = table(given.only, not given.no_runs)
    print(shown)
    if given.keep:
        note = (
            f"PyTorch {torch.__version__}, {torch.get_num_threads()} thread(s). The times are "
            "processor time over the first line's, once. The last column is the root mean squared "
            "difference from the first line's result over its spread."
        )
        keep(f"## {datetime.date.today()}: {TITLE}\n\n{note}\n\n{shown}\n")


if __name__ == "__main__":
    main()
