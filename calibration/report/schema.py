"""What the report says, as typed data: everything on the page is in here, and ``report.json`` is this, dumped.

``docs/report.schema.json`` is the JSON schema of it. Entropies and losses are in nats, times in milliseconds, fractions
between 0 and 1. An :class:`Estimate` is a value with its 95 % bootstrap interval over images.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.records import AbstentionRecord, ConformalMethod, PoolingOrder, Record, TrainingRecord

__all__ = [
    "SCHEMA",
    "ClassRow",
    "ConformalRow",
    "Cost",
    "Detection",
    "Difference",
    "EnumerationSection",
    "Estimate",
    "GalleryEntry",
    "InterpretationSection",
    "Measure",
    "ModelReport",
    "OutlierSection",
    "Quality",
    "Report",
    "SamplingRow",
    "ShiftRow",
    "SizeRow",
    "Spread",
    "StrategySection",
]

SCHEMA = 2
Measure = Literal["accuracy", "nll", "brier", "calibration_error", "aurc"]
"""What predictions are compared by; ``calibration_error`` is the debiased squared one."""
Score = Literal["confidence", "total", "epistemic"]
SCORES: tuple[Score, ...] = ("confidence", "total", "epistemic")
"""What images are ranked by: 1 - confidence, predictive entropy, mutual information."""


class Estimate(Record):
    """``value`` of all images, and its 95 % interval, see :func:`calibration.resampling.interval`."""

    value: float
    low: float
    high: float


class Reliability(Record):
    """Bins ``(edges[k], edges[k + 1]]`` of confidence; means within the bin, 0 in an empty one."""

    edges: tuple[float, ...]
    count: tuple[int, ...]
    accuracy: tuple[float, ...]
    confidence: tuple[float, ...]


class Quality(Record):
    """One prediction per image, against the labels. See :mod:`calibration.metrics` and :mod:`calibration.ranking`."""

    accuracy: Estimate
    nll: Estimate
    brier: Estimate
    brier_calibration: float = Field(description="what recalibrating each class's probability could gain")
    brier_refinement: float
    ece: Estimate = Field(description="15 bins of equal width")
    ece_if_calibrated: float = Field(description="mean ECE if labels were drawn from the prediction itself")
    ece_p_value: float = Field(description="how often that ECE is at least the one found")
    adaptive_ece: Estimate
    classwise_ece: Estimate
    mce: Estimate
    debiased_calibration_error: Estimate = Field(description="squared; its expectation is 0 if calibrated")
    overconfidence: Estimate = Field(description="mean confidence minus accuracy")
    reliability: Reliability


class Ranking(Record):
    """How well a score says which predictions are wrong."""

    auroc: Estimate | None = Field(description="of misclassification; null if all predictions are right, or wrong")
    aurc: Estimate
    augrc: Estimate
    accuracy_at_coverage: dict[str, Estimate] = Field(description="by coverage")
    risk: tuple[float, ...] = Field(description="error rate among the least uncertain 1, 2 ... 100 % of the images")


class Spread(Record):
    """Over sub-networks drawn from other seeds: means and standard deviations, calibrated."""

    seeds: int
    accuracy: tuple[float, float]
    nll: tuple[float, float]
    ece: tuple[float, float]


class ConformalRow(Record):
    """Prediction sets on the test images. ``probability``: of a coverage as far or farther from nominal by chance; null
    for thresholds by class."""

    method: ConformalMethod
    class_conditional: bool
    nominal: float
    coverage: float
    probability: float | None
    size: float = Field(description="mean number of classes")
    single: float = Field(description="fraction of sets with one class")
    empty: float
    worst_class: str
    worst_class_coverage: float


class AbstentionRow(Record):
    """What the stored threshold does on the test images."""

    promised: AbstentionRecord
    coverage: float
    selective_error: float | None


class Cost(Record):
    """Median milliseconds per image, asked alone and among ``many``, on ``threads`` threads."""

    alone: float
    among_many: float
    many: int
    threads: int


class StrategySection(Record):
    samples: int = Field(description="networks asked; 1 if none is sampled")
    seed: int | None
    design: str | None
    temperature: float
    order: PoolingOrder
    cross_validated_nll: dict[PoolingOrder, float] = Field(description="by order, on calibration images left out")
    raw: Quality
    calibrated: Quality
    ranking: dict[Score, Ranking] = Field(description="calibrated; epistemic only where there are several members")
    spread: Spread | None
    conformal: tuple[ConformalRow, ...]
    abstention: tuple[AbstentionRow, ...]
    cost: Cost


class Difference(Record):
    """``strategy`` minus ``reference``, both calibrated, on the same images. ``better`` is null if 0 is inside.

    ``calibration_error`` is the debiased squared one: the ECE's own bootstrap is not valid near 0.
    """

    strategy: str
    reference: str
    measure: Measure
    difference: Estimate
    better: bool | None


class SamplingRow(Record):
    """A sampling strategy at another number of sub-networks or with another mask design."""

    strategy: str
    samples: int
    design: str
    temperature: float
    accuracy: float
    raw_nll: float
    raw_ece: float
    nll: float
    ece: float


class SizeRow(Record):
    """The ensemble of ``samples`` independent sub-networks, averaged over ``ensembles`` disjoint ones.

    ``difference_*`` to weight scaling, with intervals over images; NLL of both calibrated, raw too.
    """

    samples: int
    ensembles: int
    accuracy: float
    accuracy_spread: float = Field(description="standard deviation over the ensembles; 0 for one")
    raw_nll: float
    nll: float
    geometric_accuracy: float
    geometric_nll: float
    difference_accuracy: Estimate
    difference_nll: Estimate


class Quantiles(Record):
    """Over images."""

    mean: float
    median: float
    q95: float
    maximum: float


class InterpretationSection(Record):
    """The ensemble interpretation of dropout, measured on the test images with independent sub-networks."""

    subnetworks: int
    sizes: tuple[SizeRow, ...]
    weight_scaling_accuracy: float
    weight_scaling_nll: float = Field(description="calibrated")
    weight_scaling_raw_nll: float
    crossing_accuracy: int | None = Field(description="fewest sub-networks from which on accuracy is not below")
    crossing_nll: int | None = Field(description="the same for the calibrated NLL, from which on it is not above")
    level_accuracy: int | None = Field(
        description="fewest from which on the interval of the difference has 0 or better"
    )
    level_nll: int | None = Field(description="fewest from which on it is not significantly above")
    member_accuracy: tuple[float, ...] = Field(description="of single sub-networks: minimum, quartiles, maximum")
    member_accuracies: tuple[float, ...] = Field(description="of every sub-network")
    member_nll: float
    disagreement: float = Field(description="fraction of images on which two sub-networks differ in class, on average")
    kl_geometric: Quantiles = Field(description="KL divergence from the geometric mean to weight scaling")
    kl_arithmetic: Quantiles = Field(description="KL divergence from the arithmetic mean to weight scaling")
    kl_histogram: dict[str, tuple[int, ...]] = Field(description="images by log10 of both, edges in kl_edges")
    kl_edges: tuple[float, ...]


class EnumerationError(Record):
    design: str
    samples: int
    error: float = Field(description="root mean squared distance of sampled from exact probabilities")


class EnumerationSection(Record):
    """A small trained network of which every sub-network was asked: exact, no sampling."""

    network: str
    epochs: int
    subnetworks: int
    images: int
    accuracy: dict[str, float]
    nll: dict[str, float]
    kl_geometric: float = Field(description="mean KL divergence from the exact geometric mean to weight scaling")
    kl_arithmetic: float
    mutual_information: float
    errors: tuple[EnumerationError, ...]


class Detection(Record):
    auroc: Estimate
    aupr: Estimate
    fpr95: Estimate


class OutlierSection(Record):
    """Images out of distribution, told from the test images by each strategy's scores, calibrated."""

    images: int
    detection: dict[str, dict[Score, Detection]]
    best: tuple[str, Score] = Field(description="strategy and score of the highest AUROC")
    gain: Estimate = Field(description="that AUROC minus that of the total uncertainty of weight scaling, paired")
    histogram: dict[str, dict[Score, tuple[int, ...]]] = Field(description="images by score; edges in score_edges")
    novelty: Detection | None = Field(
        description="by the relative distance from the training images' features; null without their density"
    )


