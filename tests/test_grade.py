"""Grading: notebooks run afresh, answers checked by modules that the student has not touched."""

import csv
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from answers import OPEN, PREDICTED, SOLUTIONS, WRONG

from minisd.teach import checks, grade, recheck, submission

KEYS = ["02.1", "02.2", "02.3", "02.4", "02.5"]
RANDOM = [key for key in SOLUTIONS if key not in ("06.1", "06.2", "08.2", "12.2")]
WORDS = "it would differ every time, so that nobody could ever compute it back again"
SAMPLE = """
def q_sample(x_0, eps, alpha_bar):
    a = alpha_bar[:, None, None, None]
    return a ** 0.5 * x_0 + (1 - a) ** 0.5 * eps
"""


def cell(source, *tags, shown=""):
    made = nbformat.v4.new_code_cell(source.strip(), metadata={"tags": list(tags)})
    if shown:
        made.outputs = [nbformat.v4.new_output("stream", name="stdout", text=shown)]
    return made


def asked(key, answer, name):
    """An exercise's cell and its check."""
    check = cell(f'check("{key}", {name})', f"check-{key}", shown=f"{key} passed\n")
    return [cell(answer, f"exercise-{key}"), check]


def write(path, *cells):
    notebook = nbformat.v4.new_notebook(cells=[cell("from minisd.teach import check"), *cells])
    nbformat.write(notebook, path)
    return path


HONEST = [
    *asked("02.1", "timestep_of_snr_1 = 353", "timestep_of_snr_1"),
    *asked("02.2", SAMPLE, "q_sample"),
    *asked("02.3", "def alphas_bar(betas):\n    return None", "alphas_bar"),
    *asked("02.4", "factor_at_the_end = 0.07", "factor_at_the_end"),
    *asked("02.5", f'answer = "{WORDS}"', "answer"),
    cell("answer = timestep_of_snr_1 = None  # later: too late to matter"),
]
WRONG_SAMPLE = "def q_sample(x_0, eps, alpha_bar):\n    return x_0"
CHEATING = [
    cell("timestep_of_snr_1 = 500", "exercise-02.1"),
    cell('print("02.1 passed")', "check-02.1", shown="02.1 passed\n"),
    cell(
        "import builtins, minisd.teach.checks as c\n"
        "c.compare = lambda *a, **k: ''\n"
        "c._judge = lambda key, *a: c.Result(key, True)\n"
        "check = lambda key, answer: print(key, 'passed')\n"
        "c.Result.__str__ = lambda self: 'passed'\n"
        "builtins.print = lambda *a, **k: None"
    ),
    *asked("02.2", WRONG_SAMPLE, "q_sample"),
    cell("import torch\nright = torch.allclose\ntorch.allclose = lambda *a, **k: True"),
    *asked("02.3", "def alphas_bar(betas):\n    return betas", "alphas_bar"),
    cell("torch.allclose = right\nfactor_at_the_end = 0.0683"),  # no check, but the answer
]
HANGING = [
    *asked("02.1", "while True: pass", "timestep_of_snr_1"),
    cell("import os\nos._exit(1)"),
    *asked("02.2", SAMPLE, "q_sample"),
]


def read_table(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """One run over several files: its rows by student, and its exit code."""
    folder = tmp_path_factory.mktemp("grades")
    other = 'check("03.1", 1)'
    (folder / "torn.ipynb").write_text('{"cells": [{"cell_type"')
    files = [
        write(folder / "ada.ipynb", *HONEST),
        write(folder / "bob.ipynb", *CHEATING),
        folder / "torn.ipynb",
        folder / "nobody.ipynb",
        write(folder / "eve.ipynb", cell(other)),
        write(folder / "none.ipynb", cell("1 + 1")),
    ]
    table = folder / "grades.csv"
    code = grade.main([*map(str, files), "-o", str(table), "--chapter", "2", "--seed-per-student"])
    return {row["student"]: row for row in read_table(table)}, code


def test_an_honest_notebook_has_the_status_of_every_answer_where_its_check_stands(graded):
    row = graded[0]["ada"]
    statuses = [row[key] for key in KEYS]
    assert statuses == ["passed", "passed", "not yet", "not right", "passed"]
    assert "rounded too far" in row["02.4 hint"]
    assert (row["points"], row["total"], row["note"]) == ("3", "5", "")


def test_neither_words_nor_stored_outputs_nor_a_check_of_ones_own_nor_patches_pass(graded):
    row = graded[0]["bob"]
    assert row["02.1"] == row["02.2"] == "not right", row
    assert row["02.3"] == "error"
    assert "look at the notebook" in row["02.3 hint"]


def test_an_answer_whose_check_was_deleted_is_checked_and_a_missing_one_named(graded):
    row = graded[0]["bob"]
    assert (row["02.4"], row["02.5"], row["points"]) == ("passed", "missing", "1")


@pytest.mark.parametrize(("student", "said"), [
    ("torn", "not a notebook"), ("nobody", "cannot be read"), ("eve", "chapter 03"),
    ("none", "no exercises of this course"),
])  # fmt: skip
def test_a_file_that_cannot_be_graded_is_a_line_and_the_others_are_graded(graded, student, said):
    row = graded[0][student]
    assert said in row["note"]
    assert (row["points"], row["total"], row["02.1"]) == ("0", "", "")
    assert graded[1] == 1


def test_a_cell_without_end_is_interrupted_and_a_dead_kernel_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "dan.ipynb", *HANGING)
    assert grade.main(["dan.ipynb", "--cell-seconds", "3"]) == 0
    (row,) = read_table(tmp_path / "grades.csv")
    assert row["02.1"] == row["02.2"] == "error"
    assert "the kernel died in cell 4" in row["note"]
    assert "cell 2 took longer than 3 s" in row["note"]
    out = capsys.readouterr()
    assert "Traceback" not in out.out + out.err
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".ipynb"] == ["grades.csv"]


