"""What the routes take: for each the media types, and how a body becomes pixels and options."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from starlette.datastructures import Headers

from models import pictures
from models.pictures import SIDE
from service import protocol_v2
from service.errors import RequestError, from_validation
from service.wire import (
    MAX_INSTANCES,
    CommonOptions,
    CompareRequest,
    ImageOptions,
    PredictRequest,
    QueryOptions,
)

__all__ = ["Asked", "Entrance", "Incoming", "entrance"]

V2_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


@dataclass(frozen=True)
class Incoming:
    """A request, its body read."""

    path: str
    query: str
    headers: Headers
    body: bytes


@dataclass(frozen=True)
class Asked:
    """``pixels`` ``[N, 28, 28]`` in 0..255, and how to answer. ``envelope`` is what the form of the answer depends on.

    ``version``, if not empty, is that of the bundle which must answer.
    """

    pixels: NDArray[np.float32]
    options: CommonOptions
    envelope: Any = None
    version: str = ""


@dataclass(frozen=True)
class Entrance:
    """``media_types`` is a pattern; bodies of more than ``inline_bytes`` are decoded in a thread, not to hold up other
    requests; so are all ``pictures``, one at a time, for a small file can unpack to a hundred megabytes."""

    media_types: str
    decode: Callable[[Incoming], Asked]
    inline_bytes: int = 64 << 10
    pictures: bool = False


def _decode_predict(incoming: Incoming) -> Asked:
    request: PredictRequest = PredictRequest.model_validate_json(incoming.body)
    return Asked(request.pixels(), request)


def _decode_compare(incoming: Incoming) -> Asked:
    request: CompareRequest = CompareRequest.model_validate_json(incoming.body)
    return Asked(request.pixels(), request)


def _decode_picture(incoming: Incoming) -> Asked:
    options = ImageOptions.model_validate(_query(incoming))
    try:
        picture = pictures.decode(incoming.body, options.invert)
    except pictures.PictureError as error:
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
    return Asked(picture.astype(np.float32).reshape(1, SIDE, SIDE), options)


def _decode_raw(incoming: Incoming) -> Asked:
    options = QueryOptions.model_validate(_query(incoming))
    images, rest = divmod(len(incoming.body), SIDE * SIDE)
    if rest:
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            f"the body should be whole images of {SIDE * SIDE} bytes; it has {len(incoming.body):,} bytes",
        )
    if images > MAX_INSTANCES:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"at most {MAX_INSTANCES} images may be sent, not {images:,}")
    pixels = np.frombuffer(incoming.body, dtype=np.uint8).reshape(images, SIDE, SIDE)
    return Asked(pixels.astype(np.float32), options)


def _decode_v2(incoming: Incoming) -> Asked:
    found = V2_INFER.fullmatch(incoming.path)
    assert found is not None  # noqa: S101
    name, version = found.groups()
    length = protocol_v2.parse_header_length(incoming.headers.get(protocol_v2.HEADER_LENGTH))
    request = protocol_v2.decode_infer(incoming.body, length)
    if request.model_name not in {None, name}:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"model_name: the path says {name!r}; leave it out", "model_name")
    try:
        options = QueryOptions.model_validate(request.parameters, strict=True)
    except ValidationError as error:
        fault = from_validation(error)
        raise RequestError(fault.status, f"parameters.{fault.message}", f"parameters.{fault.field}") from error
    options = options.model_copy(update={"model": name})
    return Asked(request.pixels, options, request, version or "")


def _query(incoming: Incoming) -> dict[str, str]:
    pairs = parse_qsl(incoming.query, keep_blank_values=True)
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise RequestError(HTTPStatus.BAD_REQUEST, "each query parameter may be given once")
    return dict(pairs)


_V2 = Entrance("*", _decode_v2)  # The protocol names no media type, and its clients send none.
_ENTRANCES: Mapping[str, Entrance] = {
    "/predict": Entrance("application/json", _decode_predict),
    "/compare": Entrance("application/json", _decode_compare),
    "/predict_image": Entrance("image/*", _decode_picture, pictures=True, inline_bytes=0),
    "/predict_raw": Entrance("application/octet-stream", _decode_raw, inline_bytes=1 << 20),
}


def entrance(path: str) -> Entrance | None:
    """That of ``path``, if it takes bodies at all."""
    return _ENTRANCES.get(path) or (_V2 if V2_INFER.fullmatch(path) else None)
