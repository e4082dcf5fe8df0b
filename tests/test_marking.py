"""Marks for pictures: what the judge says it sees against what was asked for."""

import dataclasses

import pytest
import torch

from minisd.picturebook import world
from minisd.picturebook.exam import choose, diversity, plain_caption
from minisd.picturebook.judge import Found, Seen
from minisd.picturebook.marking import mark
from minisd.picturebook.measures import auc, ssim


def what_is_there(scene):
    """What a judge without faults would see."""
    inside = scene.relation == "inside"
    things = tuple(
        Found(t.object, t.color, t.x, t.y, t.radius, holds=inside and i == 1)
        for i, t in enumerate(scene.things)
    )
    return Seen(things, scene.setting)


def changed(seen, i, **values):
    things = list(seen.things)
    things[i] = dataclasses.replace(things[i], **values)
    return dataclasses.replace(seen, things=tuple(things))


def example_of(relation):
    return next(e.scene for e in choose("two", "train", 60) if e.scene.relation == relation)


@pytest.mark.parametrize("split", world.SPLITS)
def test_a_faultless_judge_finds_everything_right_in_every_scene(split):
    for i in range(100):
        scene = world.example(i, 3, split).scene
        given = mark(scene, what_is_there(scene))
        assert given["all"], (scene, given)


def test_a_wrong_colour_is_no_wrong_object():
    scene = example_of("above")
    given = mark(scene, changed(what_is_there(scene), 0, color="turquoise"))
    assert given["objects"]
    assert not given["colors"]
    assert not given["all"]


def test_swapped_colours_are_wrong_colours():
    scene = example_of("above")
    seen = what_is_there(scene)
    a, b = seen.things
    assert a.color != b.color
    swapped = changed(changed(seen, 0, color=b.color), 1, color=a.color)
    assert not mark(scene, swapped)["colors"]


def test_a_third_thing_is_wrong():
    scene = example_of("left")
    seen = what_is_there(scene)
    third = Found("star", "red", 0.9, 0.9, 0.1)
    assert not mark(scene, dataclasses.replace(seen, things=(*seen.things, third)))["objects"]


@pytest.mark.parametrize("relation", ["above", "below", "left", "right"])
def test_things_that_changed_places_are_in_the_wrong_relation(relation):
    scene = example_of(relation)
    seen = what_is_there(scene)
    a, b = seen.things
    turned = changed(changed(seen, 0, x=b.x, y=b.y), 1, x=a.x, y=a.y)
    given = mark(scene, turned)
    assert given["objects"]
    assert given["colors"]
    assert not given["relation"]


def test_a_thing_beside_its_container_is_not_inside():
    scene = example_of("inside")
    assert not mark(scene, changed(what_is_there(scene), 0, x=0.9))["relation"]


def test_another_place_size_and_setting_are_wrong():
    scene = next(
        e.scene for e in choose("one", "train", 300) if e.scene.place and e.scene.things[0].size
    )
    seen = what_is_there(scene)
    assert not mark(scene, changed(seen, 0, x=0.5, y=0.5))["place"]
    wrong = 0.35 if scene.things[0].size == "small" else 0.14
    assert not mark(scene, changed(seen, 0, radius=wrong))["size"]
    assert not mark(scene, dataclasses.replace(seen, setting="water"))["setting"]


def test_an_empty_picture_has_nothing_right_but_its_setting():
    scene = example_of("above")
    given = mark(scene, Seen((), scene.setting))
    assert [name for name, right in given.items() if right] == ["setting"]


def test_auc_is_one_for_a_perfect_map_and_a_half_for_a_flat_one():
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, 1:3] = True
    assert auc(mask.float(), mask) == 1
    assert auc(-mask.float(), mask) == 0
    assert auc(torch.ones(4, 4), mask) == 0.5
    with pytest.raises(ValueError, match="16 of 16"):
        auc(mask.float(), torch.ones_like(mask))


def test_ssim_is_one_for_equal_pictures_and_sees_blur_more_than_brightness():
    a = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ssim(a, a).tolist() == pytest.approx([1, 1])
    blurred = torch.nn.functional.avg_pool2d(a, 3, 1, 1)
    shift = ((blurred - a) ** 2).mean().sqrt()
    assert ssim(blurred, a).max() < ssim(a + shift, a).min()


def test_diversity_is_the_distance_between_pictures_of_one_prompt():
    same = torch.zeros(4, 3, 2, 2)
    assert diversity(same, 2) == 0
    apart = torch.stack([-torch.ones(3, 2, 2), torch.ones(3, 2, 2)] * 2)
    assert diversity(apart, 2) == pytest.approx(1)


def test_the_plain_caption_names_both_things_by_their_own_words():
    scene = example_of("left")
    text = plain_caption(scene)
    assert all(f"{t.color} {t.object}" in text for t in scene.things)
    assert "to the left of" in text