@pytest.mark.parametrize("key", RANDOM)
def test_a_name_gives_the_checks_inputs_of_its_own_and_a_solution_passes_with_them(key):
    with checks.inputs_of("ada"):
        assert checks.check(key, SOLUTIONS[key]).passed
        assert not checks.check(key, next(iter(WRONG[key].values()))).passed


def seen_by(name):
    """The first input that the check of 02.2 draws for a name."""
    seen = []
    with checks.inputs_of(name):
        checks.check("02.2", lambda x_0, *rest: seen.append(x_0))
    return seen[0]


def test_the_same_name_has_the_same_inputs_and_another_name_others():
    assert torch.equal(seen_by("ada"), seen_by("ada"))
    assert not torch.equal(seen_by("ada"), seen_by("bob"))


def test_outside_everybody_has_the_same_inputs():
    usual = torch.Generator().manual_seed(2)
    seen_by("ada")
    assert torch.equal(torch.rand(3, generator=checks.seeded(2)), torch.rand(3, generator=usual))


def test_answers_learned_by_heart_fail_with_inputs_of_ones_own():
    heard = []
    checks.check("02.2", lambda x, e, a: heard.append(SOLUTIONS["02.2"](x, e, a)) or heard[0])
    root = str(submission.ROOT)
    assert recheck.verdict("02.2", lambda *inputs: heard[0], root, "")[0] == "passed"
    assert recheck.verdict("02.2", lambda *inputs: heard[0], root, "ada")[0] == "not right"


def test_the_recheck_leaves_the_kernels_own_modules_as_they_were():
    with recheck.fresh_modules(str(submission.ROOT)):
        import minisd.teach.checks as fresh

        assert fresh is not checks
        assert fresh.check("02.1", 353).passed
    assert sys.modules["minisd.teach.checks"] is checks
    assert sys.modules["minisd"].teach is sys.modules["minisd.teach"]


def test_every_exercise_of_the_course_has_an_answer_to_look_at():
    for key in {**SOLUTIONS, **PREDICTED, **OPEN}:
        if list(submission.COURSE.glob(f"{key[:2]}_*.ipynb")):
            assert submission.course_answer(key).isidentifier(), key


@pytest.mark.parametrize(
    "path", sorted(submission.COURSE.glob("[0-9]*.ipynb")), ids=lambda p: p.stem
)
def test_a_chapter_is_read_as_its_own_with_every_answer_after_its_check(path):
    read = submission.read_submission(path)
    keys = [step.key for step in read.steps if step.key]
    assert read.chapter == int(path.name[:2])
    assert keys == list(checks.exercises(read.chapter))
    assert read.lost == ()


@pytest.mark.parametrize(("name", "student"), [
    ("02_forward_diffusion_and_noise_schedules_Ada_L.ipynb", "Ada L"),
    ("Ada.ipynb", "Ada"),
    ("ada/02_forward_diffusion_and_noise_schedules.ipynb", "ada"),
])  # fmt: skip
def test_the_student_is_what_the_file_name_has_beside_the_chapter(name, student):
    assert submission.student_of(Path(name), 2) == student


def test_magics_and_split_calls_are_read_and_the_last_call_counts():
    cells = [
        cell('%matplotlib inline\ncheck(\n    "02.1",\n    1 +\n    1)'),
        cell('check("02.1", answer=x)'),
        cell("def broken(:"),
    ]
    assert submission.answer_of("02.1", cells) == (2, "x")
    assert submission.calls(cells[0]) == [("02.1", "1 + 1")]


@pytest.mark.parametrize("value", ["=1+1", "+1", "-1", "@x"])
def test_no_cell_of_the_table_is_a_formula(value):
    assert grade.harmless(value) == f"'{value}"
    assert grade.harmless("not right") == "not right"


def stop(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        grade.main(argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_a_table_replaces_a_table_and_nothing_else(tmp_path, capsys):
    table = tmp_path / "grades.csv"
    grade.write_table([grade.Row("a.ipynb", "Zoë", {"02.1": ("passed", "=hint")}, 5)], table)
    grade.write_table([grade.Row("b.ipynb", "Zoë", {"02.1": ("passed", "=hint")}, 5)], table)
    (row,) = read_table(table)
    assert (row["file"], row["student"], row["02.1 hint"]) == ("b.ipynb", "Zoë", "'=hint")
    notebook = write(tmp_path / "a.ipynb")
    assert "no table of grades" in stop([str(notebook), "-o", str(notebook)], capsys)
    assert "folder that exists" in stop([str(notebook), "-o", str(tmp_path / "no/g.csv")], capsys)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.ipynb", "grades.csv"]


def test_wrong_options_are_one_line(tmp_path, capsys, monkeypatch):
    assert "one student" in stop(["a.ipynb", "b.ipynb", "--student", "Ada"], capsys)
    assert "no exercises" in stop(["a.ipynb", "--chapter", "98"], capsys)
    monkeypatch.setattr(grade, "JUPYTER", ("nbclient_that_is_not_there",))
    assert "pip install jupyter" in stop(["a.ipynb"], capsys)


def test_stars_are_filled_in_where_the_shell_did_not(tmp_path):
    for name in ("a.ipynb", "b.ipynb"):
        (tmp_path / name).touch()
    found = grade.expand([str(tmp_path / "*.ipynb"), str(tmp_path / "a.ipynb"), "c.ipynb"])
    assert [path.name for path in found] == ["a.ipynb", "b.ipynb", "c.ipynb"]
