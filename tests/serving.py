"""A real server, started as `make serve` starts it, on a free port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.command_line import ROOT

START_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(log: Path, port: int, bundle: str = "mlp", /, **settings: object) -> subprocess.Popen[bytes]:
    """The server's process, answering from ``bundle``, "" for the service's default, on ``port``; what it prints goes
    to ``log``. Where nothing else is asked it answers from the smallest bundle, the fastest.

    ``settings`` become environment variables: ``workers=1`` is ``DROPOUT_WORKERS=1``.
    """
    chosen = {f"DROPOUT_{name.upper()}": str(value) for name, value in {"bundles": bundle, **settings}.items()}
    environment = os.environ | {"BENTOML_DO_NOT_TRACK": "True"} | chosen
    command = [sys.executable, "-m", "bentoml", "serve", "service.app:DropoutUncertainty", "--port", str(port),
               "--host", "127.0.0.1"]  # fmt: skip
    with log.open("w") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


@contextmanager
def serving(log: Path, bundle: str = "mlp", /, **settings: object) -> Iterator[httpx.Client]:
    """A client of a server that answers from ``bundle``; see :func:`start`."""
    port = free_port()
    with start(log, port, bundle, **settings) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                wait_until_ready(client, process, log)
                yield client
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server, if it has not ended. Raises ``TimeoutExpired`` if it had to be killed."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")
