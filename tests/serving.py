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
import psutil
import pytest

from tests.command_line import ROOT

START_SECONDS = 60.0
ATTEMPTS = 3


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
    with started(log, bundle, **settings) as (_, client):
        yield client


@contextmanager
def started(
    log: Path, bundle: str = "mlp", /, **settings: object
) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """The same, with the server's process."""
    for attempts_left in reversed(range(ATTEMPTS)):
        port = free_port()
        with (
            start(log, port, bundle, **settings) as process,
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
        ):
            try:
                # BentoML looks for a free port for itself and takes it later: others may have been faster.
                if attempts_left and not is_ready(client, process) and "Address already in use" in log.read_text():
                    continue
                wait_until_ready(client, process, log)
                yield process, client
                return
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


def kill(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers at once, without their knowing."""
    for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        each.kill()


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    if not is_ready(client, process):
        pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")


def is_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> bool:
    """Whether the server becomes so before it ends, or for too long does neither."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if client.get("/readyz").status_code == 200:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    return False
