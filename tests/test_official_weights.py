"""The chapters with official weights: chapter 14's cells, and what every set-up cell takes."""

import ast
import inspect
import json
import shutil
from pathlib import Path

import nbformat
import official
import pytest
import torch
from nbclient import NotebookClient
from safetensors.torch import save_file
from test_names import KEYS
from tiny import randomise

import weights_convert
from minisd.checkpoint import NETWORKS, build
from minisd.config import SD15
from minisd.teach import setup
from minisd.teach.offline import offline_environment
from minisd.tokenizer import Tokenizer
from weights_convert.compvis import tensors_of
from weights_convert.diffusers import write_tokenizer

FOLDER = Path(__file__).parent.parent / "notebooks"
CHAPTER = FOLDER / "14_official_weights_and_performance.ipynb"
WITH_WEIGHTS = [
    path for path in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
    if path.name[:2] in ("01", "05", "06", "08", "09", "10", "11", "12")
]  # fmt: skip
TEXTS = ["a red boat at sunset", "a red circle and a blue square", "a yellow fish under water"]


def cells(path):
    return {cell.id: cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"}


# ---- the list of names that chapter 14 makes ----


@pytest.fixture(scope="module")
def listed():
    """What the chapter's own cell makes, from its own imports."""
    code, names = cells(CHAPTER), {}
    exec(code["14-setup"].source.partition("\nweights = ")[0], names)
    exec(code["14-keys"].source, names)
    return names["keys"]


@pytest.mark.skipif(not KEYS.is_file(), reason="the official list of keys is not in shared/data")
def test_the_chapters_list_is_that_of_the_official_file_key_by_key(listed):
    there = json.loads(KEYS.read_text())
    networks = {key: shape for key, shape in there.items() if "." in key}
    assert (len(there), len(networks), len(listed)) == (1143, 1131, 1130)
    (position_ids,) = networks.keys() - listed.keys()
    assert position_ids.endswith("position_ids")
    for key, (_, _, shape) in listed.items():  # the autoencoder's attention is two axes longer
        assert networks[key] in (list(shape), [*shape, 1, 1]), key


def test_no_weight_of_ours_is_missing_in_the_chapters_list_or_there_twice(listed):
    named = [(network, ours) for network, ours, _ in listed.values()]
    own = [
        (name, key)
        for name, (kind, _) in NETWORKS.items()
        for key in build(kind, getattr(SD15, name)).state_dict()
    ]
    assert sorted(named) == sorted(own)


# ---- every chapter with a model takes another one ----


@pytest.fixture(scope="module")
def pipe():
    made = official.official()
    made.tokenizer = Tokenizer.train(TEXTS * 3, 60)
    text = made.text_encoder.config
    words = {"vocab_size": max(made.tokenizer.vocab_size, text.vocab_size)}
    kind, config = NETWORKS["text_encoder"]
    made.text_encoder = randomise(kind(config(**{**vars(text), **words})), 1)
    return made


@pytest.fixture(scope="module", params=["diffusers folder", "single file"])
def source(request, pipe, tmp_path_factory):
    """A tiny random model in an official layout; beside the single file lies its tokenizer."""
    folder = tmp_path_factory.mktemp("official")
    if request.param == "diffusers folder":
        weights_convert.save(pipe, folder / "model", layout="diffusers")
        return folder / "model"
    write_tokenizer(pipe.tokenizer, folder / "tokenizer")
    return official.write(official.state_of(pipe), folder / "model.safetensors")


def test_a_session_opens_official_layouts_and_chooses_a_device(source, pipe, capsys):
    session = setup(5, weights=source, device="auto")
    assert session.device.type in ("cpu", "cuda", "mps")
    assert "! " not in capsys.readouterr().out  # no advice: the model is there
    assert session.pipe.hash == pipe.hash
    assert session.pipe.device.type == session.device.type
    assert session.pipe.dtype == torch.float32
    assert session.pipe.tokenizer(TEXTS).equal(pipe.tokenizer(TEXTS))
    assert setup(5, weights=str(source)).pipe.hash == pipe.hash  # a path as a reader types it


@pytest.mark.parametrize("path", WITH_WEIGHTS, ids=lambda path: path.name[:2])
def test_a_set_up_cell_is_one_call_that_takes_weights_and_a_device(path):
    (call,) = [
        node
        for cell in cells(path).values()
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    ]
    given = {one.arg for one in call.keywords}
    assert given == {"chapter"}
    assert {*given, "weights", "device"} <= set(inspect.signature(setup).parameters)


# ---- chapter 14 with such a model ----


def with_weights(source):
    """The chapter with a path in the place of its None."""
    notebook = nbformat.read(CHAPTER, 4)
    (cell,) = [cell for cell in notebook.cells if cell.id == "14-setup"]
    before, rest = cell.source.split("\nweights = None  #")
    cell.source = f"{before}\nweights = {str(source)!r}  #{rest}"
    return notebook


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def run(notebook, folder, stop=None, timeout=3600):
    """Run it offline in fast mode, to the cell `stop`; returns what each cell printed."""
    ids = [cell.id for cell in notebook.cells]
    notebook.cells = notebook.cells[: ids.index(stop) + 1] if stop else notebook.cells
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3",
                            resources={"metadata": {"path": str(FOLDER)}})  # fmt: skip
    client.execute(env=offline_environment(folder, MINISD_FAST="1"))
    return {cell.id: printed(cell) for cell in notebook.cells if cell.cell_type == "code"}


