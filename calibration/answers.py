"""A prediction as records of plain numbers: what is said of an image over HTTP, and in a table of scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

from calibration.predictive import PredictiveDistribution, PredictiveSummary

__all__ = ["DECIMALS", "Answer", "UncertaintyAnswer", "answers"]

DECIMALS = 6


class UncertaintyAnswer(TypedDict):
    """In nats; the parts of the total are ``None`` where there is a single member."""

    total: float
    aleatoric: float | None
    epistemic: float | None


class Answer(TypedDict):
    """What is said of one image. ``standard_error``, of the confidence, is ``None`` where nothing is sampled."""

    label: str
    class_index: int
    confidence: float
    probabilities: dict[str, float]
    uncertainty: UncertaintyAnswer
    standard_error: float | None


def answers(
    predicted: PredictiveDistribution | PredictiveSummary, classes: Sequence[str], members: int
) -> list[Answer]:
    """One answer for each of the B images, rounded to 6 decimals.

    ``classes`` names the C classes; ``members`` is the strategy's.
    """
    mean = predicted.mean
    winners = mean.argmax(1)
    errors = predicted.standard_error.gather(1, winners.unsqueeze(1)).squeeze(1)
    columns = [
        winners, predicted.predictive_entropy, predicted.expected_entropy, predicted.mutual_information, errors
    ]  # fmt: skip
    return [
        Answer(
            label=classes[winner],
            class_index=winner,
            confidence=probabilities[winner],
            probabilities=dict(zip(classes, probabilities, strict=True)),
            uncertainty=UncertaintyAnswer(
                total=round(total, DECIMALS),
                aleatoric=round(aleatoric, DECIMALS) if members > 1 else None,
                epistemic=round(epistemic, DECIMALS) if members > 1 else None,
            ),
            standard_error=round(error, DECIMALS) if math.isfinite(error) else None,
        )
        for probabilities, winner, total, aleatoric, epistemic, error in zip(
            mean.double().round(decimals=DECIMALS).tolist(), *(column.tolist() for column in columns), strict=True
        )
    ]
