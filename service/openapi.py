"""The OpenAPI document at ``/docs.json``.

BentoML's own leaves out query parameters, mounted routes and the errors' real shape, so it is written here, from the
same models that requests are validated with.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic.json_schema import models_json_schema

from models.pictures import MAX_PIXELS, SIDE
from service.door import MAX_BODY_BYTES
from service.errors import MESSAGES, ErrorBody
from service.wire import ImageOptions, ModelResponse, PredictRequest, PredictResponse

__all__ = ["document"]

REFERENCE = "#/components/schemas/{model}"
EXAMPLE_IMAGE = [0] * 300 + [200] * 184 + [0] * (SIDE * SIDE - 484)


def example_request(served: ModelResponse) -> PredictRequest:
    """One image, for the served model's default strategy."""
    return PredictRequest(instances=[EXAMPLE_IMAGE], strategy=served.strategies[0], samples=served.default_samples)


def document(served: ModelResponse, request: PredictRequest, response: PredictResponse) -> dict[str, Any]:
    """The whole document for the served model; ``response`` is its answer to the example ``request``."""
    models = (PredictRequest, PredictResponse, ModelResponse, ErrorBody)
    _, schema = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE)
    _set_defaults(schema["$defs"]["PredictRequest"], served)
    answer = _json("one prediction per image", "PredictResponse", response.model_dump())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Dropout uncertainty",
            "version": served.version,
            "description": "Labels for 28x28 images of clothing, with calibrated confidence and an uncertainty that "
            "is decomposed into what the sub-networks are unsure of and what they disagree on.",
        },
        "paths": {
            "/predict": {
                "post": {
                    "operationId": "predict",
                    "summary": "Classify images given as numbers",
                    "description": f"Bodies of at most {MAX_BODY_BYTES:,} bytes.",
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {
                                "schema": {"$ref": REFERENCE.format(model="PredictRequest")},
                                "example": request.model_dump(),
                            }
                        },
                    },
                    "responses": {"200": answer, **_errors(400, 413, 415, 429, 500, 504)},
                }
            },
            "/predict_image": {
                "post": {
                    "operationId": "predict_image",
                    "summary": "Classify one picture",
                    "description": "PNG, JPEG, WebP or BMP, in colour or grey, "
                    f"of at most {MAX_BODY_BYTES:,} bytes and {MAX_PIXELS:,} pixels.",
                    "parameters": _parameters(served),
                    "requestBody": {
                        "required": True,
                        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
                    },
                    "responses": {"200": answer, **_errors(400, 413, 415, 422, 429, 500, 504)},
                }
            },
            "/model": {
                "get": {
                    "operationId": "model",
                    "summary": "The bundle that answers",
                    "responses": {"200": _json("its card and calibration", "ModelResponse"), **_errors(500)},
                }
            },
            "/livez": _infrastructure("livez", "200 while the process runs"),
            "/readyz": _infrastructure("readyz", "200 once the model is loaded and warm"),
            "/metrics": _infrastructure("metrics", "Prometheus metrics"),
        },
        "components": {"schemas": schema["$defs"]},
    }


def _set_defaults(schema: dict[str, Any], served: ModelResponse) -> None:
    """What a request leaves out is the served model's to choose."""
    schema["properties"]["strategy"]["default"] = served.strategies[0]
    schema["properties"]["samples"]["default"] = served.default_samples


def _parameters(served: ModelResponse) -> list[dict[str, Any]]:
    described = []
    options = ImageOptions.model_json_schema()
    _set_defaults(options, served)
    for name, schema in options["properties"].items():
        description = schema.pop("description")
        described.append({"name": name, "in": "query", "description": description, "schema": schema})
    return described


def _json(description: str, model: str, example: dict[str, Any] | None = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": {"$ref": REFERENCE.format(model=model)}}
    if example is not None:
        content["example"] = example
    return {"description": description, "content": {"application/json": content}}


def _errors(*statuses: int) -> dict[str, Any]:
    return {
        str(status): _json(MESSAGES.get(HTTPStatus(status), HTTPStatus(status).phrase), "ErrorBody")
        for status in statuses
    }


def _infrastructure(name: str, description: str) -> dict[str, Any]:
    return {
        "get": {
            "operationId": name,
            "summary": description,
            "responses": {
                "200": {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}
            },
        }
    }
