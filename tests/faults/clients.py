"""Clients that know exactly what became of each of their requests, and what belongs to a server's processes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.serving import START_SECONDS, free_port, start, stop, wait_until_ready

HOST = "127.0.0.1"
GONE = (ConnectionResetError, BrokenPipeError, asyncio.IncompleteReadError)


@dataclass(frozen=True)
class Running:
    """A server: its supervisor, where it listens, a client of it."""

    process: subprocess.Popen[bytes]
    port: int
    client: httpx.Client

    def workers(self) -> list[psutil.Process]:
        """The processes that answer."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # It just ended.
                if "--worker-id" in child.cmdline():
                    found.append(child)
        return found

    def open_files(self) -> list[int]:
        """How many file descriptors each worker has."""
        return [worker.num_fds() for worker in self.workers()]

    def reaches(self, worker: psutil.Process) -> bool:
        """Whether a new connection happened to be taken by ``worker``, which must have answered on it."""

        async def connect() -> bool:
            client = Client(self.port, get("/readyz"), keep=True)
            answer = await client.ask()
            own = answer.port in clients_of(worker)
            await client.close()
            assert answer.status == 200, answer
            return own

        return asyncio.run(connect())


def clients_of(worker: psutil.Process) -> set[int]:
    """The ports at the other end of the worker's connections."""
    return {connection.raddr.port for connection in worker.net_connections("tcp") if connection.raddr}


@contextmanager
def running(log: Path, **settings: object) -> Iterator[Running]:
    """As :func:`tests.serving.serving`, for tests that end or disturb the server's processes."""
    port = free_port()
    with start(log, port, **settings) as process:
        try:
            with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=30) as client:
                wait_until_ready(client, process, log)
                server = Running(process, port, client)
                for worker in server.workers():  # The first answer came from one of them.
                    wait_until(partial(server.reaches, worker), START_SECONDS)
                yield server
        finally:
            stop(process)


def wait_until(true: Callable[[], object], seconds: float) -> float:
    """How long it took until ``true()``."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < seconds, f"not within {seconds} seconds"
        time.sleep(0.05)
    return time.monotonic() - start


def post(path: str, body: bytes, **headers: str) -> bytes:
    """A whole request."""
    given = {"Host": HOST, "Content-Length": str(len(body)), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def get(path: str) -> bytes:
    """A whole request."""
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


@dataclass(frozen=True)
class Answer:
    """What became of a request: an answer with a ``status``, or a ``fault``: refused, or lost after it was sent.

    ``port`` is the client's. Times are those of :func:`time.monotonic`.
    """

    status: int
    headers: dict[str, str]
    content: bytes
    fault: str = ""
    port: int = 0
    sent: float = 0.0
    done: float = field(default_factory=time.monotonic)

    def json(self) -> Any:
        return json.loads(self.content)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Raises :data:`GONE` for one that is not whole."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")[:-2]
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


class Client:
    """Sends ``request`` again and again; ``keep`` is whether a connection is used for more than one."""

    def __init__(self, port: int, request: bytes, *, keep: bool) -> None:
        self.port = port
        self.request = request
        self.keep = keep
        self.connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> Answer:
        """Send it once, on the connection there is or on a new one."""
        sent = time.monotonic()
        if self.connection is None:
            try:
                self.connection = await asyncio.open_connection(HOST, self.port)
            except OSError:
                return Answer(0, {}, b"", "refused", sent=sent)
        reader, writer = self.connection
        port = writer.get_extra_info("sockname")[1]
        try:
            writer.write(self.request)
            status, headers, content = await read_answer(reader)
        except GONE as error:
            await self.close()
            return Answer(0, {}, b"", f"lost: {error!r}", port, sent)
        if not self.keep or headers.get("connection") == "close":
            await self.close()
        return Answer(status, headers, content, "", port, sent)

    async def close(self) -> None:
        if self.connection is not None:
            self.connection[1].close()
            self.connection = None

    async def ask_until(self, stop: asyncio.Event) -> list[Answer]:
        """All answers until then, or until a connection is refused."""
        answers: list[Answer] = []
        while not stop.is_set() and not (answers and answers[-1].fault == "refused"):
            answers.append(await self.ask())
        await self.close()
        return answers
