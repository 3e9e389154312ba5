"""The OpenAPI document at ``/docs.json``.

BentoML's own leaves out query parameters, mounted routes and the errors' real shape, so it is written here, from the
same models that requests are validated with.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from pydantic.json_schema import models_json_schema

from service.errors import MESSAGES, ErrorBody
from service.wire import SIDE, ImageOptions, ModelResponse, PredictRequest, PredictResponse

__all__ = ["document"]

REFERENCE = "#/components/schemas/{model}"
EXAMPLE_IMAGE = [0] * 300 + [200] * 184 + [0] * (SIDE * SIDE - 484)
EXAMPLE_REQUEST = {"instances": [EXAMPLE_IMAGE], "strategy": "mc_dropout", "samples": 64}


def document(version: str, example_response: dict[str, Any]) -> dict[str, Any]:
    """The whole document; ``example_response`` should be the true answer to :data:`EXAMPLE_REQUEST`."""
    models = (PredictRequest, PredictResponse, ModelResponse, ErrorBody)
    _, schema = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE)
    answer = _json("one prediction per image", "PredictResponse", example_response)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Dropout uncertainty",
            "version": version,
            "description": "Labels for 28x28 images of clothing, with calibrated confidence and an uncertainty that "
            "is decomposed into what the sub-networks are unsure of and what they disagree on.",
        },
        "paths": {
            "/predict": {
                "post": {
                    "operationId": "predict",
                    "summary": "Classify images given as numbers",
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/json": {
                                "schema": {"$ref": REFERENCE.format(model="PredictRequest")},
                                "example": EXAMPLE_REQUEST,
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
                    "description": "PNG, JPEG, WebP or BMP, of any size, in colour or grey.",
                    "parameters": _parameters(),
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


def _parameters() -> list[dict[str, Any]]:
    described = []
    for name, schema in ImageOptions.model_json_schema()["properties"].items():
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
