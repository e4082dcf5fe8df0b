"""The instructor's pages: their snippets run, what they name exists, their minutes add up."""

import re
import time
from functools import cache
from pathlib import Path

import nbformat
import pytest
import torch

from minisd.teach.checks import exercises

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "notebooks"
PAGES = sorted((NOTEBOOKS / "instructor").glob("*.md"))
LONGEST = 60  # seconds of the processor for a page's snippets

each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)


def text_of(name):
    return (NOTEBOOKS / "instructor" / name).read_text(encoding="utf8")


def snippets(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def prose(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


@cache
def chapter(number):
    """The notebook of a chapter, "02", and of its solutions, as lists of cells."""
    paths = [*NOTEBOOKS.glob(f"{number}_*.ipynb"), *NOTEBOOKS.glob(f"solutions/{number}_*.ipynb")]
    return [nbformat.read(path, as_version=4).cells for path in paths]


def rows(table):
    """The cells of a Markdown table's body."""
    lines = [line.strip().strip("|").split("|") for line in table.strip().splitlines()]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def tables(text, first):
    """The tables whose header begins with this cell."""
    found = re.findall(rf"^\| {re.escape(first)} \|.*\n(?:\|.*\n)+", text, re.MULTILINE)
    return [rows(table) for table in found]


@pytest.fixture
def aside(tmp_path, monkeypatch):
    """Another folder and PyTorch's random numbers, both as before afterwards."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        yield tmp_path


def run(path):
    names = {}
    for number, snippet in enumerate(snippets(path.read_text(encoding="utf8")), 1):
        exec(compile(snippet, f"{path.name}, snippet {number}", "exec"), names)
    return names


@each_page
def test_the_snippets_of_a_page_run_in_order_and_soon(path, aside):
    began = time.process_time()
    run(path)
    assert time.process_time() - began < LONGEST
    assert list(aside.iterdir()) == []


@each_page
def test_snippets_have_short_lines_and_those_that_dispel_a_misconception_are_few(path):
    found = snippets(path.read_text(encoding="utf8"))
    assert [line for snippet in found for line in snippet.splitlines() if len(line) > 100] == []
    if path.name == "misconceptions.md":
        assert max(len(snippet.splitlines()) for snippet in found[1:]) <= 5


@each_page
def test_relative_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf8")))
    local = [link.partition("#")[0] for link in links if "://" not in link]
    assert [link for link in local if link and not (path.parent / link).exists()] == []


@each_page
def test_cells_and_exercises_that_are_named_exist(path):
    text = prose(path.read_text(encoding="utf8"))
    for cell_id in re.findall(r"`(\d\d-[a-z0-9-]+)`", text):
        assert cell_id in {cell.id for cells in chapter(cell_id[:2]) for cell in cells}
    for key in re.findall(r"(?<![\w.])((?:0\d|1[0-4])\.\d)(?![\w.])", text):
        assert key in exercises(int(key[:2])), key


@each_page
def test_questions_misconceptions_and_faults_that_are_named_exist(path):
    there = {
        "Q": re.findall(r"^\*\*Q(\d\d\.\d)\*\*", text_of("question_bank.md"), re.MULTILINE),
        "M": re.findall(r"^### M(\d+) ", text_of("misconceptions.md"), re.MULTILINE),
        "B": re.findall(r"^## B(\d+) ", text_of("break_it.md"), re.MULTILINE),
    }
    assert there["M"] == [str(i + 1) for i in range(len(there["M"]))]
    assert there["B"] == [str(i + 1) for i in range(len(there["B"]))]
    named = re.findall(r"\b(Q)(\d\d\.\d)\b|\b([MB])(\d+)\b", prose(path.read_text(encoding="utf8")))
    for question, number, other, place in named:
        assert (number or place) in there[question or other]


def test_the_question_bank_has_four_to_six_questions_for_each_of_fourteen_chapters():
    bank = text_of("question_bank.md")
    asked = re.findall(r"^\*\*Q(\d\d)\.(\d)\*\* \((\w+)\)", bank, re.MULTILINE)
    for number in (f"{i:02}" for i in range(1, 15)):
        here = [(place, kind) for of, place, kind in asked if of == number]
        assert 4 <= len(here) <= 6, number
        assert [place for place, _ in here] == [str(i + 1) for i in range(len(here))], number
        assert {kind for _, kind in here} <= {"choice", "calculation", "short"}
    parts = re.split(r"^\*\*Q", bank, flags=re.MULTILINE)[1:]
    assert [part[:4] for part in parts if "**Answer" not in part] == []


def test_every_choice_has_four_answers_and_the_right_one_is_not_always_the_same():
    parts = re.findall(
        r"^\*\*Q\d\d\.\d\*\* \(choice\)(.*?)\*\*Answer: ([A-D])", text_of("question_bank.md"),
        re.MULTILINE | re.DOTALL,
    )  # fmt: skip
    right = [letter for _, letter in parts]
    for options, _ in parts:
        assert re.findall(r"^- ([A-D])\. ", options, re.MULTILINE) == ["A", "B", "C", "D"]
    assert all(0.1 < right.count(letter) / len(right) < 0.4 for letter in "ABCD")


def test_a_fault_quotes_lines_that_are_there_and_tests_that_are_there():
    for part in re.split(r"^## B", text_of("break_it.md"), flags=re.MULTILINE)[1:]:
        number = part.split()[0]
        quoted = re.findall(r"\*\*Change\*\* \[`([\w/.]+)`\]\(\S+\): `([^`]+)`", part)
        caught = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", part)
        assert len(quoted) == 1, number
        assert caught, number
        for file, line in quoted:
            assert line in (ROOT / file).read_text(encoding="utf8"), number
        for file, name in caught:
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf8"), name


def test_the_minutes_of_every_plan_add_up():
    plans = tables(text_of("lecture_plan.md"), "Minutes")
    assert len(plans) == 5
    for *items, total in plans:
        stated = int(total[0].strip("*"))
        assert sum(int(item[0]) for item in items) == stated
        assert "Total" in total[1]


def reading_minutes(number):
    cells = chapter(number)[0]
    return int(re.findall(r"read: (\d+), run", cells[0].source)[0])


def test_the_plans_state_the_chapters_own_minutes():
    text = text_of("lecture_plan.md")
    head = r"^### Lab \d: .*\((\d\d) to (\d\d)\)\n\nTo read before: (\d+)"
    labs = re.findall(head, text, re.MULTILINE)
    assert len(labs) == 3
    for first, last, minutes in labs:
        asked = range(int(first), int(last) + 1)
        assert sum(reading_minutes(f"{i:02}") for i in asked) == int(minutes)
    (term,) = tables(text, "Week")
    assert [row[1] for row in term] == [f"{i:02}" for i in range(1, 15)]
    assert [int(row[2]) for row in term] == [reading_minutes(row[1]) for row in term]


def test_the_term_gives_every_exercise_once():
    (term,) = tables(text_of("lecture_plan.md"), "Week")
    for row in term:
        given = re.findall(r"\d\d\.\d", f"{row[3]} {row[4]}")
        assert sorted(given) == sorted(exercises(int(row[1]))), row[1]


def test_the_labs_give_every_exercise_of_their_chapters_once():
    text = text_of("lecture_plan.md")
    for lab in re.split(r"^### Lab ", text, flags=re.MULTILINE)[1:]:
        first, last = re.findall(r"\((\d\d) to (\d\d)\)", lab)[0]
        items, home = re.findall(r"^(.*?)^Homework: (.*?)$", lab, re.MULTILINE | re.DOTALL)[0]
        given = re.findall(r"(?<!Q)\b(\d\d\.\d)\b", home)
        for start, end in re.findall(r"(?<!Q)\b(\d\d\.\d)(?: to (\d\d\.\d))?\b", items):
            stop = int((end or start)[-1])
            given += [f"{start[:3]}{i}" for i in range(int(start[-1]), stop + 1)]
        asked = [key for i in range(int(first), int(last) + 1) for key in exercises(i)]
        assert sorted(given) == sorted(asked), lab.splitlines()[0]


def test_the_table_of_points_has_every_exercise_by_its_kind():
    (points,) = tables(text_of("grading.md"), "Chapter")
    assert [row[0] for row in points] == [f"{i:02}" for i in range(1, 15)]
    worth = {"predict": 1, "fill-in": 2, "open": 3}
    for number, *columns, total in points:
        here = exercises(int(number))
        for kind, column in zip(worth, columns):
            assert re.findall(r"\d\d\.\d", column) == [k for k, e in here.items() if e.kind == kind]
        assert int(total) == sum(worth[one.kind] for one in here.values())


def test_every_chapter_has_two_slides_with_a_figure_that_comes_with_alt_text(aside):
    figure = run(NOTEBOOKS / "instructor" / "slides.md")["figure"]
    text = text_of("slides.md")
    for number in range(1, 15):
        one = rf"^### Slide {number}\.\d: .*?(?=^##|\Z)"
        slides = re.findall(one, text, re.MULTILINE | re.DOTALL)
        assert len(slides) == 2, number
        for slide in slides:
            shown = re.findall(r"`(\d\d-[a-z0-9-]+)`", slide)
            assert shown
            assert all(part in slide for part in ("**The one sentence**", "**Ask**"))
            for cell_id in shown:
                png, alt = figure(cell_id, NOTEBOOKS)
                assert png.startswith(b"\x89PNG")
                assert alt.strip()
