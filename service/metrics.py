"""Prometheus metrics with bounded labels, summed over workers.

BentoML's own are off: they keep a series for every path that anybody ever asks for.
"""

from __future__ import annotations

import os
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from service import run_folder
from service.deferred import Deferred

__all__ = ["Stage", "exposition", "observe_answers", "observe_queue", "observe_request", "observe_stage"]

PREFIX = "dropout_uncertainty_"
ROUTES = frozenset({
    "/", "/compare", "/docs.json", "/drift", "/healthz", "/livez", "/metrics", "/model", "/predict", "/predict_image",
    "/predict_raw", "/readyz", "/report", "/ui",
})  # fmt: skip
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
NATS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.3)

Stage = Literal["read", "decode", "wait", "predict", "encode"]

run_folder.adopt()


class Histograms(Histogram):
    """A histogram that takes many values at once, in the time of a few."""

    def observe_all(self, values: Sequence[float]) -> None:
        """Count each of ``values``."""
        places = np.bincount(np.searchsorted(self._upper_bounds, values), minlength=len(self._upper_bounds))
        for place in places.nonzero()[0]:
            self._buckets[place].inc(int(places[place]))
        self._sum.inc(float(np.sum(values)))


_requests = Counter(PREFIX + "requests", "Requests answered", ["route", "status"])
_seconds = Histograms(
    PREFIX + "request_seconds", "Time from a request's arrival to its answer", ["route"], buckets=SECONDS
)
_stages = Histograms(
    PREFIX + "stage_seconds", "Time that a request spends being read, decoded, waiting for its turn, predicted, "
    "encoded", ["stage"], buckets=SECONDS,
)  # fmt: skip
_queue = Histograms(PREFIX + "queue_seconds", "Time that what arrives waits for the worker", buckets=SECONDS)
_rejected = Counter(PREFIX + "rejected_inputs", "Requests that were refused, by the error's code", ["code"])
_labels = Counter(PREFIX + "predictions", "Predictions by label", ["model", "strategy", "label"])
_abstentions = Counter(PREFIX + "abstentions", "Predictions abstained from, by reason", ["model", "strategy", "reason"])
_confidence = Histograms(
    PREFIX + "confidence", "Confidence of predictions", ["model", "strategy"],
    buckets=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1),
)  # fmt: skip
_total = Histograms(PREFIX + "total_uncertainty_nats", "Predictive entropy", ["model", "strategy"], buckets=NATS)
_epistemic = Histograms(
    PREFIX + "epistemic_uncertainty_nats", "Mutual information of label and sub-network", ["model", "strategy"],
    buckets=NATS,
)  # fmt: skip
_samples = Histograms(
    PREFIX + "samples", "Sub-networks asked for a prediction", ["model", "strategy"],
    buckets=(1, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
)  # fmt: skip


def observe_request(path: str, status: int, code: str | None, seconds: float) -> None:
    """Count one answer, with the error's ``code`` if it was refused. ``status`` 0 stands for a client that left before
    there was one."""
    route = path if path in ROUTES else "/v2" if path.startswith("/v2/") or path == "/v2" else "other"
    _noted_requests.add((route, str(status), code, seconds))


def observe_stage(stage: Stage, seconds: float) -> None:
    """Count the time that one request spent in a stage."""
    _noted_stages.add((stage, seconds))


def observe_queue(seconds: float) -> None:
    """Count one look of :func:`service.queue.watch`."""
    _queue.observe(seconds)


def observe_answers(answers: Sequence[tuple[object, Mapping[str, Any]]]) -> None:
    """Count what questions' answers say: :class:`~service.responses.PredictResponse` or ``CompareResponse``."""
    found: defaultdict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for _, content in answers:
        model = content["model"]["name"]
        for strategy, answer in content.get("strategies", {content.get("strategy"): content}).items():
            found[model, strategy] += answer["predictions"]
    for (model, strategy), predictions in found.items():
        _write_predictions(model, strategy, predictions)


def _write_requests(noted: Sequence[tuple[str, str, str | None, float]]) -> None:
    for (route, status), count in Tally((route, status) for route, status, _, _ in noted).items():
        _requests.labels(route, status).inc(count)
    for code, count in Tally(code for _, _, code, _ in noted if code).items():
        _rejected.labels(code).inc(count)
    _observe_by_label(_seconds, [(route, seconds) for route, _, _, seconds in noted])


def _write_stages(noted: Sequence[tuple[str, float]]) -> None:
    _observe_by_label(_stages, noted)


def _observe_by_label(histogram: Histograms, noted: Sequence[tuple[str, float]]) -> None:
    values: defaultdict[str, list[float]] = defaultdict(list)
    for label, value in noted:
        values[label].append(value)
    for label, found in values.items():
        histogram.labels(label).observe_all(found)


def _write_predictions(model: str, strategy: str, predictions: Sequence[Mapping[str, Any]]) -> None:
    """``predictions`` as :class:`~service.responses.Prediction` describes them."""
    _confidence.labels(model, strategy).observe_all([prediction["confidence"] for prediction in predictions])
    uncertainties = [prediction["uncertainty"] for prediction in predictions]
    _total.labels(model, strategy).observe_all([uncertainty["total"] for uncertainty in uncertainties])
    if uncertainties[0]["epistemic"] is not None:
        _epistemic.labels(model, strategy).observe_all([uncertainty["epistemic"] for uncertainty in uncertainties])
    _samples.labels(model, strategy).observe_all([prediction["samples"] for prediction in predictions])
    for label, count in Tally(prediction["label"] for prediction in predictions).items():
        _labels.labels(model, strategy, label).inc(count)
    for reason, count in Tally(prediction["reason"] for prediction in predictions if prediction["abstain"]).items():
        _abstentions.labels(model, strategy, reason).inc(count)


_noted_requests = Deferred(_write_requests)
_noted_stages = Deferred(_write_stages)


def exposition(further: Iterable[Collector] = ()) -> bytes:
    """All workers' metrics in Prometheus' text format, and those of ``further`` collectors."""
    registry: CollectorRegistry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    own = CollectorRegistry()
    for collector in further:
        own.register(collector)
    return generate_latest(registry) + generate_latest(own)
