"""Runs the project's command lines as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(
    module: str, *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """``python -m MODULE ARGUMENTS...`` in the project's root, with ``environment`` added to this one."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip


def refused(module: str, *arguments: str | Path, code: int) -> str:
    """The one line on standard error with which the command refuses."""
    done = run(module, *arguments)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: ")
    return lines[0]
