"""A prediction as records of plain numbers: what is said of an image over HTTP, and in a table of scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

from calibration.decisions import DecisionRule
from calibration.novelty import Novelty
from calibration.predictive import PredictiveDistribution, PredictiveSummary

__all__ = ["DECIMALS", "Answer", "UncertaintyAnswer", "answers"]

DECIMALS = 6
DISTANCE_DECIMALS = 3
"""Of the relative distance, which goes into the hundreds; the last of them may depend on what is asked together."""


class UncertaintyAnswer(TypedDict):
    """In nats; the parts of the total are ``None`` where there is a single member."""

    total: float
    aleatoric: float | None
    epistemic: float | None


class NoveltyAnswer(TypedDict):
    """As in :class:`~calibration.novelty.Novelty`."""

    distance: float
    p_value: float


class Answer(TypedDict):
    """What is said of one image.

    ``standard_error``, of the confidence, is ``None`` where nothing is sampled; ``samples`` is the number of networks
    asked. ``novelty`` is ``None`` where the bundle has no density of its training images. ``prediction_set``,
    ``abstain`` and ``reason`` are those of the :class:`~calibration.decisions.DecisionRule`, ``None`` where there is
    none; ``reason`` also where an answer is given.
    """

    label: str
    class_index: int
    confidence: float
    probabilities: dict[str, float]
    uncertainty: UncertaintyAnswer
    novelty: NoveltyAnswer | None
    standard_error: float | None
    samples: int
    prediction_set: list[str] | None
    abstain: bool | None
    reason: str | None


def answers(
    predicted: PredictiveDistribution | PredictiveSummary,
    classes: Sequence[str],
    *,
    members: int,
    samples: Sequence[int],
    rule: DecisionRule | None,
    novelty: Novelty | None = None,
) -> list[Answer]:
    """One answer for each of the B images, rounded to 6 decimals.

    ``classes`` names the C classes; ``members`` is the strategy's; ``samples`` the number of networks asked for each
    image; ``novelty`` the images', if it is known.
    """
    mean = predicted.mean
    winners = mean.argmax(1)
    errors = predicted.standard_error.gather(1, winners.unsqueeze(1)).squeeze(1)
    columns = [
        winners, predicted.predictive_entropy, predicted.expected_entropy, predicted.mutual_information, errors
    ]  # fmt: skip
    found = [
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
            novelty=None,
            standard_error=round(error, DECIMALS) if math.isfinite(error) else None,
            samples=asked,
            prediction_set=None,
            abstain=None,
            reason=None,
        )
        for asked, probabilities, winner, total, aleatoric, epistemic, error in zip(
            samples,
            mean.double().round(decimals=DECIMALS).tolist(),
            *(column.tolist() for column in columns),
            strict=True,
        )
    ]
    if novelty is not None:
        for answer, distance, p_value in zip(found, novelty.distance.tolist(), novelty.p_value.tolist(), strict=True):
            answer["novelty"] = NoveltyAnswer(
                distance=round(distance, DISTANCE_DECIMALS), p_value=round(p_value, DECIMALS)
            )
    if rule is not None:
        sets, abstains = rule.prediction_sets(mean).tolist(), rule.abstains(mean).tolist()
        for answer, possible, abstain in zip(found, sets, abstains, strict=True):
            answer["prediction_set"] = [name for name, within in zip(classes, possible, strict=True) if within]
            answer["abstain"] = abstain
            answer["reason"] = rule.reason if abstain else None
    return found
