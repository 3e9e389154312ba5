"""Clients that are slow, that stop in the middle, and that leave."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.clients import HOST, Answer, Client, Running, get, post, wait_until
from tests.faults.conftest import TIMEOUT
from tests.service.asking import IMAGE, predict, with_instances
from training.data import FashionMNISTSplits

BODY = with_instances(IMAGE)
REQUEST = post("/predict", BODY, Content_Type="application/json")
LARGE = post("/predict_raw?samples=256", bytes(256 * 784), Content_Type="application/octet-stream")


@pytest.fixture(autouse=True)
def nothing_leaks(impatient: Running, fashion: FashionMNISTSplits) -> Iterator[None]:
    """The workers' file descriptors are as many as before, soon after each test, and they answer."""
    impatient.client.get("/metrics")
    predict(impatient.client, fashion.test.pixels[:1])
    time.sleep(0.5)  # Until files are open that notes are written to.
    workers, before = impatient.workers(), impatient.open_files()
    yield
    wait_until(lambda: sum(impatient.open_files()) <= sum(before) + 2, 10)
    assert predict(impatient.client, fashion.test.pixels[:1])["predictions"][0]["label"] == "Ankle boot"
    assert impatient.workers() == workers


@contextmanager
def connections(server: Running, count: int) -> Iterator[list[socket.socket]]:
    opened = [socket.create_connection((HOST, server.port), timeout=10) for _ in range(count)]
    try:
        yield opened
    finally:
        for connection in opened:
            connection.close()


async def ask_others(server: Running, seconds: float) -> list[Answer]:
    """The answers to a client that asks over and over, on new connections."""
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, stop.set)
    return await Client(server.port, REQUEST, keep=False).ask_until(stop)


def dribble(opened: list[socket.socket], text: bytes) -> None:
    for place in range(len(text)):
        for connection in opened:
            connection.send(text[place : place + 1])


def until(connection: socket.socket, end: bytes) -> bytes:
    received = b""
    while end not in received and (part := connection.recv(2000)):
        received += part
    return received


def everything(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    received = b""
    try:
        while part := connection.recv(65_536):
            received += part
    except ConnectionResetError:
        pass
    return received


def test_slow_headers_keep_nobody_from_an_answer(impatient: Running) -> None:
    with connections(impatient, 200) as slow:
        dribble(slow, b"GET /model HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        wait_until(lambda: sum(impatient.open_files()) > 200, 10)
        answers = asyncio.run(ask_others(impatient, 1))
        assert len(answers) > 20
        assert {answer.status for answer in answers} == {200}
        assert max(answer.done - answer.sent for answer in answers) < 2
        dribble(slow, b"a\r\n\r\n")
        assert all(connection.recv(12) == b"HTTP/1.1 200" for connection in slow), "slow is not wrong"


def test_slow_bodies_are_given_up_and_keep_nobody_from_an_answer(impatient: Running) -> None:
    head, _, _ = REQUEST.partition(b"{")
    with connections(impatient, 100) as slow:
        start = time.monotonic()
        for connection in slow:
            connection.sendall(head)
        dribble(slow, BODY[:10])
        answers = asyncio.run(ask_others(impatient, 1))
        assert {answer.status for answer in answers} == {200}
        received = [until(connection, b"}}") for connection in slow]
        assert {answer[:12] for answer in received} == {b"HTTP/1.1 504"}
        assert all(b'"code":"timeout"' in answer for answer in received)
        assert TIMEOUT <= time.monotonic() - start < TIMEOUT + 8


@pytest.mark.parametrize("part", [REQUEST[:-100], LARGE[: len(LARGE) // 2], LARGE[:-1]])
def test_clients_that_leave_in_the_middle_of_a_body(impatient: Running, part: bytes) -> None:
    with connections(impatient, 50) as leaving:
        for connection in leaving:
            connection.sendall(part)
    answers = asyncio.run(ask_others(impatient, 0.5))
    assert {answer.status for answer in answers} == {200}


def test_clients_that_leave_before_they_read_the_answer(impatient: Running) -> None:
    with connections(impatient, 30) as leaving:
        for connection in leaving:
            connection.sendall(REQUEST)
        time.sleep(0.02)
    with connections(impatient, 6) as leaving:
        for connection in leaving:
            connection.sendall(LARGE)
    assert {answer.status for answer in asyncio.run(ask_others(impatient, 0.5))} <= {200}


@pytest.mark.parametrize("request_bytes", [REQUEST, get("/model"), LARGE], ids=["small", "without a body", "large"])
def test_half_closed_clients_get_all_of_an_answer_or_none(impatient: Running, request_bytes: bytes) -> None:
    """uvicorn takes the end of what a client sends for the end of the client, if it reads it before it has answered."""
    for _ in range(10):
        with connections(impatient, 1) as (connection,):
            connection.sendall(request_bytes)
            connection.shutdown(socket.SHUT_WR)
            received = everything(connection)
            if received:
                head, _, body = received.partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200")
                assert f"content-length: {len(body)}".encode() in head


def test_a_half_closed_client_that_waits_a_moment_is_answered(impatient: Running) -> None:
    with connections(impatient, 1) as (connection,):
        connection.sendall(REQUEST)
        assert connection.recv(12) == b"HTTP/1.1 200"
        connection.shutdown(socket.SHUT_WR)
        assert everything(connection).endswith(b"}]}")
