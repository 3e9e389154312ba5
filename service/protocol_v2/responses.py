"""From an answer to the bytes of a response; what the server and a model say of themselves."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import numpy as np

from models import __version__
from service.errors import RequestError
from service.protocol_v2.messages import (
    DATATYPES,
    HEADER_LENGTH,
    NUMPY_DATATYPES,
    OUTPUT_NAMES,
    PER_CLASS,
    InferenceResponseBody,
    ModelMetadata,
    OutputName,
    ResponseOutput,
    ResponseParameters,
    ServerMetadata,
    TensorMetadata,
)
from service.protocol_v2.requests import InferRequest, WantedOutput

__all__ = ["encode_infer", "model_metadata", "server_metadata"]

NAME = "dropout-uncertainty"
EXTENSIONS = ["binary_tensor_data", "parameters"]
GIVERS: Mapping[OutputName, str] = {
    **dict.fromkeys(("prediction_set", "abstain"), "an uncalibrated model"),
    **dict.fromkeys(("novelty_distance", "novelty_p_value"), "a model without a density of its training images"),
}
"""What gives no such output; for the others it is the strategy."""


def encode_infer(
    request: InferRequest, answer: Mapping[str, Any], classes: Sequence[str]
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the response to ``request``.

    ``answer`` is what ``POST /predict`` would answer, for a model of these ``classes``. Outputs are those asked for, or
    all that the answer has values of. FP32 are the answer's decimals in JSON, and the nearest FP32 to them in binary.

    Raises :class:`~service.errors.RequestError`, 400, if an output was asked for that the answer has no values of.
    """
    columns = _columns(answer["predictions"], classes)
    wanted = request.outputs or tuple(WantedOutput(name, request.binary) for name in columns)
    outputs, chunks = [], []
    for place, output in enumerate(wanted):
        if output.name not in columns:
            giver = GIVERS.get(output.name, answer["strategy"])
            message = f"outputs.{place}.name: {giver} gives no {output.name}; leave it out"
            raise RequestError(HTTPStatus.BAD_REQUEST, message, f"outputs.{place}.name")
        values, datatype = columns[output.name], DATATYPES[output.name]
        shape = [len(answer["predictions"]), *([len(classes)] if output.name in PER_CLASS else [])]
        described = ResponseOutput(name=output.name, datatype=datatype, shape=shape)
        if output.binary:
            chunks.append(_binary(values, datatype))
            described.parameters = ResponseParameters(binary_data_size=len(chunks[-1]))
        else:
            described.data = values
        outputs.append(described)
    parameters = {"strategy": answer["strategy"], "temperature": answer["temperature"], **(answer["decision"] or {})}
    response = InferenceResponseBody(
        model_name=answer["model"]["name"],
        model_version=answer["model"]["version"],
        id=request.id,
        parameters={name: value for name, value in parameters.items() if value is not None},
        outputs=outputs,
    )
    header = response.model_dump_json(exclude_none=True).encode()
    if not chunks:
        return header, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(header))}
    return b"".join([header, *chunks]), headers


def _columns(predictions: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[OutputName, list[Any]]:
    """The outputs' elements, flat and in row-major order, of those outputs that the predictions have."""
    columns: dict[OutputName, list[Any]] = {
        "label": [one["label"] for one in predictions],
        "class_index": [one["class_index"] for one in predictions],
        "confidence": [one["confidence"] for one in predictions],
        "probabilities": [one["probabilities"][name] for one in predictions for name in classes],
        "total_uncertainty": [one["uncertainty"]["total"] for one in predictions],
        "aleatoric_uncertainty": [one["uncertainty"]["aleatoric"] for one in predictions],
        "epistemic_uncertainty": [one["uncertainty"]["epistemic"] for one in predictions],
        "novelty_distance": [(one["novelty"] or {}).get("distance") for one in predictions],
        "novelty_p_value": [(one["novelty"] or {}).get("p_value") for one in predictions],
        "standard_error": [one["standard_error"] for one in predictions],
        "prediction_set": [
            None if one["prediction_set"] is None else name in one["prediction_set"]
            for one in predictions
            for name in classes
        ],
        "abstain": [one["abstain"] for one in predictions],
        "samples": [one["samples"] for one in predictions],
    }
    return {name: values for name, values in columns.items() if None not in values}


def _binary(values: list[Any], datatype: str) -> bytes:
    if datatype != "BYTES":
        return np.array(values, dtype=NUMPY_DATATYPES[datatype]).tobytes()
    strings = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(string)) + string for string in strings)


def server_metadata() -> dict[str, Any]:
    """What ``GET /v2`` answers."""
    return ServerMetadata(name=NAME, version=__version__, extensions=EXTENSIONS).model_dump()


def model_metadata(name: str, versions: Sequence[str], classes: Sequence[str], shape: Sequence[int]) -> dict[str, Any]:
    """What ``GET /v2/models/{name}`` answers for a model of these ``classes``, and of images of this ``shape``."""
    outputs = [
        TensorMetadata(
            name=output, datatype=DATATYPES[output], shape=[-1, *([len(classes)] if output in PER_CLASS else [])]
        )
        for output in OUTPUT_NAMES
    ]
    return ModelMetadata(
        name=name,
        versions=list(versions),
        platform="pytorch_dropout",
        inputs=[TensorMetadata(name="images", datatype="UINT8", shape=[-1, *shape])],
        outputs=outputs,
    ).model_dump()
