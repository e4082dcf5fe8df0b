"""The small text encoders of chapter 06: their pictures, their exam, what a training changes."""

import pytest
import torch

from minisd.teach import text_encoders as toy
from minisd.training import TrainConfig

TWO = toy.scenes()[1][:2]
SHORT = TrainConfig(2, 8, 1e-3)


def test_exam_and_book_share_no_scene_and_every_colour_of_every_shape_is_learned():
    book, exam = toy.scenes()
    assert (len(book), len(exam)) == (144, 36)
    assert not set(book) & set(exam)
    assert len({named for pair in book for named in pair}) == len(toy.COLORS) * len(toy.SHAPES)
    assert len({(c1, c2) for (c1, _), (c2, _) in exam}) == 30  # no two colours are left out


def test_a_caption_is_nine_tokens_and_names_both_in_their_order():
    (ids,) = toy.captions([(("red", "heart"), ("blue", "circle"))]).tolist()
    text = " ".join(toy.WORDS[i] for i in ids)
    assert text == "<start> a red heart and a blue circle <end>"


def test_pictures_of_a_seed_are_repeatable_and_show_the_colours():
    shown = toy.pictures([(("red", "square"), ("blue", "circle"))], 2, seed=3)
    assert shown.shape == (1, 2, 3, 24, 24)
    assert torch.equal(shown, toy.pictures([(("red", "square"), ("blue", "circle"))], 2, seed=3))
    red, green, blue = shown[0].unbind(dim=1)
    assert ((red - green > 1) & (red - blue > 1)).flatten(1).sum(dim=1).min() > 20
    assert (blue - red > 1).flatten(1).sum(dim=1).min() > 20


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_text_encoder_keeps_its_random_weights(frozen):
    clip = toy.train(toy.small(8, 1), frozen, toy.pictures(toy.scenes()[0], 1, seed=0), SHORT)
    new = toy.small(8, 1)
    changed = [
        k for k, w in clip.text.state_dict().items() if not w.equal(new.state_dict()[f"text.{k}"])
    ]
    assert bool(changed) is not frozen
    assert not clip.text_projection.weight.equal(new.text_projection.weight)


class Knows:
    """In place of CLIP: one caption it takes for every picture."""

    def __init__(self, pair):
        self.ids = toy.captions([pair])

    def embed_text(self, ids, end_id):
        return (ids == self.ids).all(dim=1, keepdim=True).float()

    def embed_image(self, x):
        return torch.ones(len(x), 1)


def test_the_exam_counts_colours_at_their_shapes_and_colours_at_all():
    (c1, s1), (c2, s2) = pair = TWO[0]
    shown = torch.zeros(1, 4, 3, 24, 24)
    assert toy.colors_found(Knows(pair), [pair], shown) == (1, 1)
    assert toy.colors_found(Knows(((c2, s1), (c1, s2))), [pair], shown) == (0, 1)
    other = next(c for c in toy.COLORS if c not in (c1, c2))
    assert toy.colors_found(Knows(((c1, s1), (other, s2))), [pair], shown) == (0, 0)


def test_a_comparison_has_a_row_for_every_size_frozen_and_trained():
    rows = toy.compare([8], [1], SHORT)
    assert [row["frozen"] for row in rows] == [True, False]
    d = 8
    layer = 4 * d * (d + 1) + 2 * d * 4 * d + 5 * d + 4 * d
    assert rows[0]["parameters"] == (len(toy.WORDS) + 9 + 2) * d + layer
    assert all(0 <= share <= 1 for row in rows for share in row["bound"] + row["named"])
    assert len(rows[0]["bound"]) == len(toy.SEEDS)
