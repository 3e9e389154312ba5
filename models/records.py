"""What a bundle's JSON files say: typed, frozen, checked when read."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

__all__ = [
    "CONFORMAL_METHODS",
    "DEFAULT_COVERAGE",
    "DEFAULT_TARGET_ERROR",
    "AbstentionRecord",
    "Augmentation",
    "Calibration",
    "Card",
    "ConformalMethod",
    "DataRecord",
    "DeltaRule",
    "Diversity",
    "Floors",
    "InputRecord",
    "MaskDesign",
    "NetworkRecord",
    "PoolingOrder",
    "Precision",
    "Recipe",
    "Record",
    "Regularisation",
    "Scaling",
    "Schedule",
    "StrategyCalibration",
    "TrainingRecord",
    "first_fault",
]

CARD_FORMAT = 1
CALIBRATION_FORMAT = 2

MaskDesign = Literal["independent", "antithetic", "latin_hypercube", "orthogonal"]
"""How the sub-networks of an ensemble depend on each other; see :mod:`calibration.masks`."""

PoolingOrder = Literal["pool_then_calibrate", "calibrate_then_pool"]
ConformalMethod = Literal["lac", "aps", "raps"]
CONFORMAL_METHODS: tuple[ConformalMethod, ...] = ("lac", "aps", "raps")
"""Nonconformity scores; see :mod:`calibration.conformal`."""
DEFAULT_COVERAGE = 0.9
"""Of prediction sets."""
DEFAULT_TARGET_ERROR = 0.05
"""Among the answers that are not abstained from."""


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def first_fault(error: ValidationError, depth: int = 0) -> str:
    """The first thing that is wrong with what a record was made from, in one line; its place from ``depth`` on."""
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"][depth:])
    if not place:  # Of the whole, which the message names what is wrong with.
        return fault["msg"].removeprefix("Value error, ")
    given = "" if fault["type"] == "missing" else f", got {fault['input']!r}"
    return f"{place}: {fault['msg']}{given}"


class NetworkRecord(Record):
    """What :func:`models.networks.build` needs."""

    name: str
    arguments: dict[str, Any]
    parameters: int = Field(description="number of trainable parameters")


def _left_out(default: Any) -> Any:
    """A field that is not written where it has its ``default``, so that cards from before it was recorded keep their
    checksums."""
    return Field(default=default, exclude_if=lambda value: value == default)


MAX_VALUES = 1 << 24
"""Of one image."""
Size = Annotated[int, Field(ge=1, le=MAX_VALUES)]


class InputRecord(Record):
    """How pixels in 0..``maximum`` become the network's input: ``(pixel / maximum - mean) / std``.

    ``shape`` is that of one image, without the batch: height and width; channels, height and width; or the length of a
    vector. ``mean`` and ``std`` are one number for all pixels, or one for each channel. ``light_on_dark`` is what grey
    pictures show: one whose border is light is inverted then.
    """

    shape: tuple[Size, ...] = Field(default=(28, 28), min_length=1, max_length=3)
    mean: float | tuple[float, ...] = 0.5
    std: float | tuple[float, ...] = 0.5
    maximum: Annotated[float, Field(gt=0)] = _left_out(255.0)
    light_on_dark: bool = _left_out(True)

    @field_validator("shape", "mean", "std", mode="before")
    @classmethod
    def _tuple(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("std")
    @classmethod
    def _positive(cls, std: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if not all(value > 0 for value in (std if isinstance(std, tuple) else (std,))):
            raise ValueError("must be greater than 0")
        return std

    @field_validator("shape")
    @classmethod
    def _bounded(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if math.prod(shape) > MAX_VALUES:
            raise ValueError(f"must have at most {MAX_VALUES:,} values")
        return shape

    @model_validator(mode="after")
    def _channels(self) -> InputRecord:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if isinstance(values, tuple) and (len(self.shape) != 3 or len(values) != self.shape[0]):
                raise ValueError(
                    f"{name} has {len(values)} values, which images of shape {list(self.shape)} have no use for"
                )
        return self

    @property
    def pixels(self) -> int:
        """The number of values of one image."""
        return math.prod(self.shape)


class DeltaRule(Record):
    """The stochastic delta rule (Hanson 1990): each weight is drawn anew for every batch, from a normal distribution
    whose standard deviation starts as ``initial`` and becomes ``decay * (deviation + rate * |gradient|)`` after it.

    A wider draw has larger gradients, which widen the next: training may diverge where ``rate`` is large beside
    1 - ``decay``.
    """

    initial: float = Field(default=0.02, ge=0)
    rate: float = Field(default=0.01, ge=0)
    decay: float = Field(default=0.99, ge=0, le=1)


class Regularisation(Record):
    """What is added to plain training; see :mod:`training.regularisers`. Dropout and batch normalisation are parts of
    the network instead.

    ``weight_decay`` is L2 in the gradient (coupled), or ``decoupled`` from it (Loshchilov & Hutter 2019).
    ``max_norm`` bounds each unit's incoming weights. The noises are standard deviations: of what is added to the
    normalised input, to what activation functions give, and to the weights.
    """

    weight_decay: float = Field(default=0.0, ge=0)
    decoupled: bool = False
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    max_norm: float | None = Field(default=None, gt=0)
    input_noise: float = Field(default=0.0, ge=0)
    activation_noise: float = Field(default=0.0, ge=0)
    weight_noise: float = Field(default=0.0, ge=0)
    delta_rule: DeltaRule | None = None


class Augmentation(Record):
    """Random changes of the training images, drawn anew each time that they are seen; see
    :mod:`training.augmentation`. ``shift`` is in pixels, ``erase`` the probability that a rectangle is erased."""

    flip: bool = False
    shift: int = Field(default=0, ge=0, lt=28)
    erase: float = Field(default=0.0, ge=0, le=1)


class Diversity(Record):
    """Training the sub-networks to disagree on what is no training image, as Jain et al. (2020) train the members of an
    ensemble; see :mod:`training.diversity`. ``weight`` is that of the disagreement in the loss, ``share`` how many
    outliers are made for each image of a batch."""

    weight: float = Field(default=0.0, ge=0)
    share: float = Field(default=0.125, gt=0, le=1)


Schedule = Literal["constant", "one_cycle"]
Precision = Literal["float32", "bfloat16"]


class Recipe(Record):
    """How to train, by Adam. ``seed`` draws initial weights, the order of examples, dropout, noise and augmentation.
    ``patience``: epochs without a better validation loss before early stopping ends the run.

    ``schedule`` is that of the learning rate: with ``one_cycle`` (Smith & Topin 2018) ``learning_rate`` is the highest,
    which it rises to and falls from. ``averaging``, if it is not 0, is the decay, at each batch, of an exponential
    moving average of the weights (Polyak & Juditsky 1992), which are then kept in their place. ``precision`` is that of
    products and convolutions in training; the weights are float32.
    """

    epochs: int = Field(default=5, ge=1)
    learning_rate: float = Field(default=0.001, gt=0)
    batch_size: int = Field(default=64, ge=1)
    seed: int = 0
    early_stopping: bool = False
    patience: int = Field(default=3, ge=1)
    regularisation: Regularisation = _left_out(Regularisation())
    augmentation: Augmentation = _left_out(Augmentation())
    schedule: Schedule = _left_out("constant")
    averaging: Annotated[float, Field(ge=0, lt=1)] = _left_out(0.0)
    diversity: Diversity = _left_out(Diversity())
    precision: Precision = _left_out("float32")


class TrainingRecord(Recipe):
    """The recipe, and how the run ended."""

    optimizer: Literal["adam"]
    epochs_run: int
    best_epoch: int = Field(description="the epoch whose weights these are, from 1")
    stopped: Literal["completed", "early", "diverged"]

    @property
    def recipe(self) -> Recipe:
        return Recipe(**{name: getattr(self, name) for name in Recipe.model_fields})


class DataRecord(Record):
    """``sha256`` are those of the unpacked idx files."""

    name: str
    sha256: dict[str, str]
    split_seed: int
    train: int
    validation: int
    calibration: int


class Floors(Record):
    """What a bundle must reach to be shipped, by the names of its card's metrics: at ``least``, or at ``most``."""

    least: dict[str, float] = Field(default_factory=dict)
    most: dict[str, float] = Field(default_factory=dict)


