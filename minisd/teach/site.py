"""The course as pages to read without Jupyter or a network: python -m minisd.teach.site DIR.

Notebooks as they are stored become static HTML, with no script and nothing from elsewhere.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import minisd
from minisd.options import Parser

NEEDED = {"nbconvert": "jupyter", "math_core": '"math-core>=0.9,<0.10"'}  # module: its package
COURSE = Path(minisd.__file__).resolve().parent.parent / "notebooks"
MARK = ".minisd-site.json"  # in a folder that this command made: the files that it put there


def build_parser() -> Parser:
    parser = Parser(prog="minisd.teach.site", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="a new folder, or one that this command made")
    add("--solutions", action="store_true", help="also the solutions of the exercises")
    add("--course", type=Path, default=COURSE, metavar="DIR",
        help="the folder of the notebooks (default: the one beside minisd)")  # fmt: skip
    return parser


@contextmanager
def site_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` to write to; at the end it takes the place of `path`.

    Raises ValueError if `path` is a file, or holds what this command has not put there.
    """
    path = path.absolute()
    refuse_foreign(path)
    part, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    part.mkdir(parents=True)
    try:
        yield part
        made = sorted(p.relative_to(part).as_posix() for p in part.rglob("*") if p.is_file())
        (part / MARK).write_text(json.dumps(made, indent=0), encoding="utf8")
        if path.exists():
            path.rename(old)
        part.rename(path)
    finally:
        if old.exists() and not path.exists():  # stopped between the two
            old.rename(path)
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)


def refuse_foreign(path: Path) -> None:
    """Raises ValueError if anything at `path` is not this command's own."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, expected a folder to write pages into")
    files = [p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()]
    try:
        ours = {MARK, *json.loads((path / MARK).read_text(encoding="utf8"))}
    except (OSError, ValueError):
        ours = set()
    foreign = sorted(set(files) - ours)
    if foreign:
        raise ValueError(
            f"{path} holds {foreign[0]}, which this command has not written; choose another folder"
        )


def check_packages(parser: Parser) -> None:
    """Stop with one line that says what to install."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(NEEDED[name] for name in missing)
        parser.error(f"{missing[0]} is missing; install it: pip install {packages}")


def run(args: argparse.Namespace) -> str:
    """Write the pages; returns a line that says what was written."""
    from minisd.teach.pages import Pages

    with site_folder(args.folder) as part:
        pages = Pages(args.course, part, args.solutions)
        pages.write()
        size = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
    count = len(pages.chapters) + len(pages.solved)
    return f"{count} notebooks, {size / 1e6:.1f} MB: open {args.folder / 'index.html'}"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 2 (wrong input) or 130 (stopped)."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check_packages(parser)
    try:
        print(run(args))
        return 0
    except KeyboardInterrupt:
        problem, code = "stopped; nothing was written", 130
    except ValueError as error:
        problem, code = f"error: {error}", 2
    except OSError as error:
        problem, code = f"error: {args.folder} cannot be written: {error.strerror or error}", 2
    print(f"minisd.teach.site: {' '.join(problem.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
