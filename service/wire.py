"""Requests as they are on the wire; what is answered is in :mod:`service.responses`."""

from __future__ import annotations

from functools import cache
from types import GenericAlias
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

import numpy as np
from bentoml import IODescriptor
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Discriminator, Field, GetCoreSchemaHandler, Tag, create_model
from pydantic_core import CoreSchema
from starlette.requests import Request

from models.records import InputRecord

__all__ = [
    "MAX_INSTANCES",
    "QUESTION",
    "USUAL_INPUT",
    "Bytes",
    "CommonOptions",
    "CompareOptions",
    "CompareRequest",
    "ImageOptions",
    "MembersName",
    "Options",
    "PredictRequest",
    "QueryOptions",
    "StrategyName",
    "request_model",
]

MAX_INSTANCES = 256
QUESTION = "dropout_uncertainty.question"
"""Where in the ASGI scope the door leaves what a request asks."""

StrategyName = Literal["mc_dropout", "weight_scaling", "geometric_mean", "last_layer", "moment_propagation"]
MembersName = Literal["none", "votes", "probabilities"]
Count = Annotated[int, Field(ge=2, le=1024)]

USUAL_INPUT = InputRecord()
"""Of the bundles that ship."""


def _flat_or_rows(value: object) -> str:
    return "rows" if isinstance(value, list) and value and isinstance(value[0], list) else "flat"


def _auto_or_number(value: object) -> str:
    return "auto" if value == "auto" else "number"


def _list_of(element: Any, length: int) -> Any:
    return Annotated[GenericAlias(list, (element,)), Field(min_length=length, max_length=length, fail_fast=True)]


def _instances(inputs: InputRecord) -> Any:
    """The type of a request's images: each flat, or nested as its shape."""
    pixel = Annotated[float, Field(ge=0, le=inputs.maximum, allow_inf_nan=False)]
    instance = _list_of(pixel, inputs.pixels)
    described = f"{inputs.pixels} pixel values"
    shown = ", white on black" if inputs.light_on_dark else ""
    if len(inputs.shape) > 1:
        rows: Any = pixel
        for length in reversed(inputs.shape):
            rows = _list_of(rows, length)
        instance = Annotated[
            Annotated[instance, Tag("flat")] | Annotated[rows, Tag("rows")], Discriminator(_flat_or_rows)
        ]
        described += f" or nested as {'x'.join(map(str, inputs.shape))}"
    return Annotated[
        GenericAlias(list, (instance,)),
        Field(
            min_length=1,
            max_length=MAX_INSTANCES,
            fail_fast=True,
            description=f"Images, each as {described}, in 0..{inputs.maximum:g}{shown}.",
        ),
    ]


Samples = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[Count, Tag("number")], Discriminator(_auto_or_number)
]

STRATEGY_HELP = (
    "How to use dropout at test time. mc_dropout: mean over sampled sub-networks, with decomposed uncertainty. "
    "geometric_mean: their normalised geometric mean. weight_scaling: dropout off, one pass. last_layer: as "
    "mc_dropout, with the last dropout layer alone. moment_propagation: mean and covariance of the logits in closed "
    "form. /model lists those that the model allows; by default it is the first of them."
)
COUNT_HELP = "By default as many as the calibration was fitted with; with others its promises hold approximately."
SAMPLES_HELP = (
    "Sub-networks to sample, 2 to 1024; weight_scaling and moment_propagation sample none. "
    f"{COUNT_HELP} auto, for mc_dropout and last_layer: as many as each image's label and abstention need."
)
MEMBERS_HELP = (
    "What to tell of each sub-network, of mc_dropout and last_layer: the class that it votes for, or its probability "
    "of each class as well."
)


class CommonOptions(BaseModel):
    """How to answer; what a request leaves out is the served bundle's, or the server's, to choose."""

    model: str = Field(default="", max_length=64, description="Which of the loaded bundles answers: see /model.")
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Of the sub-networks; by default the one of the calibration."
    )
    coverage: float = Field(
        default=0.9, ge=0.5, le=0.999, description="How often the prediction set shall hold the true class."
    )
    target_error: float = Field(
        default=0.05,
        ge=0.001,
        le=0.5,
        description="The promised fraction of wrong ones among the answers that are not abstained from; at most what "
        "the server promises by default.",
    )

    def given(self, name: str, otherwise: Any) -> Any:
        """What the request says of ``name``, or ``otherwise`` if it leaves it out."""
        return getattr(self, name) if name in self.model_fields_set else otherwise


class Options(CommonOptions):
    strategy: StrategyName = Field(default="mc_dropout", description=STRATEGY_HELP)
    samples: Samples = Field(default=64, description=SAMPLES_HELP)
    members: MembersName = Field(default="none", description=MEMBERS_HELP)


class Decoded(IODescriptor):
    """A body that the door has decoded already, so that BentoML need not parse it again: an API method is given the
    :class:`~service.predictor.Question` that the door made of it."""

    __root_input__ = True
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # BentoML's version rewrites annotations for its file types, and applies those of a union twice.
        return handler(source)

    @classmethod
    async def from_http_request(cls, request: Request, serde: Any) -> Any:
        return request.scope[QUESTION]


class Bytes(Decoded):
    """A body that is no JSON."""


class _Instances(Decoded):
    input_shape: ClassVar[tuple[int, ...]] = USUAL_INPUT.shape

    instances: _instances(USUAL_INPUT)  # type: ignore[valid-type]

    def pixels(self) -> NDArray[np.float32]:
        """``[N, *shape]``."""
        flat = np.array([np.ravel(instance) for instance in self.instances], dtype=np.float32)
        return flat.reshape(-1, *self.input_shape)


class PredictRequest(_Instances, Options):
    """Images as numbers."""


class CompareOptions(CommonOptions):
    samples: Count = Field(default=64, description=f"Sub-networks to sample, 2 to 1024. {COUNT_HELP}")


class CompareRequest(_Instances, CompareOptions):
    """Images as numbers, for every strategy."""


RequestT = TypeVar("RequestT", bound=_Instances)


def request_model(base: type[RequestT], inputs: InputRecord) -> type[RequestT]:
    """``base`` for images as ``inputs`` has them; the same class for the same."""
    if (inputs.shape, inputs.maximum) == (USUAL_INPUT.shape, USUAL_INPUT.maximum):
        return base
    return cast("type[RequestT]", _request_model(cast("Any", base), inputs))


@cache
def _request_model(base: Any, inputs: InputRecord) -> Any:
    made = create_model(base.__name__, __base__=base, instances=(_instances(inputs), ...))
    setattr(made, "input_shape", inputs.shape)  # noqa: B010  (mypy knows the type by the base alone)
    return made


class QueryOptions(Options):
    """The query of ``/predict_raw``, and the parameters of ``/v2``."""

    model_config = ConfigDict(extra="forbid")


class ImageOptions(QueryOptions):
    """The query of ``/predict_image``."""

    invert: Literal["auto", "true", "false"] = Field(
        default="auto",
        description="Turn dark on light into light on dark, or the reverse. auto: if the border is light, and light on "
        "dark is what the model knows.",
    )
