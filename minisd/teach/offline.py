"""An environment for Python in which no connection leaves the machine: for tests and for grading.

It guards against accidents, such as a download in a student's cell. It is no sandbox: whoever means
to get out can.
"""

import os
from pathlib import Path

# Python runs a module of this name at its start, in the kernel and in whatever the kernel starts.
REFUSE_CONNECTIONS = """
import sys

def refuse(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    elif event in ("socket.connect", "socket.sendto"):
        host = args[1][0] if isinstance(args[1], tuple) else None  # a path is local
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "", "localhost", "::1") and not str(host).startswith("127."):
        raise PermissionError(f"a connection to {host} would leave this machine")

sys.addaudithook(refuse)
"""


def offline_environment(folder: Path, **more: str) -> dict[str, str]:
    """This process's environment variables, `more` of them, and a hook that refuses connections.

    folder: an empty one to put the hook in; it must stay while processes run in the environment.
    """
    (folder / "sitecustomize.py").write_text(REFUSE_CONNECTIONS, encoding="utf8")
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", **more}
