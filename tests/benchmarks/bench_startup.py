"""From a cold process: imports, and `python -m minisd "..."` up to its picture.

`python tests/benchmarks/bench_startup.py [--repeats 5]` starts fresh processes in turn. Prints the
machine in words and one markdown table: seconds from the start of the process, as the clock has it.
"""

import argparse
import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
import torch

IMPORTS = {
    "python alone": "pass",
    "import torch": "import torch",
    "import minisd": "import torch, minisd",
    "minisd's pipeline": "from minisd import StableDiffusionPipeline",
    "diffusers' pipeline": "from diffusers import StableDiffusionPipeline",
}


def seconds_of(code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return time.perf_counter() - begin


def draw(steps: int) -> dict[str, float]:
    """When the command line first says something, shows its bar, has a step done, and is over."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "minisd", "a red boat at sunset", "--seed", "0"]
        command += ["--steps", str(steps), "-o", str(Path(folder) / "boat.png")]
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        reading, heard, found = selectors.DefaultSelector(), b"", {}
        for stream in (process.stdout, process.stderr):
            reading.register(stream, selectors.EVENT_READ)
        while reading.get_map():
            for key, _ in reading.select():
                if not (piece := os.read(key.fd, 4096)):
                    reading.unregister(key.fileobj)
                    continue
                heard += piece
                now = time.perf_counter() - begin
                found.setdefault("first line", now)
                if b"denoising" in heard:
                    found.setdefault("progress bar", now)
                if f"| {steps - 1}/".encode() in heard or f"| {steps}/".encode() in heard:
                    found.setdefault("last steps", now)
        if process.wait():
            raise RuntimeError(heard.decode())
        return found | {"picture written": time.perf_counter() - begin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    times: dict[str, list[float]] = {}
    for i in range(given.repeats + 1):  # the first warms the system's cache of files
        found = {name: seconds_of(code) for name, code in IMPORTS.items()}
        found |= {f"command line: {name}": s for name, s in draw(given.steps).items()}
        for name, seconds in found.items() if i else ():
            times.setdefault(name, []).append(seconds)
    torch_alone = sorted(times["import torch"])[len(times["import torch"]) // 2]
    rows = [
        [name, measure.spread(seconds), f"{sorted(seconds)[len(seconds) // 2] - torch_alone:+.2f}"]
        for name, seconds in times.items()
    ]
    print(measure.machine(torch.device("cpu")), "\n", flush=True)
    print(measure.table(["", "seconds", "beyond import torch"], rows))


if __name__ == "__main__":
    main()
