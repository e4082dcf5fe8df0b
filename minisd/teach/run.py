"""A student's notebook run afresh, cell by cell, in a kernel of its own that nothing leaves."""

import contextlib
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode

from minisd.teach.offline import offline_environment
from minisd.teach.recheck import MIME
from minisd.teach.submission import COURSE, ROOT, Step, Submission

RECHECK = Path(__file__).with_name("recheck.py")
START_SECONDS = 120  # for a kernel to start on a busy machine
SILENT = logging.getLogger("minisd.grading")
SILENT.addHandler(logging.NullHandler())
SILENT.propagate = False


@dataclass
class Verdicts:
    """For each exercise a status and a hint; `stopped`: cells that did, and with what error."""

    of: dict[str, tuple[str, str]] = field(default_factory=dict)
    stopped: dict[int, str] = field(default_factory=dict)
    note: str = ""


class Client(NotebookClient):
    """Keeps errors and verdicts alone, so that a cell that prints without end fills no memory."""

    def output(self, outs: list, msg: dict[str, Any], *rest: Any) -> NotebookNode | None:
        wanted = msg["msg_type"] == "error" or MIME in msg["content"].get("data", {})
        return super().output(outs, msg, *rest) if wanted else None


def grade_cells(
    submission: Submission, cell_seconds: float, seconds: float, name: str = ""
) -> Verdicts:
    """Run all cells and check each answer where it stands; `name` gives the checks' inputs.

    A cell, or check, that takes longer than `cell_seconds` is interrupted; after `seconds` in all
    the rest is not run. Raises ValueError if no kernel starts.
    """
    verdicts, ends = Verdicts(), time.monotonic() + seconds
    with kernel(submission.path) as client:
        for step in submission.steps:
            limit = min(cell_seconds, ends - time.monotonic())
            if limit <= 0:
                verdicts.note = f"stopped after {seconds:g} s at cell {step.number}"
                break
            try:
                outputs, late = execute(client, step, limit, name)
            except DeadKernelError:
                verdicts.note = f"the kernel died in cell {step.number}"
                break
            record(verdicts, step, outputs, f"took longer than {limit:.0f} s" if late else "")
    for key, place in submission.places.items():
        status, hint = verdicts.of.get(key, ("error", verdicts.note))
        if status == "missing" and place in verdicts.stopped:
            status, hint = "error", f"its cell {verdicts.stopped[place]}"
        verdicts.of[key] = status, hint
    for key in submission.lost:
        verdicts.of[key] = "missing", "neither its check cell nor its answer is there"
    return verdicts


@contextlib.contextmanager
def kernel(path: Path) -> Iterator[Client]:
    """A kernel in a folder that holds nothing but the course's results; both go afterwards."""
    with tempfile.TemporaryDirectory(prefix="minisd-", ignore_cleanup_errors=True) as made:
        work, hook, own = (Path(made) / name for name in ("notebooks", "hook", "ipython"))
        hook.mkdir()
        results = COURSE / "results" if COURSE.is_dir() else path.parent / "results"
        shutil.copytree(results, work / "results") if results.is_dir() else work.mkdir()
        client = Client(
            nbformat.v4.new_notebook(), kernel_name="python3", allow_errors=True, log=SILENT,
            interrupt_on_timeout=True, shutdown_kernel="immediate",
            startup_timeout=START_SECONDS, resources={"metadata": {"path": str(work)}},
        )  # fmt: skip
        env = offline_environment(hook, MINISD_FAST="1", IPYTHONDIR=str(own))
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(client.setup_kernel(env=env, stderr=DEVNULL))
            except Exception as error:  # jupyter_client raises whatever its provisioners meet
                raise ValueError(f"no Python kernel starts: {type(error).__name__}: {error}; "
                                 "is jupyter installed?") from error  # fmt: skip
            yield client


def execute(client: Client, step: Step, limit: float, name: str) -> tuple[list[NotebookNode], bool]:
    """A cell's errors, or the verdict on an answer; and whether it had to be interrupted."""
    token, source = secrets.token_hex(16), step.source
    if step.key:
        arguments = f"{step.key!r}, lambda: ({source}), {str(ROOT)!r}, {token!r}, {name!r}"
        source = f"__import__('runpy').run_path({str(RECHECK)!r})['recheck']({arguments})"
    cell = nbformat.v4.new_code_cell(source)
    client.nb.cells = [cell]
    client.timeout, began = max(1, round(limit)), time.monotonic()
    client.execute_cell(cell, 0)
    late = time.monotonic() - began >= client.timeout
    if not step.key:
        return cell.outputs, late
    found = [o.data[MIME] for o in cell.outputs if MIME in o.get("data", {})]
    return [one for one in found if one.get("token") == token], late


def record(verdicts: Verdicts, step: Step, outputs: list[NotebookNode], late: str) -> None:
    """Put down what a step brought."""
    if step.key:
        one = outputs[0] if len(outputs) == 1 else {}
        hint = f"its check {late or 'came to no verdict; look at the notebook'}"
        verdicts.of[step.key] = one.get("status", "error"), one.get("hint", hint)
        return
    errors = [o for o in outputs if o.output_type == "error"]
    if late or errors:
        verdicts.stopped[step.number] = late or f"stopped with {errors[0].ename}"
