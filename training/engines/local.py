"""Processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from training.engines.protocol import Result, Shared, Task, TaskError, told

__all__ = ["LocalEngine"]


@dataclass(frozen=True)
class LocalEngine:
    """``workers`` processes at a time. A task whose process dies, or that is lost with another's, is tried again once,
    alone."""

    workers: int

    def map(
        self, function: Callable[[Shared, Task], Result], tasks: Iterable[Task], shared: Shared
    ) -> Iterator[tuple[Task, Result | TaskError]]:
        """See :meth:`training.engines.protocol.Engine.map`."""
        # As bytes: torch would put tensors into shared memory, of which a container may have little.
        content = pickle.dumps(shared)
        coming, next_one = iter(tasks), deque[Task]()
        while _there_is(next_one, coming):
            running: dict[Future[Result | TaskError], Task] = {}
            try:
                with _pool(self.workers, content) as pool:
                    while _there_is(next_one, coming) or running:
                        # No more are handed over than can run: all that are lost with a process ran beside it.
                        while len(running) < self.workers and _there_is(next_one, coming):
                            running[pool.submit(_run, function, next_one[0])] = next_one[0]
                            next_one.popleft()
                        for future in wait(running, return_when=FIRST_COMPLETED).done:
                            if isinstance(error := future.exception(), BrokenProcessPool):
                                raise error
                            yield running.pop(future), future.result()
            except BrokenProcessPool:
                for task in running.values():
                    yield task, _alone(function, task, content)


def _there_is(next_one: deque[Task], coming: Iterator[Task]) -> bool:
    """Whether there is a task to come; it is in ``next_one`` then."""
    if not next_one:
        next_one.extend(islice(coming, 1))
    return bool(next_one)


def _alone(function: Callable[[Shared, Task], Result], task: Task, content: bytes) -> Result | TaskError:
    with _pool(1, content) as pool:
        try:
            return pool.submit(_run, function, task).result()
        except BrokenProcessPool:
            return TaskError("its process was killed, twice: out of memory?")


@contextmanager
def _pool(workers: int, content: bytes) -> Iterator[ProcessPoolExecutor]:
    """Processes that are ended with the block, busy or not."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (content,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()


def _begin(content: bytes) -> None:
    """In a new process: leave interrupts to the parent, don't outlive it, and take what its tasks share."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    _shared.append(pickle.loads(content))  # noqa: S301  (written by the parent)


_shared: list[Any] = []
"""Of a worker: one thing, what its tasks share."""


def _run(function: Callable[[Any, Task], Result], task: Task) -> Result | TaskError:
    return told(function, _shared[0], task)
