"""The helpers of the notebooks: checks that know the mistake, set-up, results and sources."""

import inspect

import numpy as np
import pytest
import torch
from answers import OPEN, PREDICTED, SOLUTIONS, WRONG
from tiny import picture_book
from torch import nn

from minisd import DDIMScheduler
from minisd.teach import check, setup, show_source, train_or_load
from minisd.teach.checks import exercises, find

CHAPTERS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
ALL = {key: one for chapter in CHAPTERS for key, one in exercises(chapter).items()}


@pytest.fixture
def pipe():
    return picture_book()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_three_to_five_exercises_of_all_kinds(chapter):
    here = exercises(chapter)
    assert 3 <= len(here) <= 5
    assert {one.kind for one in here.values()} == {"predict", "fill-in", "open"}
    assert list(here) == [f"{chapter:02d}.{i}" for i in range(1, len(here) + 1)]


@pytest.mark.parametrize("key", ALL)
@pytest.mark.parametrize("stub", [None, ...])
def test_an_unsolved_exercise_is_not_yet_and_says_what_to_do(key, stub, capsys):
    result = check(key, stub)
    assert result.passed is None
    assert not result
    assert capsys.readouterr().out == f"{key} not yet: {ALL[key].task}\n"


@pytest.mark.parametrize("key", SOLUTIONS)
def test_a_stub_function_is_not_yet(key):
    assert check(key, lambda *arguments: None).passed is None
    assert check(key, lambda *arguments: ...).passed is None


@pytest.mark.parametrize("key", ALL)
def test_a_solution_passes(key, capsys):
    result = check(key, {**SOLUTIONS, **PREDICTED, **OPEN}[key])
    assert result.passed is True, result
    assert capsys.readouterr().out.startswith(f"{key} passed: ")


@pytest.mark.parametrize("key", WRONG)
def test_typical_wrong_answers_get_a_hint_each_of_their_own(key):
    hints = {}
    for name, wrong in WRONG[key].items():
        result = check(key, wrong)
        assert result.passed is False, name
        assert "differ by up to" not in result.hint, name  # a hint that says something
        assert "stopped with" not in result.hint, name
        hints[name] = result.hint
    assert len(set(hints.values())) == len(hints) >= 3, hints


def test_every_fill_in_and_every_prediction_has_three_wrong_answers_in_these_tests():
    asked = {key for key, one in ALL.items() if one.kind != "open"}
    assert asked <= set(WRONG)


@pytest.mark.parametrize("key", [key for key, one in ALL.items() if one.kind == "fill-in"])
def test_code_that_stops_becomes_a_hint(key):
    def broken(*arguments):
        return torch.zeros(2) @ torch.zeros(3)

    result = check(key, broken)
    assert result.passed is False
    assert "RuntimeError" in result.hint


@pytest.mark.parametrize("key", SOLUTIONS)
def test_a_result_in_place_of_the_function_is_named(key):
    assert "the function itself" in check(key, torch.zeros(2)).hint


def test_an_answer_that_changes_its_input_is_told():
    def greedy(x_0, eps, alpha_bar):
        x_0 *= 2
        return x_0

    hint = check("02.2", greedy).hint
    assert hint.startswith("it changes the tensor")  # and the student's code did not stop


def test_a_loss_without_gradient_is_told():
    assert "no gradient" in check("03.2", lambda *a: SOLUTIONS["03.2"](*a).detach()).hint


FORMS = {
    "02.2": lambda *a: list(SOLUTIONS["02.2"](*a)),
    "02.3": lambda betas: SOLUTIONS["02.3"](betas).tolist(),
    "03.3": lambda x, e, a: (x - (1 - a).sqrt() * e) / a.sqrt(),
    "05.3": lambda z: 1 / np.std(z.numpy()),
    "05.4": lambda *a: SOLUTIONS["05.4"](*a).numpy(),
    "11.2": lambda *a: [one.numpy() for one in SOLUTIONS["11.2"](*a)],
}


@pytest.mark.parametrize("key", FORMS)
def test_right_numbers_in_another_form_are_right(key):
    assert check(key, FORMS[key]).passed, check(key, FORMS[key])


def test_what_is_no_number_is_named():
    assert "returns a str" in check("02.2", lambda *a: "x_t").hint


def test_a_single_wrong_number_is_not_called_right_up_to_a_factor():
    assert "factor" not in check("03.2", lambda *a: 3.3 * SOLUTIONS["03.2"](*a)).hint


