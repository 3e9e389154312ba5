"""Requests to a running server, and what its refusals must look like."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import numpy as np
from PIL import Image
from torch import Tensor

JSON = {"Content-Type": "application/json"}
PNG = {"Content-Type": "image/png"}
IMAGE = [0] * 784


def predict(server: httpx.Client, pixels: Tensor, **options: object) -> dict[str, Any]:
    answer = server.post("/predict", json={"instances": pixels.tolist(), **options})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def png(pixels: Tensor | np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()


def with_instances(*instances: object, **options: object) -> bytes:
    return json.dumps({"instances": instances, **options}).encode()


def refusal(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"code", "message", "field", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    assert len(answer.content) < 2_000
    return error
