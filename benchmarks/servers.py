"""The servers that are measured, each in processes of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

__all__ = ["SERVERS", "Running", "running"]

ROOT = Path(__file__).parent.parent
START_SECONDS = 60.0
PYTHON = [sys.executable, "-m"]
UVICORN = [*PYTHON, "uvicorn", "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
BENTOML = [*PYTHON, "bentoml", "serve", "--host", "127.0.0.1"]


@dataclass(frozen=True)
class Server:
    """``command`` without the port; ``workers`` are told by an option or, if it names one, by a variable."""

    command: Sequence[str]
    workers: str
    forms: frozenset[str]


@dataclass(frozen=True)
class Running:
    """A server that answers on ``port``; ``forms`` are those of requests that it takes."""

    port: int
    pid: int
    forms: frozenset[str]


SERVERS: Mapping[str, Server] = {
    "service": Server([*BENTOML, "service.app:DropoutUncertainty"], "DROPOUT_WORKERS", frozenset({"json", "raw"})),
    "bare": Server([*UVICORN, "benchmarks.bare_server:app"], "--workers", frozenset({"json", "raw"})),
    "plain": Server([*BENTOML, "benchmarks.plain_service:PlainService"], "PLAIN_WORKERS", frozenset({"json"})),
}  # fmt: skip


@contextmanager
def running(names: Sequence[str] | Mapping[str, Server], workers: int) -> Iterator[dict[str, Running]]:
    """Start the servers of these ``names`` with as many ``workers`` each; they end with the block."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(_running(SERVERS[name], workers)) for name in names}


@contextmanager
def _running(server: Server, workers: int) -> Iterator[Running]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    as_option = server.workers.startswith("--")
    command = [*server.command, "--port", str(port), *([server.workers, str(workers)] if as_option else [])]
    # A home of its own: BentoML empties the metrics of another server that has the same.
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile() as log:
        environment = os.environ | {"BENTOML_HOME": home, "BENTOML_DO_NOT_TRACK": "True", "DROPOUT_BUNDLES": "mlp"}
        if not as_option:
            environment[server.workers] = str(workers)
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log) as process:
            try:
                _wait(process, port)
                yield Running(port, process.pid, server.forms)
            finally:
                process.send_signal(signal.SIGTERM)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                time.sleep(3)  # For the other workers.
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"{' '.join(map(str, process.args))} did not start")  # type: ignore[arg-type]
