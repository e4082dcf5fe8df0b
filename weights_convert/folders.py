"""A folder that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
