"""What a worker does once, before it says that it is ready; and how it ends."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
from bentoml import server_context
from bentoml._internal.resource import system_resources
from starlette.datastructures import State

from service import metrics, openapi, queue, run_folder
from service.answering import Answering, Observer
from service.catalogue import Catalogue
from service.drift import DriftMonitor
from service.entrances import Inputs
from service.predictor import Question
from service.request_log import RequestLog
from service.settings import Settings

__all__ = ["prepare"]


def prepare(state: State, settings: Settings) -> Answering:
    """Load the bundles of ``settings`` and answer once with each, so that the first request is as fast as the next.

    Sets all that :mod:`service.door` and :mod:`service.pages` find in ``state``, and returns what answers. Must run in
    the main thread, in the server's event loop.
    """
    catalogue = Catalogue(settings)
    drift = state.drift = _drift_monitor(catalogue, settings)
    observers: list[Observer] = [metrics.observe_answers, partial(_watch, drift)]
    if settings.request_log:
        observers.append(RequestLog(pixels=settings.request_log_pixels))
    state.settings, state.catalogue, state.draining = settings, catalogue, False
    state.inputs = Inputs({name: one.bundle.card.input for name, one in catalogue.predictors.items()})
    answering = state.answering = Answering(observers)
    state.docs = openapi.document(catalogue)
    for predictor in catalogue.predictors.values():
        request = openapi.example_request(predictor)
        predictor.answer(predictor.question(request.pixels(), request))
    _drain_before_the_end(state, settings.drain_seconds)
    state.queue = asyncio.get_running_loop().create_task(queue.watch(answering.turn, metrics.observe_queue))
    # What exists now lives as long as the worker: full collections need not walk it, and can be rare.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    return answering


def _drift_monitor(catalogue: Catalogue, settings: Settings) -> DriftMonitor:
    references = {
        (predictor.name, predictor.bundle.version, strategy): (
            scores.total.numpy(),
            scores.epistemic.numpy() if scores.epistemic.any() else None,
        )
        for predictor in catalogue.predictors.values()
        if predictor.bundle.scores is not None
        for strategy, scores in predictor.bundle.scores.strategies.items()
    }
    workers = int(system_resources()["cpu"]) or 1 if settings.workers == "cpu_count" else settings.workers
    # A worker that takes the place of another has the next index.
    worker = (max(1, server_context.worker_index or 1) - 1) % workers + 1
    return DriftMonitor(
        run_folder.subfolder("drift"), references, window=settings.drift_window, worker=worker, workers=workers
    )  # fmt: skip


def _watch(drift: DriftMonitor, answers: Sequence[tuple[Question, Mapping[str, Any]]]) -> None:
    """Tell ``drift`` of answers made as the calibration's were, for others have uncertainties of their own."""
    found: defaultdict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for question, content in answers:
        if question.strategy is not None and (content["decision"] or {}).get("guarantee") == "exact":
            uncertainties = [prediction["uncertainty"] for prediction in content["predictions"]]
            found[question.predictor.name, question.strategy] += uncertainties
    for (model, strategy), parts in found.items():
        total = np.array([part["total"] for part in parts])
        epistemic = np.array([part["epistemic"] for part in parts], dtype=float)
        drift.observe(model, strategy, total, epistemic)


def _drain_before_the_end(state: State, seconds: float) -> None:
    """On SIGTERM the server stops taking connections at once, though a load balancer may send more for a while, and
    clients may be about to use those that they hold. First, therefore, ``/readyz`` says no and every answer closes its
    connection, for as many ``seconds``."""
    end = signal.getsignal(signal.SIGTERM)
    if not callable(end) or not seconds:
        return
    loop = asyncio.get_running_loop()

    def drain(number: int, frame: FrameType | None) -> Any:
        if state.draining:
            return end(number, frame)
        state.draining = True
        return loop.call_soon_threadsafe(loop.call_later, seconds, end, number, None)

    signal.signal(signal.SIGTERM, drain)
