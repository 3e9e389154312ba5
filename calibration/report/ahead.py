"""A report's predictions made side by side, on an engine, and put where the report looks for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import lru_cache

import torch

from calibration.predictive import PredictiveSummary
from calibration.report.predictions import Predictions, Request, Way
from calibration.strategies import Strategy
from models.bundle import Bundle
from models.packing import PackedBundle
from training.engines import Engine, TaskError

__all__ = ["predict_ahead"]

Packed = tuple[PackedBundle, tuple[PackedBundle, ...]]
"""A bundle, and the members of a deep ensemble."""


def predict_ahead(
    predictions: Predictions,
    requests: Iterable[Request],
    engine: Engine,
    *,
    on_images: Callable[[int, int], None] = lambda _, __: None,
    on_failure: Callable[[str], None] = lambda _: None,
) -> None:
    """Put into the cache of ``predictions`` what ``requests`` ask for and it does not have yet.

    ``on_images`` is told how many images are predicted, and of how many; ``on_failure`` why some can't be, which the
    report will then do itself.
    """
    packed = PackedBundle.of(predictions.bundle), tuple(map(PackedBundle.of, predictions.ensemble))
    waiting: dict[str, Request] = {}
    for request in requests:
        key = predictions.key(request)
        if not predictions.cache.holds(key):
            waiting.setdefault(json.dumps(key, sort_keys=True), request)
    done, total = 0, sum(len(request.pixels) for request in waiting.values())
    for request, found in engine.map(_predict, waiting.values(), packed):
        done += len(request.pixels)
        on_images(done, total)
        if isinstance(found, TaskError):
            on_failure(str(found))
        else:
            predictions.keep(request, found)
        if predictions.cache.folder is None:
            on_failure("the cache can't be written")
            return


def _predict(packed: Packed, request: Request) -> PredictiveSummary:
    """On a worker."""
    torch.set_num_threads(1)
    bundle, _ = _loaded(packed)
    return _built(packed, request.way).summarise(bundle.prepare(request.pixels), request.scaling)


@lru_cache(maxsize=1)
def _loaded(packed: Packed) -> tuple[Bundle, list[Bundle]]:
    bundle, members = packed
    return bundle.load(), [member.load() for member in members]


@lru_cache(maxsize=1)
def _built(packed: Packed, way: Way) -> Strategy:
    return way.build(*_loaded(packed))
