"""Drift: the last predictions' uncertainties, of all workers, beside those of the calibration images.

Each worker writes what it predicts into files of its own, one a model and strategy, in a folder that the workers of one
server share. Whoever measures reads those of all. A file is a ring of the worker's last values, of fixed size:

    8 bytes       MAGIC
    uint64        how many values were ever written, from which follows where the next goes
    float32 x 2   total and epistemic uncertainty in nats, as often as the ring has places; NaN: none yet

all little-endian. Nothing is locked, as no file has two writers; a value may be read just before or after it is there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field

from calibration.drift import MIN_WINDOW, Drift, Verdict, as_sample, compare
from models import storage

__all__ = ["DriftCollector", "DriftMeasures", "DriftMonitor", "DriftResponse", "Reference", "StrategyDrift"]

MAGIC = b"drift-01"
HEADER = struct.Struct("<8sQ")
COUNT = struct.Struct("<Q")
VALUES = np.dtype("<f4")
DECIMALS = 6
"""Of answers. What is compared is rounded so too: else all that an answer calls 0 would differ from its reference."""
RETRY_SECONDS = 60.0
"""After which a worker that could not write its values tries again."""

logger = logging.getLogger(__name__)

Reference = tuple[NDArray[np.floating], NDArray[np.floating] | None]
"""Total and epistemic uncertainty of the calibration images ``[m]``; the latter ``None`` if a strategy has none."""
Key = tuple[str, str, str]
"""Model, version, strategy."""


class DriftMeasures(BaseModel):
    """One uncertainty's distribution beside that of the calibration images."""

    window: int = Field(description="predictions compared")
    psi: float = Field(description="population stability index over the calibration's deciles, in nats")
    psi_expected: float = Field(description="what psi comes to on average without drift, by the number of values alone")
    ks: float = Field(description="Kolmogorov-Smirnov statistic, 0 to 1")
    p_value: float = Field(description="probability of so large a ks without drift")
    direction: float = Field(description="-1 to 1; positive: more uncertain than at calibration (Cliff's delta)")
    verdict: Verdict = Field(
        description=f"too_few: fewer than {MIN_WINDOW} predictions; moderate: psi from 0.1, major: psi from 0.25, both "
        "with a p_value of at most 0.001; else stable"
    )

    @classmethod
    def of(cls, drift: Drift) -> DriftMeasures:
        """``drift`` with numbers of six digits."""
        return cls(**{
            name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in vars(drift).items()
        })  # fmt: skip


class StrategyDrift(BaseModel):
    """How far one strategy's uncertainties have moved; epistemic is null where the strategy has none."""

    model: str
    version: str
    strategy: str
    total: DriftMeasures
    epistemic: DriftMeasures | None


class DriftResponse(BaseModel):
    """The last predictions beside the calibration images, for each model and strategy that was asked."""

    window: int = Field(description="predictions of one model and strategy that are compared at most, the last ones")
    drift: list[StrategyDrift]


class DriftMonitor:
    """A rolling window of uncertainties for each model and strategy, over all workers of one server.

    ``folder`` is the server's alone and the same for all ``workers``, of which this is number ``worker``, from 1. The
    window is made of each worker's last ``ceil(window / workers)`` values, so that a few more than ``window`` may be
    compared; if the workers' shares of the requests differ, so do the times that their values reach back to.
    ``references`` are the calibration's, by model, version and strategy; of a model there is one version. A window
    outlives a restart; values of another version are not part of it.

    Raises ``ValueError`` for a worker's number out of range, a model in two versions, or a reference that is no sample.
    """

    def __init__(
        self, folder: Path, references: Mapping[Key, Reference], *, window: int, worker: int, workers: int
    ) -> None:
        if not 1 <= worker <= workers:
            raise ValueError(f"worker {worker} is not one of 1 to {workers}")
        self._folder = folder
        self._references = {
            key: (_rounded(as_sample(total)), None if epistemic is None else _rounded(as_sample(epistemic)))
            for key, (total, epistemic) in references.items()
        }
        self._keys = {(model, strategy): (model, version, strategy) for model, version, strategy in references}
        if len(self._keys) < len(references):
            raise ValueError("a model has references of two versions")
        self._capacity = math.ceil(window / workers)
        self._worker, self._workers = worker, workers
        self._rings: dict[Key, _Ring] = {}
        self._retry_at = -math.inf
        self._lock = threading.Lock()
        self._remove_outdated()

    @property
    def window(self) -> int:
        """How many predictions are compared at most."""
        return self._capacity * self._workers

    def observe(
        self, model: str, strategy: str, total: NDArray[np.floating], epistemic: NDArray[np.floating] | None
    ) -> None:
        """Take note of n predictions' uncertainties in nats, ``[n]``, whether rounded as in answers or not.

        Without a reference for ``model`` and ``strategy`` nothing is done. A folder or file that can't be written is
        logged, not raised: the values are lost, and for a minute so are those that follow.
        """
        key = self._keys.get((model, strategy))
        if key is None:
            return
        with self._lock:
            try:
                ring = self._rings.get(key) or self._open(key)
                if ring is not None:
                    ring.add(total, epistemic)
            except OSError as error:
                self._give_up(key, error)

    def measure(self) -> DriftResponse:
        """Compare what all workers have written with the calibration; what can't be read is left out."""
        found = []
        for key, (total, epistemic) in self._references.items():
            live = np.concatenate([self._values(key, worker) for worker in range(1, self._workers + 1)])
            of_total, of_epistemic = (_rounded(column[np.isfinite(column)]) for column in live.T)
            if not len(of_total):
                continue
            found.append(
                StrategyDrift(
                    model=key[0],
                    version=key[1],
                    strategy=key[2],
                    total=DriftMeasures.of(compare(total, of_total)),
                    epistemic=None
                    if epistemic is None or not len(of_epistemic)
                    else DriftMeasures.of(compare(epistemic, of_epistemic)),
                )
            )
        return DriftResponse(window=self.window, drift=found)

    def close(self) -> None:
        """Close this worker's files; they stay where they are."""
        with self._lock:
            for ring in self._rings.values():
                ring.close()
            self._rings.clear()

    def _open(self, key: Key) -> _Ring | None:
        if time.monotonic() < self._retry_at:
            return None
        ring = self._rings[key] = _Ring(self._path(key, self._worker), self._capacity)
        return ring

    def _give_up(self, key: Key, error: OSError) -> None:
        self._retry_at = time.monotonic() + RETRY_SECONDS
        if key in self._rings:
            self._rings.pop(key).close()
        logger.warning("uncertainties for /drift can't be written to %s: %s", self._folder, error)

    def _values(self, key: Key, worker: int) -> NDArray[np.float32]:
        try:
            ring = _read(self._path(key, worker), self._capacity)
        except OSError:
            ring = None
        return np.empty((0, 2), VALUES) if ring is None else ring[1]

    def _path(self, key: Key, worker: int) -> Path:
        # A hash, as a model may have any name.
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
        return self._folder / f"worker-{worker}-{digest}.ring"

    def _remove_outdated(self) -> None:
        """This worker's files of versions that are no longer served, and what a killed writer left half-written."""
        current = {self._path(key, self._worker) for key in self._references}
        own = f"worker-{self._worker}-*"
        try:
            for path in {*self._folder.glob(own), *self._folder.glob(f".{own}")} - current:
                path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("outdated files in %s can't be removed: %s", self._folder, error)


