"""Responses as they are on the wire.

They describe what :mod:`service.predictor` writes as plain dictionaries: making objects of it first would take longer
than the prediction.
"""

from __future__ import annotations

from typing import Any, Literal

from bentoml import IODescriptor
from pydantic import BaseModel, ConfigDict, Field

from service.wire import StrategyName

__all__ = ["CompareResponse", "ModelResponse", "PredictResponse"]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelName(Part):
    name: str
    version: str = Field(description="changes when the weights, the card or the calibration do")


class Uncertainty(Part):
    """In nats. total = aleatoric + epistemic; the parts are null for a strategy that gives a single distribution."""

    total: float = Field(description="predictive entropy: 0 when certain, log 10 = 2.303 at most")
    aleatoric: float | None = Field(description="expected entropy of the sub-networks: what each is unsure of")
    epistemic: float | None = Field(description="mutual information: what the sub-networks disagree on")


class Novelty(Part):
    """How unlike the training images this one is, by the density of the network's features; whatever the strategy."""

    distance: float = Field(description="relative Mahalanobis distance, without a unit: larger is more novel")
    p_value: float = Field(
        description="fraction of images like the calibration's that are at least as far: little is novel"
    )


class Members(Part):
    """What the sub-networks say, one by one; before calibration, where that comes after pooling."""

    votes: list[int] = Field(description="class index of each")
    histogram: dict[str, int] = Field(description="how many vote for each class that any votes for")
    probabilities: list[list[float]] | None = Field(description="of each sub-network, of each class, if asked for")


class Decision(Part):
    """The thresholds behind prediction sets and abstention."""

    coverage: float = Field(description="how often a prediction set holds the true class")
    min_probability: float = Field(description="the prediction set is all classes of at least this probability")
    target_error: float = Field(description="promised fraction of wrong ones among the answers not abstained from")
    min_confidence: float | None = Field(
        description="below it the answer is abstained from; null if no threshold keeps the promise: then all are"
    )
    guarantee: Literal["exact", "approximate"] = Field(
        description="approximate: the sub-networks are not those that the thresholds were fitted with"
    )


class Prediction(Part):
    label: str
    class_index: int
    confidence: float = Field(description="probability of the label, calibrated if the bundle is")
    probabilities: dict[str, float]
    uncertainty: Uncertainty
    novelty: Novelty | None = Field(description="null for a bundle without a density of its training images")
    standard_error: float | None = Field(
        description="Monte Carlo standard error of the confidence: how far more sub-networks may move it; null if "
        "the strategy gives a single distribution"
    )
    samples: int = Field(description="sub-networks sampled for this image")
    prediction_set: list[str] | None = Field(
        description="the classes that are possible at the coverage, perhaps none; null for an uncalibrated bundle"
    )
    abstain: bool | None = Field(description="whether not to act on the label; null for an uncalibrated bundle")
    reason: Literal["low_confidence", "no_guarantee"] | None = Field(
        description="why to abstain: the confidence is under the threshold, or there is none that keeps the promise"
    )
    members: Members | None = None


class StrategyAnswer(Part):
    samples: int | Literal["auto"] = Field(
        description="sub-networks asked for; 1 for weight_scaling and moment_propagation"
    )
    temperature: float = Field(description="of the calibration; 1 if uncalibrated")
    decision: Decision | None = Field(description="null for an uncalibrated bundle")
    predictions: list[Prediction] = Field(description="one per image, in the order of the request")


class PredictResponse(IODescriptor, StrategyAnswer):
    model: ModelName
    strategy: StrategyName


class ComparedAnswer(StrategyAnswer):
    milliseconds: float = Field(description="that the strategy took for these images")


class CompareResponse(IODescriptor):
    """Every strategy that the model allows, on the same images."""

    model: ModelName
    strategies: dict[StrategyName, ComparedAnswer]


class ModelResponse(BaseModel):
    """A bundle that answers: its card, and its calibration or null."""

    name: str
    version: str
    loaded: list[str] = Field(description="names of all loaded bundles, the default first")
    strategies: list[StrategyName] = Field(description="those that this network allows, the default first")
    default_samples: int
    default_coverage: float
    default_target_error: float
    card: dict[str, Any]
    calibration: dict[str, Any] | None
