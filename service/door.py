"""Where requests come in and answers go out: decoding, limits of size, work and time, one shape for every error.

A piece of ASGI middleware right around the routes. It decodes and validates a request before BentoML sees it, so that
a bad one costs neither a worker thread nor a traceback, and rewrites error responses that come from elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http import HTTPStatus
from urllib.parse import parse_qsl

import anyio
import anyio.to_thread
from pydantic import ValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models import pictures
from service import metrics
from service.errors import ErrorResponse, RequestError, from_status, from_validation
from service.wire import DECODED, Decoded, ImageOptions, ImageRequest, PredictRequest

__all__ = ["MAX_BODY_BYTES", "REQUEST_ID", "Door"]

MAX_BODY_BYTES = 4 << 20
INLINE_BYTES = 64 << 10
"""JSON up to this size is decoded at once; more of it, and pictures, in a thread, not to hold up other requests."""
MAX_PENDING_PASSES = 2 << 20
"""Network passes that a worker may have before it: eight of the largest requests, some seconds' work."""
LEAST_PASSES = 1024
"""What the smallest request costs besides its passes, counted as passes."""
TIMEOUT_SECONDS = 10.0
REQUEST_ID_HEADER = "x-request-id"
REQUEST_ID = "dropout_uncertainty.request_id"
"""Where in the ASGI scope the request's id is."""
REQUEST_ID_PATTERN = re.compile(r"[\w.:-]{1,128}", re.ASCII)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entrance:
    """A route whose requests are decoded here: the media types it takes, as a pattern, and how a body and a query
    become a request."""

    media_types: str
    decode: Callable[[bytes, str], Decoded]
    pictures: bool = False


def _decode_json(body: bytes, _: str) -> Decoded:
    request: PredictRequest = PredictRequest.model_validate_json(body)
    return request


def _decode_image(body: bytes, query: str) -> Decoded:
    pairs = parse_qsl(query, keep_blank_values=True)
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise RequestError(HTTPStatus.BAD_REQUEST, "each query parameter may be given once")
    options = ImageOptions.model_validate(dict(pairs))
    try:
        return ImageRequest(image=pictures.decode(body, options.invert), options=options)
    except pictures.PictureError as error:
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error


ENTRANCES: Mapping[str, Entrance] = {
    "/predict": Entrance("application/json", _decode_json),
    "/predict_image": Entrance("image/*", _decode_image, pictures=True),
}


class Door:
    """ASGI middleware; see the module. There is one in each worker."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.pending_passes = 0
        # One picture at a time: a small file can unpack to a hundred megabytes.
        self.pictures = anyio.CapacityLimiter(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        arrived = time.perf_counter()
        request_id = scope[REQUEST_ID] = _request_id(scope)
        way_out = _WayOut(send, request_id)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._let_in(scope, receive, way_out)
        except RequestError as error:
            await ErrorResponse(error, request_id)(scope, receive, way_out)
        except Exception as error:
            # Let through, it would leave the client waiting until BentoML's timeout.
            if way_out.status:
                raise
            status = HTTPStatus.GATEWAY_TIMEOUT
            if not isinstance(error, TimeoutError):
                status = HTTPStatus.INTERNAL_SERVER_ERROR
                logger.exception("request %s failed", request_id)
            await ErrorResponse(from_status(status, retry_after=1), request_id)(scope, receive, way_out)
        finally:
            metrics.observe(scope["path"], way_out.status, time.perf_counter() - arrived)

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        entrance = ENTRANCES.get(scope["path"])
        if not entrance or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        body = await _admit(entrance, scope, receive)
        if body is None:
            return
        decoded = scope[DECODED] = await self._decode(entrance, body, scope["query_string"].decode("latin-1"))
        passes = max(LEAST_PASSES, decoded.passes)
        if self.pending_passes and self.pending_passes + passes > MAX_PENDING_PASSES:
            raise from_status(HTTPStatus.TOO_MANY_REQUESTS, retry_after=1)
        self.pending_passes += passes
        try:
            await self.app(scope, receive, send)
        finally:
            self.pending_passes -= passes

    async def _decode(self, entrance: Entrance, body: bytes, query: str) -> Decoded:
        try:
            if entrance.pictures:
                return await anyio.to_thread.run_sync(entrance.decode, body, query, limiter=self.pictures)
            if len(body) > INLINE_BYTES:
                return await anyio.to_thread.run_sync(entrance.decode, body, query)
            return entrance.decode(body, query)
        except ValidationError as error:
            raise from_validation(error) from error


class _WayOut:
    """``send``, with the request's id in the headers and error responses in the project's shape."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.send = send
        self.request_id = request_id
        self.status = 0
        self.held: Message | None = None
        self.held_body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers[REQUEST_ID_HEADER] = self.request_id
            if message["status"] >= HTTPStatus.BAD_REQUEST:
                self.held = message
                return
        elif self.held is not None:
            self.held_body += message.get("body", b"")
            if not message.get("more_body"):
                await self._release(self.held)
            return
        await self.send(message)

    async def _release(self, start: Message) -> None:
        body = self.held_body
        if not _is_ours(body):
            error = from_status(HTTPStatus(start["status"]))
            body = bytes(ErrorResponse(error, self.request_id).body)
            headers = MutableHeaders(raw=start["headers"])
            headers["content-type"] = "application/json"
            headers["content-length"] = str(len(body))
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body})


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
    return given if REQUEST_ID_PATTERN.fullmatch(given) else uuid.uuid4().hex


async def _admit(entrance: Entrance, scope: Scope, receive: Receive) -> bytes | None:
    """The body, if its type and size are right; ``None`` if the client has gone."""
    headers = Headers(scope=scope)
    media_type = headers.get("content-type", "").split(";")[0].strip().lower()
    if not fnmatchcase(media_type, entrance.media_types):
        raise RequestError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"this path takes Content-Type: {entrance.media_types}, not {media_type or 'a body without one'}",
            "Content-Type",
        )
    too_large = RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {MAX_BODY_BYTES:,} bytes")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise too_large
        if not message.get("more_body"):
            break
    if not body:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the body is empty; send {entrance.media_types}")
    return bytes(body)


def _is_ours(body: bytes) -> bool:
    try:
        content = json.loads(body)
    except ValueError:
        return False
    return isinstance(content, dict) and isinstance(content.get("error"), dict) and "request_id" in content["error"]
