"""What chapter 13 teaches the model: its pictures, its training, its sweeps and their results."""

from pathlib import Path

import pytest
import torch
from tiny import picture_book
from torch import nn

from minisd.finetune.pictures import Latents
from minisd.picturebook import world
from minisd.teach import concepts
from minisd.training import TrainConfig

RESULTS = Path(__file__).parent.parent / "notebooks" / "results"
SHORT = TrainConfig(2, 2, 1e-2, warmup_steps=1)


@pytest.fixture
def pipe(monkeypatch):
    monkeypatch.setattr(concepts, "TRAINED", 2)
    monkeypatch.setattr(concepts, "UNSEEN", 2)
    monkeypatch.setattr(concepts, "PROMPTS", ("a boat",))
    return picture_book()


def test_pictures_show_the_thing_under_its_word_and_another_seed_shows_others():
    first, again = concepts.pictures("moon", 4), concepts.pictures("moon", 4, word="<moon>")
    assert all(" moon on a" in one.caption for one in first)
    assert [one.caption.replace("<moon>", "moon") for one in again] == [e.caption for e in first]
    assert [one.picture.tobytes() for one in again] == [e.picture.tobytes() for e in first]
    other = concepts.pictures("moon", 4, seed=1)
    assert {e.picture.tobytes() for e in first}.isdisjoint(e.picture.tobytes() for e in other)


def test_what_is_taught_is_reserved_and_no_familiar_picture_shows_it():
    assert world.RESERVED["object"] == concepts.THING
    assert not [e for e in concepts.familiar(200) if concepts.THING in e.caption]


def test_learning_moves_the_part_and_leaves_the_model_as_it_was(pipe):
    before, batches = pipe.hash, Latents(pipe, concepts.pictures("mushroom", 2), 2)
    with concepts.adapter(pipe, rank=2) as loras:
        losses = list(concepts.learn(pipe, nn.ModuleList(loras.values()), batches, SHORT))
        assert len(losses) == 2
        assert all(lora.B.any() for lora in loras.values())
    assert pipe.hash == before


def test_an_adapter_is_alone_in_its_block_and_gone_behind_it_and_the_others_are_as_before(pipe):
    with concepts.adapter(pipe, 2, "one"):
        pipe.set_adapters("one", 0.5)
        with concepts.adapter(pipe, 2):
            assert pipe.get_active_adapters() == ["passing"]
        assert pipe.adapters.scales == {"one": 0.5}
    assert pipe.adapters.scales == {}


def test_the_error_is_the_same_at_every_call(pipe):
    unseen = Latents(pipe, concepts.familiar(2), 1)
    assert concepts.error(pipe, unseen) == concepts.error(pipe, unseen) > 0


def test_ranks_are_compared_from_the_same_start(pipe):
    rows = concepts.compare_ranks(pipe, (1, 2), SHORT)
    assert [row["rank"] for row in rows] == [1, 2]
    assert rows[1]["parameters"] == 2 * rows[0]["parameters"]
    assert rows[1]["singular"].shape[1] == 2
    assert (rows[1]["singular"][:, 1] > 0).all()
    assert concepts.compare_ranks(pipe, (2,), SHORT)[0]["new"] == rows[1]["new"]


def test_overdoing_it_is_looked_at_before_the_first_step_and_at_the_moments(pipe):
    rows = concepts.overdo(pipe, 2, SHORT, (1, 2))
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert len({row["heart"] for row in rows}) == 3
    plain = Latents(pipe, concepts.pictures("mushroom", 2), 2)
    assert rows[0]["heart"] == concepts.error(pipe, plain)
    assert rows[0]["latents"].dtype == torch.float16


def test_a_new_word_learns_alone_and_leaves_no_trace(pipe):
    before, table = pipe.hash, pipe.text_encoder.token_embedding
    start = table.weight[pipe.tokenizer.ids("a")].clone()
    result = concepts.learn_word(pipe, "moon", "a", SHORT)
    assert pipe.hash == before
    assert pipe.tokenizer.added == {}
    assert not table._forward_hooks
    assert result["word"] == "<moon>"
    assert 0.005 < (result["vector"] - start).abs().max() < 0.05  # two steps of 0.01


def shipped(name):
    (path,) = RESULTS.glob(f"13_{name}_*.pt")
    assert path.stat().st_size < 300_000
    return torch.load(path, weights_only=True)


def test_the_shipped_ranks_all_learn_and_the_lowest_gets_most_of_the_way():
    rows, start = shipped("ranks"), shipped("overdone")[0]["new"]
    assert tuple(row["rank"] for row in rows) == concepts.RANKS
    gain = [start - row["new"] for row in rows]
    assert gain[0] > 0.5 * max(gain)
    assert min(gain) > 0.2 * start


def test_the_shipped_overdone_training_learnt_by_heart_and_forgot():
    first, *_, last = shipped("overdone")
    assert last["heart"] < 0.6 * first["heart"]
    assert last["old"] > 1.2 * first["old"]
    assert last["new"] / last["heart"] > 1.5 * first["new"] / first["heart"]


def test_the_shipped_word_helps():
    word = shipped("word")
    assert word["after"] < 0.9 * word["before"]
