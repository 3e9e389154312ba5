"""How long what arrives has to wait for a worker, whether it is busy with one thing or behind with many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

__all__ = ["SECONDS_APART", "watch"]

SECONDS_APART = 0.1


async def watch(turn: Executor, observe: Callable[[float], None]) -> None:
    """Tell ``observe``, for a moment every tenth of a second, the seconds from it until the event loop got to what was
    due then and ``turn``, whose thread does the large work, was free.

    Requests can't be asked that: while a worker computes, those that wait are in the system's buffers, and have not
    begun by any clock of its own. Every moment counts, those too that passed while the worker was busy: their mean is
    what a request that arrives at random waits until the worker first turns to it.
    """
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due += SECONDS_APART
        await asyncio.sleep(due - loop.time())
        await loop.run_in_executor(turn, lambda: None)
        observe(max(0.0, loop.time() - due))
