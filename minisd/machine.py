"""What this machine has. PyTorch is only imported where it is asked about."""

import json
import os
import re
from importlib import metadata, resources
from pathlib import Path

TORCH_OLDEST, TORCH_BEFORE = (2, 6), (2, 14)  # pyproject.toml's range: the versions tested
REINSTALL = "in the folder of the course, run: pip install -r requirements.txt"


def version_tuple(version: str) -> tuple[int, ...]:
    """ "2.13.0+cpu" -> (2, 13, 0)."""
    return tuple(int(n) for n in re.findall(r"\d+", version.split("+")[0])[:3])


def torch_advice(version: str) -> str:
    """What to do about this version of PyTorch; "" if it is one of those tested."""
    tested = f"{_dotted(TORCH_OLDEST)} to before {_dotted(TORCH_BEFORE)}"
    if version_tuple(version) < TORCH_OLDEST:
        return f"PyTorch {version} is too old, tested are {tested}; {REINSTALL}"
    if version_tuple(version) >= TORCH_BEFORE:
        return f"PyTorch {version} is newer than those tested ({tested}); it may well work"
    return ""


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def shipped_weights() -> Path:
    """The folder of the picture-book model, whether or not it is there."""
    return Path(str(resources.files("minisd").joinpath("picturebook/weights")))


def weights_note(source: Path | str | None = None) -> tuple[str, str]:
    """A model in a few words, with its hash where the folder says it, and advice if it is missing.

    None is the shipped model. Nothing is loaded.
    """
    folder = shipped_weights() if source is None else Path(source)
    try:
        about = json.loads((folder / "pipeline.json").read_text(encoding="utf8"))
        return f"model {about['family']} {about['hash']}", ""
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if source is not None:
        missing = "" if folder.exists() else f"{source} is not on this machine; check the path"
        return f"model {folder.name}", missing
    # The folder as it is called in the repository: a notebook prints nobody's own folders.
    return "no model", f"the shipped model is missing from minisd/picturebook/weights; {REINSTALL}"


def cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_bfloat16(device: str) -> bool:
    """Whether this kind of device computes in bfloat16 here: "cpu", "cuda" or "mps".

    Where it does not, PyTorch emulates it, on a CPU many times as slow as float32.
    """
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    library = torch.backends.mkldnn.is_available() and device == "cpu"
    return library and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def memory_gib() -> tuple[float | None, float | None]:
    """Main memory in GiB, all and free for use; None where the system does not say."""
    total = free = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    table = Path("/proc/meminfo")
    if table.is_file():
        found = re.search(r"MemAvailable:\s+(\d+) kB", table.read_text(encoding="ascii"))
        free = int(found[1]) / 2**20 if found else None
    return total, free


def requirements() -> list[str]:
    """minisd's own direct requirements, as "torch>=2.6,<2.14"; none if it is not installed."""
    try:
        listed = metadata.requires("minisd") or []
    except metadata.PackageNotFoundError:
        return []
    return [line for line in listed if ";" not in line]


def package_problem(requirement: str) -> str:
    """What is wrong with an installed package; "" if it fits "name>=a,<b"."""
    name, bounds = re.match(r"([\w.-]+)(.*)", requirement).groups()
    try:
        have = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed"
    for operator, bound in re.findall(r"(>=|<)([\d.]+)", bounds):
        if (version_tuple(have) >= version_tuple(bound)) != (operator == ">="):
            return f"{name} is {have}, expected {bounds}"
    return ""
