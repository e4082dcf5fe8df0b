"""Inside a student's kernel: an answer checked by modules loaded afresh, not by those at hand.

`minisd.teach.grade` runs this file by its path, in a namespace of its own, after each check cell:
what the student's cells have done to `check`, to `print` or to minisd's modules does not reach it.
"""

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

MIME = "application/vnd.minisd.grade+json"  # the form in which a verdict leaves the kernel
WORDS = {True: "passed", False: "not right", None: "not yet"}
PACKAGES = ("minisd", "weights_convert")


def recheck(key: str, answer: Callable[[], Any], root: str, token: str, name: str) -> None:
    """Publish how the answer to exercise `key` does: a status and a hint.

    root: the folder that holds minisd. token: proves that the verdict comes from this call. name:
    whose inputs the check draws; "" for everybody's.
    """
    from IPython import get_ipython

    try:
        value = answer()
    except NameError as error:
        status, hint = "missing", str(error)
    except Exception as error:
        status, hint = "error", f"the answer stopped with {type(error).__name__}: {error}"
    else:
        status, hint = verdict(key, value, root, name)
    found = {"token": token, "status": status, "hint": hint}
    get_ipython().display_pub.publish({MIME: found})


def verdict(key: str, answer: Any, root: str, name: str) -> tuple[str, str]:
    """Status and hint, by checks that are tried out themselves before and after."""
    with fresh_modules(root):
        checks = import_module("minisd.teach.checks")
        here = Path(root).resolve()
        if here not in Path(checks.__file__ or "").resolve().parents:
            return "error", "minisd was loaded from another place than the grader's"
        own = checks.inputs_of(name) if name else contextlib.nullcontext()
        before = sound(checks)
        with contextlib.redirect_stdout(io.StringIO()), own:
            result = checks.check(key, answer)
        if not (before and sound(checks)):
            return "error", "something that the checks rely on was changed; look at the notebook"
    return WORDS[result.passed], str(result.hint)


@contextlib.contextmanager
def fresh_modules(root: str) -> Iterator[None]:
    """Inside, our packages are imported anew from `root`; afterwards those of before are back."""
    before = {name: module for name, module in sys.modules.items() if ours(name)}
    path = sys.path[:]
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, root)
    try:
        yield
    finally:
        for name in filter(ours, list(sys.modules)):
            del sys.modules[name]
        sys.modules.update(before)
        sys.path[:] = path


def ours(name: str) -> bool:
    return name.partition(".")[0] in PACKAGES


def sound(checks: ModuleType) -> bool:
    """Whether the checks still tell right from wrong: PyTorch may have been changed under them."""
    import torch

    zeros, ones = torch.zeros(3), torch.ones(3)
    return (
        checks.compare(ones, ones, {}) == ""
        and checks.compare(zeros, ones, {}) != ""
        and checks.number(1.0, 0.1, {}, "another")(2.0) == "another"
        and checks.sentences()("too few") != ""
    )