class ShiftRow(Record):
    """Shifted test images: ``amount`` in degrees or as the shift has it, for 28x28 pixels in 0..255: lengths and grey
    levels of other images are to scale. Means; calibrated on unshifted images."""

    shift: str
    severity: int
    amount: float
    strategy: str
    accuracy: float
    confidence: float
    nll: float
    ece: float
    total: float
    aleatoric: float | None
    epistemic: float | None


class ClassRow(Record):
    """One of the classes that the test images have."""

    label: str
    images: int
    recall: float
    precision: float | None
    confidence: float
    total: float
    epistemic: float | None
    confused_with: str | None = Field(description="the class most often predicted wrongly for it; null if none is")
    confused: float
    set_coverage: float | None = Field(description="of 90 % APS sets")
    set_size: float | None


class GalleryEntry(Record):
    """``index`` is the image's place among those measured; ``name`` its file or place in data of one's own, null in
    Fashion-MNIST, whose order is kept."""

    index: int
    name: str | None = None
    label: str
    predicted: str
    confidence: float
    total: float
    aleatoric: float | None
    epistemic: float | None


class ModelReport(Record):
    name: str
    version: str
    network: str
    parameters: int
    training: TrainingRecord | None
    calibration: Literal["stored", "fitted for this report"]
    calibration_images: int
    default: str = Field(description="the strategy that figures of one strategy show")
    strategies: dict[str, StrategySection]
    differences: tuple[Difference, ...]
    best: dict[str, str | None] = Field(description="by measure: the strategy better than every other, if there is one")
    sampling: tuple[SamplingRow, ...]
    interpretation: InterpretationSection | None
    outliers: dict[str, OutlierSection]
    score_edges: dict[Score, tuple[float, ...]]
    test_histogram: dict[str, dict[Score, tuple[int, ...]]] = Field(description="of the test images")
    shifts: tuple[ShiftRow, ...]
    classes: tuple[ClassRow, ...]
    gallery: dict[str, tuple[GalleryEntry, ...]]


class ModelDifference(Record):
    """One model's default strategy minus the first model's, calibrated, on the same images."""

    model: str
    reference: str
    measure: Measure
    difference: Estimate
    better: bool | None


class Report(Record):
    schema_version: int = Field(default=SCHEMA, alias="schema")
    data: str
    images: int
    shift_images: int
    resamples: int
    outlier_resamples: int
    versions: dict[str, str]
    missing: dict[str, str] = Field(description="what could not be measured, and why")
    models: tuple[ModelReport, ...]
    model_differences: tuple[ModelDifference, ...]
    enumeration: EnumerationSection | None
