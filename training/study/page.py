"""Writes the study's report."""

from __future__ import annotations

from pathlib import Path

from training.study.schema import Study

__all__ = ["write"]


def write(study: Study, folder: Path) -> None:
    """Write ``report.html`` and its figures into ``folder``."""
