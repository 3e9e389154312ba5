"""More work than fits, and work that takes too long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.answering import Answering
from service.predictor import Question
from tests.faults.clients import Answer, Client, Running, post, running
from tests.service.asking import refusal

RAW = {"Content_Type": "application/octet-stream"}
IMAGE = bytes(784)


async def all_at_once(port: int, requests: list[bytes]) -> list[Answer]:
    """Each on a connection of its own."""
    return await asyncio.gather(*(Client(port, request, keep=False).ask() for request in requests))


def check(answer: Answer, status: int) -> None:
    """That it is an error in our shape, with a hint when to come again."""
    error = refusal(httpx.Response(answer.status, headers=answer.headers, content=answer.content), status)
    assert error["field"] is None
    assert int(answer.headers["retry-after"]) >= 1


def heavy(seed: int) -> bytes:
    """Half a second's work, of sub-networks that nobody asked for before."""
    return post(f"/predict_raw?samples=1024&seed={seed}", IMAGE * 256, **RAW)


def test_what_does_not_fit_is_refused_and_all_else_is_answered(server: httpx.Client) -> None:
    requests = [post(f"/predict_raw?samples=64&seed={seed}", IMAGE, **RAW) for seed in range(1000, 1500)]
    port = server.base_url.port
    assert port is not None
    answers = asyncio.run(all_at_once(port, requests))
    counts = Counter((answer.status, answer.fault) for answer in answers)
    assert set(counts) == {(200, ""), (429, "")}, counts
    assert counts[200, ""] >= 100
    for answer in answers:
        if answer.status == 429:
            check(answer, 429)
        else:
            assert len(answer.json()["predictions"]) == 1
    (alone,) = asyncio.run(all_at_once(port, [post("/predict_raw", IMAGE, **RAW)]))
    assert alone.status == 200
    assert alone.done - alone.sent < 2


def test_what_takes_too_long_is_given_up_and_the_server_answers_on(impatient: Running) -> None:
    answers = asyncio.run(all_at_once(impatient.port, [heavy(seed) for seed in range(10)]))
    counts = Counter((answer.status, answer.fault) for answer in answers)
    assert set(counts) <= {(200, ""), (429, ""), (504, "")}, counts
    assert counts[504, ""] > 0
    for answer in answers:
        assert answer.done - answer.sent < 5
        if answer.status != 200:
            check(answer, answer.status)
    (alone,) = asyncio.run(all_at_once(impatient.port, [post("/predict_raw", IMAGE, **RAW)]))
    assert alone.status == 200


class Slow:
    """A predictor that takes a while; ``most`` is how many of its answers were made at the same time."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.lock = threading.Lock()

    def answer(self, _: Question) -> dict[str, Any]:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.3)
        with self.lock:
            self.running -= 1
        return {}


def test_work_that_was_given_up_keeps_its_turn_until_it_ends() -> None:
    slow = Slow()
    question = cast(Question, SimpleNamespace(passes=10**6, predictor=slow))

    async def give_up_often() -> None:
        answering = Answering()
        for _ in range(4):
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await answering.content(question)
        await asyncio.sleep(1.5)

    asyncio.run(give_up_often())
    assert slow.most == 1


def waited(client: httpx.Client) -> tuple[float, float]:
    """Seconds waited at all looks into the workers' queues, and how many these were."""
    names = [f"dropout_uncertainty_queue_seconds_{part}" for part in ("sum", "count")]
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name in names
    }
    return values[names[0]], values[names[1]]


@pytest.mark.parametrize("size", ["small", "large"])
def test_the_queue_shows_that_there_is_too_much_to_do(tmp_path: Path, size: str) -> None:
    """Of small requests, which are answered in the event loop and wait before they are read, and of large ones."""
    images, samples, rounds = (64, 64, 20) if size == "small" else (256, 512, 2)
    request = post(f"/predict_raw?samples={samples}", IMAGE * images, **RAW)
    means = []
    with running(tmp_path / "log", workers=1) as server, httpx.Client(timeout=30) as client:
        client.base_url = httpx.URL(f"http://127.0.0.1:{server.port}")
        for busy in (False, True):
            before = waited(client)
            if busy:
                for _ in range(rounds):
                    asyncio.run(all_at_once(server.port, [request] * 8))
            else:
                time.sleep(2)
            after = waited(client)
            means.append((after[0] - before[0]) / (after[1] - before[1]))
    assert means[0] < 0.02
    assert means[1] > max(5 * means[0], 0.01), means
