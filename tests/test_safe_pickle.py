"""Pickles: tensors come out whole, everything else is inert, and nothing in them is run."""

import builtins
import collections
import contextlib
import os
import pickle
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from weights_convert.safe_pickle import StandIn, load_pickle

STATUS = Path("/proc/self/status")
WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}


@pytest.fixture
def lightning(monkeypatch):
    """A module of a training program, here only while the file is written."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)

    class ModelCheckpoint:
        def __init__(self):
            self.best, self.wait = 0.5, [1, 2]

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = name, "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, module)
    yield ModelCheckpoint
    assert name not in sys.modules or sys.modules[name] is module


def test_the_objects_of_a_training_program_become_stand_ins(lightning, tmp_path, monkeypatch):
    """What the checkpoints of 2022 hold: callbacks by class, numpy scalars, collections."""
    counts = collections.defaultdict(int, {"seen": 3})
    held = {
        "state_dict": collections.OrderedDict(WEIGHTS),
        "callbacks": {lightning: {"best": np.float64(0.25), "object": lightning()}},
        "hparams": [counts, {1, 2}, torch.device("cpu"), torch.float16, np.dtype("float32")],
    }
    torch.save(held, tmp_path / "model.ckpt")
    monkeypatch.delitem(sys.modules, "pytorch_lightning.callbacks.model_checkpoint")
    loaded = load_pickle(tmp_path / "model.ckpt")
    for key, value in WEIGHTS.items():
        assert torch.equal(loaded["state_dict"][key], value)
    [(key, callback)] = loaded["callbacks"].items()
    assert key is StandIn
    assert isinstance(callback["object"], StandIn)
    assert isinstance(callback["best"], StandIn)
    assert loaded["hparams"][0] == {"seen": 3}
    assert loaded["hparams"][2:4] == [torch.device("cpu"), torch.float16]
    assert "pytorch_lightning.callbacks.model_checkpoint" not in sys.modules


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux says what memory is a file's")
def test_tensors_are_mapped_not_copied(tmp_path):
    def own_memory():
        lines = dict(line.split(":") for line in STATUS.read_text().splitlines())
        return int(lines["RssAnon"].split()[0])  # in kB

    torch.save({"a": torch.ones(10_000_000)}, tmp_path / "model.ckpt")
    before = own_memory()
    loaded = load_pickle(tmp_path / "model.ckpt")
    assert loaded["a"].sum() == 10_000_000
    assert own_memory() - before < 10_000


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_share_numbers_and_both_formats_are_read(zipped, tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    held = {"whole": whole, "part": whole[1], "turned": whole.T, "empty": torch.zeros(0, 3)}
    torch.save(held, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    loaded = load_pickle(tmp_path / "model.pt")
    assert all(torch.equal(loaded[key], held[key]) for key in held)


class Planted:
    """Pickles as a call of `function`, which unpickling would make."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def payloads(canary):
    touch = f"open({str(canary)!r}, 'w')"
    yield "os.system", Planted(os.system, f"touch {canary}")
    yield "os.popen", Planted(os.popen, f"touch {canary}")
    yield "eval", Planted(builtins.eval, touch)
    yield "exec", Planted(builtins.exec, touch)
    yield "open", Planted(builtins.open, str(canary), "w")
    yield "Popen", Planted(subprocess.Popen, ["touch", str(canary)])
    yield "getattr", Planted(getattr, Planted(__import__, "os"), "system")
    yield "partial", Planted(__import__("functools").partial, os.system, f"touch {canary}")
    yield "load", Planted(pickle.loads, pickle.dumps(Planted(os.system, f"touch {canary}")))
    yield "torch.load", Planted(torch.load, str(canary), None, None, weights_only_off())


def weights_only_off():
    return {"weights_only": False}


@pytest.mark.parametrize("place", ["beside", "inside", "alone", "as a key"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_planted_payload_never_runs(place, zipped, tmp_path):
    canary = tmp_path / "canary"
    for name, payload in payloads(canary):
        held = {
            "beside": {"state_dict": WEIGHTS, "more": payload},
            "inside": {**WEIGHTS, "c": payload},
            "alone": payload,
            "as a key": {"a.weight": WEIGHTS["a.weight"], payload: 1},
        }[place]
        path = tmp_path / "model.ckpt"
        torch.save(held, path, _use_new_zipfile_serialization=zipped)
        with contextlib.suppress(ValueError):  # refused
            loaded = load_pickle(path)
            tensors = loaded.get("state_dict", loaded) if place != "alone" else WEIGHTS
            assert torch.equal(tensors["a.weight"], WEIGHTS["a.weight"]), name
        assert not canary.exists(), name


def test_a_payload_that_pickle_itself_runs_is_a_real_one(tmp_path):
    """The test above would be worth nothing if its files did no harm elsewhere."""
    canary = tmp_path / "canary"
    torch.save({"a": Planted(os.system, f"touch {canary}")}, tmp_path / "model.ckpt")
    torch.load(tmp_path / "model.ckpt", weights_only=False)
    assert canary.exists()


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path):
    torch.save({"a": Planted(bytearray, 1 << 45)}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="bytearray"):
        load_pickle(tmp_path / "model.ckpt")


def test_an_archive_that_unpacks_is_refused(tmp_path):
    torch.save(WEIGHTS, tmp_path / "whole.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "whole.ckpt") as whole,
        zipfile.ZipFile(tmp_path / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in whole.infolist():
            packed.writestr(entry.filename, whole.read(entry))
    with pytest.raises(ValueError, match="compressed"):
        load_pickle(tmp_path / "packed.ckpt")


def test_a_program_in_an_archive_is_no_weights_file(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt"):
        load_pickle(tmp_path / "model.pt")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [3, 50, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_an_error(zipped, kept, tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(ValueError, match=r"model\.ckpt"):
        load_pickle(path)
