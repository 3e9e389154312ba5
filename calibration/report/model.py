"""One model's part of the report: its strategies, its sub-networks, and what it makes of foreign images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from calibration import conformal, metrics, strategies
from calibration.calibrators import calibrate_strategy, halves
from calibration.masks import DESIGNS
from calibration.material import Material
from calibration.novelty import NoveltyDetector
from calibration.predictive import UNSCALED, PredictiveSummary
from calibration.report import evaluate, examples
from calibration.report.interpretation import interpretation
from calibration.report.predictions import DEEP_ENSEMBLE, Predictions, Request, Way
from calibration.report.schema import (
    SCORES,
    Cost,
    Detection,
    Estimate,
    ModelReport,
    OutlierSection,
    SamplingRow,
    Score,
    ShiftRow,
    Spread,
    StrategySection,
)
from calibration.resampling import bootstrap_weights, interval
from models.bundle import Bundle, CalibrationScores
from models.records import Calibration, Scaling
from training import shifts

__all__ = ["OUTLIER_RESAMPLES", "SHIFT_IMAGES", "Measures", "Subject", "work"]

SAMPLES = (4, 16, 64, 256)
SEEDS = 5
SHIFT_IMAGES = 1_000
ANGLES = tuple(range(0, 181, 15))
ROTATION = "turned"
"""Name of the rows of :data:`ANGLES`, beside the five shifts."""
SCORE_BINS = 40
OUTLIER_RESAMPLES = 300
SET_COVERAGE = 0.9


@dataclass(frozen=True)
class Subject:
    """A bundle to report on: calibrated, by its own calibration or one ``fitted`` for the report; and the networks of
    a deep ensemble trained as it was, if there are any."""

    bundle: Bundle
    calibration: Calibration
    scores: CalibrationScores
    fitted: bool
    ensemble: tuple[Bundle, ...]


def _ways(subject: Subject) -> dict[str, Way]:
    """The strategies that are compared, with the calibration's sub-networks."""
    bundle, calibration = subject.bundle, subject.calibration
    names = strategies.applicable(bundle.network, bundle.card.input.shape)
    found = {
        name: Way(name, calibration.samples, calibration.seed, calibration.design)
        if name in strategies.SAMPLING_STRATEGIES
        else Way(name, 1, 0, "independent")
        for name in names
    }
    if subject.ensemble:
        found[DEEP_ENSEMBLE] = Way(DEEP_ENSEMBLE, len(subject.ensemble), 0, "independent")
    return found


def _variations(subject: Subject) -> list[Way]:
    """Sampling strategies with other numbers of sub-networks, and MC dropout with each design."""
    calibration = subject.calibration
    sampling = [name for name in _ways(subject) if name in strategies.SAMPLING_STRATEGIES]
    found = [Way(name, samples, calibration.seed, calibration.design) for name in sampling for samples in SAMPLES]
    if "mc_dropout" in sampling:
        designs = [Way("mc_dropout", calibration.samples, calibration.seed, design) for design in DESIGNS]
        found += [way for way in designs if way not in found]
    return found


