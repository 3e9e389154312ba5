"""Where requests come in and answers go out: keys, decoding, limits of size, work and time, one shape for every error.

A piece of ASGI middleware right around the routes. It decodes and validates a request before BentoML sees it, so that
a bad one costs neither a worker thread nor a traceback, and rewrites error responses that come from elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
import uuid
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.datastructures import Headers, MutableHeaders, State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import access, metrics
from service.entrances import Asked, Entrance, Incoming, entrance
from service.errors import ErrorResponse, RequestError, from_status, from_validation
from service.wire import QUESTION

if TYPE_CHECKING:
    from service.predictor import Question

__all__ = ["ENVELOPE", "MAX_BODY_BYTES", "REQUEST_ID", "Door"]

MAX_BODY_BYTES = 4 << 20
MAX_PENDING_PASSES = 2 << 20
"""Network passes that a worker may have before it: eight of the largest requests, some seconds' work."""
LEAST_PASSES = 1024
"""What the smallest request costs besides its passes, counted as passes."""
REQUEST_ID_HEADER = "x-request-id"
REQUEST_ID = "dropout_uncertainty.request_id"
"""Where in the ASGI scope the request's id is."""
ENVELOPE = "dropout_uncertainty.envelope"
"""Where in the ASGI scope that is which the form of the answer depends on."""
REQUEST_ID_PATTERN = re.compile(r"[\w.:-]{1,128}", re.ASCII)
UNLOGGED = frozenset({"/livez", "/readyz", "/healthz", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""What is asked every few seconds, and logged only when it fails."""

LOGGED_PATH = 200

logger = logging.getLogger(__name__)


class Door:
    """ASGI middleware; see the module. There is one in each worker.

    Of ``state`` it reads the ``settings``, the ``catalogue`` and whether the worker is ``draining``.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app = app
        self.state = state
        self.pending_passes = 0
        self.pictures = anyio.CapacityLimiter(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        arrived = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = scope[REQUEST_ID] = _request_id(headers)
        way_out = _WayOut(send, request_id, self.state)
        try:
            async with asyncio.timeout(self.state.settings.timeout_seconds):
                access.check_key(scope["path"], headers, self.state.settings.api_keys)
                await self._let_in(scope, headers, receive, way_out)
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
            fault = from_status(status, retry_after=1)
            # A body that did not come in time may never do so, and would hold the connection.
            fault.headers["Connection"] = "close"
            await ErrorResponse(fault, request_id)(scope, receive, way_out)
        finally:
            self._note(scope, way_out, time.perf_counter() - arrived)

    async def _let_in(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        found = entrance(scope["path"]) if scope["method"] == "POST" else None
        if not found:
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        body = await _admit(found, headers, receive)
        if body is None:
            return
        read = time.perf_counter()
        incoming = Incoming(scope["path"], scope["query_string"].decode("latin-1"), headers, body)
        asked = await self._decode(found, incoming)
        question = self._question(asked, scope[REQUEST_ID])
        metrics.observe_stage("read", read - start)
        metrics.observe_stage("decode", time.perf_counter() - read)
        passes = max(LEAST_PASSES, question.passes)
        if self.pending_passes and self.pending_passes + passes > MAX_PENDING_PASSES:
            raise from_status(HTTPStatus.TOO_MANY_REQUESTS, retry_after=1)
        scope[QUESTION], scope[ENVELOPE] = question, asked.envelope
        self.pending_passes += passes
        try:
            await self.app(scope, receive, send)
        finally:
            self.pending_passes -= passes

    async def _decode(self, found: Entrance, incoming: Incoming) -> Asked:
        try:
            if len(incoming.body) <= found.inline_bytes:
                return found.decode(incoming, self.state.inputs)
            limiter = self.pictures if found.pictures else None
            return await anyio.to_thread.run_sync(found.decode, incoming, self.state.inputs, limiter=limiter)
        except ValidationError as error:
            raise from_validation(error) from error

    def _question(self, asked: Asked, request_id: str) -> Question:
        catalogue, name = self.state.catalogue, asked.options.model
        predictor = catalogue.predictor(name) if asked.envelope is None else catalogue.named(name, asked.version)
        question: Question = predictor.question(asked.pixels, asked.options, request_id)
        return question

    def _note(self, scope: Scope, way_out: _WayOut, seconds: float) -> None:
        path = scope["path"]
        metrics.observe_request(path, way_out.status, way_out.code, seconds)
        if not self.state.settings.access_log or (path in UNLOGGED and way_out.status == HTTPStatus.OK):
            return
        question: Question | None = scope.get(QUESTION)
        client = scope.get("client")
        line = {
            "time": round(time.time(), 3), "request_id": way_out.request_id, "client": client[0] if client else None,
            "method": scope["method"], "path": path[:LOGGED_PATH], "status": way_out.status, "error": way_out.code,
            "milliseconds": round(1000 * seconds, 2),
        }  # fmt: skip
        if question is not None:
            line |= {
                "model": question.predictor.name, "strategy": question.strategy, "images": len(question.pixels),
                "samples": question.samples,
            }  # fmt: skip
        sys.stdout.write(to_json(line).decode() + "\n")
        sys.stdout.flush()


class _WayOut:
    """``send``, with the request's id in the headers and error responses in the project's shape."""

    def __init__(self, send: Send, request_id: str, state: State) -> None:
        self.send = send
        self.request_id = request_id
        self.state = state
        self.status = 0
        self.code: str | None = None
        self.held: Message | None = None
        self.held_body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            headers[REQUEST_ID_HEADER] = self.request_id
            if self.state.draining:
                # The client's next request must go to another worker, or to another server.
                headers["connection"] = "close"
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
        self.code = _code(body)
        if self.code is None:
            error = from_status(HTTPStatus(start["status"]))
            self.code = error.code
            body = bytes(ErrorResponse(error, self.request_id).body)
            headers = MutableHeaders(raw=start["headers"])
            headers["content-type"] = "application/json"
            headers["content-length"] = str(len(body))
        await self.send(start)
        await self.send({"type": "http.response.body", "body": body})


def _request_id(headers: Headers) -> str:
    given = headers.get(REQUEST_ID_HEADER, "")
    return given if REQUEST_ID_PATTERN.fullmatch(given) else uuid.uuid4().hex


async def _admit(found: Entrance, headers: Headers, receive: Receive) -> bytes | None:
    """The body, if its type and size are right; ``None`` if the client has gone."""
    media_type = headers.get("content-type", "").split(";")[0].strip().lower()
    if not fnmatchcase(media_type, found.media_types):
        raise RequestError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"this path takes Content-Type: {found.media_types}, not {media_type or 'a body without one'}",
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
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the body is empty; send {found.media_types}")
    return bytes(body)


def _code(body: bytes) -> str | None:
    """The error's code, if it has our shape."""
    try:
        content = json.loads(body)
    except ValueError:
        return None
    error = content.get("error") if isinstance(content, dict) else None
    return str(error["code"]) if isinstance(error, dict) and "request_id" in error else None
