"""Pickles (.ckpt, .pt, .bin) read without running anything that is in them.

PyTorch's restricted reader makes tensors and plain containers, and refuses the rest. Checkpoints
of training programs carry more: callbacks, numpy scalars. Here each of those becomes an empty
stand-in, so that the tensors beside it come out whole.
"""

import logging
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

logger = logging.getLogger(__name__)
LONGEST = 1 << 26  # bytes that a pickle without its tensors may have; official ones have 1 million


class StandIn:
    """In place of an object that is no tensor: takes anything, does nothing."""

    def __init__(self, *_arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class StandInDict:
    """The same for dictionaries of other kinds, into which PyTorch's reader puts no items."""

    def __new__(cls, *_arguments: Any) -> OrderedDict:
        return OrderedDict()


def load_pickle(path: Path | str) -> Any:
    """What torch.save wrote, its tensors memory-mapped; every object of another kind a StandIn.

    The older format, which is no zip archive, is read whole, and without stand-ins. Raises
    ValueError for a file that is damaged, asks for what no weights need, or claims more numbers
    than it holds.
    """
    try:
        zipped = zipfile.is_zipfile(path)
        check_program(path, zipped)
        foreign = get_unsafe_globals_in_checkpoint(path) if zipped else []
        if foreign:
            logger.info("%s: stand-ins take the place of %s", path, ", ".join(sorted(foreign)))
        kinds = [StandInDict if n.lower().endswith("dict") else StandIn for n in foreign]
        with safe_globals(list(zip(kinds, foreign))):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged pickle raises errors of every kind
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().split("\n")[0]
        reason = reason or type(error).__name__
        raise ValueError(f"{path} is damaged or no weights file: {reason}") from error


def check_program(path: Path | str, zipped: bool) -> None:
    """Raises ValueError if the pickle, a small program, would fill the memory by itself.

    PyTorch's reader lets it make a bytearray of any length; an archive may unpack to any length.
    """
    if zipped:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{entry.filename} in it is compressed, which weights are not")
            (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
            with archive.open(name) as file:
                program = file.read(LONGEST)
    else:
        with Path(path).open("rb") as file:
            program = file.read(LONGEST)
    if b"bytearray" in program:
        raise ValueError("it asks for a bytearray, which weights have no use for")
