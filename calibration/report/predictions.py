"""One bundle's predictions for the report: by strategy, sub-networks and images, kept in the cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from calibration import strategies
from calibration.predictive import UNSCALED, PredictiveSummary
from calibration.report.cache import PredictionCache, digest
from calibration.report.schema import Cost
from calibration.scaling import FittedScaling, best_temperature, fit_scaling
from calibration.sites import probe_images
from calibration.strategies import Strategy
from models.bundle import Bundle
from models.networks import own
from models.records import MaskDesign, PoolingOrder, Scaling
from training.data import LabelledImages

__all__ = ["DEEP_ENSEMBLE", "Predictions", "Request", "Way", "identity"]

DEEP_ENSEMBLE = "deep_ensemble"
TIMED_IMAGES = 256
TIMED_RUNS = 9
PROBES = 4


@dataclass(frozen=True)
class Way:
    """A strategy with its sub-networks; ``samples``, ``seed`` and ``design`` mean nothing to one that samples none."""

    strategy: str
    samples: int
    seed: int
    design: MaskDesign

    def build(self, bundle: Bundle, ensemble: Sequence[Bundle]) -> Strategy:
        """The strategy, of the network of ``bundle``, or of those of ``ensemble`` for a deep ensemble."""
        if self.strategy == DEEP_ENSEMBLE:
            return strategies.deep_ensemble([member.network for member in ensemble])
        return strategies.build(
            self.strategy, bundle.network, bundle.card.input.shape, samples=self.samples, seed=self.seed,
            design=self.design,
        )  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A prediction that will be asked for: ``pixels`` ``[N, *shape]``."""

    way: Way
    scaling: Scaling
    pixels: Tensor


@dataclass
class Predictions:
    """What ``bundle``, and the networks of ``ensemble`` if there are any, predict. ``on_images`` is told of images
    done."""

    bundle: Bundle
    ensemble: Sequence[Bundle]
    cache: PredictionCache
    on_images: Callable[[int], None]
    _built: dict[Way, Strategy] = field(default_factory=dict)
    _identities: dict[Path, list[object]] = field(default_factory=dict)

    def strategy(self, way: Way) -> Strategy:
        """The strategy, built once."""
        if way not in self._built:
            self._built[way] = way.build(self.bundle, self.ensemble)
        return self._built[way]

    def summary(self, way: Way, scaling: Scaling, pixels: Tensor) -> PredictiveSummary:
        """Predictions for ``pixels`` ``[N, *shape]``."""
        reported = 0

        def on_images(count: int) -> None:
            nonlocal reported
            reported += count
            self.on_images(count)

        def compute() -> dict[str, Tensor]:
            return vars(self.strategy(way).summarise(self.bundle.prepare(pixels), scaling, on_images=on_images))

        found = PredictiveSummary(**self.cache.get(self.key(Request(way, scaling, pixels)), compute))
        self.on_images(len(pixels) - reported)
        return found

    def key(self, request: Request) -> dict[str, object]:
        """What the summary depends on, as JSON: the cache's key."""
        scaling = request.scaling.model_dump()
        return {**self._key(request.way), "scaling": scaling, "images": digest(request.pixels)}

    def keep(self, request: Request, summary: PredictiveSummary) -> None:
        """Put into the cache what was predicted elsewhere."""
        self.cache.put(self.key(request), vars(summary))

    def scaling(self, way: Way, images: LabelledImages) -> FittedScaling:
        """The scaling that fits ``images``, which must not be those that something is measured on."""

        def compute() -> dict[str, Tensor]:
            logits = self.strategy(way).logits(self.bundle.prepare(images.pixels))
            fitted = fit_scaling(logits, images.labels)
            orders = fitted.cross_validated_nll
            return {
                "values": torch.tensor([fitted.scaling.temperature, fitted.nll_before, fitted.nll_after]).double(),
                "chosen": torch.tensor([list(orders).index(fitted.scaling.order)]),
                **{order: torch.tensor([loss], dtype=torch.float64) for order, loss in orders.items()},
            }

        key = {**self._key(way), "images": digest(images.pixels), "labels": digest(images.labels), "of": "scaling"}
        found = self.cache.get(key, compute)
        orders = {order: float(found[order]) for order in ORDERS if order in found}
        temperature, before, after = found["values"].tolist()
        chosen = list(orders)[int(found["chosen"])]
        self.on_images(len(images))
        return FittedScaling(Scaling(temperature=temperature, order=chosen), before, after, orders)

    def pooled_temperature(self, way: Way, images: LabelledImages) -> Scaling:
        """The temperature of the pooled prediction that fits ``images``."""
        pooled = self.summary(way, UNSCALED, images.pixels).pooled
        return Scaling(temperature=best_temperature(pooled.log().unsqueeze(0), images.labels))

    def costs(self, ways: Mapping[str, Way], pixels: Tensor) -> dict[str, Cost]:
        """Time per image of each way: medians of several runs, in turn, of one image and of 256."""
        inputs = self.bundle.prepare(pixels[:TIMED_IMAGES])
        sizes = {"alone": inputs[:1], "among_many": inputs}
        seconds: dict[str, dict[str, list[float]]] = {name: {size: [] for size in sizes} for name in ways}
        for run in range(TIMED_RUNS + 1):
            for name, way in ways.items():
                for size, part in sizes.items():
                    started = time.perf_counter()
                    self.strategy(way)(part).mean  # noqa: B018
                    if run:  # The first one warms up.
                        seconds[name][size].append((time.perf_counter() - started) / len(part))
        return {
            name: Cost(
                many=len(inputs),
                threads=torch.get_num_threads(),
                **{size: 1000 * statistics.median(values) for size, values in found.items()},
            )
            for name, found in seconds.items()
        }

    def _key(self, way: Way) -> dict[str, object]:
        bundles = self.ensemble if way.strategy == DEEP_ENSEMBLE else [self.bundle]
        for bundle in bundles:
            if bundle.path not in self._identities:
                self._identities[bundle.path] = identity(bundle)
        return {"way": vars(way), "networks": [self._identities[bundle.path] for bundle in bundles]}


ORDERS: tuple[PoolingOrder, ...] = get_args(PoolingOrder)


def identity(bundle: Bundle) -> list[object]:
    """What predictions of the bundle's network depend on, as JSON."""
    card, shape = bundle.card, bundle.card.input.shape
    found: list[object] = [
        card.weights_sha256, card.network.model_dump(mode="json"), card.input.model_dump(mode="json")
    ]  # fmt: skip
    if own.is_own(card.network.name):
        # The user's code is no part of the cache's key; what it computes is, sub-networks included.
        images = probe_images(bundle.network, shape, PROBES)
        found.append(digest(strategies.weight_scaling(bundle.network).logits(images)))
        if strategies.applicable(bundle.network, shape) != ("weight_scaling",):
            found.append(digest(strategies.build("mc_dropout", bundle.network, shape, samples=2).logits(images)))
    return found
