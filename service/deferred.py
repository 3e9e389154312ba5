"""What is noted of requests, handled a little later and together: that costs a fraction of doing so one by one."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["Deferred", "flush"]

SECONDS = 0.25
"""How long a note waits."""

ItemT = TypeVar("ItemT")


class Deferred(Generic[ItemT]):
    """Hands what was added to ``handle``, a quarter of a second after the first; in the event loop's own thread."""

    def __init__(self, handle: Callable[[list[ItemT]], None]) -> None:
        self._handle = handle
        self._items: list[ItemT] = []
        _all.append(self)

    def add(self, item: ItemT) -> None:
        """Note ``item``. Must be called in a running event loop."""
        if not self._items:
            asyncio.get_running_loop().call_later(SECONDS, self.flush)
        self._items.append(item)

    def flush(self) -> None:
        """Hand on what there is now."""
        if self._items:
            items, self._items = self._items, []
            self._handle(items)


_all: list[Deferred[Any]] = []


def flush() -> None:
    """Hand on all notes of this process, so that what they are read from is up to date."""
    for deferred in _all:
        deferred.flush()


atexit.register(flush)
