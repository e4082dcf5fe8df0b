"""Thousands of damaged weights files: a clear error or a model, never a hang or a full memory."""

import json
import random
import resource
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import pipeline

import weights_convert
from weights_convert.safe_pickle import load_pickle
from weights_convert.tensors import read_weights

FEW = 100  # in the default run, of each kind of file; all of them are slow
MANY = 5000
LONGEST = 5.0  # seconds for one file, and
MOST = 300_000  # kB of memory for all: bounds for a busy machine, far below what a blow-up takes
NUMBERS = (0, 1, 2**31 - 1, 2**32 - 1, 2**60, 2**63 - 1, 2**64 - 1)


def flipped(data: bytes, draw: random.Random, end: int) -> bytes:
    """One to eight bytes before `end` changed."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(end)] = draw.randrange(256)
    return bytes(changed)


def spliced(data: bytes, draw: random.Random, end: int) -> bytes:
    """A stretch before `end` left out, doubled or moved."""
    a, b, c = sorted(draw.randrange(end) for _ in range(3))
    return draw.choice([data[:a] + data[b:], data[:b] + data[a:], data[:c] + data[a:b] + data[c:]])


def truncated(data: bytes, draw: random.Random, end: int) -> bytes:
    return data[: draw.randrange(draw.choice([end, len(data)]))]


def renumbered(data: bytes, draw: random.Random, end: int) -> bytes:
    """Eight bytes, or four, replaced by a number that is much too large."""
    at, size = draw.randrange(end), draw.choice([4, 8])
    number = struct.pack("<Q", draw.choice(NUMBERS))[:size]
    return data[:at] + number + data[at + size :]


def rewritten(data: bytes, draw: random.Random, end: int) -> bytes:
    """A digit, a quote or a bracket replaced by another text of that sort."""
    places = [i for i in range(end) if chr(data[i]) in '0123456789"[]{},:']
    at = draw.choice(places or [0])
    texts = [b"1152921504606846976", b"-1", b"1e999", b"null", b"[[[[", b'"', b"]", b"}", b"9"]
    return data[:at] + draw.choice(texts) + data[at + 1 :]


MUTATIONS = (flipped, spliced, truncated, renumbered, rewritten)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A whole model in a few kB of header and little more of numbers."""
    folder = tmp_path_factory.mktemp("model")
    pipe = pipeline()
    weights_convert.save(pipe, folder / "m.safetensors", "single-file")
    state, _ = read_weights(folder / "m.safetensors")
    small = {key: value for key, value in state.items() if value.numel() < 300}
    save_file(small, folder / "small.safetensors", {"format": "pt"})
    torch.save({"state_dict": small, "step": 3, "more": [1.5, "a", None]}, folder / "small.ckpt")
    torch.save(small, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    return folder


def header_end(path: Path) -> int:
    """Where the description of the tensors ends and their numbers begin."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        return 8 + struct.unpack("<Q", data[:8])[0]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return archive.getinfo("small/data.pkl").file_size + 200
    return data.rindex(b"\x80\x02", 0, len(data) // 2)


def reason(read, path: Path) -> str | None:
    """Why a file is refused, None if it is not. Any error but a ValueError passes through."""
    try:
        read(path)
    except ValueError as error:
        return str(error)


def fuzz(read, path: Path, times: int, tmp_path: Path) -> int:
    """Read `times` mutations; returns how many were refused."""
    draw, data, end = random.Random(0), path.read_bytes(), header_end(path)
    target, refused = tmp_path / path.name, 0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(times):
        target.write_bytes(MUTATIONS[i % len(MUTATIONS)](data, draw, end))
        start = time.process_time()
        said = reason(read, target)
        assert said is None or target.name in said, said
        refused += said is not None
        assert time.process_time() - start < LONGEST, i
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MOST
    return refused


@pytest.mark.parametrize("name", ["small.safetensors", "small.ckpt", "old.ckpt"])
@pytest.mark.parametrize("times", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_a_mutated_file_is_read_or_refused_with_its_name(model, name, times, tmp_path):
    refused = fuzz(read_weights, model / name, times, tmp_path)
    assert times / 4 < refused <= times


@pytest.mark.parametrize("times", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_mutated_whole_model_opens_or_is_refused(model, times, tmp_path):
    """Damage to names, shapes and the note: what is read must still fit together."""
    refused = fuzz(weights_convert.open, model / "m.safetensors", times, tmp_path)
    assert times / 4 < refused <= times


@pytest.mark.parametrize("length", NUMBERS)
def test_a_header_that_claims_any_length_is_refused(length, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b'{"a":' + b" " * 1000)
    with pytest.raises(ValueError, match="model"):
        read_weights(path)


@pytest.mark.parametrize("shape", [[2**60], [2**32, 2**32], [-1], [2**64], [1.5], ["a"], {}])
def test_a_tensor_that_claims_any_shape_is_refused(shape, tmp_path):
    path = tmp_path / "model.safetensors"
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 64]}
    header = json.dumps({"a": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    with pytest.raises(ValueError, match="model"):
        read_weights(path)


@pytest.mark.parametrize("depth", [100, 100_000])
def test_a_header_of_brackets_is_refused(depth, tmp_path):
    path = tmp_path / "model.safetensors"
    header = b'{"a":' + b"[" * depth
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="model"):
        read_weights(path)


def pickled(program: bytes, path: Path) -> Path:
    """An archive like torch.save's around a pickle of one's own."""
    torch.save({"a": torch.zeros(4)}, path.with_name("whole.ckpt"))
    with (
        zipfile.ZipFile(path.with_name("whole.ckpt")) as whole,
        zipfile.ZipFile(path, "w") as archive,
    ):
        for entry in whole.infolist():
            mine = entry.filename.endswith("data.pkl")
            archive.writestr(entry.filename, program if mine else whole.read(entry))
    return path


@pytest.mark.parametrize("program", [
    b"\x80\x02}r\xff\xff\xff\xff.",  # remembers an object under the largest number
    b"\x80\x02X\xff\xff\xff\x7f.",  # a text of 2 GB that is not there
    b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b".",  # one of 2^60 bytes
    b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".",  # a bytearray of that length
    b"\x80\x02\x8b" + struct.pack("<I", 2**31 - 1) + b".",  # an integer of 2 GB
    b"\x80\x02" + b"(" * 100_000 + b".",
    b"\x80\x02" + b"]" + b"]a" * 100_000,
    b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
    b"\x80\x02cbuiltins\nexec\nX\x04\x00\x00\x001/0 \x85R.",
    b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
    b"\x80\x02ctorch\nzeros\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R.",
    b"",
    b".",
], ids=range(13))  # fmt: skip
def test_a_pickle_made_by_hand_does_no_harm(program, tmp_path):
    path = pickled(program, tmp_path / "model.ckpt")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = []
    said = reason(lambda path: made.append(load_pickle(path)), path)
    assert said is None or str(path) in said
    assert not isinstance((made or [None])[0], torch.Tensor | bytes | bytearray | int)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MOST
