"""From a question to the bytes of its answer, and what is noted of it on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from service import metrics
from service.deferred import Deferred
from service.predictor import Question

__all__ = ["Answering", "Observer"]

INLINE_PASSES = 8192
"""Up to so many passes through sub-networks, some milliseconds, a thread would cost more than it spares others."""

Observer = Callable[[Sequence[tuple[Question, dict[str, Any]]]], None]
"""What is told of questions and their answers."""


class Answering:
    """Answers questions one at a time: there is one core for each worker. ``observers`` are told of all answers."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = observers
        self._noted = Deferred(self._tell)
        self.turn = ThreadPoolExecutor(max_workers=1)
        """Does what is too large to be done in the event loop."""

    async def content(self, question: Question) -> dict[str, Any]:
        """The answer as :mod:`service.responses` describes it."""
        arrived = time.perf_counter()
        if question.passes <= INLINE_PASSES:
            content, started = _timed(question)
        else:
            # One that is given up before its turn is dropped; one that has begun is finished before the next begins.
            content, started = await asyncio.get_running_loop().run_in_executor(self.turn, _timed, question)
        metrics.observe_stage("wait", started - arrived)
        metrics.observe_stage("predict", time.perf_counter() - started)
        self._noted.add((question, content))
        return content

    def _tell(self, answers: list[tuple[Question, dict[str, Any]]]) -> None:
        for observer in self._observers:
            observer(answers)

    async def respond(self, question: Question) -> Response:
        """The answer as JSON."""
        content = await self.content(question)
        start = time.perf_counter()
        response = Response(to_json(content), media_type="application/json")
        metrics.observe_stage("encode", time.perf_counter() - start)
        return response


def _timed(question: Question) -> tuple[dict[str, Any], float]:
    start = time.perf_counter()
    return question.predictor.answer(question), start
