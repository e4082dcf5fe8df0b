"""What this machine has and lacks for the course: `python -m minisd.doctor`.

The exit code is 0 if the course can run, 1 if something is missing.
"""

import importlib.util
import platform
import sys
from pathlib import Path
from typing import NamedTuple

from minisd import __version__, machine

OLDEST_PYTHON = (3, 11)
LEAST_MEMORY = 2.0  # GiB; the chapters stay under it with the shipped model
OPTIONAL = {
    "jupyter": "opens the notebooks: pip install jupyter",
    "nbconvert": "turns notebooks into pages; comes with jupyter",
    "math_core": 'writes the formulas of those pages: pip install "math-core>=0.9,<0.10"',
    "pytest": "runs the tests: pip install pytest",
    "huggingface_hub": "fetches official weights by their hub id",
}


class Line(NamedTuple):
    """One finding. `kind`: "ok", "note" (the course runs without) or "lacks"."""

    kind: str
    text: str
    advice: str = ""


def python_line() -> Line:
    here = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        return Line("lacks", f"Python {here}", "the course needs Python 3.11 or later")
    return Line("ok", f"Python {here} on {platform.system()} {platform.machine()}")


def torch_lines() -> list[Line]:
    """PyTorch, the device that it would use, and its threads."""
    if importlib.util.find_spec("torch") is None:
        return [Line("lacks", "PyTorch is not installed", machine.REINSTALL)]
    import torch

    advice = machine.torch_advice(torch.__version__)
    kind = "lacks" if machine.version_tuple(torch.__version__) < machine.TORCH_OLDEST else "note"
    lines = [Line(kind if advice else "ok", f"PyTorch {torch.__version__}", advice)]
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        lines.append(Line("ok", f"device: CUDA, {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"))
    elif torch.backends.mps.is_available():
        lines.append(Line("ok", "device: Apple MPS"))
    else:
        lines.append(Line("ok", "device: CPU; the course needs no GPU"))
    threads = torch.get_num_threads()
    lines.append(Line("ok", f"threads: {threads} of PyTorch on {machine.cores()} core(s)"))
    return lines


def memory_line() -> Line:
    total, free = machine.memory_gib()
    if total is None:
        return Line("note", "memory: this system does not say", "the course needs about 2 GiB")
    text = f"memory: {total:.1f} GiB" + ("" if free is None else f", {free:.1f} GiB free")
    if min(total, free or total) < LEAST_MEMORY:
        return Line("note", text, "close other programs: the chapters need up to 2 GiB")
    return Line("ok", text)


def package_line() -> Line:
    """The packages that minisd cannot do without."""
    wanted = machine.requirements()
    if not wanted:
        return Line("lacks", "minisd is not installed", machine.REINSTALL)
    problems = [problem for line in wanted if (problem := machine.package_problem(line))]
    missing = [problem for problem in problems if "not installed" in problem]
    if not problems:
        return Line("ok", f"packages: all {len(wanted)} required ones, in tested versions")
    return Line(
        "lacks" if missing else "note", "packages: " + "; ".join(problems), machine.REINSTALL
    )


def weights_line(folder: Path | None = None) -> Line:
    """The shipped model: there, complete, and the one that its hash says."""
    text, advice = machine.weights_note(folder)
    if advice or text == "no model":
        return Line("lacks", f"shipped model: {text}", advice or machine.REINSTALL)
    if any("not installed" in machine.package_problem(line) for line in machine.requirements()):
        return Line("note", f"shipped {text}, not read for lack of packages")
    from minisd.checkpoint import read_json
    from minisd.pipeline import StableDiffusionPipeline

    try:
        pipe = StableDiffusionPipeline.from_pretrained(folder)
    except ValueError as error:
        return Line("lacks", f"shipped {text} does not load: {error}", machine.REINSTALL)
    said = read_json((folder or machine.shipped_weights()) / "pipeline.json")["hash"]
    if pipe.hash != said:
        problem = f"shipped {text}: the weights' own hash is {pipe.hash}"
        return Line("lacks", problem, f"the files are damaged or were changed; {machine.REINSTALL}")
    return Line("ok", f"shipped {text}, complete and unchanged")


def optional_lines() -> list[Line]:
    lines = []
    for name, purpose in OPTIONAL.items():
        here = importlib.util.find_spec(name) is not None
        lines.append(
            Line("ok" if here else "note", f"{name}{'' if here else ' is missing'}", purpose)
        )
    return [line if line.kind == "note" else Line("ok", line.text) for line in lines]


def examine() -> list[Line]:
    return [
        python_line(), *torch_lines(), memory_line(), package_line(), weights_line(),
        *optional_lines(),
    ]  # fmt: skip


def report(lines: list[Line]) -> str:
    """The findings as plain lines, and a last one that says whether the course can run."""
    shown = [f"minisd {__version__}"]
    for kind, text, advice in lines:
        shown.append(f"  {kind:<6}{text}" + (f"\n        -> {advice}" if advice else ""))
    lacking = sum(line.kind == "lacks" for line in lines)
    if lacking:
        shown.append(f"The course cannot run yet: {lacking} thing(s) to do, marked `lacks` above.")
    else:
        shown.append("The course can run.")
    return "\n".join(shown)


def main() -> int:
    lines = examine()
    print(report(lines))
    return int(any(line.kind == "lacks" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
