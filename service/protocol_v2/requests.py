"""From the bytes of a request to pixels, options and wanted outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import from_json

from models.records import InputRecord
from service.errors import RequestError, from_validation
from service.protocol_v2.messages import (
    HEADER_LENGTH,
    NUMPY_DATATYPES,
    InferenceRequestBody,
    InputDatatype,
    OutputName,
    RequestInput,
    RequestOutput,
    RequestParameters,
)
from service.wire import USUAL_INPUT

__all__ = ["InferRequest", "WantedOutput", "decode_infer", "parse_header_length"]


@dataclass(frozen=True)
class WantedOutput:
    """An output that was asked for by name, and whether as binary data."""

    name: OutputName
    binary: bool


@dataclass(frozen=True)
class InferRequest:
    """A request to infer, decoded."""

    id: str | None
    model_name: str | None
    """The model's name as in the body, which the protocol has in the path alone, but some clients in both."""
    pixels: NDArray[np.float32]
    """``[N, *shape]``, ``N`` from 1 to 256."""
    parameters: dict[str, Any]
    """The given ones of the options strategy, samples, seed, coverage and target_error; values are not validated."""
    outputs: tuple[WantedOutput, ...]
    """In the order of the request; none for all that there are."""
    binary: bool
    """Whether outputs that are not asked for by name come as binary data."""


def parse_header_length(value: str | None) -> int | None:
    """The value of the header :data:`HEADER_LENGTH`, ``None`` if there is none.

    Raises :class:`~service.errors.RequestError` if it is not a whole number in decimal digits.
    """
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) <= 12):
        raise _refused("must be the number of bytes of the JSON", HEADER_LENGTH)
    return int(value)


def decode_infer(body: bytes, header_length: int | None, inputs: InputRecord = USUAL_INPUT) -> InferRequest:
    """The request that ``body`` is, to a model of ``inputs``; its first ``header_length`` bytes are JSON, or all.

    Raises :class:`~service.errors.RequestError`: 422 if FP32 pixels are not finite or not in range, else 400.
    """
    if header_length is not None and not 1 <= header_length <= len(body):
        raise _refused(f"must be the number of bytes of the JSON, 1 to {len(body)} here", HEADER_LENGTH)
    try:
        content = from_json(body[:header_length])
    except ValueError as error:
        raise _refused(f"Invalid JSON: {error}") from error
    if not isinstance(content, dict):
        raise _refused("the body must be a JSON object")
    try:
        request = InferenceRequestBody.model_validate(content, context=inputs)
    except ValidationError as error:
        raise from_validation(error) from error
    parameters = request.parameters or RequestParameters()
    binary = bool(parameters.binary_data_output)
    return InferRequest(
        id=request.id,
        model_name=request.model_name,
        pixels=_pixels(request.inputs[0], body[len(body) if header_length is None else header_length :], inputs),
        parameters=parameters.model_dump(exclude_unset=True, exclude={"binary_data_output"}),
        outputs=tuple(WantedOutput(output.name, _is_binary(output, binary)) for output in request.outputs or ()),
        binary=binary,
    )


def _is_binary(output: RequestOutput, default: bool) -> bool:
    given = output.parameters.binary_data if output.parameters else None
    return default if given is None else given


def _pixels(tensor: RequestInput, rest: bytes, inputs: InputRecord) -> NDArray[np.float32]:
    """``[N, *shape]`` of the tensor, whose data is in its JSON or ``rest``, the bytes after the JSON."""
    size = tensor.parameters.binary_data_size if tensor.parameters else None
    if (size is None) == (tensor.data is None):
        raise _refused("give either data or parameters.binary_data_size, with as many bytes after the JSON", "inputs.0")
    if tensor.data is None:
        itemsize = np.dtype(NUMPY_DATATYPES[tensor.datatype]).itemsize
        expected = math.prod(tensor.shape) * itemsize
        if size != expected:
            raise _refused(f"must be {expected} for this shape and datatype", "inputs.0.parameters.binary_data_size")
        if len(rest) != size:
            raise _refused(f"{len(rest)} bytes follow the JSON, which says {size}; check {HEADER_LENGTH}")
        values: NDArray[Any] = np.frombuffer(rest, dtype=NUMPY_DATATYPES[tensor.datatype])
    else:
        if rest:
            raise _refused(f"{len(rest)} bytes follow the JSON, which says nothing of them; check {HEADER_LENGTH}")
        values = _numbers(_flat(tensor.data, tensor.shape), tensor.datatype)
    with np.errstate(invalid="ignore"):  # Signalling NaN; like any NaN, it is not within.
        within = (values >= 0) & (values <= inputs.maximum)
    if not within.all():
        status = HTTPStatus.UNPROCESSABLE_ENTITY if tensor.datatype == "FP32" else HTTPStatus.BAD_REQUEST
        message = f"must be in 0..{inputs.maximum:g}, which element {within.argmin()} is not"
        raise _refused(message, "inputs.0.data", status)
    return values.astype(np.float32).reshape(-1, *inputs.shape)


def _flat(data: list[Any], shape: list[int]) -> list[Any]:
    """The elements of ``data``, which is flat or nested as ``shape`` says."""
    error = _refused(f"must be {math.prod(shape)} numbers, flat or nested as the shape", "inputs.0.data")
    if data and isinstance(data[0], list):
        if len(data) != shape[0]:
            raise error
        for length in shape[1:]:
            if any(not isinstance(row, list) or len(row) != length for row in data):
                raise error
            data = list(chain.from_iterable(data))
    if len(data) != math.prod(shape):
        raise error
    return data


def _numbers(elements: list[Any], datatype: InputDatatype) -> NDArray[Any]:
    """JSON's numbers, as wide as JSON has them; numpy alone would take booleans and strings for numbers, too."""
    allowed, kind = ({int}, "whole numbers") if datatype == "UINT8" else ({int, float}, "numbers")
    if not set(map(type, elements)) <= allowed:
        raise _refused(f"must be {kind}, for {datatype}", "inputs.0.data")
    try:
        return np.array(elements, dtype=np.float64)
    except OverflowError:  # An integer beyond 1e308.
        return np.array([min(max(element, -1), 256) for element in elements], dtype=np.float64)


def _refused(message: str, field: str | None = None, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> RequestError:
    return RequestError(status, f"{field}: {message}" if field else message, field)
