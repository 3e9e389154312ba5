"""Requests and responses as they are on the wire."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from bentoml import IODescriptor
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Discriminator, Field, GetCoreSchemaHandler, Tag
from pydantic_core import CoreSchema
from starlette.requests import Request

from models.pictures import SIDE

__all__ = [
    "DECODED",
    "MAX_INSTANCES",
    "ImageOptions",
    "ImageRequest",
    "ModelResponse",
    "Options",
    "PredictRequest",
    "PredictResponse",
    "Prediction",
]

MAX_INSTANCES = 256
DECODED = "dropout_uncertainty.decoded"
"""Where in the ASGI scope the door leaves the decoded request."""

StrategyName = Literal["mc_dropout", "weight_scaling", "geometric_mean", "last_layer", "moment_propagation"]
MOMENT_PASSES = 512
"""What carrying moments through the shipped network costs, in passes through sub-networks: some 400, measured."""
Samples = Annotated[int, Field(ge=2, le=1024)]

Pixel = Annotated[float, Field(ge=0, le=255, allow_inf_nan=False)]
Flat = Annotated[list[Pixel], Field(min_length=SIDE * SIDE, max_length=SIDE * SIDE, fail_fast=True)]
Row = Annotated[list[Pixel], Field(min_length=SIDE, max_length=SIDE, fail_fast=True)]
Rows = Annotated[list[Row], Field(min_length=SIDE, max_length=SIDE, fail_fast=True)]


def _flat_or_rows(value: object) -> str:
    return "rows" if isinstance(value, list) and value and isinstance(value[0], list) else "flat"


Instance = Annotated[Annotated[Flat, Tag("flat")] | Annotated[Rows, Tag("rows")], Discriminator(_flat_or_rows)]

STRATEGY_HELP = (
    "How to use dropout at test time. mc_dropout: mean over sampled sub-networks, with decomposed uncertainty. "
    "geometric_mean: their normalised geometric mean. weight_scaling: dropout off, one pass. last_layer: as "
    "mc_dropout, with the last dropout layer alone. moment_propagation: mean and covariance of the logits in closed "
    "form. /model lists those that the model allows; by default it is the first of them."
)
SAMPLES_HELP = (
    "Sub-networks to sample, 2 to 1024; weight_scaling and moment_propagation sample none. By default as many as the "
    "calibration was fitted with; with fewer, confidence is a little less calibrated."
)


class Options(BaseModel):
    """How to answer; what a request leaves out is the served bundle's to choose."""

    strategy: StrategyName = Field(default="mc_dropout", description=STRATEGY_HELP)
    samples: Samples = Field(default=64, description=SAMPLES_HELP)

    def chosen(self, strategy: StrategyName, samples: int) -> tuple[StrategyName, int]:
        """The strategy and the samples asked for, or the given ones for those that were left out."""
        return (
            self.strategy if "strategy" in self.model_fields_set else strategy,
            self.samples if "samples" in self.model_fields_set else samples,
        )

    @property
    def passes_per_image(self) -> int:
        return MOMENT_PASSES if self.strategy == "moment_propagation" else self.samples


class Decoded(IODescriptor):
    """A request that the door has decoded already, so that BentoML need not parse it again."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # BentoML's version rewrites annotations for its file types, and applies those of a union twice.
        return handler(source)

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        return request.scope[DECODED]

    @property
    def passes(self) -> int:
        """How many passes through a network it may cost."""
        raise NotImplementedError


class PredictRequest(Decoded, Options):
    """Images as numbers."""

    instances: Annotated[
        list[Instance],
        Field(
            min_length=1,
            max_length=MAX_INSTANCES,
            fail_fast=True,
            description="Images, each as 784 pixel values or 28 rows of 28, in 0..255, white on black.",
        ),
    ]

    @property
    def passes(self) -> int:
        return len(self.instances) * self.passes_per_image

    def pixels(self) -> NDArray[np.float32]:
        """``[N, 28, 28]`` in 0..255."""
        return np.array([np.ravel(instance) for instance in self.instances], dtype=np.float32).reshape(-1, SIDE, SIDE)


class ImageOptions(Options):
    """The query of ``/predict_image``."""

    model_config = ConfigDict(extra="forbid")

    invert: Literal["auto", "true", "false"] = Field(
        default="auto",
        description="Turn dark on light into light on dark, which the model knows. auto: if the border is light.",
    )


class ImageRequest(Decoded):
    """One image file, decoded to 28x28."""

    image: Any
    options: ImageOptions

    @property
    def passes(self) -> int:
        return self.options.passes_per_image

    def pixels(self) -> NDArray[np.float32]:
        """``[1, 28, 28]`` in 0..255."""
        return np.asarray(self.image, dtype=np.float32).reshape(1, SIDE, SIDE)


class ModelName(BaseModel):
    name: str
    version: str = Field(description="changes when the weights, the card or the calibration do")


class Uncertainty(BaseModel):
    """In nats. total = aleatoric + epistemic; the parts are null for a strategy that gives a single distribution."""

    total: float = Field(description="predictive entropy: 0 when certain, log 10 = 2.303 at most")
    aleatoric: float | None = Field(description="expected entropy of the sub-networks: what each is unsure of")
    epistemic: float | None = Field(description="mutual information: what the sub-networks disagree on")


class Prediction(BaseModel):
    label: str
    class_index: int
    confidence: float = Field(description="probability of the label, calibrated if the bundle is")
    probabilities: dict[str, float]
    uncertainty: Uncertainty
    standard_error: float | None = Field(
        description="Monte Carlo standard error of the confidence: how far more sub-networks may move it; null if "
        "the strategy gives a single distribution"
    )


class PredictResponse(IODescriptor):
    """One prediction per image, in the order of the request."""

    model: ModelName
    strategy: StrategyName
    samples: int = Field(description="sub-networks sampled; 1 for weight_scaling and moment_propagation")
    temperature: float = Field(description="of the calibration; 1 if uncalibrated")
    predictions: list[Prediction]


class ModelResponse(BaseModel):
    """The bundle that answers: its card, and its calibration or null."""

    name: str
    version: str
    strategies: list[StrategyName] = Field(description="those that this network allows, the default first")
    default_samples: int
    card: dict[str, Any]
    calibration: dict[str, Any] | None
