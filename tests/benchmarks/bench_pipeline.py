"""A whole picture of the shipped model, warm: ours and diffusers' with the same exported weights.

`python tests/benchmarks/bench_pipeline.py [--steps 30] [--compile] [--device cuda]` draws with each
in turn, in one process, after the pictures were compared: guided DDIM, one picture. `--compile`
adds torch.compile for both; `--scale` shows ours against steps and batch instead. Prints the
machine in words and one markdown table.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import measure
import torch
from torch import Tensor

import weights_convert
from minisd import DDIMScheduler, StableDiffusionPipeline

PLAIN = ("minisd", "minisd, compile()", "diffusers", "diffusers, channels-last")
COMPILED = ('minisd, compile("inductor")', "diffusers, torch.compile")
PROMPT = "a red boat at sunset"
Draw = Callable[..., Tensor]


def ours(label: str, device: torch.device, dtype: torch.dtype) -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline.from_pretrained(torch_dtype=dtype).to(device)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    if "compile" in label:
        pipe.compile("inductor" if "inductor" in label else "auto")
    return pipe


def theirs(label: str, device: torch.device, dtype: torch.dtype):
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        weights_convert.save(ours("", device, dtype), Path(folder) / "model", "diffusers")
        kind = diffusers.StableDiffusionPipeline
        pipe = kind.from_pretrained(Path(folder) / "model", dtype=dtype, safety_checker=None).to(
            device
        )
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    if label != "diffusers":
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if "compile" in label:
        mode = "reduce-overhead" if device.type == "cuda" else None
        pipe.unet.compile(mode=mode)
        pipe.vae.decoder.compile(mode=mode)
    return pipe


def drawing(label: str, device: torch.device, dtype: torch.dtype) -> Draw:
    """draw(steps, batch) -> (b, 3, h, w) in [0, 1]."""
    pipe = (theirs if label.startswith("diffusers") else ours)(label, device, dtype)
    pipe.set_progress_bar_config(disable=True)
    side = StableDiffusionPipeline.from_pretrained().defaults.height

    def draw(steps: int, batch: int) -> Tensor:
        return pipe(
            PROMPT, num_inference_steps=steps, guidance_scale=4.0, num_images_per_prompt=batch,
            height=side, width=side, generator=torch.Generator().manual_seed(0), output_type="pt",
        ).images  # fmt: skip

    return draw


def once(given: argparse.Namespace) -> dict[str, float]:
    """In a process of its own: the peak of a picture above the weights, and a later one's time."""
    label, steps, batch = given.child
    device, dtype = measure.place(given)
    draw = drawing(label, device, dtype)
    work = {"": lambda: draw(int(steps), int(batch))}
    if label in COMPILED:
        work[""]()  # compiling takes memory of its own
    peak = measure.above_weights(work[""], device)
    seconds = measure.in_turn(work, given.repeats, given.clock, device)[""]
    return {"seconds": statistics.median(seconds), "peak": peak}


def in_child(given: argparse.Namespace, label: str, steps: int, batch: int) -> dict[str, float]:
    dtype = str(measure.place(given)[1]).removeprefix("torch.")
    flags = ["--device", given.device, "--dtype", dtype, "--clock", given.clock, "--repeats", "3"]
    flags += ["--reuse-memory"] * given.reuse_memory
    return measure.in_child(__file__, label, str(steps), str(batch), *flags)


def compare(given: argparse.Namespace) -> str:
    device, dtype = measure.place(given)
    labels = PLAIN + (COMPILED if given.compile else ())
    draws = {label: drawing(label, device, dtype) for label in labels}
    works = {label: lambda draw=draw: draw(given.steps, 1) for label, draw in draws.items()}
    pictures = {label: work() for label, work in works.items()}
    far = measure.check_equal(pictures, 1e-3 if dtype == torch.float32 else 0.2)
    for work in works.values():  # what is done once, such as CUDA graphs, is done
        work()
    times = measure.in_turn(works, given.repeats, given.clock, device)
    middle = {label: statistics.median(seconds) for label, seconds in times.items()}
    rows = [
        [
            label, measure.spread(times[label], 3), f"{middle['diffusers'] / middle[label]:.2f}",
            f"{in_child(given, label, given.steps, 1)['peak'] / 1e6:.0f} MB", f"{far[label]:.0e}",
        ]
        for label in labels
    ]  # fmt: skip
    columns = ["", "seconds", "times as fast as diffusers", "peak above the weights", "differs by"]
    return measure.table(columns, rows)


def scale(given: argparse.Namespace) -> str:
    rows = []
    for steps, batch in ((1, 1), (10, 1), (30, 1), (50, 1), (30, 2), (30, 4), (30, 8)):
        for label in ("minisd", "diffusers"):
            found = in_child(given, label, steps, batch)
            cells = [f"{found['seconds']:.2f}", f"{found['seconds'] / batch:.2f}"]
            cells.append(f"{found['peak'] / 1e6:.0f}")
            rows.append([str(steps), str(batch), label, *cells])
    columns = ["steps", "pictures", "", "seconds", "a picture", "MB above the weights"]
    return measure.table(columns, rows)


def main() -> None:
    parser = measure.options(__doc__, repeats=9)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--scale", action="store_true", help="against steps and batch instead")
    given = measure.parse(parser)
    if given.child:
        return print(json.dumps(once(given)))
    print(measure.machine(measure.place(given)[0]), "\n", flush=True)
    print(scale(given) if given.scale else compare(given))


if __name__ == "__main__":
    main()
