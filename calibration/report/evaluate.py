"""From predictions and labels to the report's figures: values with bootstrap intervals, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from scipy.stats import betabinom
from torch import Tensor

from calibration import conformal, metrics, ranking
from calibration.predictive import PredictiveSummary
from calibration.report.schema import (
    AbstentionRow,
    ConformalRow,
    Detection,
    Difference,
    Estimate,
    Measure,
    Quality,
    Ranking,
    Reliability,
    Score,
    SizeRow,
)
from calibration.resampling import interval
from models.bundle import StrategyScores
from models.records import CONFORMAL_METHODS, AbstentionRecord

__all__ = [
    "COVERAGES",
    "Measured",
    "abstention_rows",
    "best",
    "conformal_rows",
    "detection",
    "differences",
    "estimate",
    "first_from_which_on",
    "quality",
    "rank",
    "score",
]

COVERAGES = (0.8, 0.9, 0.95, 0.99)
SELECTED = (0.8, 0.9, 0.95)
NULL_DRAWS = 200
Weighted = Callable[[Tensor | None], Tensor]


def estimate(measure: Weighted, weights: Tensor, *, least: float = -math.inf, most: float = math.inf) -> Estimate:
    """``measure`` of every image once, with its interval under bootstrap ``weights``, cut to what it can be."""
    value = float(measure(None))
    low, high = interval(value, measure(weights))
    return Estimate(value=value, low=min(max(low, least), most), high=max(min(high, most), least))


def quality(probabilities: Tensor, labels: Tensor, weights: Tensor) -> Quality:
    """All measures of ``probabilities`` ``[N, C]`` against ``labels`` ``[N]``."""

    def measured(measure: Callable[[Tensor, Tensor, Tensor | None], Tensor], most: float = 1) -> Estimate:
        return estimate(partial(measure, probabilities, labels), weights, least=0, most=most)

    bins = metrics.reliability_bins(probabilities, labels)
    parts = metrics.brier_decomposition(probabilities, labels)
    ece = measured(metrics.expected_calibration_error)
    null = _ece_if_calibrated(probabilities)
    return Quality(
        accuracy=measured(metrics.accuracy),
        nll=measured(metrics.negative_log_likelihood, math.inf),
        brier=measured(metrics.brier, 2),
        brier_calibration=parts.calibration,
        brier_refinement=parts.refinement,
        ece=ece,
        ece_if_calibrated=float(null.mean()),
        ece_p_value=float((1 + (null >= ece.value).sum()) / (1 + len(null))),
        adaptive_ece=measured(metrics.adaptive_calibration_error),
        classwise_ece=measured(metrics.classwise_calibration_error),
        mce=measured(metrics.maximum_calibration_error),
        debiased_calibration_error=_debiased(probabilities, labels, weights),
        overconfidence=estimate(partial(_overconfidence, probabilities, labels), weights),
        reliability=Reliability(
            edges=tuple(bins.edges.tolist()),
            count=tuple(bins.count.tolist()),
            accuracy=tuple(bins.accuracy.tolist()),
            confidence=tuple(bins.confidence.tolist()),
        ),
    )


def _overconfidence(probabilities: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    confidence = probabilities.double().amax(1)
    mean = confidence.mean() if weights is None else weights @ confidence / weights.sum(-1)
    return mean - metrics.accuracy(probabilities, labels, weights)


def _debiased(probabilities: Tensor, labels: Tensor, weights: Tensor) -> Estimate:
    value = float(metrics.debiased_calibration_error(probabilities, labels))
    resampled = metrics.debiased_calibration_error(probabilities, labels, weights)
    low, high = interval(value, resampled, plug_in=_squared_calibration_error(probabilities, labels))
    return Estimate(value=value, low=low, high=high)


def _squared_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Without the debiasing: that of the images as a population, in which there is no chance to correct for."""
    bins = metrics.reliability_bins(probabilities, labels)
    return float((bins.count * (bins.accuracy - bins.confidence).square()).sum() / len(labels))


