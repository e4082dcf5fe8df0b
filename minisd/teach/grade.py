"""Students' notebooks to a table of points: python -m minisd.teach.grade NOTEBOOK [...] -o FILE.

Each notebook is run afresh in a kernel of its own, in fast mode, without a network and within a
time limit. After each check cell its answer is checked again by modules loaded anew, so that
neither stored outputs count, nor a `check` of the student's own, nor printed words. A check cell
that is gone is replaced by the course's own.

What this cannot do: student and checks share one Python process, so someone who takes Python itself
apart can forge a verdict, and someone who copies the published solutions passes. It is no sandbox
either: the cells run with your rights. Give notebooks of people whom you do not know to an account
or a container of their own.
"""

import argparse
import csv
import glob
import importlib.util
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from minisd.checkpoint import replacing
from minisd.options import Parser, between, text
from minisd.teach.checks import exercises

JUPYTER = ("nbformat", "nbclient", "ipykernel")
STATUSES = ("passed", "not right", "not yet", "missing", "error")


@dataclass
class Row:
    """What the table says of one file; `total` is None where the file could not be graded."""

    file: str
    student: str
    verdicts: dict[str, tuple[str, str]] = field(default_factory=dict)
    total: int | None = None
    note: str = ""

    @property
    def points(self) -> int:
        return sum(status == "passed" for status, _ in self.verdicts.values())

    def __str__(self) -> str:
        if self.total is None:
            return f"{self.file}: {self.note}"
        left = [f"{key} {status}" for key, (status, _) in self.verdicts.items()
                if status != "passed"]  # fmt: skip
        points = f"{self.student}, {self.points} of {self.total}"
        return f"{self.file}: {'; '.join(filter(None, [points, ', '.join(left), self.note]))}"


def build_parser() -> Parser:
    """The options of the command line."""
    parser = Parser(prog="minisd.teach.grade", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("notebooks", nargs="+", metavar="NOTEBOOK", help="students' .ipynb files")
    add("-o", "--output", type=Path, default=Path("grades.csv"), metavar="FILE",
        help="the table (default: grades.csv); one of an earlier run is replaced")  # fmt: skip
    add("--chapter", type=between(int, 1, 99), metavar="N", help="accept this chapter alone")
    add("--student", type=text, metavar="NAME", help="of one notebook (default: from its name)")
    add("--seed-per-student", action="store_true",
        help="checks draw other inputs for each name, always the same for the same")  # fmt: skip
    add("--cell-seconds", type=between(float, 1, 86400), default=120, metavar="N",
        help="a cell or a check may take this long (default: 120)")  # fmt: skip
    add("--seconds", type=between(float, 1, 86400), default=600, metavar="N",
        help="and a notebook in all this long (default: 600)")  # fmt: skip
    return parser


def grade(path: Path, args: argparse.Namespace) -> Row:
    """The row of one file; what is wrong with the file stands in its note."""
    from minisd.teach.run import grade_cells
    from minisd.teach.submission import read_submission, student_of

    row = Row(str(path), args.student or student_of(path, args.chapter))
    try:
        submission = read_submission(path, args.chapter)
        row.student = args.student or student_of(path, submission.chapter)
        name = row.student if args.seed_per_student else ""
        found = grade_cells(submission, args.cell_seconds, args.seconds, name)
    except ValueError as error:
        row.note = one_line(str(error))
        return row
    asked = exercises(submission.chapter)
    row.verdicts = {key: clean(*found.of[key]) for key in asked}
    row.total = len(asked)
    stopped = [f"cell {number} {what}" for number, what in found.stopped.items()]
    row.note = one_line("; ".join(filter(None, [found.note, *stopped[:3]])))
    return row


def clean(status: str, hint: str) -> tuple[str, str]:
    """A verdict as it may stand in the table, whatever came out of the student's kernel."""
    known = status if status in STATUSES else "error"
    return known, one_line(str(hint))


def one_line(message: str) -> str:
    return " ".join(message.split())[:500]


def write_table(rows: Sequence[Row], path: Path) -> None:
    """All rows as CSV, whole or not at all. Raises ValueError where it cannot be written."""
    keys = sorted({key for row in rows for key in row.verdicts})
    columns = [name for key in keys for name in (key, f"{key} hint")]
    try:
        with replacing(path) as part, part.open("w", encoding="utf-8-sig", newline="") as file:
            table = csv.writer(file)
            table.writerow(["file", "student", *columns, "points", "total", "note"])
            for row in rows:
                cells = [value for key in keys for value in row.verdicts.get(key, ("", ""))]
                total = "" if row.total is None else row.total
                line = [row.file, row.student, *cells, row.points, total, row.note]
                table.writerow([harmless(str(value)) for value in line])
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from error


def harmless(value: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t")) else value


def expand(patterns: Sequence[str]) -> list[Path]:
    """Files, with * and ? filled in where the shell did not (as on Windows)."""
    found: dict[str, None] = {}
    for pattern in patterns:
        there = Path(pattern).exists()
        found |= dict.fromkeys([pattern] if there else sorted(glob.glob(pattern)) or [pattern])
    return [Path(name) for name in found]


def check_options(parser: Parser, args: argparse.Namespace, paths: Sequence[Path]) -> None:
    """Stop with one line where options do not go together, or the table would harm a file."""
    missing = [name for name in JUPYTER if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"{missing[0]} is missing; pip install jupyter brings it")
    if args.student is not None and len(paths) > 1:
        parser.error("--student names one student; give one notebook, or leave it out")
    if args.chapter is not None and not exercises(args.chapter):
        parser.error(f"chapter {args.chapter:02d} has no exercises")
    table = args.output
    if table.is_dir() or not table.absolute().parent.is_dir():
        parser.error(f"{table} cannot be the table; give -o a file in a folder that exists")
    if table.exists() and not table.read_bytes()[:20].startswith(b"\xef\xbb\xbffile,student"):
        parser.error(f"{table} is there and no table of grades; choose another name for -o")


def main(argv: Sequence[str] | None = None) -> int:
    """Grade; returns 0, 1 (a file could not be graded), 2 (wrong input) or 130 (stopped)."""
    parser = build_parser()
    args = parser.parse_args(argv)
    paths = expand(args.notebooks)
    check_options(parser, args, paths)
    rows: list[Row] = []
    try:
        for path in paths:
            began = time.monotonic()
            rows.append(grade(path, args))
            print(f"{rows[-1]} ({time.monotonic() - began:.0f} s)", flush=True)
            write_table(rows, args.output)  # after each, so that a run that is stopped has its rows
    except KeyboardInterrupt:
        print(f"stopped; {args.output} holds the {len(rows)} before", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"minisd.teach.grade: error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.output}: {len(rows)} notebooks")
    return int(any(row.total is None for row in rows))


if __name__ == "__main__":
    sys.exit(main())
