import itertools
import re
from collections import Counter

import numpy as np
import pytest

from minisd.picturebook import world
from minisd.picturebook.canvas import PALETTE, lab
from minisd.picturebook.captions import plural, settings_of, suits
from minisd.picturebook.drawing import PAINTERS, contrast
from minisd.picturebook.language import words
from minisd.picturebook.world import Scene, Thing, caption, example, masks, render, sample_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(np.random.default_rng((1, i))) for i in range(4000)]


@pytest.fixture(scope="module")
def captions(scenes) -> list[str]:
    return [caption(s, np.random.default_rng(i)) for i, s in enumerate(scenes)]


def pairs(scene: Scene) -> set[tuple[str, str]]:
    return {(t.object, t.color) for t in scene.things}


def test_held_out_combinations_never_appear_in_training(scenes):
    assert not any(pairs(s) & set(world.HELD_OUT) for s in scenes)


@pytest.mark.parametrize("split", ["held_out", "held_out_relation", "reserved"])
def test_a_test_split_always_shows_what_training_never_does(split):
    for i in range(300):
        scene = sample_scene(np.random.default_rng(i), split)
        if split == "held_out":
            assert pairs(scene) & set(world.HELD_OUT)
        elif split == "reserved":
            assert set(world.RESERVED.values()) & {w for p in pairs(scene) for w in p}
        else:
            assert ordered(scene) in world.HELD_OUT_RELATIONS


def ordered(scene: Scene) -> tuple[str, str, str]:
    """The relation of a scene said from above, from the left or from the inside."""
    a, b = (t.object for t in scene.things)
    if scene.relation in ("below", "right"):
        return b, {"below": "above", "right": "left"}[scene.relation], a
    return a, scene.relation, b


def test_held_out_relations_never_appear_in_training(scenes):
    shown = {ordered(s) for s in scenes if s.kind == "two"}
    assert not shown & set(world.HELD_OUT_RELATIONS)
    swapped = {(b, relation, a) for a, relation, b in world.HELD_OUT_RELATIONS if a != "triangle"}
    assert swapped <= shown


def test_every_object_colour_setting_and_relation_appears_in_training(scenes):
    assert {t.object for s in scenes for t in s.things} == set(world.OBJECTS)
    assert {t.color for s in scenes for t in s.things} == set(world.COLORS)
    assert {s.setting for s in scenes} == set(world.SETTINGS)
    assert {s.relation for s in scenes} == {*world.RELATIONS, ""}


def test_the_book_can_draw_its_objects_and_the_reserved_one_and_no_more():
    assert set(PAINTERS) == {*world.OBJECTS, world.RESERVED["object"]}
    assert set(PALETTE) == {*world.COLORS, world.RESERVED["color"]}


def test_reserved_words_are_in_no_training_caption(scenes, captions):
    reserved = set(world.RESERVED.values())
    assert not any(reserved & {t.object, t.color} for s in scenes for t in s.things)
    assert not any(word in text for word in reserved for text in captions)


def test_example_is_reproducible_by_index():
    there = [example(i, seed=3) for i in range(8)]
    for i in reversed(range(8)):
        again = example(i, seed=3)
        assert (again.caption, again.scene) == (there[i].caption, there[i].scene)
        np.testing.assert_array_equal(again.image, there[i].image)


def test_example_differs_by_index_seed_and_split():
    scenes = [
        example(*args).scene
        for args in itertools.product(range(3), range(3), ("train", "held_out"))
    ]
    assert len(set(scenes)) == len(scenes)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="not one of train"):
        example(0, split="test")


@pytest.mark.parametrize("wrong", ["a red bird", -1, 1.5, None])
def test_an_example_is_asked_for_by_its_number(wrong):
    with pytest.raises(ValueError, match=r"index is .* expected a whole number"):
        example(wrong)
    with pytest.raises(ValueError, match=r"seed is .* expected a whole number"):
        example(0, seed=wrong)


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
def test_a_picture_has_the_size_asked_for_and_looks_the_same(size):
    scene = example(4).scene
    image, large = render(scene, size), render(scene, 256)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    k = 256 // size
    averaged = large.reshape(size, k, size, k, 3).mean((1, 3))
    assert abs(averaged - image).mean() < 4


def grown(mask: np.ndarray) -> np.ndarray:
    """The mask and two pixels around it: a smooth edge, and the fading tip of a star."""
    wide = np.pad(mask, 2)
    return sum(np.roll(wide, (i, j), (0, 1)) for i in range(-2, 3) for j in range(-2, 3))[
        2:-2, 2:-2
    ].astype(bool)


def test_masks_cover_what_is_drawn(scenes):
    for scene in scenes[:80]:
        here = masks(scene)
        for i in range(len(scene.things)):
            rest = scene.things[:i] + scene.things[i + 1 :]
            bare = Scene(scene.kind, rest, scene.setting, seed=scene.seed)
            changed = abs(render(scene).astype(int) - render(bare)).max(-1)
            assert changed[~grown(here[i])].max() < 32  # a tint at most, in a seam
            assert here[i].any()
            assert (changed[here[i]] > 0).sum() > 0.6 * here[i].sum()


def test_masks_never_overlap_and_the_first_thing_is_in_front(scenes):
    assert all(masks(s).sum(0).max() <= 1 for s in scenes[:200])
    front = (Thing("circle", "red", "", 0.5, 0.5, 0.2), Thing("square", "blue", "", 0.5, 0.5, 0.3))
    assert masks(Scene("two", front, "plain:white"))[:, 64, 64].tolist() == [True, False]


