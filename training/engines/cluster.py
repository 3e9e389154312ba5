"""A Ray cluster. Nothing else in the project knows of Ray."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any
from urllib.parse import urlsplit

from models import __version__
from training.engines.protocol import EngineError, Result, Shared, Task, TaskError, told

__all__ = ["RayEngine"]

RETRIES = 3
"""Of a task whose worker or node is lost."""
TASKS_PER_CPU = 2
"""Handed over at a time: one that runs, and one that is there when it ends."""
SECONDS_TO_CONNECT = 10


@dataclass(frozen=True)
class RayEngine:
    """The cluster at ``address``, as ``ray.init`` takes it: ``auto``, ``host:port``, ``ray://host:port``. ``None`` is
    that of ``$RAY_ADDRESS``, or this machine's; one that is started if there is none, and ended with the work.

    Each task takes one CPU. This project must be installed on every node, in the version that this process has. Raises
    :class:`~training.engines.protocol.EngineError` if Ray is not installed here.
    """

    address: str | None = None

    def __post_init__(self) -> None:
        _ray()

    def map(
        self, function: Callable[[Shared, Task], Result], tasks: Iterable[Task], shared: Shared
    ) -> Iterator[tuple[Task, Result | TaskError]]:
        """See :meth:`training.engines.protocol.Engine.map`. Raises ``EngineError`` if no cluster answers."""
        ray, coming = _ray(), iter(tasks)
        first = list(islice(coming, 1))
        if not first:
            return
        coming = chain(first, coming)
        with self._connected():
            remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_run)
            # Put into the cluster once; each node fetches it once.
            sent = ray.put(shared)
            running: dict[Any, Task] = {}
            while True:
                room = TASKS_PER_CPU * max(int(ray.cluster_resources().get("CPU", 1)), 1)
                running |= {
                    remote.remote(function, sent, task, __version__): task
                    for task in islice(coming, max(room - len(running), 0))
                }
                if not running:
                    return
                for reference in ray.wait(list(running))[0]:
                    yield running.pop(reference), _fetched(reference)

    @contextmanager
    def _connected(self) -> Iterator[None]:
        ray = _ray()
        if ray.is_initialized():
            yield
            return
        address = self.address or os.environ.get("RAY_ADDRESS")
        try:
            _knock(address or "auto")
            with _kept_handlers():
                ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise EngineError(
                f"no Ray cluster can be used at {address or 'this machine'}: {reason}. Start one with `ray start "
                "--head`, and name it with --address; if it says that token authentication is on, set "
                "RAY_AUTH_MODE=token here too"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def _ray() -> Any:
    # It reports on its use to its makers, unless told otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # noqa: PLC0415
    except ImportError as error:
        raise EngineError("Ray is not installed: pip install 'dropout-uncertainty[scale]'") from error
    return ray


@contextmanager
def _kept_handlers() -> Iterator[None]:
    """Ray would end the process itself on SIGTERM, without cleaning up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _knock(address: str) -> None:
    """Raise ``OSError`` or ``ValueError`` if nothing listens at ``address``, for which Ray would wait for minutes."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=SECONDS_TO_CONNECT).close()


def _fetched(reference: Any) -> Any:
    """The result, or why there is none."""
    ray = _ray()
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        # What a task raises is its result; this is of the worker, or of what it could not import.
        return TaskError(f"its worker was lost, or could not run it: {str(error).strip().splitlines()[-1]}")


def _run(function: Callable[[Shared, Task], Result], shared: Shared, task: Task, version: str) -> Result | TaskError:
    """On a worker."""
    if version != __version__:
        return TaskError(f"this node has version {__version__} of the project, and not {version}: install that there")
    return told(function, shared, task)
