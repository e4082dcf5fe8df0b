"""What the benchmarks share: the models, the clock, the machine in words, the table."""

import argparse
import datetime
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from minisd.checkpoint import NETWORKS, build
from minisd.config import SD15
from minisd.memory import DTYPES, measure_peak, pick_device, reuse_memory

Work = Callable[[], Tensor]
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def random_network(name: str, dtype: torch.dtype, config: Any = None) -> nn.Module:
    """Weights of variance 1 / fan-in, norms around 1; one block of noise repeated, to be quick."""
    config = getattr(SD15, name) if config is None else config
    network = build(NETWORKS[name][0], config).to(dtype).to_empty(device="cpu")
    noise = torch.randn(2**16 + 1, generator=torch.Generator().manual_seed(0))
    for path, value in network.named_parameters():
        spread = 0.1 if value.ndim == 1 else value[0].numel() ** -0.5
        block = (spread * noise + float("norm" in path and path.endswith("weight"))).to(dtype)
        flat, n = value.data.view(-1), len(noise)
        whole = flat[: len(flat) // n * n]
        whole.view(-1, n).copy_(block.expand(len(whole) // n, n))
        flat[len(whole) :] = block[: len(flat) - len(whole)]
    return network.requires_grad_(False).eval()


def reference(name: str, network: nn.Module) -> nn.Module:
    """The same "unet" or "vae" as diffusers has it; the weights are those of `network`, shared."""
    import diffusers

    from weights_convert import diffusers_config, names

    kind = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[name]
    config = getattr(diffusers_config, f"write_{name}")(network.config, 64)
    with torch.device("meta"):
        theirs = kind.from_config(config)
    modules = names.table(name, network.config, names.OURS, names.DIFFUSERS)
    state = {names.rename(key, modules): value for key, value in network.state_dict().items()}
    theirs.load_state_dict(state, assign=True)
    return theirs.requires_grad_(False).eval()


def normal(*shape: int, seed: int = 0, like: nn.Module | None = None) -> Tensor:
    """Standard normal numbers, where and in the precision that `like` has."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x if like is None else x.to(next(like.parameters()))


def finish(device: torch.device) -> None:
    """Wait for what a GPU was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turn(
    works: Mapping[str, Callable[[], Any]], repeats: int, clock: str, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each, one after the other, `repeats` times; forwards and backwards in turn."""
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in works}
    for i in range(repeats):
        for name in list(works) if i % 2 == 0 else list(works)[::-1]:
            finish(device)
            begin = now()
            works[name]()
            finish(device)
            times[name].append(now() - begin)
    return times


def flops(work: Callable[[], Any]) -> int:
    """Additions and multiplications of all matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@torch.no_grad()
def matrix_rate(device: torch.device, dtype: torch.dtype, clock: str = "wall") -> float:
    """FLOP/s of this machine's best product of two square matrices, of a few sizes.

    As a product and as a convolution of single pixels: they are two libraries' work on a CPU.
    """
    rates = []
    for n in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        a = torch.randn(n, n, device=device, dtype=dtype)
        pixels = a.view(1, n, n, 1).to(memory_format=torch.channels_last)
        works = {
            "product": lambda a=a: a @ a,
            "convolution": lambda a=a, x=pixels: F.conv2d(x, a[..., None, None]),
        }
        times = in_turn(works, 8, clock, device)
        rates += [2 * n**3 / min(seconds) for seconds in times.values()]
    return max(rates)


def deviation(a: Tensor, b: Tensor) -> float:
    """Root of the mean squared difference over the spread."""
    a, b = a.float().cpu(), b.float().cpu()
    return ((a - b).square().mean().sqrt() / b.std()).item()


def check_equal(results: Mapping[str, Tensor], tolerance: float) -> dict[str, float]:
    """How far each is from the first. Raises ValueError where that is beyond the tolerance."""
    first = next(iter(results.values()))
    far = {name: deviation(result, first) for name, result in results.items()}
    if worst := [name for name, value in far.items() if not value <= tolerance]:
        raise ValueError(f"{worst} differ by {far}, expected at most {tolerance}")
    return far


def tolerance(dtype: torch.dtype) -> float:
    """Rounding in another order, through some hundred layers."""
    return {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and in brackets the lowest and the highest."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(device: torch.device) -> str:
    """The date, the versions and the machine, in a line for RESULTS.md."""
    packages = ("torch", "diffusers", "transformers")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    cpu = platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf8")
        cpu = re.search(r"model name\s*: (.*)", text)[1]
        extras = [name for name in ("avx512f", "avx512_bf16", "amx_bf16") if f" {name}" in text]
        cpu = f"{cpu} ({', '.join(extras) or 'neither AVX-512 nor AMX'})"
    except (OSError, TypeError):
        pass
    where = f"{cpu}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)} (CUDA {torch.version.cuda}); {where}"
    day = datetime.date.today()
    return f"{day}; {where}; Python {platform.python_version()}, {versions}."


def above_weights(work: Work, device: torch.device) -> int:
    """Bytes at the peak of one piece of work, above what was there when it began."""
    with measure_peak(device) as peak:
        work()
        finish(device)
    return peak.above


def in_child(script: str, *arguments: str) -> Any:
    """What a fresh process of this script says in its last line, as JSON; its own words else."""
    command = [sys.executable, script, "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def options(about: str, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark of time has."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="float32; on CUDA float16")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--compile", action="store_true", help="compiled too; a minute or more")
    parser.add_argument(
        "--clock", choices=sorted(CLOCKS), default="wall",
        help="processor: of all threads together, where other programs disturb",
    )  # fmt: skip
    parser.add_argument("--reuse-memory", action="store_true", help="as minisd's command line does")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options given; what holds for the whole process is done."""
    given = parser.parse_args()
    if given.reuse_memory:
        reuse_memory()
    return given


def place(given: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """The device and dtype asked for; without CUDA, a line that says so, and the end."""
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("not measured: PyTorch finds no CUDA here")
    device = pick_device(given.device)
    name = given.dtype or ("float16" if device.type == "cuda" else "float32")
    return device, DTYPES[name]
