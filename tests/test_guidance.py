"""What chapter 10 measures: the judge by rules, its error bars, guided runs and their sweep."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny import picture_book

from minisd.picturebook import world
from minisd.picturebook.scenes import HELD_OUT
from minisd.teach import guidance

RESULTS = Path(__file__).parent.parent / "notebooks" / "results"


@pytest.mark.parametrize("things", [1, 2])
def test_the_judge_is_right_about_unseen_renders(things):
    asked = guidance.scenes(things, 30, seed=99)
    assert guidance.marks(guidance.renders(asked), asked).all()


def test_it_marks_two_things_and_one_in_the_same_batch():
    asked = [*guidance.scenes(1, 2), *guidance.scenes(2, 2)]
    assert guidance.marks(guidance.renders(asked), asked).all()


@pytest.mark.parametrize(("change", "wrong"), [("color", 0), ("object", 1), ("setting", 2)])
def test_what_is_wrong_is_marked_in_its_column_alone(change, wrong):
    thing = world.Thing("star", "red", "", 0.5, 0.5, 0.22)
    scene = world.Scene("one", (thing,), "plain:white")
    if change == "setting":
        other = dataclasses.replace(scene, setting="plain:yellow")
    else:
        new = {"color": "blue", "object": "circle"}[change]
        other = dataclasses.replace(scene, things=(dataclasses.replace(thing, **{change: new}),))
    (found,) = guidance.marks(guidance.renders([other]), [scene]).tolist()
    assert found == [i != wrong and i != 3 for i in range(4)]


def test_an_empty_picture_and_a_shape_of_no_kind_are_nothing_that_it_is_sure_of():
    empty = torch.ones(1, 3, 128, 128)
    (seen,) = guidance.see(empty)
    assert seen == ("", "", "white")
    empty[:, :, 40:52, 10:110] = empty[:, :, 40:110, 10:22] = -1
    assert guidance.see(empty)[0] == ("black", "", "white")


def test_scenes_are_the_same_again_and_never_held_out():
    for things in (1, 2):
        asked = guidance.scenes(things, 60)
        assert asked == guidance.scenes(things, 60) != guidance.scenes(things, 60, seed=1)
        assert not {(t.object, t.color) for s in asked for t in s.things} & {*HELD_OUT}
    words = guidance.prompt(asked[0]).split()
    assert [words.count(w) for w in ("left", "background")] == [1, 1]


def test_a_tint_and_patches_are_errors_of_the_ground():
    asked = guidance.scenes(1, 3)
    right = guidance.renders(asked)
    patches = right + 0.3 * torch.randn(right.shape, generator=torch.Generator().manual_seed(0))
    errors = [guidance.ground_error(x, asked).mean() for x in (right, right * 0.8, patches)]
    assert errors[0] < 0.01 < min(errors[1:])


def test_distances_are_those_between_the_pictures_of_one_prompt():
    a, b = torch.zeros(3, 8, 8), torch.ones(3, 8, 8)
    pictures = torch.stack([a, a, b, b, a, b])
    assert torch.allclose(guidance.distances(pictures, copies=2), torch.tensor([0, 0, 0.5]))


def test_error_bars_hold_what_was_measured_and_are_never_empty_for_a_share():
    all_right, half = torch.ones(40).bool(), torch.arange(40) % 2 == 0
    low, high = guidance.wilson(all_right)
    assert 0.9 < low < 0.95 < high <= 1
    low, high = guidance.wilson(half)
    assert low < 0.5 < high
    assert 0.28 < high - low < 0.32
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    low, high = guidance.bootstrap(values)
    assert low < values.mean() < high
    assert 0.3 < high - low < 0.7


def test_the_distance_from_grey():
    x = torch.ones(1, 3, 4, 4)
    x[:, 1:, :2] = -1
    assert guidance.colorfulness(x) == 0.5


@pytest.fixture
def pipe():
    return picture_book()


def start(pipe):
    x_T = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return x_T, *pipe.encode_prompt(["a red circle", "a blue star"])


@pytest.mark.parametrize("w", [1, 4])
def test_a_guided_run_is_that_of_the_pipeline(pipe, w):
    x_T, cond, uncond = start(pipe)
    *_, last = pipe.denoise(x_T, cond, uncond, 6, w)
    assert torch.allclose(guidance.run(pipe, x_T, cond, uncond, w, 6), last.x_prev, atol=1e-4)


def test_at_zero_it_does_not_read_the_prompt_and_a_part_alone_guides_only_there(pipe):
    x_T, cond, uncond = start(pipe)
    assert torch.equal(
        guidance.run(pipe, x_T, cond, uncond, 0, 6), guidance.run(pipe, x_T, uncond, cond, 1, 6)
    )
    scales = [guidance.only("middle", 4)(i / 6) for i in range(6)]
    assert scales == [1, 1, 4, 4, 1, 1]


def test_the_sweep_has_a_row_for_each_scale_and_for_each_part(pipe, monkeypatch):
    monkeypatch.setattr(guidance, "STRONG", (4,))
    rows = guidance.sweep(pipe, prompts=2, alike=1, scales=(0, 4), steps=3)
    assert len(rows) == 2 * (2 + 3)
    assert [row["part"] for row in rows[:5]] == ["all", "all", "early", "middle", "late"]
    assert rows[0]["marks"].shape == (2, 4)
    assert rows[0]["distances"].shape == (1,)
    assert rows[2]["marks"].shape == (1, 4)
    assert "distances" not in rows[2]


def test_the_shipped_sweep_is_of_the_shipped_settings_and_guidance_helps():
    (path,) = RESULTS.glob("10_scales_*.pt")
    assert path.stat().st_size < 400_000
    whole = [r for r in torch.load(path, weights_only=True) if r["part"] == "all"]
    assert [(r["kind"], r["scale"]) for r in whole] == [
        (kind, scale) for kind in guidance.KINDS for scale in guidance.SCALES
    ]
    assert all(r["marks"].shape == (guidance.PROMPTS, 4) for r in whole)
    assert all(len(r["distances"]) == guidance.ALIKE for r in whole)
    right = {w: [r["marks"][:, 3] for r in whole if r["scale"] == w] for w in (0, 1, 4)}
    none, plain, guided = (torch.cat(marks).float().mean() for marks in right.values())
    assert none < plain < guided
