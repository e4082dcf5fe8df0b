"""README says what is true. `python tests/test_readme.py --write` counts its file tables anew."""

import ast
import re
import shlex
import sys
from importlib import resources
from pathlib import Path

import pytest

from minisd.options import build_parser, check
from minisd.picturebook.stages import PROMPTS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf8")
SET_UP = "python3 -m venv .venv && . .venv/bin/activate && python -m pip install "
PICTURE_COMMAND = SET_UP + '-r requirements.txt && python -m minisd "a red boat at sunset"'
TEST_COMMAND = SET_UP + "-r requirements.txt -r tests/requirements.txt && python -m pytest -n auto"
SHIPPED = resources.files("minisd").joinpath("picturebook/weights/pipeline.json").is_file()
READING_PATH = [
    f"minisd/{name}.py"
    for name in (
        "config", "attention", "layers", "tokenizer", "text_encoder", "unet", "noise",
        "autoencoder", "schedulers/schedule", "schedulers/ddpm", "schedulers/ddim", "pipeline",
    )
]  # fmt: skip


def count_lines(path):
    return len((ROOT / path).read_text(encoding="utf8").splitlines())


def source_files():
    """Every source file of both packages, but for empty ones."""
    files = [p for name in ("minisd", "weights_convert") for p in (ROOT / name).rglob("*.py")]
    return sorted(p.relative_to(ROOT).as_posix() for p in files if p.stat().st_size)


def purpose(path):
    """The first sentence of a file's docstring, without its sources in brackets."""
    text = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return re.sub(r" \[[^\]]*\]$", "", first).split(". ")[0].rstrip(".").replace("|", "\\|")


def file_tables():
    """README's two tables: the path for reading, and everything around it."""
    others = [path for path in source_files() if path not in READING_PATH]
    parts = []
    for title, paths in (("The model", READING_PATH), ("Around it", others)):
        rows = [f"| [{path}]({path}) | {count_lines(path)} | {purpose(path)} |" for path in paths]
        total = sum(map(count_lines, paths))
        parts.append("\n".join([f"| {title} | {total} lines | |", "|---|---:|---|", *rows]))
    return "\n\n".join(parts)


def write():
    start, end = (re.search(p, TEXT) for p in (r"<!-- files: .*-->\n", r"<!-- /files -->"))
    text = TEXT[: start.end()] + file_tables() + "\n" + TEXT[end.start() :]
    README.write_text(text, encoding="utf8")


def code_blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_the_grid_is_described_by_the_prompts_that_made_it():
    assert "; ".join(PROMPTS) in TEXT


def test_the_two_commands_stand_on_lines_of_their_own():
    lines = [line for block in code_blocks("sh") for line in block.splitlines()]
    assert lines.count(PICTURE_COMMAND) == 1
    assert lines.count(TEST_COMMAND) == 1


def test_ci_runs_the_test_command_of_the_readme_and_beside_it_only_slow_tests():
    script = (ROOT / ".ci/run").read_text(encoding="utf8")
    known = r"grep .*|^#.*|\S*pytest\.log\S*|python -m pytest -m slow"
    assert "pytest" not in re.sub(known, "", script, flags=re.MULTILINE)
    (pattern,) = re.findall(r"grep -m 1 -E '(.*)' README\.md", script)
    assert re.findall(pattern, TEXT, re.MULTILINE) == [TEST_COMMAND]


def test_the_lines_for_windows_do_the_same():
    for block, command in zip(code_blocks("bat"), (PICTURE_COMMAND, TEST_COMMAND)):
        steps = [re.sub(r"\.venv\\Scripts\\python", "python", line) for line in block.splitlines()]
        assert ["py -3 -m venv .venv", *steps[1:]] == steps
        assert steps[1:] == command.split(" && ")[2:]


def test_the_cpu_build_has_the_range_of_the_requirements():
    torch = (ROOT / "requirements.txt").read_text(encoding="utf8").splitlines()[0]
    assert f'install "{torch}" --index-url https://download.pytorch.org/whl/cpu' in TEXT


def test_every_shown_command_has_options_that_exist():
    lines = [line for block in code_blocks("sh") for line in block.splitlines()]
    shown = [line for line in lines if line.startswith("python -m minisd ")]
    assert len(shown) > 5
    parser = build_parser()
    for line in shown:
        check(parser, parser.parse_args(shlex.split(line)[3:]))


def test_every_relative_link_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    later = set() if SHIPPED else {"minisd/picturebook/samples.png"}
    assert [link for link in links if link not in later and not (ROOT / link).exists()] == []


def test_the_file_tables_name_every_file_and_count_its_lines_within_a_tenth():
    rows = re.findall(r"^\| \[(\S+)\]\(\S+\) \| (\d+) \|", TEXT, re.MULTILINE)
    advice = "python tests/test_readme.py --write"
    assert sorted(path for path, _ in rows) == sorted({*READING_PATH, *source_files()}), advice
    for path, lines in rows:
        assert int(lines) == pytest.approx(count_lines(path), rel=0.1, abs=5), f"{path}: {advice}"


def test_the_course_has_fourteen_chapters():
    rows = re.findall(r"^\| (\d\d) \| .+ \|", TEXT, re.MULTILINE)
    assert rows == [f"{i:02}" for i in range(1, 15)]


def test_the_python_example_has_about_ten_lines():
    (example,) = code_blocks("python")
    assert len([line for line in example.splitlines() if line]) <= 11


@pytest.mark.skipif(not SHIPPED, reason="the shipped weights are not there yet")
def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = code_blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "boat.png").stat().st_size > 0
    assert len(capsys.readouterr().out.splitlines()) > 5


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    write()
