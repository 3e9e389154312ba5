"""A log of all predictions, through BentoML's monitor; ``python -m calibration log`` reads it back."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import bentoml
import numpy as np

from service.predictor import Question

__all__ = ["MONITOR", "RequestLog"]

MONITOR = "predictions"
UNCERTAINTIES = ("total", "aleatoric", "epistemic")
FIELDS = (
    "label", "class_index", "confidence", "standard_error", "samples", "prediction_set", "abstain", "reason",
)  # fmt: skip
NUMBERS = frozenset({
    *UNCERTAINTIES, "confidence", "standard_error", "samples", "class_index", "index", "coverage", "target_error",
})  # fmt: skip


class RequestLog:
    """Writes a record for each prediction; with ``pixels`` of the images as well.

    A record that can't be written, for a disk that is full, is lost; BentoML's logger says so.
    """

    def __init__(self, *, pixels: bool) -> None:
        self._pixels = pixels

    def __call__(self, answers: Sequence[tuple[Question, Mapping[str, Any]]]) -> None:
        for question, content in answers:
            if question.strategy is not None:
                self._write(question, content)

    def _write(self, question: Question, content: Mapping[str, Any]) -> None:
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
        if self._pixels:
            images = question.pixels.round().astype(np.uint8)
            columns["pixels"] = [base64.b64encode(image.tobytes()).decode() for image in images]
        with bentoml.monitor(MONITOR) as monitor:
            for name, values in columns.items():
                monitor.log_batch(values, name, "prediction", "numerical" if name in NUMBERS else "categorical")
