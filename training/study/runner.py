"""Runs a plan: side by side in processes, each finished run a file, so that nothing is trained twice."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import ValidationError

from models import storage
from training import data
from training.study.measure import key_of, train_and_measure
from training.study.schema import Configuration, Failure, Plan, RunResult

__all__ = ["RUNS", "Run", "TaskError", "finished", "run_all", "runs_of", "side_by_side"]

RUNS = "runs"
"""The folder, in a study's own, of the finished runs."""

Task = TypeVar("Task")
Result = TypeVar("Result")


class TaskError(Exception):
    """What a task raised, in words: not every exception can be sent from one process to another. Or that it died."""


@dataclass(frozen=True)
class Run:
    configuration: Configuration
    seed: int

    @property
    def key(self) -> str:
        return key_of(self.configuration, self.seed)


def runs_of(plan: Plan) -> list[Run]:
    """Every configuration from the first seed, then from the next: an interrupted study has something of all."""
    return [Run(configuration, seed) for seed in range(plan.seeds) for configuration in plan.configurations]


def finished(run: Run, folder: Path) -> RunResult | None:
    """The result of ``run`` in a study's ``folder``, under the name that the run has now; ``None`` if there is none.

    Raises ``ValueError``, with the file, if it can't be read.
    """
    path = _file(run, folder)
    if not path.exists():
        return None
    try:
        found = RunResult.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(f"{path} is damaged or of another version") from error
    return found.model_copy(update={"name": run.configuration.name})


def run_all(
    runs: Sequence[Run], folder: Path, *, workers: int, data_folder: Path | None = None
) -> Iterator[RunResult | Failure]:
    """Train ``runs``, and yield each when it has ended; a result is in its file by then.

    What a run raises, and the death of its process, become a :class:`~training.study.schema.Failure`.
    """
    unlike = {run.key: run for run in runs}
    for run, found in side_by_side(_Work(data_folder), list(unlike.values()), workers):
        if isinstance(found, RunResult):
            storage.write_text(_file(run, folder), found.model_dump_json(indent=1) + "\n")
        for same in runs:
            if same.key == run.key:
                name = same.configuration.name
                if isinstance(found, RunResult):
                    yield found.model_copy(update={"name": name})
                else:
                    yield Failure(name=name, seed=run.seed, error=str(found))


def side_by_side(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[Task, Result | TaskError]]:
    """``function`` of each task, or what it raised, in the order in which they end, in ``workers`` processes at a time.

    A task whose process dies, or that is lost with another's, is tried again, alone, once. Processes end with this one,
    however it ends.
    """
    waiting = deque(tasks)
    while waiting:
        running: dict[Future[Result], Task] = {}
        try:
            with _pool(workers) as pool:
                yield from _until_done(function, waiting, running, pool, workers)
        except BrokenProcessPool:
            for task in running.values():
                yield task, _alone(function, task)


def _until_done(
    function: Callable[[Task], Result],
    waiting: deque[Task],
    running: dict[Future[Result], Task],
    pool: ProcessPoolExecutor,
    workers: int,
) -> Iterator[tuple[Task, Result | TaskError]]:
    """Raises ``BrokenProcessPool`` when a process dies; ``running`` is then what was under way."""
    while waiting or running:
        # No more are handed over than can run, so that all that are lost with a process were running beside it.
        while waiting and len(running) < workers:
            running[pool.submit(_told, function, waiting[0])] = waiting[0]
            waiting.popleft()
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise error
            task = running.pop(future)
            yield task, error if isinstance(error, TaskError) else future.result()


def _alone(function: Callable[[Task], Result], task: Task) -> Result | TaskError:
    with _pool(1) as pool:
        try:
            return pool.submit(_told, function, task).result()
        except BrokenProcessPool:
            return TaskError("its process was killed, twice: out of memory?")
        except TaskError as error:
            return error


def _told(function: Callable[[Task], Result], task: Task) -> Result:
    """In the task's process."""
    try:
        return function(task)
    except Exception as error:  # Whatever the task raises is its result.
        raise TaskError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that are ended with the block, busy or not."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()


@dataclass(frozen=True)
class _Work:
    """What a process does with a run; one that is given several loads the data once."""

    data_folder: Path | None

    def __call__(self, run: Run) -> RunResult:
        torch.set_num_threads(1)
        return train_and_measure(run.configuration, run.seed, _splits(self.data_folder))


@lru_cache(maxsize=1)
def _splits(data_folder: Path | None) -> data.FashionMNISTSplits:
    return data.load(data_folder)


def _begin() -> None:
    """Leave interrupts to the parent, and don't outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _file(run: Run, folder: Path) -> Path:
    return folder / RUNS / f"{run.key}.json"