def test_a_forgotten_zero_grad_is_one_reason_for_a_loss_that_grows():
    assert "zero_grad" in check("03.4", [1.2 + i / 50 for i in range(100)]).hint


def test_a_wrong_shape_a_sign_and_a_factor_are_told_where_no_mistake_is_known():
    right = SOLUTIONS["05.2"]
    assert "shape" in check("05.2", lambda *a: right(*a)[0]).hint
    assert "sign" in check("05.2", lambda *a: -right(*a)).hint
    assert "factor" in check("05.2", lambda *a: 3 * right(*a)).hint


def test_a_check_leaves_the_random_numbers_as_they_were():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    check("11.3", lambda *a: torch.randn(1, 4, 4, 4))
    assert torch.equal(torch.rand(3), expected)


def test_an_unknown_exercise_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"02\.1, 02\.2"):
        find("02.9")
    with pytest.raises(ValueError, match="keys look like"):
        check("2.1", None)


def test_the_notebook_shows_a_result_once(capsys):
    result = check("02.1", 500)
    capsys.readouterr()
    result._ipython_display_()
    assert capsys.readouterr().out == ""


@pytest.fixture
def folder(tmp_path, pipe):
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_setup_prints_one_line_of_what_it_found(folder, pipe, capsys):
    session = setup(5, weights=folder)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    for part in ("chapter 05", "Python 3", "PyTorch", "cpu", pipe.hash, "seed 0", "thread"):
        assert part in line
    assert session.pipe.hash == pipe.hash
    assert session.pipe is session.pipe
    assert session.tolerance == 1e-5


def test_setup_sets_the_seed(folder):
    setup(5, weights=folder, seed=3)
    first = torch.rand(2), setup(5, weights=folder, seed=3) and torch.rand(2)
    assert torch.equal(*first)
    session = setup(5, weights=folder, seed=3)
    assert torch.equal(
        torch.rand(2, generator=session.generator()), torch.rand(2, generator=session.generator(3))
    )


@pytest.mark.parametrize(("value", "fast"), [("1", True), ("0", False), ("", False), (None, False)])
def test_fast_mode_comes_from_the_environment(folder, monkeypatch, value, fast):
    monkeypatch.delenv("MINISD_FAST", raising=False)
    if value is not None:
        monkeypatch.setenv("MINISD_FAST", value)
    assert setup(5, weights=folder).fast is fast


def test_a_missing_model_is_advice_at_set_up_and_an_error_when_it_is_used(tmp_path, capsys):
    session = setup(5, weights=tmp_path / "nowhere")
    assert "! " in capsys.readouterr().out
    with pytest.raises(ValueError, match="does not exist"):
        _ = session.pipe


def test_train_or_load_trains_once_and_says_which(tmp_path, capsys):
    path, runs = tmp_path / "results" / "toy.pt", []

    def train():
        runs.append(1)
        return {"weight": torch.tensor([float(len(runs))]), "losses": [1.0, 0.5]}

    first = train_or_load(path, train)
    assert "trained in" in capsys.readouterr().out
    again = train_or_load(path, train)
    assert "loaded toy.pt" in capsys.readouterr().out
    assert len(runs) == 1
    assert torch.equal(again["weight"], first["weight"])
    assert train_or_load(path, train, retrain=True)["weight"].item() == 2
    assert [p.name for p in path.parent.iterdir()] == ["toy.pt"]


def test_a_damaged_result_says_how_to_train_anew(tmp_path):
    (tmp_path / "toy.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="retrain=True"):
        train_or_load(tmp_path / "toy.pt", dict)


def test_show_source_is_the_code_with_a_link_to_its_lines():
    source = show_source(DDIMScheduler.step)
    lines, first = inspect.getsourcelines(DDIMScheduler.step)
    assert str(source) == "".join(lines)
    last = first + len(lines) - 1
    assert source.link == f"../minisd/schedulers/ddim.py#L{first}-L{last}"
    assert source.link in source._repr_mimebundle_()["text/markdown"]
    assert show_source(DDIMScheduler()).file == "minisd/schedulers/ddim.py"


@pytest.mark.parametrize("thing", [3, torch.add, nn.Linear])
def test_show_source_of_something_else_is_an_error(thing):
    with pytest.raises(ValueError, match=r"no source|belongs to"):
        show_source(thing)
