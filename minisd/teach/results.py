"""Results of training that come with the course, so that a chapter does not have to wait."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from minisd.checkpoint import replacing


def train_or_load(path: Path | str, train: Callable[[], Any], retrain: bool = False) -> Any:
    """What `train()` returns: loaded from `path` if it is there, else made now and written to it.

    Prints which. The result is of tensors, numbers, strings, lists and dictionaries: give a model
    as its state_dict(). Raises ValueError for a file that holds something else.
    """
    path = Path(path)
    if path.exists() and not retrain:
        try:
            result = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises whatever its unpickler meets
            raise ValueError(
                f"{path} cannot be read ({type(error).__name__}: {error}); train anew with "
                "retrain=True"
            ) from error
        print(f"loaded {path.name}, trained before; retrain=True trains it here")
        return result
    began = time.perf_counter()
    result = train()
    seconds = time.perf_counter() - began
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            torch.save(result, part)
        note = f"written to {path.name}"
    except OSError as error:
        note = f"not kept: {error.strerror} ({path})"
    print(f"trained in {seconds:.0f} s, {note}")
    return result
