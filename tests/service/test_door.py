"""What the door makes of applications that misbehave; all else about it is tested over HTTP."""

from __future__ import annotations

import logging

import anyio
import httpx
import pytest
from starlette.datastructures import State
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from service.door import Door
from service.settings import Settings


def get(application: ASGIApp) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Door(application, State({"settings": Settings(), "draining": False})))
        async with httpx.AsyncClient(transport=transport, base_url="http://door") as client:
            return await client.get("/model")

    return anyio.run(ask)


async def failing(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("the secret cause")


async def unavailable(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("out to lunch", status_code=503)(scope, receive, send)


def test_an_exception_is_a_500_with_an_id_that_the_log_knows(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = get(failing)
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["code"] == "internal_error"
    assert "secret" not in answer.text
    assert error["request_id"] in caplog.text
    assert "the secret cause" in caplog.text


def test_anothers_error_gets_our_shape() -> None:
    answer = get(unavailable)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "unavailable"
    assert int(answer.headers["content-length"]) == len(answer.content)
