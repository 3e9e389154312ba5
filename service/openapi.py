"""The OpenAPI document at ``/docs.json``.

BentoML's own leaves out query parameters, mounted routes and the errors' real shape, so it is written here, from the
same models that requests are validated with.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from models import __version__
from models.pictures import MAX_PIXELS
from service import protocol_v2
from service.catalogue import Catalogue
from service.door import MAX_BODY_BYTES
from service.drift import DriftResponse
from service.errors import MESSAGES, ErrorBody
from service.predictor import Predictor
from service.responses import CompareResponse, ModelResponse, PredictResponse
from service.wire import (
    MAX_INSTANCES,
    CompareRequest,
    ImageOptions,
    Options,
    PredictRequest,
    QueryOptions,
    request_model,
)

__all__ = ["document", "example_request"]

REFERENCE = "#/components/schemas/{model}"
MODELS: tuple[type[BaseModel], ...] = (
    PredictResponse, CompareResponse, ModelResponse, DriftResponse, ErrorBody,
    protocol_v2.InferenceRequestBody, protocol_v2.InferenceResponseBody, protocol_v2.ModelMetadata,
    protocol_v2.ServerMetadata,
)  # fmt: skip
BODY_ERRORS = (400, 413, 415, 429)
V2_MODEL = "/v2/models/{name}"


def example_request(predictor: Predictor) -> PredictRequest:
    """One image, with something grey in the middle, for the model's default strategy."""
    inputs = predictor.bundle.card.input
    third = inputs.pixels // 3
    image = [0] * third + [int(0.8 * inputs.maximum)] * third + [0] * (inputs.pixels - 2 * third)
    return request_model(PredictRequest, inputs)(
        instances=[image], strategy=predictor.strategies[0], samples=predictor.fitted.samples
    )


def document(catalogue: Catalogue) -> dict[str, Any]:
    """The whole document; the defaults and examples are those of the default model."""
    predictor = catalogue.predictor()
    inputs = predictor.bundle.card.input
    models: list[type[BaseModel]] = [
        request_model(PredictRequest, inputs),
        request_model(CompareRequest, inputs),
        *MODELS,
    ]
    _, schema = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE)
    defaults = _defaults(predictor)
    for name in ("PredictRequest", "CompareRequest"):
        _set_defaults(schema["$defs"][name], defaults)
    request = example_request(predictor)
    response = predictor.answer(predictor.question(request.pixels(), request))
    answer = _json("one prediction per image", "PredictResponse", response)
    compared = {"instances": request.instances}
    choice = [_parameter("model", "Which of the loaded bundles.", {"type": "string", "default": predictor.name})]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Dropout uncertainty",
            "version": __version__,
            "description": "Labels for images, with calibrated confidence and an uncertainty that "
            "is decomposed into what the sub-networks are unsure of and what they disagree on.",
        },
        "paths": {
            "/predict": _post(
                "predict", "Classify images given as numbers",
                _json_body("PredictRequest", request.model_dump(exclude_unset=True)), answer,
            ),
            "/predict_image": _post(
                "predict_image", "Classify one picture",
                {"image/*": {"schema": {"type": "string", "format": "binary"}}}, answer, 422,
                description="PNG, JPEG, WebP or BMP, in colour or grey, "
                f"of at most {MAX_BODY_BYTES:,} bytes and {MAX_PIXELS:,} pixels.",
                parameters=_query(ImageOptions, defaults),
            ),
            "/predict_raw": _post(
                "predict_raw", "Classify images given as bytes",
                {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}, answer,
                description=f"1 to {MAX_INSTANCES} images of {inputs.pixels} bytes each, row by row.",
                parameters=_query(QueryOptions, defaults),
            ),
            "/compare": _post(
                "compare", "Classify images by every strategy", _json_body("CompareRequest", compared),
                _json("what each strategy says", "CompareResponse"),
            ),
            "/model": _get("model", "A bundle that answers", "ModelResponse", 400, parameters=choice),
            "/drift": _get("drift", "How live uncertainty differs from the calibration's", "DriftResponse"),
            "/report": _text("report", "The bundle's calibration report", "text/html", 400, 404, parameters=choice),
            "/ui": _text("ui", "A page to look at predictions", "text/html"),
            "/livez": _text("livez", "200 while the process runs"),
            "/readyz": _text("readyz", "200 once the model is loaded and warm, and until the worker ends", "", 503),
            "/metrics": _text("metrics", "Prometheus metrics"),
            **_v2_paths(),
        },
        "components": {
            "schemas": schema["$defs"],
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        # An empty one: a server without keys asks for none.
        "security": [{}, {"bearer": []}, {"header": []}],
    }  # fmt: skip


