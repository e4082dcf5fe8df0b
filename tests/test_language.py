import numpy as np
import pytest

from minisd.picturebook import world
from minisd.picturebook.language import explain, suggest, unknown_words, words

PROMPTS = [
    "a cat",
    "a purple cat at night",
    "a hause in the snow",
    "",
    "three dragons",
    "a red cat and a blue boat",
    "a green dragon in the sea",
    "turquoise",
    "a huge ring",
]


def test_every_caption_word_is_known():
    for i in range(500):
        assert unknown_words(world.example(i, size=16).caption) == []


def test_unknown_words_are_named_in_order_and_once():
    assert unknown_words("A cat, a red dog & the CAT!") == ["cat", "dog"]


def test_punctuation_case_and_plurals_are_tolerated():
    assert unknown_words("Two RED butterflies; three boxes... and fish!") == []


def test_reserved_words_are_unknown():
    assert unknown_words("a turquoise mushroom") == ["turquoise", "mushroom"]


def test_words_are_each_in_one_group():
    every = [w for group in words().values() for w in group]
    assert len(every) == len(set(every))
    assert {"boat", "ship"} <= set(words()["objects"])
    assert "grey" in words()["colours"]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_suggestions_are_distinct_known_and_repeatable(prompt):
    ideas = suggest(prompt, 3)
    assert len(set(ideas)) == 3
    assert ideas == suggest(prompt, 3)
    assert not any(unknown_words(idea) for idea in ideas)


def test_suggestions_keep_what_the_book_understands():
    assert all("purple" in s and "at night" in s for s in suggest("a purple cat at night"))
    assert suggest("a red boat at sunset")[0] == "a red boat at sunset"
    assert suggest("a red cat and a blue boat")[0] == "a blue boat"
    assert suggest("a hause in the snow")[0] == "a red house in the snow"
    assert suggest("a green dragon in the sea")[0] == "a green fish under water"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_suggestions_are_captions_of_the_grammar(prompt):
    for idea in suggest(prompt):
        assert idea in said(idea)


def said(idea: str) -> set[str]:
    """The captions of every simple scene with the objects and colours of an idea."""
    names = idea.split()
    object = next(o for o in world.OBJECTS if o in names)
    color = next(c for c in world.COLORS if c in names)
    size = next((s for s in ("small", "large") if s in names), "")
    thing = world.Thing(object, color, size, 0.5, 0.5, 0.2)
    found = set()
    for setting in world.SETTINGS:
        if ("plain" in setting) == (len(names) < 5) and setting != f"plain:{color}":
            kind = "one" if "plain" in setting else "scene"
            scene = world.Scene(kind, (thing,), setting)
            found |= {world.caption(scene, np.random.default_rng(i)) for i in range(60)}
    return found


def test_explain_is_silent_about_known_words_and_helps_with_others():
    assert explain("a red boat at sunset") is None
    text = explain("a cat and a dog")
    assert text.startswith('"cat" and "dog" are not in the picture book; try "')
    assert text.endswith(".")
