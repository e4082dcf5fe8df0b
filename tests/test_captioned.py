"""The model of chapter 09 that learns to listen: its data, its marks, and the shipped result."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from minisd.teach import captioned
from minisd.teach.text_encoders import COLORS, SHAPES, captions, scenes
from minisd.teach.toys import seeded
from minisd.training import TrainConfig

RESULT = Path(__file__).parents[1] / "notebooks" / "results" / "09_captioned.pt"
FEW = TrainConfig(8, 8, 3e-3, warmup_steps=2, decay_fraction=0.5, ema_decay=0.9)


def test_examples_have_pictures_captions_and_masks_and_repeat_themselves():
    x_0, ids, masks = captioned.examples(scenes()[0], 12, seed=3)
    assert x_0.shape == (12, 3, 16, 16)
    assert -1 <= x_0.min() < x_0.max() <= 1
    assert ids.shape == (12, 9)
    assert masks.shape == (12, 2, 16, 16)
    assert masks.flatten(2).any(dim=2).all()
    again = captioned.examples(scenes()[0], 12, seed=3)
    assert all(torch.equal(a, b) for a, b in zip((x_0, ids, masks), again))
    assert not torch.equal(x_0, captioned.examples(scenes()[0], 12, seed=4)[0])


def test_the_named_words_are_where_the_captions_have_them_and_things_where_the_masks_are():
    x_0, ids, masks = captioned.examples(scenes()[1], 20, seed=1)
    for picture, row, text, two in zip(x_0, ids, captioned.read(ids), masks):
        words = ["START", *text.split(), "END"]
        assert len(words) == len(row)
        named = [words[place] for place in captioned.NAMED]
        assert set(named[::2]) <= set(COLORS)
        assert set(named[1::2]) <= set(SHAPES)
        for color, mask in zip(named[::2], two):
            middle = picture[:, mask].mean(dim=1).expand(1, 3)[..., None, None]
            assert color in captioned.colors_seen(middle.expand(1, 3, 4, 4))[0]


def test_the_colors_of_true_pictures_are_seen():
    x_0, ids, _ = captioned.examples([*scenes()[0], *scenes()[1]], 60, seed=2)
    for seen, text in zip(captioned.colors_seen(x_0), captioned.read(ids)):
        assert seen == {word for word in text.split() if word in COLORS}


def test_the_prediction_depends_on_the_caption():
    model, x = seeded(captioned.Illustrator), torch.ones(1, 3, 16, 16)
    one, other = (model(x, 500, captions([pair])) for pair in scenes()[1][:2])
    assert one.shape == x.shape
    assert not torch.allclose(one, other)


def test_an_untrained_model_has_a_mark_near_chance_for_each_of_its_layers():
    marks = captioned.maps_found(seeded(captioned.Illustrator), count=16)
    assert len(marks) == 7
    assert all(0.3 < mark < 0.7 for mark in marks.values())


def test_train_keeps_what_the_chapter_shows():
    result = captioned.train(FEW, moments=(0, 4, 8))
    assert len(result["losses"]) == FEW.steps
    assert [row["step"] for row in result["moments"]] == [0, 4, 8]
    for row in result["moments"]:
        assert row["pictures"].shape == (8, 3, 16, 16)
        assert len(row["maps"]) == 7
    captioned.Illustrator().load_state_dict(result["weights"])


def test_the_shipped_result_fits_and_is_what_its_training_gives():
    result = torch.load(RESULT, weights_only=True)
    captioned.Illustrator().load_state_dict(result["weights"])
    assert len(result["losses"]) == captioned.PLAN.steps
    assert [row["step"] for row in result["moments"]] == list(captioned.MOMENTS)
    live = [loss for _, loss, _ in islice(captioned.training(), 3)]
    assert result["losses"][:3] == pytest.approx(live, abs=0.02)
