"""Prometheus metrics with bounded labels, summed over workers.

BentoML's own are off: they keep a series for every path that anybody ever asks for.
"""

from __future__ import annotations

import os

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["exposition", "observe"]

ROUTES = frozenset({"/", "/docs.json", "/livez", "/metrics", "/model", "/predict", "/predict_image", "/readyz"})

_requests = Counter("dropout_uncertainty_requests", "Requests answered", ["route", "status"])
_seconds = Histogram(
    "dropout_uncertainty_request_seconds",
    "Time from a request's arrival to its answer",
    ["route"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)


def observe(path: str, status: int, seconds: float) -> None:
    """Count one answer. ``status`` 0 stands for a client that left before there was one."""
    route = path if path in ROUTES else "other"
    _requests.labels(route, str(status)).inc()
    _seconds.labels(route).observe(seconds)


def exposition() -> bytes:
    """All workers' metrics in Prometheus' text format."""
    registry: CollectorRegistry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
