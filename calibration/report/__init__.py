"""The offline calibration report: measured, drawn, and written as JSON and as one self-contained page."""

from __future__ import annotations

from calibration.report.cache import PredictionCache, default_folder
from calibration.report.figures import slug
from calibration.report.measure import measure
from calibration.report.model import Subject, work
from calibration.report.page import FILES, write

__all__ = ["FILES", "PredictionCache", "Subject", "default_folder", "measure", "slug", "work", "write"]
