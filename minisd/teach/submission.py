"""A student's notebook: which chapter it is, and where each exercise's answer is to be found."""

import ast
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

import minisd
from minisd.teach.checks import exercises

ROOT = Path(minisd.__file__).resolve().parent.parent  # the folder that minisd was loaded from
COURSE = ROOT / "notebooks"


@dataclass(frozen=True)
class Step:
    """A cell to run, or an answer to check: the expression for `key` as it stands at that place."""

    source: str
    number: int = 0  # of the cell in the notebook, from 1
    key: str = ""


@dataclass(frozen=True)
class Submission:
    """`steps` are the code cells in order, and after each check cell its answer."""

    path: Path
    chapter: int
    steps: tuple[Step, ...]
    lost: tuple[str, ...]  # exercises without an answer anywhere
    places: dict[str, int]  # exercise -> the number of its cell


def read_submission(path: Path, chapter: int | None = None) -> Submission:
    """Raises ValueError for what is no notebook, or not one of this course or of this chapter."""
    cells = read_cells(path)
    found = chapter_of(cells)
    if found is None:
        raise ValueError("it has no exercises of this course: no tags check-NN.k, no check(...)")
    if chapter is not None and chapter != found:
        raise ValueError(f"it is of chapter {found:02d}, expected chapter {chapter:02d}")
    asked = {key: answer_of(key, cells) for key in exercises(found)}
    steps = []
    for number, cell in enumerate(cells, 1):
        if cell.cell_type != "code":
            continue
        steps.append(Step(cell.source, number))
        steps += [Step(text, number, key) for key, (place, text) in asked.items()
                  if place == number and text]  # fmt: skip
    last = len(cells)
    steps += [Step(text, last, key) for key, (place, text) in asked.items() if not place and text]
    lost = tuple(key for key, (_, text) in asked.items() if not text)
    places = {key: place_of(f"exercise-{key}", cells) for key in asked}
    return Submission(path, found, tuple(steps), lost, places)


def read_cells(path: Path) -> list[NotebookNode]:
    """Raises ValueError with what is wrong in a few words."""
    if path.is_dir():
        raise ValueError(f"it is a folder; give its notebooks: {path / '*.ipynb'}")
    try:
        with warnings.catch_warnings(action="ignore"):  # cells without ids are fine
            return nbformat.read(path, as_version=4).cells
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from error
    except Exception as error:  # nbformat raises whatever its readers meet
        kind = type(error).__name__
        raise ValueError(f"it is not a notebook ({kind}); is it a whole .ipynb file?") from error


def tags(cell: NotebookNode) -> list[str]:
    found = cell.metadata.get("tags", [])
    return found if isinstance(found, list) else []


def chapter_of(cells: list[NotebookNode]) -> int | None:
    """The chapter that most tags and calls of check belong to, among those with exercises."""
    votes = Counter()
    for cell in cells:
        keys = [tag.partition("-")[2] for tag in map(str, tags(cell)) if "-" in tag]
        keys += [key for key, _ in calls(cell)] if cell.cell_type == "code" else []
        votes.update(int(key[:2]) for key in keys if re.fullmatch(r"\d\d\.\d+", key))
    return next((chapter for chapter, _ in votes.most_common() if exercises(chapter)), None)


def calls(cell: NotebookNode) -> list[tuple[str, str]]:
    """The calls check("NN.k", ANSWER) of a code cell: key and answer, as Python text."""
    try:
        tree = ast.parse(TransformerManager().transform_cell(cell.source))
    except (SyntaxError, ValueError):
        return []
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func).split(".")[-1] != "check":
            continue
        given = [*node.args, *(word.value for word in node.keywords)]
        if len(given) == 2 and isinstance(given[0], ast.Constant):
            found.append((str(given[0].value), ast.unparse(given[1])))
    return found


def answer_of(key: str, cells: list[NotebookNode]) -> tuple[int, str]:
    """The cell after which to look at an answer (0: after all) and what to look at, as Python text.

    It is what the student's check cell passes; where that was deleted or altered, what the
    course's own passes; "" where neither is there.
    """
    code = [(n, cell) for n, cell in enumerate(cells, 1) if cell.cell_type == "code"]
    tagged = place_of(f"check-{key}", cells)
    for number, cell in sorted(code, key=lambda one: (one[0] != tagged, -one[0])):
        for name, text in calls(cell):
            if name == key:
                return number, text
    return tagged, course_answer(key)


def place_of(tag: str, cells: list[NotebookNode]) -> int:
    """The number of the last code cell with this tag, 0 for none."""
    code = [n for n, cell in enumerate(cells, 1) if cell.cell_type == "code" and tag in tags(cell)]
    return code[-1] if code else 0


@cache
def course_answer(key: str) -> str:
    """What the course's own check cell passes; "" if its notebook is not on this machine."""
    for cell in (cell for path in COURSE.glob(f"{key[:2]}_*.ipynb") for cell in course_cells(path)):
        texts = [text for name, text in calls(cell) if name == key]
        if texts:
            return texts[0]
    return ""


@cache
def course_cells(path: Path) -> list[NotebookNode]:
    return [cell for cell in read_cells(path) if cell.cell_type == "code"]


def student_of(path: Path, chapter: int | None) -> str:
    """A student's name from a file: what is left without the chapter's own name, else the folder.

    "02_forward_diffusion_and_noise_schedules_ada.ipynb" and "ada/02_....ipynb" are both "ada".
    """
    stem = path.stem
    for known in COURSE.glob(f"{chapter:02d}_*.ipynb") if chapter is not None else ():
        stem = stem.replace(known.stem, " ")
    return " ".join(re.split(r"[\s_.-]+", stem)).strip() or path.resolve().parent.name