class Card(Record):
    """All that is known about the weights, except their calibration. ``training`` and ``data`` are null for a network
    that was trained elsewhere."""

    format: int = CARD_FORMAT
    name: str
    network: NetworkRecord
    classes: tuple[str, ...]
    input: InputRecord
    training: TrainingRecord | None
    data: DataRecord | None
    metrics: dict[str, float]
    floors: Floors = _left_out(Floors())
    versions: dict[str, str]
    weights_sha256: str

    @field_validator("classes", mode="before")
    @classmethod
    def _tuple(cls, classes: object) -> object:
        return tuple(classes) if isinstance(classes, list) else classes

    @field_validator("classes")
    @classmethod
    def _told_apart(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        for place, name in enumerate(classes):
            if not name.strip():
                raise ValueError(f"the name of class {place} is empty")
            if name in classes[:place]:
                raise ValueError(f"two classes are named {name!r}")
        return classes


class Scaling(Record):
    """A temperature, and what it is applied to.

    ``pool_then_calibrate``: the members' mean is raised to the power 1 / temperature and normalised.
    ``calibrate_then_pool``: each member's logits are divided by the temperature, and their softmaxes averaged.
    For a strategy with one member both are the same. Rahaman & Thiery (2021) compare them for ensembles.
    """

    temperature: float = Field(default=1.0, gt=0)
    order: PoolingOrder = "pool_then_calibrate"


class AbstentionRecord(Record):
    """Answer where the uncertainty, 1 - confidence, is at most ``threshold``; never if that is null, as none was found
    that can be guaranteed.

    With probability 1 - ``delta`` over the draw of the images that it was found on, the error among answers to new ones
    is at most ``target_error``. ``error_bound`` is the bound of the test that the threshold passed; ``coverage`` the
    fraction of those images that are answered, ``selective_error`` the fraction of these answers that are wrong: 0 and
    null where there is no threshold.
    """

    target_error: float
    delta: float
    threshold: float | None
    error_bound: float
    coverage: float
    selective_error: float | None


class StrategyCalibration(Record):
    """One strategy's calibration: temperature and abstention.

    ``nll_before`` and ``nll_after`` are mean negative log-likelihoods, in nats, on the images it was fitted on;
    ``cross_validated_nll`` those of either order on images left out, by which the order was chosen.
    """

    scaling: Scaling
    nll_before: float
    nll_after: float
    cross_validated_nll: dict[PoolingOrder, float]
    abstention: tuple[AbstentionRecord, ...]

    @field_validator("abstention", mode="before")
    @classmethod
    def _tuple(cls, abstention: object) -> object:
        return tuple(abstention) if isinstance(abstention, list) else abstention


class Calibration(Record):
    """How far to trust the network: what was fitted, on which images, with which sub-networks.

    ``scores_sha256`` is the checksum of the file with the :class:`~models.bundle.CalibrationScores`, filled in when
    both are saved; ``images_sha256`` that of images of one's own, by which they are known again.
    """

    format: int = CALIBRATION_FORMAT
    weights_sha256: str
    scores_sha256: str = ""
    images_sha256: str = _left_out("")
    images: int
    samples: int
    seed: int
    design: MaskDesign
    strategies: dict[str, StrategyCalibration]
    versions: dict[str, str]

    def scaling(self, strategy: str) -> Scaling:
        """The fitted temperature of ``strategy``; that of 1, which changes nothing, if none was fitted."""
        return self.strategies[strategy].scaling if strategy in self.strategies else Scaling()