def work(subject: Subject, material: Material) -> int:
    """The number of images that :meth:`Measures.report` will tell of, once each time that they are predicted."""
    test, calibration = len(material.test), len(material.calibration)
    kinds = shifts.applicable(material.inputs.shape)
    shifted = min(SHIFT_IMAGES, test) * (len(_angles(material)) + sum(map(len, kinds.values())))
    ways = _ways(subject)
    total = len(ways) * (2 * test + shifted + sum(map(len, material.outliers.values())))
    total += len(_variations(subject)) * (2 * test + calibration // 2)
    total += SEEDS * test * sum(name in strategies.SAMPLING_STRATEGIES for name in ways)
    total += (DEEP_ENSEMBLE in ways) * calibration
    sampled = any(name in strategies.SAMPLING_STRATEGIES for name in ways)
    return total + (test + calibration // 2 if sampled else 0)


def _other_seeds(way: Way) -> list[Way]:
    return [replace(way, seed=way.seed + seed) for seed in range(1, SEEDS + 1)]


def _angles(material: Material) -> tuple[int, ...]:
    return ANGLES if "rotation" in shifts.applicable(material.inputs.shape) else ()


class Measures:
    """Measures one model. ``predictions`` must be those of the subject's bundle."""

    def __init__(self, subject: Subject, predictions: Predictions, material: Material) -> None:
        self.subject, self.predictions, self.material, self.test = subject, predictions, material, material.test
        self.for_temperature, self.for_thresholds = halves(material.calibration)
        self.weights = bootstrap_weights(len(self.test))
        self.ways = _ways(subject)
        self.default = "mc_dropout" if "mc_dropout" in self.ways else "weight_scaling"
        self.calibration, self.scores = subject.calibration, subject.scores
        if DEEP_ENSEMBLE in self.ways:
            self._calibrate_ensemble()
        detector = NoveltyDetector.of(replace(subject.bundle, scores=subject.scores))
        self._distance = None if detector is None else lambda pixels: detector(subject.bundle.prepare(pixels)).distance

    @cached_property
    def summaries(self) -> dict[str, PredictiveSummary]:
        """What each strategy predicts for the test images."""
        return {
            name: self.predictions.summary(way, self.scaling(name), self.test.pixels) for name, way in self.ways.items()
        }

    @cached_property
    def measured(self) -> dict[str, evaluate.Measured]:
        """The same, measured."""
        return {
            name: evaluate.Measured.of(summary, self.test.labels, self.weights)
            for name, summary in self.summaries.items()
        }

    def foreseen(self) -> Iterator[Request]:
        """What the report will ask for that is known beforehand. What it then makes of these it asks for in
        :meth:`foreseen_next`."""
        test = self.test.pixels
        sets = [test, *self.material.outliers.values(), *(pixels for *_, pixels in self._shifted())]
        for way in _variations(self.subject):
            yield Request(way, UNSCALED, self.for_temperature.pixels)
            yield Request(way, UNSCALED, test)
        for name, way in self.ways.items():
            scaling = self.scaling(name)
            yield Request(way, UNSCALED, test)
            for pixels in sets:
                yield Request(way, scaling, pixels)
            if name in strategies.SAMPLING_STRATEGIES:
                for other in _other_seeds(way):
                    yield Request(other, scaling, test)

    def foreseen_next(self) -> Iterator[Request]:
        """The rest, once what is :meth:`foreseen` is there."""
        for way in _variations(self.subject):
            yield Request(way, self.predictions.pooled_temperature(way, self.for_temperature), self.test.pixels)

    def scaling(self, name: str) -> Scaling:
        return self.calibration.scaling(name)

    def _calibrate_ensemble(self) -> None:
        """As the strategies of the bundle are."""
        way, images = self.ways[DEEP_ENSEMBLE], self.for_thresholds
        fitted = self.predictions.scaling(way, self.for_temperature)
        summary = self.predictions.summary(way, fitted.scaling, images.pixels)
        record, scores = calibrate_strategy(
            fitted, summary, images.labels, conformal.image_uniforms(images.pixels)
        )  # fmt: skip
        records = {**self.calibration.strategies, DEEP_ENSEMBLE: record}
        self.calibration = self.calibration.model_copy(update={"strategies": records})
        self.scores = CalibrationScores(images.labels, {**self.scores.strategies, DEEP_ENSEMBLE: scores})

    def report(self) -> ModelReport:
        """The model's part of the report."""
        card, calibration = self.subject.bundle.card, self.calibration
        sampled = any(name in strategies.SAMPLING_STRATEGIES for name in self.ways)
        edges = self._score_edges()
        costs = self.predictions.costs(self.ways, self.test.pixels)
        shown = examples.Examples(
            self.test, self.summaries[self.default], self._several(self.default), self._sets(), card.classes
        )
        return ModelReport(
            name=card.name,
            version=self.subject.bundle.version,
            network=card.network.name,
            parameters=card.network.parameters,
            training=card.training,
            calibration="fitted for this report" if self.subject.fitted else "stored",
            calibration_images=calibration.images,
            default=self.default,
            strategies={name: self._strategy(name, costs[name]) for name in self.ways},
            differences=tuple(evaluate.differences(self.measured, "weight_scaling")),
            best=evaluate.best(self.measured),
            sampling=tuple(self._sampling()),
            interpretation=interpretation(
                self.subject.bundle, self.for_temperature, self.test, weights=self.weights,
                cache=self.predictions.cache, on_images=self.predictions.on_images,
            )
            if sampled
            else None,
            outliers={name: self._outliers(pixels, edges) for name, pixels in self.material.outliers.items()},
            score_edges={score: tuple(values.tolist()) for score, values in edges.items()},
            test_histogram={name: self._histograms(name, summary, edges) for name, summary in self.summaries.items()},
            shifts=tuple(self._shifts()),
            classes=tuple(examples.class_rows(shown)),
            gallery=examples.galleries(shown, self.material.names),
        )  # fmt: skip

    def _several(self, name: str) -> bool:
        return self.predictions.strategy(self.ways[name]).members > 1

    def _scores_of(self, name: str) -> tuple[Score, ...]:
        return SCORES if self._several(name) else SCORES[:2]

    def _strategy(self, name: str, cost: Cost) -> StrategySection:
        way, summary, labels = self.ways[name], self.summaries[name], self.test.labels
        strategy = self.predictions.strategy(way)
        sampled = name in strategies.SAMPLING_STRATEGIES
        errors = summary.mean.argmax(1) != labels
        raw = self.predictions.summary(way, UNSCALED, self.test.pixels)
        record = self.calibration.strategies.get(name)
        stored = self.scores.strategies.get(name)
        uniforms = conformal.image_uniforms(self.test.pixels)
        return StrategySection(
            samples=strategy.samples,
            seed=way.seed if sampled else None,
            design=way.design if sampled else None,
            temperature=self.scaling(name).temperature,
            order=self.scaling(name).order,
            cross_validated_nll=record.cross_validated_nll if record else {},
            raw=evaluate.quality(raw.mean, labels, self.weights),
            calibrated=evaluate.quality(summary.mean, labels, self.weights),
            ranking={
                score: evaluate.rank(evaluate.score(summary, score), errors, self.weights)
                for score in self._scores_of(name)
            },
            spread=self._spread(way) if sampled else None,
            conformal=evaluate.conformal_rows(
                summary, labels, uniforms, scores=stored, calibration_labels=self.scores.labels,
                classes=self.subject.bundle.card.classes,
            )
            if stored
            else (),
            abstention=evaluate.abstention_rows(summary, labels, record.abstention) if record else (),
            cost=cost,
        )  # fmt: skip

    def _spread(self, way: Way) -> Spread:
        found: dict[str, list[Tensor]] = {"accuracy": [], "nll": [], "ece": []}
        for other in _other_seeds(way):
            mean = self.predictions.summary(other, self.scaling(way.strategy), self.test.pixels).mean
            found["accuracy"].append(metrics.accuracy(mean, self.test.labels))
            found["nll"].append(metrics.negative_log_likelihood(mean, self.test.labels))
            found["ece"].append(metrics.expected_calibration_error(mean, self.test.labels))
        values = {name: torch.stack(list_of) for name, list_of in found.items()}
        return Spread(seeds=SEEDS, **{name: (float(v.mean()), float(v.std())) for name, v in values.items()})

    def _sampling(self) -> Iterator[SamplingRow]:
        labels = self.test.labels
        for way in _variations(self.subject):
            scaling = self.predictions.pooled_temperature(way, self.for_temperature)
            raw = self.predictions.summary(way, UNSCALED, self.test.pixels).mean
            mean = self.predictions.summary(way, scaling, self.test.pixels).mean
            yield SamplingRow(
                strategy=way.strategy,
                samples=way.samples,
                design=way.design,
                temperature=scaling.temperature,
                accuracy=float(metrics.accuracy(mean, labels)),
                raw_nll=float(metrics.negative_log_likelihood(raw, labels)),
                raw_ece=float(metrics.expected_calibration_error(raw, labels)),
                nll=float(metrics.negative_log_likelihood(mean, labels)),
                ece=float(metrics.expected_calibration_error(mean, labels)),
            )

    def _score_edges(self) -> dict[Score, Tensor]:
        entropy = torch.log(torch.tensor(len(self.subject.bundle.card.classes), dtype=torch.float64))
        most = {"confidence": torch.tensor(1.0), "total": entropy, "epistemic": entropy / 2}
        return {score: torch.linspace(0, 1, SCORE_BINS + 1, dtype=torch.float64) * most[score] for score in SCORES}

    def _histograms(
        self, name: str, summary: PredictiveSummary, edges: Mapping[Score, Tensor]
    ) -> dict[Score, tuple[int, ...]]:
        found: dict[Score, tuple[int, ...]] = {}
        for score in self._scores_of(name):
            values = evaluate.score(summary, score).double().clamp(0, float(edges[score][-1]))
            found[score] = tuple(int(count) for count in torch.histogram(values, edges[score]).hist.tolist())
        return found

    def _outliers(self, pixels: Tensor, edges: Mapping[Score, Tensor]) -> OutlierSection:
        weights = self.weights[:OUTLIER_RESAMPLES]
        others = bootstrap_weights(len(pixels), OUTLIER_RESAMPLES, seed=1)
        found = {name: self.predictions.summary(way, self.scaling(name), pixels) for name, way in self.ways.items()}
        detections: dict[str, dict[Score, Detection]] = {name: {} for name in found}
        resampled: dict[tuple[str, Score], Tensor] = {}
        for name, summary in found.items():
            for score in self._scores_of(name):
                own, foreign = evaluate.score(self.summaries[name], score), evaluate.score(summary, score)
                detections[name][score], resampled[name, score] = evaluate.detection(own, foreign, weights, others)
        best = max(resampled, key=lambda pair: detections[pair[0]][pair[1]].auroc.value)
        plain = detections["weight_scaling"]["total"].auroc.value
        gain = detections[best[0]][best[1]].auroc.value - plain
        low, high = interval(gain, resampled[best] - resampled["weight_scaling", "total"])
        return OutlierSection(
            images=len(pixels),
            detection=detections,
            best=best,
            gain=Estimate(value=gain, low=low, high=high),
            histogram={name: self._histograms(name, summary, edges) for name, summary in found.items()},
            novelty=None
            if self._distance is None
            else evaluate.detection(self._distance(self.test.pixels), self._distance(pixels), weights, others)[0],
        )

    def _shifted(self) -> Iterator[tuple[str, int, float, Tensor]]:
        """Each shift, its severity and its amount, with the first test images so shifted."""
        test, inputs = self.test.pixels[:SHIFT_IMAGES], self.material.inputs
        places = [(ROTATION, 0, float(angle)) for angle in _angles(self.material)]
        places += [
            (kind, severity, float(amount))
            for kind, amounts in shifts.applicable(inputs.shape).items()
            for severity, amount in enumerate(amounts, start=1)
        ]
        for kind, severity, amount in places:
            if kind == ROTATION:
                yield kind, severity, amount, shifts.rotate(test, amount)
            else:
                yield kind, severity, amount, shifts.shift(test, kind, severity, maximum=inputs.maximum)

    def _shifts(self) -> Iterator[ShiftRow]:
        test = self.test[slice(0, SHIFT_IMAGES)]
        for kind, severity, amount, pixels in self._shifted():
            for name, way in self.ways.items():
                summary, several = self.predictions.summary(way, self.scaling(name), pixels), self._several(name)
                yield ShiftRow(
                    shift=kind,
                    severity=severity,
                    amount=amount,
                    strategy=name,
                    accuracy=float(metrics.accuracy(summary.mean, test.labels)),
                    confidence=float(summary.mean.amax(1).mean()),
                    nll=float(metrics.negative_log_likelihood(summary.mean, test.labels)),
                    ece=float(metrics.expected_calibration_error(summary.mean, test.labels)),
                    total=float(summary.predictive_entropy.mean()),
                    aleatoric=float(summary.expected_entropy.mean()) if several else None,
                    epistemic=float(summary.mutual_information.mean()) if several else None,
                )

    def _sets(self) -> Tensor | None:
        """The default strategy's APS sets of the test images; ``None`` if its calibration has no scores."""
        if self.default not in self.scores.strategies:
            return None
        mean, stored = self.summaries[self.default].mean, self.scores.strategies[self.default].nonconformity["aps"]
        tested = conformal.nonconformity(mean, "aps", conformal.image_uniforms(self.test.pixels))
        return conformal.prediction_sets(tested, conformal.threshold(stored, SET_COVERAGE))
