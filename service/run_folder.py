"""A folder that the workers of one server share with each other and with no other server.

BentoML's own folder for metrics is the same for all servers of a user, and emptied by each that starts.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

__all__ = ["adopt", "create", "fail", "subfolder"]

VARIABLE = "_DROPOUT_UNCERTAINTY_RUN"
"""Not a setting: the supervisor tells its workers by it."""
FAILURE = "failure"
"""Where a worker says why the server must end."""

_own = False


def create() -> None:
    """Make the folder, in the supervisor; it goes when that ends."""
    global _own
    folder = tempfile.mkdtemp(prefix="dropout-uncertainty-")
    os.environ[VARIABLE], _own = folder, True
    atexit.register(_end, Path(folder))


def _end(folder: Path) -> None:
    failure = folder / FAILURE
    message = failure.read_text() if failure.exists() else ""
    shutil.rmtree(folder, ignore_errors=True)
    if message:
        sys.stderr.write(f"Error: {message}\n")
        sys.stderr.flush()
        os._exit(1)  # What the supervisor does of itself at its end is to report success.


def fail(error: Exception) -> NoReturn:
    """End the server from a worker that can't start, which would be started again without end; its supervisor says why.

    Raises ``error`` in a process without a supervisor.
    """
    if _own or VARIABLE not in os.environ:
        raise error
    (Path(os.environ[VARIABLE]) / FAILURE).write_text(str(error))
    os.kill(os.getppid(), signal.SIGTERM)
    os._exit(1)


def subfolder(name: str) -> Path:
    """The shared folder's part ``name``; of a process without a supervisor, a folder of its own."""
    if VARIABLE not in os.environ:
        create()
    folder = Path(os.environ[VARIABLE]) / name
    folder.mkdir(exist_ok=True)
    return folder


def adopt() -> None:
    """Have this worker's metrics written there; before the first of them is made."""
    if VARIABLE in os.environ:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(subfolder("metrics"))
