"""A load generator light enough to leave the processor to the server: keep-alive connections that send one fixed
request after another, each as soon as the last is answered.

A general HTTP client in Python costs more time than the service itself, and would measure the client.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import cast

import httptools
import uvloop

__all__ = ["Load", "Request", "drive"]


@dataclass(frozen=True)
class Request:
    """A ``POST`` of ``body``."""

    path: str
    content_type: str
    body: bytes

    def encoded(self, port: int) -> bytes:
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {self.content_type}\r\n"
            f"Content-Length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body


@dataclass(frozen=True)
class Load:
    """What came of it: ``milliseconds`` of each request that ended within the time measured, sorted; how many of them
    were answered with another status than 200; and the time measured."""

    milliseconds: list[float]
    failures: int
    seconds: float

    @property
    def throughput(self) -> float:
        """Requests answered with 200, per second."""
        return (len(self.milliseconds) - self.failures) / self.seconds

    def percentile(self, percent: float) -> float:
        """Milliseconds within which as many percent of the requests were answered."""
        return self.milliseconds[min(len(self.milliseconds) - 1, int(len(self.milliseconds) * percent / 100))]


class _Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes, until: float, latencies: list[float], ended: asyncio.Future[int]) -> None:
        self.request, self.until, self.latencies, self.ended = request, until, latencies, ended
        self.failures = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, but not by name.
        self._send()

    def _send(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.sent = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        self.latencies.append(1000 * (now - self.sent))
        self.failures += self.parser.get_status_code() != 200
        if now < self.until:
            self._send()
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(self.failures + (error is not None))


def _itself(client: _Client) -> _Client:
    return client


def drive(port: int, request: Request, *, clients: int, seconds: float) -> Load:
    """Send ``request`` from so many ``clients`` at a time to 127.0.0.1, for as many ``seconds``."""
    encoded = request.encoded(port)
    latencies: list[float] = []

    async def run() -> tuple[int, float]:
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        ends: list[asyncio.Future[int]] = [loop.create_future() for _ in range(clients)]
        for ended in ends:
            client = _Client(encoded, start + seconds, latencies, ended)
            await loop.create_connection(partial(_itself, client), "127.0.0.1", port)
        failures = sum(await asyncio.gather(*ends))
        return failures, time.perf_counter() - start

    failures, took = uvloop.run(run())
    return Load(sorted(latencies), failures, took)
