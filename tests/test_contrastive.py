"""The small CLIP of chapter 07: its pictures and captions, its training, its exam."""

from dataclasses import replace

import pytest
import torch

from minisd.picturebook import world
from minisd.picturebook.clip import ImageEncoder
from minisd.teach import contrastive as toy
from minisd.training import TrainConfig

TWO = (("boat", "red"), ("circle", "purple"))
SHORT = TrainConfig(2, 8, 1e-3)


@pytest.fixture(scope="module")
def book():
    return toy.album(toy.BOOK, 1, seed=0)


@pytest.fixture(scope="module")
def tokenizer(book):
    return toy.learn_tokens(book[1])


def test_what_is_held_out_is_never_in_the_book_but_its_words_are():
    assert (len(toy.ALL), len(toy.BOOK), len(toy.HELD_OUT)) == (126, 115, 11)
    assert set(toy.HELD_OUT) == set(world.HELD_OUT) & set(toy.ALL)
    assert {object for object, _ in toy.BOOK} == set(toy.OBJECTS)
    assert {color for _, color in toy.BOOK} == set(toy.COLORS)


def test_captions_name_colour_and_thing_in_one_of_their_names_and_nothing_else():
    said = toy.album(TWO, 20, seed=1)[1]
    assert set(said[0]) == {"a red boat", "a red ship"}
    nouns = {f"a {color} {noun}" for color in ("purple", "violet") for noun in ("circle", "disc")}
    assert set(said[1]) == nouns
    assert [toy.prompt(named) for named in TWO] == ["a red boat", "a purple circle"]
    assert toy.prompt(("fish", "orange")) == "an orange fish"


def test_an_album_of_a_seed_is_repeatable_and_no_two_pictures_are_alike():
    pictures, said = toy.album(TWO, 3, seed=1)
    assert pictures.shape == (2, 3, 3, toy.SIDE, toy.SIDE)
    assert pictures.abs().max() <= 1
    again = toy.album(TWO, 3, seed=1)
    assert torch.equal(pictures, again[0])
    assert said == again[1]
    assert len({picture.numpy().tobytes() for picture in pictures.flatten(0, 1)}) == 6


def test_every_word_of_the_captions_is_one_token(tokenizer, book):
    words = {word for texts in book[1] for text in texts for word in text.split()}
    assert {len(tokenizer.ids(word)) for word in words} == {1}


def test_an_image_encoder_is_made_for_pictures_of_a_size():
    assert ImageEncoder(8)(torch.zeros(2, 3, 64, 64)).shape == (2, 8)
    assert ImageEncoder(8, (3, 8, 16), side=16)(torch.zeros(2, 3, 16, 16)).shape == (2, 8)


def test_the_same_seed_gives_the_same_first_weights_and_leaves_the_others_random_numbers(tokenizer):
    torch.manual_seed(5)
    one, after = toy.small(tokenizer, 1), torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    two = toy.small(tokenizer, 1)
    assert all(a.equal(b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(("share", "moved"), [(0.0, 0), (0.2, 4), (1.0, 20)])
def test_mixed_up_captions_are_the_asked_share_and_all_still_there(share, moved):
    order = toy.mixed_up(20, share, torch.Generator().manual_seed(0))
    assert (order != torch.arange(20)).sum() == moved
    assert sorted(order.tolist()) == list(range(20))


def test_training_changes_both_encoders_and_the_temperature_by_the_loss_it_is_given(
    tokenizer, book
):
    clip, seen = toy.small(tokenizer), []

    def loss(images, texts, scale):
        seen.append(images.shape)
        return (images * texts).sum(dim=1).mean() + scale

    losses = list(toy.training(clip, tokenizer, book, SHORT, loss))
    assert seen == [(8, 64), (8, 64)]
    assert len(losses) == 2
    new = toy.small(tokenizer)
    for part in ("image.head.weight", "text_projection.weight", "scale"):
        assert not torch.equal(clip.get_parameter(part), new.get_parameter(part))


class Knows:
    """In place of CLIP: knows by their first pixel what pictures show."""

    def embed_text(self, ids, end_id):
        return torch.eye(len(ids))

    def embed_image(self, pictures):
        return torch.eye(len(toy.ALL))[pictures[:, 0, 0, 0].long()]


def test_the_exam_counts_right_answers_for_each_name(tokenizer):
    pictures = torch.zeros(4, 3, 2, 2)
    pictures[:, 0, 0, 0] = torch.tensor([0.0, 0, 1, 2])
    given = toy.answers(Knows(), tokenizer, pictures)
    assert given == [toy.ALL[0], toy.ALL[0], toy.ALL[1], toy.ALL[2]]
    assert toy.right(given, toy.ALL[:2]).tolist() == [1.0, 0.5]


def test_a_sweep_has_as_many_steps_and_as_many_pictures_for_every_batch_size():
    rows = toy.sweep([4, 8], [0, 1], replace(SHORT, steps=2), each=1)
    assert [(row["size"], row["steps"]) for row in rows] == [(4, 2), (4, 4), (8, 2)]
    assert all(len(row["accuracy"]) == 2 for row in rows)
    assert all(0 <= share <= 1 for row in rows for share in row["accuracy"])
