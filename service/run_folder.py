"""A folder that the workers of one server share with each other and with no other server.

BentoML's own folder for metrics is the same for all servers of a user, and emptied by each that starts.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["adopt", "create", "subfolder"]

VARIABLE = "_DROPOUT_UNCERTAINTY_RUN"
"""Not a setting: the supervisor tells its workers by it."""


def create() -> None:
    """Make the folder, in the supervisor; it goes when that ends."""
    folder = tempfile.mkdtemp(prefix="dropout-uncertainty-")
    os.environ[VARIABLE] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


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
