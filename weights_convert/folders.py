"""Room on the disk, and a folder that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def require_space(path: Path | str, needed: int) -> None:
    """Raises ValueError if the file system that `path` is to be on has fewer bytes free."""
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ValueError(
            f"{path} needs {in_words(needed)} and {place} has {in_words(free)} free; "
            "make room, or choose another disk or a smaller dtype"
        )


def in_words(size: int) -> str:
    """Bytes in GB or MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """A temporary folder beside `path` to write to; it becomes `path` at the end.

    Raises ValueError if `path` is a file or a folder with something in it.
    """
    path = Path(path).absolute()
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"{path} is not empty; remove it or choose another folder")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, expected a new or empty folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.mkdir()
    try:
        yield part
        if path.exists():
            path.rmdir()
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
