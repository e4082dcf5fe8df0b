"""The course's notebooks: as committed, and run afresh where nothing can reach the network."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from minisd.teach.checks import exercises
from minisd.teach.offline import offline_environment

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
CHAPTERS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
NOTEBOOKS = [*CHAPTERS, *SOLUTIONS]
SLOW_CHAPTERS = [pytest.param(path, marks=pytest.mark.slow) for path in CHAPTERS]  # in .ci/run
FIGURES = tomllib.loads((FOLDER / "figure_map.toml").read_text(encoding="utf8"))["figure"]
README = (FOLDER / "README.md").read_text(encoding="utf8")
ARTICLE = "https://jalammar.github.io/illustrated-stable-diffusion/"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
LARGEST = 1_500_000  # bytes
CELL_SECONDS = 300  # a cell that takes longer hangs, even on a busy machine


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(cells):
    return [(cell.id, output) for cell in cells for output in cell.outputs]


def printed(cell):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def pictures(cell):
    """The PNGs of a cell, as their alt texts."""
    shown = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    return [output.metadata.get("image/png", {}).get("alt", "").strip() for output in shown]


def number(path):
    return int(path.name[:2])


def stated_run_minutes(notebook):
    (minutes,) = re.findall(r"read: \d+, run: (\d+), exercises: \d+", notebook.cells[0].source)
    return int(minutes)


def name(path):
    return path.relative_to(FOLDER).as_posix()


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=name)
each_solution = pytest.mark.parametrize("path", SOLUTIONS, ids=name)


@each_notebook
def test_it_is_committed_as_executed_in_order_and_without_errors(path):
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [(key, o) for key, o in outputs(cells) if o.output_type == "error"] == []
    assert [(key, o.text) for key, o in outputs(cells) if o.get("name") == "stderr"] == []


@each_notebook
def test_code_cells_have_at_most_15_lines_and_prose_before_each(path):
    cells = read(path).cells
    code = [i for i, cell in enumerate(cells) if cell.cell_type == "code"]
    assert {cells[i].id: n for i in code if (n := len(cells[i].source.splitlines())) > 15} == {}
    assert [cells[i].id for i in code if i == 0 or cells[i - 1].cell_type != "markdown"] == []


@each_notebook
def test_a_cell_shows_at_most_one_picture_and_every_picture_has_alt_text(path):
    for cell in code_cells(read(path)):
        alts = pictures(cell)
        assert len(alts) <= 1, cell.id
        assert all(alts), cell.id
        html = "".join(o.get("data", {}).get("text/html", "") for o in cell.outputs)
        tags = re.findall(r"<img\b[^>]*>", html)
        assert [tag[:60] for tag in tags if not re.search(r'alt="[^"]+"', tag)] == [], cell.id


@each_notebook
def test_the_file_is_small_and_tidy(path):
    assert path.stat().st_size <= LARGEST
    notebook = json.loads(path.read_text(encoding="utf8"))
    assert notebook["metadata"] == {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"}, cell["id"]
        assert cell["id"].startswith(path.name[:2] + "-"), "ids are names: 02-a-panels"
    nbformat.validate(read(path))


@each_notebook
def test_it_names_no_machine(path):
    for cell in read(path).cells:
        made = [
            {**o, "data": {**o.get("data", {}), "image/png": ""}} for o in cell.get("outputs", [])
        ]
        text = f"{cell.source} {json.dumps(made)}"
        own = re.findall(
            r"(?<![\w.])(?:/home|/Users|/root|/work|/tmp|/var|/mnt)/\S*|\b[A-Z]:\\\S*", text
        )
        assert own == [], cell.id


@each_notebook
def test_its_relative_links_lead_somewhere(path):
    notebook = read(path)
    shown = [o.get("data", {}).get("text/markdown", "") for _, o in outputs(code_cells(notebook))]
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", "\n".join([*prose, *shown]))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


@each_chapter
def test_a_chapter_opens_with_what_a_reader_needs_and_a_picture_within_five_cells(path):
    notebook = read(path)
    head = notebook.cells[0].source
    assert head.startswith(f"# {path.name[:2]} ")
    assert re.findall(r"^\d\. ", head.partition("You will learn")[2], re.M) == ["1. ", "2. ", "3. "]
    assert ARTICLE in head
    assert stated_run_minutes(notebook) >= 1
    assert any(pictures(c) for c in notebook.cells[:5] if c.cell_type == "code")


@each_chapter
def test_a_chapter_asks_all_its_exercises_and_leaves_them_open(path):
    notebook = read(path)
    for key in exercises(number(path)):
        assert len(tagged(notebook, f"exercise-{key}")) == 1, key
        (cell,) = tagged(notebook, f"check-{key}")
        assert f'check("{key}", ' in cell.source
        assert printed(cell).startswith(f"{key} not yet"), key


@each_chapter
def test_a_chapter_has_its_solutions_and_its_row_in_the_table(path):
    assert (FOLDER / "solutions" / path.name).is_file()
    (row,) = re.findall(rf"^\| {path.name[:2]} \|.*$", README, re.M)
    assert f"]({path.name})" in row
    (times,) = re.findall(r"read: (\d+), run: (\d+), exercises: (\d+)", read(path).cells[0].source)
    assert " / ".join(times) in row


@each_solution
def test_the_solutions_pass_every_check_of_the_chapter(path):
    notebook = read(path)
    for key in exercises(number(path)):
        (cell,) = tagged(notebook, f"check-{key}")
        assert printed(cell).startswith(f"{key} passed"), printed(cell)


def test_the_table_has_fourteen_chapters():
    rows = re.findall(r"^\| (\d\d) \|", README, re.M)
    assert rows == [f"{i:02}" for i in range(1, 15)]
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", README)
    assert [x for x in links if "://" not in x and not (FOLDER / x).exists()] == []


@pytest.mark.parametrize("figure", FIGURES)
def test_a_mapped_figure_of_the_article_is_shown_with_alt_text(figure):
    assert 1 <= int(figure) <= 35
    (cell,) = tagged(read(FOLDER / FIGURES[figure]["notebook"]), FIGURES[figure]["tag"])
    assert any(pictures(cell))


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """An environment in which Python refuses every connection that leaves the machine."""
    return offline_environment(tmp_path_factory.mktemp("offline"), MINISD_FAST="1")


@pytest.mark.parametrize(
    ("host", "refused"), [("192.0.2.1", True), ("example.invalid", True), ("127.0.0.1", False)]
)
def test_the_hook_refuses_what_would_leave_the_machine_and_nothing_else(offline, host, refused):
    code = f"import socket; socket.create_connection(({host!r}, 9), timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True)
    assert ("would leave this machine" in done.stderr) == refused


@pytest.mark.parametrize("path", [*SLOW_CHAPTERS, *SOLUTIONS], ids=name)
def test_it_runs_afresh_offline_in_fast_mode_and_in_its_time(path, offline):
    notebook = read(path)
    tags = {cell.id: cell.metadata.get("tags", []) for cell in code_cells(notebook)}
    probe = nbformat.v4.new_code_cell(
        "import sitecustomize, time\nassert sitecustomize.refuse\nprint(time.process_time())"
    )
    notebook.cells.append(probe)
    place = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", resources=place)
    client.execute(env=offline)
    *cells, last = code_cells(notebook)
    assert "fast mode" in "".join(map(printed, cells))
    stated = stated_run_minutes(read(FOLDER / path.name))
    assert float(printed(last)) < 2 * 60 * stated  # of the processor: a busy machine is no fault
    word = "passed" if path in SOLUTIONS else "not yet"
    for cell in cells:
        if any(tag.startswith("check-") for tag in tags[cell.id]):
            assert word in printed(cell), printed(cell)
