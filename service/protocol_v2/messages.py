"""The JSON of the protocol, and the tensors of this service."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from models.records import InputRecord
from service.wire import MAX_INSTANCES, USUAL_INPUT

__all__ = [
    "DATATYPES",
    "HEADER_LENGTH",
    "NUMPY_DATATYPES",
    "OUTPUT_NAMES",
    "PER_CLASS",
    "InferenceRequestBody",
    "InferenceResponseBody",
    "InputDatatype",
    "ModelMetadata",
    "OutputName",
    "RequestInput",
    "RequestOutput",
    "RequestParameters",
    "ResponseOutput",
    "ResponseParameters",
    "ServerMetadata",
    "TensorMetadata",
]

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The HTTP header that tells how many bytes of a body are its JSON, where binary data follows."""
SHAPE_HELP = f"N from 1 to {MAX_INSTANCES}, and the shape of an image as the model's metadata has it, or its product"
DATA_HELP = "The elements in row-major order, flat or nested as the shape. Left out where the data is binary."
OPTION_HELP = "As the field of the same name of POST /predict."

InputDatatype = Literal["UINT8", "FP32"]
OutputName = Literal[
    "label",
    "class_index",
    "confidence",
    "probabilities",
    "total_uncertainty",
    "aleatoric_uncertainty",
    "epistemic_uncertainty",
    "novelty_distance",
    "novelty_p_value",
    "standard_error",
    "prediction_set",
    "abstain",
    "samples",
]
OUTPUT_NAMES: tuple[OutputName, ...] = get_args(OutputName)
DATATYPES: Mapping[OutputName, str] = dict.fromkeys(OUTPUT_NAMES, "FP32") | {
    "label": "BYTES", "class_index": "INT64", "samples": "INT64", "prediction_set": "BOOL", "abstain": "BOOL",
}  # fmt: skip
PER_CLASS = frozenset({"probabilities", "prediction_set"})
"""Outputs ``[N, C]``; the others are ``[N]``."""
NUMPY_DATATYPES = {"UINT8": "u1", "FP32": "<f4", "INT64": "<i8", "BOOL": "?"}


def _known_shape(shape: list[int], info: ValidationInfo) -> list[int]:
    """The context of the validation is the model's input, if it isn't the usual one."""
    inputs: InputRecord = info.context or USUAL_INPUT
    if not (shape and 1 <= shape[0] <= MAX_INSTANCES and tuple(shape[1:]) in (inputs.shape, (inputs.pixels,))):
        one = ", ".join(map(str, inputs.shape))
        message = f"must be [N, {one}] or [N, {inputs.pixels}] with N from 1 to {MAX_INSTANCES}"
        raise PydanticCustomError("shape", "{message}", {"message": message})
    return shape


def _scalar(value: object) -> object:
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise PydanticCustomError("scalar", "must be a string, a finite number or a boolean")
    return value


def _distinct(outputs: list[RequestOutput]) -> list[RequestOutput]:
    if len({output.name for output in outputs}) < len(outputs):
        raise PydanticCustomError("distinct", "each output may be requested once")
    return outputs


def _without_default(schema: dict[str, Any]) -> None:
    """None stands for an option that was left out, and is no value of it."""
    schema.pop("default", None)


Option = Annotated[
    Any,
    AfterValidator(_scalar),
    WithJsonSchema({"type": ["string", "number", "boolean"]}),
    Field(description=OPTION_HELP, json_schema_extra=_without_default),
]


class Part(BaseModel):
    """A part of a request: nothing unknown, nothing coerced. null is the same as left out, but for the options."""

    model_config = ConfigDict(extra="forbid", strict=True)


class InputParameters(Part):
    binary_data_size: int | None = Field(default=None, ge=0, description="Bytes of the data after the JSON.")


class RequestInput(Part):
    name: Literal["images"]
    datatype: InputDatatype = Field(description="FP32 must be finite and in the range of pixels, too.")
    shape: Annotated[list[int], AfterValidator(_known_shape)] = Field(description=SHAPE_HELP)
    parameters: InputParameters | None = None
    data: list[Any] | None = Field(default=None, description=DATA_HELP)


class OutputParameters(Part):
    binary_data: bool | None = Field(default=None, description="Whether this output comes as binary data.")


class RequestOutput(Part):
    name: OutputName
    parameters: OutputParameters | None = None


class RequestParameters(Part):
    """How outputs come by default, and the options of ``POST /predict``."""

    binary_data_output: bool | None = Field(default=None, description="Whether outputs come as binary data.")
    strategy: Option = None
    samples: Option = None
    seed: Option = None
    coverage: Option = None
    target_error: Option = None


class InferenceRequestBody(Part):
    """Images, white on black, and which outputs are wanted: all by default."""

    id: str | None = Field(default=None, max_length=256, description="Comes back with the answer.")
    model_name: str | None = Field(default=None, description="If given, that of the path.")
    parameters: RequestParameters | None = None
    inputs: list[RequestInput] = Field(min_length=1, max_length=1)
    outputs: Annotated[list[RequestOutput], Field(max_length=len(OUTPUT_NAMES)), AfterValidator(_distinct)] | None = (
        None
    )


class ResponseParameters(BaseModel):
    binary_data_size: int = Field(description="Bytes of the data after the JSON.")


class ResponseOutput(BaseModel):
    name: OutputName
    datatype: str
    shape: list[int]
    parameters: ResponseParameters | None = Field(default=None, description="Left out where the data is JSON.")
    data: list[Any] | None = Field(default=None, description="Row-major and flat. Left out where it is binary.")


class InferenceResponseBody(BaseModel):
    """One row of every output per image. What the strategy or an uncalibrated model does not give is left out."""

    model_name: str
    model_version: str
    id: str | None = Field(default=None, description="The request's; left out if it had none.")
    parameters: dict[str, str | float] = Field(
        description="strategy and temperature; of a calibrated model, its decision too, but for nulls."
    )
    outputs: list[ResponseOutput]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1 where any size goes")


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class ModelMetadata(BaseModel):
    """Its tensors. images may be FP32, and flat, ``[N, P]``, too."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