def _v2_paths() -> dict[str, Any]:
    names = [_parameter("name", "Name of a loaded bundle.", {"type": "string"}, where="path")]
    versions = [*names, _parameter("version", "The version that it must have.", {"type": "string"}, where="path")]
    paths: dict[str, Any] = {
        "/v2": _get("v2_server", "Open Inference Protocol: the server", "ServerMetadata"),
        "/v2/health/live": _text("v2_live", "200 while the process runs", ""),
        "/v2/health/ready": _text("v2_ready", "200 until the worker ends", "", 503),
    }
    for prefix, suffix, parameters in ((V2_MODEL, "", names), (V2_MODEL + "/versions/{version}", "_version", versions)):
        paths[prefix] = _get(f"v2_model{suffix}", "A model's inputs and outputs", "ModelMetadata", 404,
                             parameters=parameters)  # fmt: skip
        paths[f"{prefix}/ready"] = _text(
            f"v2_model_ready{suffix}", "200 if the model is loaded", "", 404, parameters=parameters
        )
        paths[f"{prefix}/infer"] = _post(
            f"v2_infer{suffix}", "Classify images given as a tensor",
            {"application/json": {"schema": {"$ref": REFERENCE.format(model="InferenceRequestBody")}}},
            _json("labels and uncertainties as tensors", "InferenceResponseBody"), 404, 422,
            description="Tensors may come and go as binary data after the JSON.", parameters=parameters,
        )  # fmt: skip
    return paths


def _defaults(predictor: Predictor) -> dict[str, Any]:
    """What a request leaves out is the server's and the model's to choose."""
    return {
        "model": predictor.name, "strategy": predictor.strategies[0], "samples": predictor.fitted.samples,
        "seed": predictor.fitted.seed, "coverage": predictor.coverage, "target_error": predictor.target_error,
    }  # fmt: skip


def _set_defaults(schema: dict[str, Any], defaults: dict[str, Any]) -> None:
    for name, value in defaults.items():
        if name in schema["properties"]:
            schema["properties"][name]["default"] = value


def _query(options: type[Options], defaults: dict[str, Any]) -> list[dict[str, Any]]:
    schema = options.model_json_schema()
    _set_defaults(schema, defaults)
    return [
        _parameter(name, described.pop("description"), described)
        for name, described in schema["properties"].items()
    ]  # fmt: skip


def _parameter(name: str, description: str, schema: dict[str, Any], where: str = "query") -> dict[str, Any]:
    return {"name": name, "in": where, "description": description, "required": where == "path", "schema": schema}


def _post(
    name: str,
    summary: str,
    content: dict[str, Any],
    answer: dict[str, Any],
    *statuses: int,
    description: str = f"Bodies of at most {MAX_BODY_BYTES:,} bytes.",
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    operation = {
        "operationId": name,
        "summary": summary,
        "description": description,
        "parameters": parameters or [],
        "requestBody": {"required": True, "content": content},
        "responses": {"200": answer, **_errors(*BODY_ERRORS, *statuses)},
    }
    return {"post": operation}


def _get(
    name: str, summary: str, model: str, *statuses: int, parameters: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    operation = {
        "operationId": name,
        "summary": summary,
        "parameters": parameters or [],
        "responses": {"200": _json(summary, model), **_errors(*statuses)},
    }
    return {"get": operation}


def _text(
    name: str,
    summary: str,
    media_type: str = "text/plain",
    *statuses: int,
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """An operation whose answer is text of ``media_type``, or empty without one."""
    answer: dict[str, Any] = {"description": summary}
    if media_type:
        answer["content"] = {media_type: {"schema": {"type": "string"}}}
    operation = {
        "operationId": name,
        "summary": summary,
        "parameters": parameters or [],
        "responses": {"200": answer, **_errors(*statuses)},
    }
    return {"get": operation}


def _json_body(model: str, example: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": REFERENCE.format(model=model)}, "example": example}}


def _json(description: str, model: str, example: dict[str, Any] | None = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": REFERENCE.format(model=model)}}
    if example is not None:
        content["example"] = example
    return {"description": description, "content": {"application/json": content}}


def _errors(*statuses: int) -> dict[str, Any]:
    return {
        str(status): _json(MESSAGES.get(HTTPStatus(status), HTTPStatus(status).phrase), "ErrorBody")
        for status in sorted({*statuses, 401, 500, 504})
    }
