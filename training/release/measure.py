"""What a bundle must reach to be shipped, measured on the test images and on images out of distribution."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from calibration import metrics, ranking, strategies
from calibration.calibrators import halves
from calibration.novelty import NoveltyDetector
from calibration.predictive import PredictiveSummary
from calibration.scaling import fit_scaling
from calibration.strategies import Sampling
from models.bundle import Bundle
from models.records import Card, Scaling
from training.data import FashionMNISTSplits

__all__ = ["measured", "unmet"]


def measured(
    bundle: Bundle, others: Sequence[Bundle], splits: FashionMNISTSplits, outliers: Mapping[str, Tensor]
) -> dict[str, float]:
    """The metrics that floors are about, on the test images: of ``bundle``, which must be calibrated, by weight scaling
    and by MC dropout, calibrated; the AUROC of its novelty and of MC dropout's mutual information on ``outliers``
    ``[N, 28, 28]``; and the latter's mean and standard deviation over the bundle and ``others``, trained from other
    seeds, each with a temperature of its own."""
    found = {}
    labels, tested = splits.test.labels, bundle.prepare(splits.test.pixels)
    sampled = _summaries(bundle, bundle.scaling("mc_dropout"), splits, outliers)
    summaries = {
        "weight_scaling": strategies.weight_scaling(bundle.network).summarise(tested, bundle.scaling("weight_scaling")),
        "mc_dropout": sampled["test"],
    }
    for name, summary in summaries.items():
        found[f"{name}_accuracy"] = float(metrics.accuracy(summary.mean, labels))
        found[f"{name}_nll"] = float(metrics.negative_log_likelihood(summary.mean, labels))
        found[f"{name}_ece"] = float(metrics.expected_calibration_error(summary.mean, labels))
    detector = NoveltyDetector.of(bundle)
    own = None if detector is None else detector(tested).distance
    seeds = [sampled, *(_summaries(other, _scaling(other, splits), splits, outliers) for other in others)]
    for name, pixels in outliers.items():
        areas = [float(ranking.auroc(each["test"].mutual_information, each[name].mutual_information)) for each in seeds]
        found[f"{name}_mutual_information_auroc"] = areas[0]
        if others:
            found[f"{name}_mutual_information_auroc_mean"] = statistics.mean(areas)
            found[f"{name}_mutual_information_auroc_sd"] = statistics.stdev(areas)
        if detector is not None and own is not None:
            foreign = detector(bundle.prepare(pixels)).distance
            found[f"{name}_novelty_auroc"] = float(ranking.auroc(own, foreign))
    return found | ({"seeds": float(len(seeds))} if others else {})


def _summaries(
    bundle: Bundle, scaling: Scaling, splits: FashionMNISTSplits, outliers: Mapping[str, Tensor]
) -> dict[str, PredictiveSummary]:
    """By MC dropout, of the test images and of each set of outliers."""
    strategy = _mc_dropout(bundle)
    sets = {"test": splits.test.pixels, **outliers}
    return {name: strategy.summarise(bundle.prepare(pixels), scaling) for name, pixels in sets.items()}


def _scaling(bundle: Bundle, splits: FashionMNISTSplits) -> Scaling:
    images, _ = halves(splits.calibration)
    return fit_scaling(_mc_dropout(bundle).logits(bundle.prepare(images.pixels)), images.labels).scaling


def _mc_dropout(bundle: Bundle) -> strategies.Strategy:
    fitted = Sampling.of(bundle.calibration)
    return strategies.build(
        "mc_dropout", bundle.network, bundle.card.input.shape, samples=fitted.samples, seed=fitted.seed,
        design=fitted.design,
    )  # fmt: skip


def unmet(card: Card) -> Iterator[str]:
    """The floors that the card's metrics miss, each as a sentence; those of metrics that it lacks are not looked at."""
    for bounds, word, sign in ((card.floors.least, "least", 1), (card.floors.most, "most", -1)):
        for name, bound in bounds.items():
            value = card.metrics.get(name)
            if value is not None and not sign * value >= sign * bound:
                yield f"{name} is {value:.4f}, and should be at {word} {bound:g}"
