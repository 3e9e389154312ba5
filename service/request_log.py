"""A log of all predictions, through BentoML's monitor; ``python -m calibration log`` reads it back.

What can't be written, on a disk that is full, is lost: it is counted, and said once a minute, and nobody is kept from
an answer. :mod:`service.settings` has BentoML read ``request_log.yaml``, which names the handlers here.
"""

from __future__ import annotations

import base64
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from io import TextIOWrapper
from logging import FileHandler
from logging.handlers import RotatingFileHandler, TimedRotatingFileHandler
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from prometheus_client import Counter

from service import metrics
from service.predictor import Question

__all__ = ["MONITOR", "DataFile", "RequestLog", "SchemaFile"]

MONITOR = "predictions"
UNCERTAINTIES = ("total", "aleatoric", "epistemic")
NOVELTIES = {"novelty_distance": "distance", "novelty_p_value": "p_value"}
"""Columns by what they are called in an answer's novelty."""
FIELDS = (
    "label", "class_index", "confidence", "standard_error", "samples", "prediction_set", "abstain", "reason",
)  # fmt: skip
NUMBERS = frozenset({
    *UNCERTAINTIES, *NOVELTIES, "confidence", "standard_error", "samples", "class_index", "index", "coverage",
    "target_error",
})  # fmt: skip
SECONDS_BETWEEN_WARNINGS = 60.0

logger = logging.getLogger(__name__)


class RequestLog:
    """Writes a record for each prediction; with ``pixels`` of the images as well."""

    def __init__(self, *, pixels: bool) -> None:
        self._pixels = pixels

    def __call__(self, answers: Sequence[tuple[Question, Mapping[str, Any]]]) -> None:
        for question, content in answers:
            if question.strategy is not None:
                columns = self._columns(question, content)
                # The monitor warns of every column that repeats before its first record is closed: one goes alone.
                for part in (slice(0, 1), slice(1, None)):
                    self._write({name: values[part] for name, values in columns.items()})

    def _write(self, columns: Mapping[str, list[Any]]) -> None:
        count = len(columns["index"])
        try:
            # The monitor keeps what it is told in context variables, and leaves it there when it fails.
            if count:
                Context().run(_write, columns)
        except Exception as error:
            _losses.add(count, error)

    def _columns(self, question: Question, content: Mapping[str, Any]) -> dict[str, list[Any]]:
        predictions = content["predictions"]
        decision = content["decision"] or {}
        whole = {
            "id": question.request_id, "model": content["model"]["name"], "version": content["model"]["version"],
            "strategy": content["strategy"], "coverage": decision.get("coverage"),
            "target_error": decision.get("target_error"),
        }  # fmt: skip
        columns: dict[str, list[Any]] = {name: [value] * len(predictions) for name, value in whole.items()}
        columns["index"] = list(range(len(predictions)))
        columns |= {name: [prediction[name] for prediction in predictions] for name in FIELDS}
        columns |= {part: [prediction["uncertainty"][part] for prediction in predictions] for part in UNCERTAINTIES}
        columns |= {
            column: [(prediction["novelty"] or {}).get(part) for prediction in predictions]
            for column, part in NOVELTIES.items()
        }
        if self._pixels:
            images = question.pixels.round().astype(np.uint8)
            columns["pixels"] = [base64.b64encode(image.tobytes()).decode() for image in images]
        return columns


def _write(columns: Mapping[str, list[Any]]) -> None:
    with bentoml.monitor(MONITOR) as monitor:
        for name, values in columns.items():
            monitor.log_batch(values, name, "prediction", "numerical" if name in NUMBERS else "categorical")


class _Lines(FileHandler):
    """A file of lines of which some may get lost: what was written of one is followed by the next on its own line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Forget the line, and open the file anew for the next."""
        stream, self.stream = self.stream, None
        if stream is not None:
            with suppress(OSError):  # It tries once more to write what it holds.
                stream.close()

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        with Path(self.baseFilename).open("rb") as written:
            if written.seek(0, os.SEEK_END) and written.seek(-1, os.SEEK_END) and written.read() != b"\n":
                stream.write("\n")
        return stream


class SchemaFile(_Lines, RotatingFileHandler):
    """The file that says what there is of each prediction."""


class DataFile(_Lines, TimedRotatingFileHandler):
    """The file of the predictions."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Count the prediction as lost."""
        super().handleError(record)
        _losses.add(1, sys.exception())


class _Losses:
    """Counts predictions that were not logged."""

    def __init__(self) -> None:
        self._counter = Counter(metrics.PREFIX + "request_log_lost", "Predictions that could not be logged")
        self._untold = 0
        self._told = -SECONDS_BETWEEN_WARNINGS

    def add(self, count: int, error: BaseException | None) -> None:
        self._counter.inc(count)
        self._untold += count
        now = time.monotonic()
        if now - self._told >= SECONDS_BETWEEN_WARNINGS:
            logger.error("predictions that could not be logged: %d more; the last: %r", self._untold, error)
            self._untold, self._told = 0, now


_losses = _Losses()