class DriftCollector(Collector):
    """The measures as Prometheus gauges, computed when they are asked for.

    Labels are bounded by the models served and their strategies. While a verdict has too few values there is a gauge of
    the window alone: the rest would be noise that looks like drift.
    """

    def __init__(self, monitor: DriftMonitor) -> None:
        self._monitor = monitor

    def collect(self) -> Iterator[Metric]:
        """The gauges, for the registry."""
        gauges = {
            name: GaugeMetricFamily(
                f"dropout_uncertainty_drift_{name}", documentation, labels=["model", "strategy", "uncertainty"]
            )
            for name, documentation in (
                (
                    "psi",
                    "Population stability index of the last predictions' uncertainty to the calibration's",
                ),
                ("ks", "Kolmogorov-Smirnov statistic of the last predictions' uncertainty to the calibration's"),
                ("direction", "Cliff's delta: positive if predictions are more uncertain than at calibration"),
                ("window", "Predictions whose uncertainty is compared with the calibration's"),
            )
        }
        for strategy in self._monitor.measure().drift:
            for uncertainty, measures in (("total", strategy.total), ("epistemic", strategy.epistemic)):
                if measures is None:
                    continue
                for name in gauges if measures.verdict != "too_few" else ("window",):
                    gauges[name].add_metric([strategy.model, strategy.strategy, uncertainty], getattr(measures, name))
        yield from gauges.values()


def _rounded(values: NDArray[np.floating]) -> NDArray[np.float64]:
    exact: NDArray[np.float64] = values.astype(np.float64)
    return exact.round(DECIMALS)


class _Ring:
    """A worker's file for one model and strategy, taken over if it is sound and made anew if not.

    It is written to and not mapped into memory: a store to a mapped page that has lost its place on the disk would kill
    the process, where a write that fails raises ``OSError``.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        existing = _read(path, capacity)
        if existing is None:
            # All of it, so that a full disk is noticed now.
            empty = np.full((capacity, 2), np.nan, VALUES)
            storage.write_bytes(path, HEADER.pack(MAGIC, 0) + empty.tobytes())
        self._count = existing[0] if existing else 0
        self._capacity = capacity
        self._file = path.open("r+b", buffering=0)

    def add(self, total: NDArray[np.floating], epistemic: NDArray[np.floating] | None) -> None:
        """Write n pairs in the place of the oldest."""
        pairs = np.empty((len(total), 2), VALUES)
        pairs[:, 0] = total
        pairs[:, 1] = np.nan if epistemic is None else epistemic
        pairs = pairs[-self._capacity :]
        start = self._count % self._capacity
        before_the_end = self._capacity - start
        self._write(HEADER.size + pairs.itemsize * 2 * start, pairs[:before_the_end].tobytes())
        if len(pairs) > before_the_end:
            self._write(HEADER.size, pairs[before_the_end:].tobytes())
        self._count = (self._count + len(pairs)) % 2**64
        self._write(HEADER.size - COUNT.size, COUNT.pack(self._count))

    def close(self) -> None:
        self._file.close()

    def _write(self, position: int, content: bytes) -> None:
        self._file.seek(position)
        self._file.write(content)


def _read(path: Path, capacity: int) -> tuple[int, NDArray[np.float32]] | None:
    """How many values were ever written, and the ring ``[capacity, 2]``; ``None`` if there is no sound file.

    Raises ``OSError`` if there is one that can't be read.
    """
    size = HEADER.size + capacity * 2 * VALUES.itemsize
    try:
        if path.stat().st_size != size:
            return None
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(content) != size or not content.startswith(MAGIC):
        return None
    _, count = HEADER.unpack_from(content)
    return count, np.frombuffer(content, VALUES, offset=HEADER.size).reshape(capacity, 2)
