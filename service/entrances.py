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
from pydantic_core import from_json
from starlette.datastructures import Headers

from models import pictures
from models.records import InputRecord
from service import protocol_v2
from service.errors import RequestError, from_validation
from service.wire import (
    MAX_INSTANCES,
    CommonOptions,
    CompareRequest,
    ImageOptions,
    PredictRequest,
    QueryOptions,
    request_model,
)

__all__ = ["Asked", "Entrance", "Incoming", "Inputs", "entrance"]

V2_INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


@dataclass(frozen=True)
class Incoming:
    """A request, its body read."""

    path: str
    query: str
    headers: Headers
    body: bytes


@dataclass(frozen=True)
class Inputs:
    """What the images of each loaded bundle are like, by its name; the default bundle's come first."""

    by_name: Mapping[str, InputRecord]

    def of(self, name: str) -> InputRecord:
        """Those of the bundle ``name``; of the default where there is none, which is told of later."""
        return self.by_name.get(name) or next(iter(self.by_name.values()))

    def of_body(self, body: bytes) -> InputRecord:
        """Those of the bundle that a JSON body names."""
        if len({(inputs.shape, inputs.maximum) for inputs in self.by_name.values()}) == 1:
            return self.of("")
        try:
            content = from_json(body)
        except ValueError:
            return self.of("")  # What is wrong with it is told by its model.
        name = content.get("model", "") if isinstance(content, dict) else ""
        return self.of(name if isinstance(name, str) else "")


@dataclass(frozen=True)
class Asked:
    """``pixels`` ``[N, *shape]``, and how to answer. ``envelope`` is what the form of the answer depends on.

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
    decode: Callable[[Incoming, Inputs], Asked]
    inline_bytes: int = 64 << 10
    pictures: bool = False


def _decode_predict(incoming: Incoming, inputs: Inputs) -> Asked:
    request = request_model(PredictRequest, inputs.of_body(incoming.body)).model_validate_json(incoming.body)
    return Asked(request.pixels(), request)


def _decode_compare(incoming: Incoming, inputs: Inputs) -> Asked:
    request = request_model(CompareRequest, inputs.of_body(incoming.body)).model_validate_json(incoming.body)
    return Asked(request.pixels(), request)


def _decode_picture(incoming: Incoming, inputs: Inputs) -> Asked:
    options = ImageOptions.model_validate(_query(incoming))
    wanted = inputs.of(options.model)
    try:
        invert = "false" if options.invert == "auto" and not wanted.light_on_dark else options.invert
        picture = pictures.decode(incoming.body, invert, wanted.shape)
    except pictures.PictureError as error:
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
    pixels = picture[np.newaxis].astype(np.float32)
    return Asked(pixels if wanted.maximum == 255 else pixels * np.float32(wanted.maximum / 255), options)


def _decode_raw(incoming: Incoming, inputs: Inputs) -> Asked:
    options = QueryOptions.model_validate(_query(incoming))
    wanted = inputs.of(options.model)
    images, rest = divmod(len(incoming.body), wanted.pixels)
    if rest:
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            f"the body should be whole images of {wanted.pixels} bytes; it has {len(incoming.body):,} bytes",
        )
    if images > MAX_INSTANCES:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"at most {MAX_INSTANCES} images may be sent, not {images:,}")
    pixels = np.frombuffer(incoming.body, dtype=np.uint8).reshape(images, *wanted.shape)
    if (pixels > wanted.maximum).any():
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, f"each byte should be in 0..{wanted.maximum:g}")
    return Asked(pixels.astype(np.float32), options)


def _decode_v2(incoming: Incoming, inputs: Inputs) -> Asked:
    found = V2_INFER.fullmatch(incoming.path)
    assert found is not None  # noqa: S101
    name, version = found.groups()
    length = protocol_v2.parse_header_length(incoming.headers.get(protocol_v2.HEADER_LENGTH))
    request = protocol_v2.decode_infer(incoming.body, length, inputs.of(name))
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