def test_everything_is_inside_the_picture_and_large_enough(scenes):
    for t in (t for s in scenes for t in s.things):
        assert t.radius >= 0.13
        assert t.radius - 0.01 < t.x < 1.01 - t.radius
        assert t.radius - 0.01 < t.y < 1.01 - 0.6 * t.radius  # a car, a boat are not high


def test_relations_are_true_in_the_picture(scenes):
    for s in (s for s in scenes if len(s.things) == 2 and s.relation):
        (a, b), gap = s.things, 0.05
        assert {
            "above": a.y < b.y - gap,
            "below": a.y > b.y + gap,
            "left": a.x < b.x - gap,
            "right": a.x > b.x + gap,
            "inside": a.radius < 0.5 * b.radius,
            "beside": True,
            "and": True,
        }[s.relation], s


def test_colours_and_shapes_are_bound_in_either_order_equally_often(scenes):
    two = [s for s in scenes if s.kind == "two" and s.relation != "inside"]
    first_is_smaller = np.mean(
        [
            s.things[0].object < s.things[1].object
            for s in two
            if s.things[0].object != s.things[1].object
        ]
    )
    first_is_earlier = np.mean(
        [
            s.things[0].color < s.things[1].color
            for s in two
            if s.things[0].color != s.things[1].color
        ]
    )
    relations = Counter(s.relation for s in two)
    assert abs(first_is_smaller - 0.5) < 0.05
    assert abs(first_is_earlier - 0.5) < 0.05
    assert max(relations.values()) < 1.35 * min(relations.values())


def test_kinds_of_scenes_come_in_their_shares(scenes):
    share = {k: v / len(scenes) for k, v in Counter(s.kind for s in scenes).items()}
    assert 0.40 < share["two"] < 0.50
    assert 0.25 < share["one"] + share["count"] < 0.35
    assert 0.22 < share["scene"] < 0.32


def test_captions_are_short_lower_case_and_varied(captions):
    assert all(re.fullmatch(r"[a-z]+(,? [a-z]+)*", c) for c in captions)
    assert max(len(c.split()) for c in captions) <= 24
    assert len(set(captions)) > 0.6 * len(captions)


def test_captions_and_words_have_the_same_vocabulary(scenes, captions):
    many = captions + [caption(s, np.random.default_rng((2, i))) for i, s in enumerate(scenes)]
    used = {w for c in many for w in re.findall("[a-z]+", c)}
    known = {w for group in words().values() for w in group}
    assert known <= used <= known | {plural(w) for w in words()["objects"]}


@pytest.mark.parametrize(
    "wanted",
    ["a red boat at sunset", "at sunset, a small red boat on the sea", "a red boat on the sea"],
)
def test_a_red_boat_at_sunset_can_be_said_in_many_ways(wanted):
    size = "small" if "small" in wanted else ""
    time = "sunset" if "sunset" in wanted else "day"
    boat = Scene("scene", (Thing("boat", "red", size, 0.5, 0.6, 0.2),), f"sea-{time}")
    assert wanted in {caption(boat, np.random.default_rng(i)) for i in range(400)}


def test_plurals_are_right():
    assert [plural(w) for w in ("star", "fish", "butterfly", "box", "house")] == [
        "stars",
        "fish",
        "butterflies",
        "boxes",
        "houses",
    ]
    fish = Scene("count", (Thing("fish", "yellow", "", 0.5, 0.5, 0.15),) * 3, "plain:white")
    assert "three yellow fish" in {caption(fish, np.random.default_rng(i)) for i in range(50)}


def test_articles_are_right(captions):
    assert not any(re.search(r"\b(a [aeiou]|an [^aeiou])", c) for c in captions)


def test_an_object_stands_out_from_its_ground(scenes):
    for s in scenes:
        color = s.setting.removeprefix("plain:")
        seen = s.things[-1:] if s.relation == "inside" else s.things
        if color != s.setting:
            assert all(contrast(PALETTE[t.color], PALETTE[color]) >= 26 for t in seen)
    assert suits("boat", "red", "sea-sunset")
    assert not suits("house", "white", "snow-day")
    assert all(
        any(suits(o, c, s) for c in world.COLORS if (o, c) not in world.HELD_OUT)
        for o in world.THINGS
        for s in settings_of(o)
    )


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("red", "green"),
        ("green", "brown"),
        ("green", "orange"),
        ("red", "brown"),
        ("red", "orange"),
        ("orange", "yellow"),
        ("blue", "purple"),
        ("pink", "gray"),
        ("green", "gray"),
        ("turquoise", "gray"),
        ("pink", "white"),
        ("brown", "black"),
    ],
)
def test_colours_that_are_easily_confused_differ_in_lightness(a, b):
    assert abs(lab(PALETTE[a])[0] - lab(PALETTE[b])[0]) >= 10


# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB
COLOUR_BLIND = {
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
}


@pytest.mark.parametrize("kind", COLOUR_BLIND)
def test_colour_blind_eyes_tell_all_colours_apart(kind):
    seen = []
    for c in map(np.array, PALETTE.values()):
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        turned = np.clip(np.array(COLOUR_BLIND[kind]) @ linear, 0, 1)
        rgb = np.where(turned <= 0.0031308, 12.92 * turned, 1.055 * turned ** (1 / 2.4) - 0.055)
        seen.append(np.array(lab(tuple(rgb.tolist()))))
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 12


def test_silhouettes_are_all_different():
    shapes = {
        o: masks(Scene("one", (Thing(o, "red", "", 0.5, 0.5, 0.4),), "plain:white"), 64)[0]
        for o in PAINTERS
    }
    for a, b in itertools.combinations(shapes.values(), 2):
        assert (a & b).sum() / (a | b).sum() < 0.9
