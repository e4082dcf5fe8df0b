"""Training in two processes: the same gradients as one process with both batches."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

from minisd.config import PICTUREBOOK
from minisd.picturebook import stages, train
from minisd.picturebook.clip import CLIP, contrastive_loss, gathered
from minisd.picturebook.data import Pairs, to_range
from minisd.tokenizer import Tokenizer
from minisd.training import Objective, TrainConfig
from minisd.training import train as train_network

TOKENIZER = Path(train.__file__).parent / "weights" / "tokenizer.json"
CONFIG = TrainConfig(steps=2, batch_size=4, warmup_steps=1, save_every=1)


def clip_loss(model, batch, generator):
    """As the recipe's, with a tokenizer of its own."""
    pictures, captions, wrong = batch
    tokens = Tokenizer.from_file(TOKENIZER)
    texts = model.embed_text(tokens(captions + wrong), tokens.end_id)
    seen = gathered(model.embed_image(to_range(pictures)))
    right, wrong_texts = (gathered(half) for half in texts.split(len(captions)))
    return contrastive_loss(seen, right, model.scale, wrong_texts), {}


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def joined_batch():
    first, second = Pairs(4, 64)[0], Pairs(4, 64)[1]
    return torch.cat([first[0], second[0]]), first[1] + second[1], first[2] + second[2]


def small_clip():
    torch.manual_seed(0)
    return CLIP(PICTUREBOOK.text_encoder)


def in_one_of_two(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    model = small_clip()
    if rank == 1:  # DistributedDataParallel begins with the weights of process 0
        nn.init.zeros_(model.text_projection.weight)
    wrapped = nn.parallel.DistributedDataParallel(Objective(model, clip_loss))
    loss, _ = wrapped(Pairs(4, 64)[rank], None)
    loss.backward()
    average = train_network(copy.deepcopy(model), clip_loss, Pairs(4, 64), CONFIG,
                            folder / "run", workers=0)  # fmt: skip
    torch.save(
        {"gradients": gradients(model), "trained": average.state_dict()}, folder / f"{rank}.pt"
    )
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(in_one_of_two, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)], folder


def test_two_processes_have_the_gradients_of_one_with_the_joined_batch(two):
    model = small_clip()
    clip_loss(model, joined_batch(), None)[0].backward()
    joined = gradients(model)
    for result in two[0]:
        assert result["gradients"].keys() == joined.keys()
        for name, gradient in joined.items():
            close = {"rtol": 1e-4, "atol": 1e-6}  # the gradient of a key's bias is 0
            torch.testing.assert_close(result["gradients"][name], gradient, **close)


def test_the_batch_of_two_processes_is_the_joined_one():
    first, second, joined = Pairs(4, 64)[2], Pairs(4, 64)[3], Pairs(8, 64)[1]
    assert torch.equal(torch.cat([first[0], second[0]]), joined[0])
    assert first[1] + second[1] == joined[1]


def test_two_processes_end_with_the_same_weights_and_one_writes(two):
    (a, b), folder = two
    for name, value in a["trained"].items():
        assert torch.equal(value, b["trained"][name]), name
    assert len((folder / "run" / "log.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_the_recipe_runs_under_torchrun(tmp_path):
    options = "--steps 2 --batch-size 2 --workers 0 --device cpu --threads 1"
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    command = [*start, train.__name__, "vae", "--out", str(tmp_path)]
    done = subprocess.run([*command, *options.split()], env=os.environ, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert stages.load_network(tmp_path / "vae.safetensors").config.scaling_factor > 0
