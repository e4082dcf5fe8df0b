"""The tensors of a weights file, whatever it is called; a clear word about what is none."""

import json
import zipfile
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from weights_convert.safe_pickle import load_pickle

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PICKLES = (b"PK\x03\x04", b"\x80")  # an archive with a pickle in it, and the older bare pickle
AGAIN = "fetch the file again"


def read_weights(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by name, metadata) of a .safetensors or a pickle, told apart by their first bytes.

    The tensors are memory-mapped: they take up memory when they are used. Raises ValueError, with
    the reason and what to do, for a file that is not whole or holds something else.
    """
    path = Path(path)
    head = first_bytes(path)
    if is_pickle(head):
        if head.startswith(PICKLES[0]) and not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is cut short: its table of contents is missing; {AGAIN}")
        return tensors_in(load_pickle(path), path), {}
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except Exception as error:  # the library raises errors of several kinds
        size, whole = path.stat().st_size, stated_size(path)
        if whole is not None and size < whole:
            raise ValueError(f"{path} is cut short: {size} of {whole} bytes; {AGAIN}") from error
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is damaged or no weights file: {reason}; {AGAIN}") from error


def first_bytes(path: Path) -> bytes:
    """Raises ValueError if the first bytes show that a download went wrong."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise ValueError(f"{path} is empty; its download failed: {AGAIN}")
    if not any(head):
        raise ValueError(f"{path} is filled with zeros; its download broke off: {AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is a Git LFS pointer, not the file that it stands for; run `git lfs pull`"
        )
    if head.startswith(b"GGUF"):
        raise ValueError(
            f"{path} is a GGUF file, quantised for other programs; {AGAIN} unquantised"
        )
    text = head.decode("utf8", errors="ignore").strip()
    if text.lower().startswith(("<!doctype", "<html", "<head", "<?xml")):
        raise ValueError(
            f"{path} is a web page, not weights; open it in a browser to see what it says (often: "
            f"log in, or agree to a licence), then {AGAIN}"
        )
    if head.isascii() and all(c.isprintable() or c.isspace() for c in text):
        raise ValueError(f"{path} is text, not weights: {text[:80]!r}; {AGAIN}")
    return head


def is_pickle(head: bytes) -> bool:
    """Whether a file that begins so is a pickle, bare or in an archive.

    A .safetensors begins with the length of its header, whose lowest byte may be a pickle's first;
    but then comes the header, in JSON, and no pickle is so short as a length.
    """
    header = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32
    return head.startswith(PICKLES) and not header


def stated_size(path: Path) -> int | None:
    """The bytes that a .safetensors should have by its own header, None if that is damaged too."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return None
        try:
            entries = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for entry in entries.values() if "dtype" in entry]
            return 8 + length + int(max(ends))
        except Exception:  # whatever a damaged header leads to
            return None


def tensors_in(loaded: object, path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, or of the one that a training program wraps as "state_dict".

    Raises ValueError if there are none, or if one claims more numbers than the file holds.
    """
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    items = loaded.items() if isinstance(loaded, dict) else ()
    state = {key: value for key, value in items if isinstance(value, Tensor)}
    if not state or not all(isinstance(key, str) for key in state):
        inside = f"has {[str(key) for key, _ in items][:5]}" if items else type(loaded).__name__
        embedding = isinstance(loaded, dict) and "string_to_param" in loaded
        what = "; it is a textual inversion: open a model, then pipe.load_textual_inversion"
        raise ValueError(f"{path} holds no tensors by name ({inside}){what if embedding else ''}")
    for key, value in state.items():
        strided = value.layout is torch.strided and value.device.type == "cpu"
        if not strided or value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(f"{path} is damaged: {key} claims more numbers than the file holds")
    return state


def cast(tensor: Tensor, dtype: torch.dtype | None, name: str) -> Tensor:
    """In another dtype, None for its own. Raises ValueError for other numbers than floats."""
    if tensor.dtype not in FLOATS:
        raise ValueError(
            f"{name} holds {tensor.dtype} numbers: the file is quantised; get it in float16, "
            "bfloat16 or float32"
        )
    return tensor.to(dtype or tensor.dtype)
