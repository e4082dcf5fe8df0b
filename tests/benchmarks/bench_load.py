"""Loading a full-size half-precision model: peak memory and time, ours and the reference's.

`python tests/benchmarks/bench_load.py [--repeats 5] [--dtypes float16 float32] [--folder DIR]`
writes Stable Diffusion 1.5 with random weights once, then opens it again and again, each time in a
fresh process, ours and the reference's in turn. Prints one markdown table: the median, and the
lowest and highest. --folder keeps the model for the next time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WHO = ("minisd", "diffusers")
LAYOUTS = {"diffusers": "model", "single-file": "model.safetensors"}


def memory(line: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most so far."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(row.split()[1] for row in text.splitlines() if row.startswith(line)))


def write_model(folder: Path) -> None:
    """Stable Diffusion 1.5 with random weights, in both layouts."""
    import torch

    import weights_convert
    from minisd import DDIMScheduler, StableDiffusionPipeline
    from minisd.checkpoint import NETWORKS, build
    from minisd.config import SD15
    from minisd.tokenizer import END, END_OF_WORD, START, Tokenizer, byte_symbols

    generator, parts = torch.Generator().manual_seed(0), {}
    for name, (kind, _) in NETWORKS.items():
        parts[name] = build(kind, getattr(SD15, name)).half().to_empty(device="cpu")
        for value in parts[name].parameters():
            value.data.normal_(0, 0.02, generator=generator)
    symbols = byte_symbols()
    pieces = symbols + [symbol + END_OF_WORD for symbol in symbols] + [START, END]
    tokenizer = Tokenizer.from_tables({piece: i for i, piece in enumerate(pieces)}, [])
    pipe = StableDiffusionPipeline(tokenizer, scheduler=DDIMScheduler(), **parts)
    for layout, name in LAYOUTS.items():
        try:
            weights_convert.save(pipe, folder / name, layout)
        except ValueError as error:
            print(f"not measured: {layout}: {error}", file=sys.stderr)


def open_once(who: str, layout: str, folder: Path, dtype_name: str) -> dict[str, float]:
    """Seconds until the pipeline is there and until every weight was read; bytes at the peak."""
    import torch

    dtype, path = getattr(torch, dtype_name), folder / LAYOUTS[layout]
    if who == "minisd":
        import weights_convert

        tokenizer = None if path.is_dir() else folder / "model"
        arguments = {"torch_dtype": dtype, "tokenizer": tokenizer}
        opener = weights_convert.open
    else:
        import diffusers

        diffusers.utils.logging.disable_progress_bar()
        arguments = {"torch_dtype": dtype, "safety_checker": None}
        kind = diffusers.StableDiffusionPipeline
        opener = kind.from_pretrained if path.is_dir() else kind.from_single_file
        if not path.is_dir():
            arguments["config"] = str(folder / "model")
    base, start = memory("VmRSS"), time.perf_counter()
    pipe = opener(path, **arguments)
    opened = time.perf_counter() - start
    networks = (pipe.text_encoder, pipe.unet, pipe.vae)
    weights = [value for network in networks for value in network.parameters()]
    for value in weights:
        value.flatten()[:: 2048 if value.dtype == torch.float16 else 1024].sum()  # every page
    ready = time.perf_counter() - start
    size = sum(value.numel() * value.element_size() for value in weights)
    return {"opened": opened, "ready": ready, "peak": memory("VmHWM") - base, "weights": size}


def measure(folder: Path, layout: str, dtype: str, repeats: int) -> dict[str, list[dict]]:
    """The figures of each of ours and theirs, taken in turn; a first pair warms the cache up."""
    runs: dict[str, list[dict]] = {who: [] for who in WHO}
    for i in range(repeats + 1):
        for who in WHO if i % 2 else WHO[::-1]:
            command = [sys.executable, __file__, "--child", who, layout, dtype, "--folder", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            if i > 0:
                runs[who].append(json.loads(done.stdout.splitlines()[-1]))
    return runs


def spread(values: list[float], digits: int = 2) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(folder: Path, dtypes: list[str], repeats: int) -> str:
    lines = [
        "| files | dtype | | opened, s | every weight read, s | peak memory / weights |",
        "|---|---|---|---|---|---|",
    ]
    for layout, name in LAYOUTS.items():
        if not (folder / name).exists():
            continue
        for dtype in dtypes:
            for who, runs in measure(folder, layout, dtype, repeats).items():
                ratios = [run["peak"] / run["weights"] for run in runs]
                times = [spread([run[key] for run in runs]) for key in ("opened", "ready")]
                cells = [layout, f"float16 to {dtype}", who, *times, spread(ratios)]
                lines.append(f"| {' | '.join(cells)} |")
                print(lines[-1], file=sys.stderr)
    return "\n".join(lines)


def main() -> None:
    about = argparse.ArgumentParser(description=__doc__)
    about.add_argument("--repeats", type=int, default=5)
    about.add_argument("--dtypes", nargs="*", default=["float16", "float32"])
    about.add_argument("--folder", type=Path)
    about.add_argument("--child", nargs="*", help=argparse.SUPPRESS)
    given = about.parse_args()
    if given.child == ["write"]:
        return write_model(given.folder)
    if given.child:
        return print(json.dumps(open_once(*given.child[:2], given.folder, *given.child[2:])))
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if not (folder / "model").is_dir():
            command = [sys.executable, __file__, "--child", "write", "--folder", folder]
            subprocess.run(command, check=True)
        print(table(folder, given.dtypes, given.repeats))


if __name__ == "__main__":
    main()
