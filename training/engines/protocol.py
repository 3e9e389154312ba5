"""What an engine is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

__all__ = ["Engine", "EngineError", "TaskError", "told"]

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")


class TaskError(Exception):
    """What a task raised, in words: not every exception can be sent from one process to another. Or that it died."""


class EngineError(Exception):
    """An engine can't be had; the message says why, and what to do."""


class Engine(Protocol):
    """Something that does tasks side by side."""

    def map(
        self, function: Callable[[Shared, Task], Result], tasks: Iterable[Task], shared: Shared
    ) -> Iterator[tuple[Task, Result | TaskError]]:
        """``function`` of ``shared`` and each task, or what it raised, in the order in which they end.

        ``function`` must be one that can be imported, and depend on its arguments alone; all three, and what it gives,
        must be such that they can be pickled. ``shared`` is sent to each worker once. Tasks are taken when there is
        room for them, so that there may be more of them than fit into memory. One whose worker dies is tried again;
        workers end with this process, however it ends.
        """


def told(function: Callable[[Shared, Task], Result], shared: Shared, task: Task) -> Result | TaskError:
    """In a worker: what ``function`` gives, or raises."""
    try:
        return function(shared, task)
    except Exception as error:  # Whatever the task raises is its result.
        return TaskError(f"{type(error).__name__}: {error}")
