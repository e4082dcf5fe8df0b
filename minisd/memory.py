"""Where the model runs and in which precision."""

import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(name: str = "auto") -> torch.device:
    """The device of this name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises ValueError if there is no such device on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next((kind for kind, here in available.items() if here), "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown; try auto, cpu, cuda or mps") from error
    if not available.get(device.type, True):
        raise ValueError(f"device {name!r} was asked for, but PyTorch finds none here; try cpu")
    return device


def pick_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The precision of this name; None takes half precision on CUDA and float32 elsewhere.

    Raises ValueError for float16 on a CPU, which is slower there than float32, and inexact.
    """
    if name is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown, expected one of {sorted(DTYPES)}")
    if name == "float16" and device.type == "cpu":
        raise ValueError("float16 on the CPU is slow and inexact; use float32 or bfloat16")
    return DTYPES[name]
