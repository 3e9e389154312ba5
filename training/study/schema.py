"""What a study is and what it found, as typed data: a preset is a :class:`Plan`, ``study.json`` a :class:`Study`.

Losses are in nats, accuracies and errors fractions between 0 and 1, times in seconds.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field

from models.records import Recipe, Record
from training.fit import EpochRecord

__all__ = [
    "LOWER_IS_BETTER",
    "MEASURES",
    "SCHEMA",
    "Configuration",
    "ConfigurationResult",
    "Evaluation",
    "Failure",
    "Interval",
    "Measure",
    "Plan",
    "RunResult",
    "Sampled",
    "Study",
]

SCHEMA = 1
TRAIN_IMAGES = 50_000

Measure = Literal[
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
    "loss_gap",
    "accuracy_gap",
    "ece",
    "mc_accuracy",
    "mc_nll",
    "mc_ece",
    "epochs_to_best",
    "seconds",
]
"""``loss_gap`` is test minus train loss, ``accuracy_gap`` train minus test accuracy: the generalisation gap, positive
where the network overfits. ``ece`` is of weight scaling, whose NLL is the test loss; ``mc_`` stands for MC dropout,
missing where there is no dropout. ``epochs_to_best`` is the epoch of the least validation loss."""
MEASURES: tuple[Measure, ...] = get_args(Measure)
LOWER_IS_BETTER: frozenset[Measure] = frozenset(MEASURES) - {
    "train_accuracy", "validation_accuracy", "test_accuracy", "mc_accuracy"
}  # fmt: skip


class Configuration(Record):
    """What is trained. ``recipe.seed`` is not looked at: the study's seeds take its place.

    ``train_images`` of the training split's 50,000 are drawn by the run's seed, the same for each configuration.
    ``detection`` asks how well MC dropout detects images out of distribution, which takes longer than the rest.
    ``group`` is a heading for the report; ``baseline`` the name of the configuration that this one is compared with,
    null for a baseline itself.
    """

    name: str = Field(min_length=1)
    network: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    train_images: int = Field(default=TRAIN_IMAGES, ge=10, le=TRAIN_IMAGES)
    recipe: Recipe = Recipe()
    detection: bool = False
    group: str = ""
    baseline: str | None = None


class Plan(Record):
    """A preset: what is asked, and the configurations that answer it. ``seeds`` runs of each, from seed 0."""

    name: str
    title: str
    question: str
    seeds: int = Field(default=3, ge=1)
    configurations: tuple[Configuration, ...] = Field(min_length=1)


class Evaluation(Record):
    """Of the weights kept, with dropout off."""

    loss: float
    accuracy: float


class Sampled(Record):
    """MC dropout on the test images, uncalibrated."""

    nll: float
    accuracy: float
    ece: float
    mutual_information: float = Field(description="mean, in nats")
    detection: dict[str, float] = Field(
        default_factory=dict,
        description="AUROC of the mutual information, by set of images out of distribution, if it was asked for",
    )


class RunResult(Record):
    """One configuration trained from one seed. ``key`` is a digest of all that the result depends on.

    ``variance_shift``, by batch-normalisation layer: the median over its units of the variance that its input has on
    test images with dropout off, divided by the variance that it normalises by, learnt with dropout on (Li et al.
    2019: the two agree, at 1, unless dropout comes before).
    """

    key: str
    name: str
    seed: int
    parameters: int
    seconds: float = Field(description="of training, on one thread, beside other runs")
    history: tuple[EpochRecord, ...]
    epochs_to_best: int = Field(description="the epoch with the least validation loss, from 1")
    kept_epoch: int = Field(description="the epoch whose weights were evaluated")
    stopped: Literal["completed", "early", "diverged"]
    train: Evaluation
    validation: Evaluation
    test: Evaluation
    ece: float = Field(description="of weight scaling on the test images, uncalibrated, 15 bins")
    sampled: Sampled | None
    variance_shift: dict[str, float] = Field(default_factory=dict)


class Interval(Record):
    """Mean over ``runs`` seeds, with the 95 % interval of Student's t; without one for a single seed."""

    mean: float
    low: float | None
    high: float | None
    runs: int


class Failure(Record):
    name: str
    seed: int
    error: str


class ConfigurationResult(Record):
    """``differences`` to the baseline are paired by seed; empty for a baseline itself, or one without finished runs.
    ``detection``, and its differences, are by set of images out of distribution, see :class:`Sampled`."""

    configuration: Configuration
    parameters: int | None = Field(description="null if no run finished")
    runs: tuple[RunResult, ...]
    means: dict[Measure, Interval]
    differences: dict[Measure, Interval]
    detection: dict[str, Interval] = Field(default_factory=dict)
    detection_differences: dict[str, Interval] = Field(default_factory=dict)


class Study(Record):
    schema_version: int = Field(default=SCHEMA, alias="schema")
    name: str
    title: str
    question: str
    command: str
    seeds: int
    data: dict[str, str] = Field(description="SHA-256 by file")
    samples: int = Field(description="sub-networks of MC dropout")
    versions: dict[str, str]
    results: tuple[ConfigurationResult, ...]
    failures: tuple[Failure, ...]
