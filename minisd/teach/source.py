"""The library's own code in a notebook, with a link to its file."""

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Source:
    """A piece of source code: its file in the repository, its first line, its text."""

    file: str
    line: int
    code: str
    root: str = ".."

    @property
    def link(self) -> str:
        last = self.line + self.code.count("\n") - 1
        return f"{self.root}/{self.file}#L{self.line}-L{last}"

    def __str__(self) -> str:
        return self.code

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        markdown = f"[{self.file}, line {self.line}]({self.link})\n\n```python\n{self.code}```\n"
        return {"text/markdown": markdown, "text/plain": f"# {self.file}\n{self.code}"}


def show_source(thing: Any, root: str = "..") -> Source:
    """The source of a class, function, method, module or object of minisd.

    `root` is the way from the notebook to the repository. Raises ValueError for what has no source
    here, as a number or something of PyTorch's.
    """
    named = inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing)
    target = inspect.unwrap(thing) if named else type(thing)
    try:
        lines, first = inspect.getsourcelines(target)
        path = Path(inspect.getsourcefile(target) or "").resolve()
    except (TypeError, OSError) as error:
        raise ValueError(
            f"{thing!r:.60} has no source in Python; give a class or function"
        ) from error
    package = (inspect.getmodule(target) or target).__name__.partition(".")[0]
    if package not in ("minisd", "weights_convert"):
        raise ValueError(f"{thing!r:.60} belongs to {package}, not to this course")
    top = Path(importlib.import_module(package).__file__ or "").resolve().parent.parent
    return Source(path.relative_to(top).as_posix(), max(first, 1), "".join(lines), root)