def _ece_if_calibrated(probabilities: Tensor) -> Tensor:
    """ECEs with labels drawn from the prediction (consistency resampling, Bröcker & Smith 2007): ``[draws]``."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(probabilities.double(), NULL_DRAWS, replacement=True, generator=generator)
    return torch.stack([metrics.expected_calibration_error(probabilities, labels) for labels in drawn.unbind(1)])


def score(summary: PredictiveSummary, name: Score) -> Tensor:
    """What images are ranked by, growing with uncertainty: ``[N]``."""
    match name:
        case "confidence":
            return 1 - summary.mean.amax(1)
        case "total":
            return summary.predictive_entropy
        case _:
            return summary.mutual_information


def rank(scores: Tensor, errors: Tensor, weights: Tensor) -> Ranking:
    """How well ``scores`` ``[N]`` tell where ``errors`` ``[N]`` are."""

    def misclassification(given: Tensor | None) -> Tensor:
        halves = (None, None) if given is None else (given[:, ~errors], given[:, errors])
        return ranking.auroc(scores[~errors], scores[errors], *halves)

    curve = ranking.risk_coverage(scores, errors)
    shown = (torch.arange(1, 101) * len(curve) / 100).ceil().long() - 1
    return Ranking(
        auroc=estimate(misclassification, weights, least=0, most=1) if 0 < int(errors.sum()) < len(errors) else None,
        aurc=estimate(partial(ranking.area_under_risk_coverage, scores, errors), weights, least=0, most=1),
        augrc=estimate(partial(ranking.area_under_generalized_risk_coverage, scores, errors), weights, least=0, most=1),
        accuracy_at_coverage={
            str(coverage): estimate(
                partial(ranking.accuracy_at_coverage, scores, errors, coverage), weights, least=0, most=1
            )
            for coverage in SELECTED
        },
        risk=tuple(curve[shown].tolist()),
    )


def detection(scores: Tensor, others: Tensor, weights: Tensor, weights_of_others: Tensor) -> tuple[Detection, Tensor]:
    """How well scores tell ``others`` ``[M]`` from the images with ``scores`` ``[N]``; and the AUROC on resampled
    images ``[resamples]``."""
    found = {}
    for name, measure in (
        ("auroc", ranking.auroc), ("aupr", ranking.average_precision), ("fpr95", ranking.false_positive_rate)
    ):  # fmt: skip
        resampled = measure(scores, others, weights, weights_of_others)
        value = float(measure(scores, others))
        low, high = interval(value, resampled)
        found[name] = Estimate(value=value, low=min(max(low, 0), 1), high=min(max(high, 0), 1)), resampled
    return Detection(**{name: estimated for name, (estimated, _) in found.items()}), found["auroc"][1]


@dataclass(frozen=True)
class Measured:
    """A calibrated strategy's predictions, and its measures on resampled images: what differences are made of."""

    values: dict[Measure, float]
    resampled: dict[Measure, Tensor]
    plug_in: dict[Measure, float]
    """Of the images as a population, see :func:`calibration.resampling.interval`."""

    @classmethod
    def of(cls, summary: PredictiveSummary, labels: Tensor, weights: Tensor) -> Measured:
        """The measures that strategies are compared by."""
        errors = summary.mean.argmax(1) != labels
        measures: dict[Measure, Weighted] = {
            "accuracy": partial(metrics.accuracy, summary.mean, labels),
            "nll": partial(metrics.negative_log_likelihood, summary.mean, labels),
            "brier": partial(metrics.brier, summary.mean, labels),
            "calibration_error": partial(metrics.debiased_calibration_error, summary.mean, labels),
            "aurc": partial(ranking.area_under_risk_coverage, score(summary, "confidence"), errors),
        }
        values = {name: float(measure(None)) for name, measure in measures.items()}
        return cls(
            values,
            {name: measure(weights) for name, measure in measures.items()},
            values | {"calibration_error": _squared_calibration_error(summary.mean, labels)},
        )

    def minus(self, other: Measured) -> dict[Measure, tuple[Estimate, bool | None]]:
        """By measure: the paired difference, and whether it is for the better, ``None`` if it can't be told."""
        differences: dict[Measure, tuple[Estimate, bool | None]] = {}
        for name, value in self.values.items():
            difference = value - other.values[name]
            low, high = interval(
                difference, self.resampled[name] - other.resampled[name],
                plug_in=self.plug_in[name] - other.plug_in[name],
            )  # fmt: skip
            sign = 1 if name == "accuracy" else -1
            better = None if low <= 0 <= high else sign * low > 0
            differences[name] = Estimate(value=difference, low=low, high=high), better
        return differences


