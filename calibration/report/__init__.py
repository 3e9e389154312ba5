"""The offline calibration report: measured, drawn, and written as JSON and as one self-contained page."""

from __future__ import annotations

from calibration.report.measure import measure
from calibration.report.page import FILES, write

__all__ = ["FILES", "measure", "write"]