def test_the_names_of_a_tiny_official_model_are_all_accounted_for(source, pipe, tmp_path):
    out = run(with_weights(source), tmp_path, stop="14-blocks")
    weights = len(tensors_of(pipe.networks)) - 1  # without position_ids
    assert f"0  missing, of {weights} weights" in out["14-file"]
    assert "not expected" not in out["14-file"]
    assert f"{weights} of {weights} tensors are equal bit by bit" in out["14-bits"]
    if source.is_file():  # its own list of keys, with the tables that official files have
        assert f"{len(official.BUFFERS) + 2:6,}  no weight" in out["14-file"]


def noise(shape, dtype):
    """One block of noise again and again: random numbers for 860 million weights take long."""
    block = torch.randn(2**16 + 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    count = shape.numel()
    return block.repeat(count // len(block) + 1)[:count].reshape(shape)


@pytest.fixture
def full_size(tmp_path):
    """SD 1.5 with random weights in float16, in one file with the official names: 2.1 GB."""
    state = {name: torch.ones(1000) for name in official.BUFFERS}
    networks = {}
    for name, (kind, _) in NETWORKS.items():
        networks[name] = build(kind, getattr(SD15, name))
        for key, value in networks[name].state_dict().items():
            spread = 0.1 if value.ndim == 1 else value[0].numel() ** -0.5
            spread *= 0.01 if key == "conv_out.weight" else 1  # a small eps keeps latents small
            norm = float("norm" in key and key.endswith("weight"))
            place, _, leaf = key.rpartition(".")
            filled = (norm + spread * noise(value.shape, torch.float32)).half()
            parameter = torch.nn.Parameter(filled, requires_grad=False)
            setattr(networks[name].get_submodule(place), leaf, parameter)
    state |= tensors_of(networks)
    file = tmp_path / "model" / "full.safetensors"
    file.parent.mkdir()
    save_file(state, file)
    del state, networks  # the chapter needs the room
    write_tokenizer(Tokenizer.train(TEXTS * 3, 60), file.parent / "tokenizer")
    yield file
    shutil.rmtree(file.parent)


@pytest.mark.slow
def test_chapter_14_runs_with_a_full_size_official_file(full_size, tmp_path):
    out = run(with_weights(full_size), tmp_path)
    assert "of the official size: yours" in out["14-model"]
    assert "0  missing, of 1,130 weights" in out["14-file"]
    assert "1,130 of 1,130 tensors are equal bit by bit" in out["14-bits"]
    assert out["14-hooks"].startswith("22 residual blocks")
    assert len(out["14-b-record"].splitlines()) == 16  # cross-attention layers
    assert "bfloat16" in out["14-half"]
    assert all("not yet" in text for key, text in out.items() if key.endswith("-check"))