def differences(measured: dict[str, Measured], reference: str) -> list[Difference]:
    """Of every other strategy to ``reference``."""
    return [
        Difference(strategy=strategy, reference=reference, measure=name, difference=found, better=better)
        for strategy, values in measured.items()
        if strategy != reference
        for name, (found, better) in values.minus(measured[reference]).items()
    ]


def best(measured: dict[str, Measured]) -> dict[str, str | None]:
    """By measure, the strategy whose paired difference to each of the others is for the better, if there is one."""
    found: dict[str, str | None] = {}
    for measure in next(iter(measured.values())).values:
        found[measure] = next(
            (
                name
                for name, values in measured.items()
                if len(measured) > 1
                and all(values.minus(other)[measure][1] for rival, other in measured.items() if rival != name)
            ),
            None,
        )
    return found


def conformal_rows(
    summary: PredictiveSummary, labels: Tensor, uniforms: Tensor, *, scores: StrategyScores, calibration_labels: Tensor,
    classes: tuple[str, ...],
) -> tuple[ConformalRow, ...]:  # fmt: skip
    """Prediction sets of the test images by the stored scores, for each method, marginal and class-conditional."""
    rows = []
    for method in CONFORMAL_METHODS:
        tested = conformal.nonconformity(summary.mean, method, uniforms)
        stored = scores.nonconformity[method]
        for class_conditional in (False, True):
            for nominal in COVERAGES:
                limit: float | Tensor = conformal.threshold(stored, nominal)
                if class_conditional:
                    limit = conformal.class_thresholds(stored, calibration_labels, len(classes), nominal)
                sets = conformal.prediction_sets(tested, limit)
                held = sets.gather(1, labels.unsqueeze(1)).squeeze(1)
                by_class = {index: float(held[labels == index].double().mean()) for index in labels.unique().tolist()}
                sizes, worst = sets.sum(1), min(by_class, key=by_class.__getitem__)
                rows.append(
                    ConformalRow(
                        method=method,
                        class_conditional=class_conditional,
                        nominal=nominal,
                        coverage=float(held.double().mean()),
                        probability=None
                        if class_conditional
                        else _chance(int(held.sum()), len(labels), len(stored), nominal),
                        size=float(sizes.double().mean()),
                        single=float((sizes == 1).double().mean()),
                        empty=float((sizes == 0).double().mean()),
                        worst_class=classes[worst],
                        worst_class_coverage=by_class[worst],
                    )
                )
    return tuple(rows)


def _chance(held: int, tested: int, stored: int, nominal: float) -> float:
    """Two-sided probability of a coverage like this one: beta-binomial, for both sets of images are samples (Vovk
    2012)."""
    rank = conformal.quantile_rank(stored, nominal)
    if rank > stored:
        return 1.0
    law = betabinom(tested, rank, stored + 1 - rank)
    return float(min(1.0, 2 * min(law.cdf(held), law.sf(held - 1))))


def abstention_rows(
    summary: PredictiveSummary, labels: Tensor, promised: tuple[AbstentionRecord, ...]
) -> tuple[AbstentionRow, ...]:
    """What the stored thresholds do on the test images."""
    confidence, predicted = summary.mean.max(1)
    wrong = predicted != labels
    rows = []
    for record in promised:
        answered = 1 - confidence <= (-1 if record.threshold is None else record.threshold)
        rows.append(
            AbstentionRow(
                promised=record,
                coverage=float(answered.double().mean()),
                selective_error=float(wrong[answered].double().mean()) if answered.any() else None,
            )
        )
    return tuple(rows)


def first_from_which_on(sizes: Sequence[SizeRow], reached: Callable[[SizeRow], bool]) -> int | None:
    """The fewest sub-networks from which on, with more, it stays reached; ``None`` if it is not with the most."""
    first = None
    for row in reversed(sizes):
        if not reached(row):
            break
        first = row.samples
    return first
