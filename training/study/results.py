"""From runs to a study: means over seeds, and differences to the baseline, paired by seed."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence

from scipy.stats import t

from models import bundle
from training import data
from training.study.measure import SAMPLES
from training.study.schema import (
    MEASURES,
    Configuration,
    ConfigurationResult,
    Failure,
    Interval,
    Measure,
    Plan,
    RunResult,
    Study,
)

__all__ = ["interval", "measure_of", "summarise", "table"]

LEVEL = 0.95


def measure_of(run: RunResult, measure: Measure) -> float | None:
    """``measure`` of one run; ``None`` where it has none."""
    match measure:
        case "loss_gap":
            return run.test.loss - run.train.loss
        case "accuracy_gap":
            return run.train.accuracy - run.test.accuracy
        case "ece" | "epochs_to_best" | "seconds":
            return float(getattr(run, measure))
        case "mc_accuracy" | "mc_nll" | "mc_ece":
            return float(getattr(run.sampled, measure.removeprefix("mc_"))) if run.sampled else None
    part, _, what = measure.partition("_")
    return float(getattr(getattr(run, part), what))


def interval(values: Sequence[float]) -> Interval:
    """Mean of ``values``, of which there must be one, and the interval of Student's t about it.

    A single value has none.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean=mean, low=None, high=None, runs=1)
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean=mean, low=mean - half, high=mean + half, runs=len(values))


def summarise(plan: Plan, runs: Sequence[RunResult], failures: Sequence[Failure], command: str) -> Study:
    """What ``runs`` of ``plan`` found; ``command`` is the one that made them."""
    by_name = {
        each.name: sorted((run for run in runs if run.name == each.name), key=lambda run: run.seed)
        for each in plan.configurations
    }
    return Study(
        name=plan.name,
        title=plan.title,
        question=plan.question,
        command=command,
        seeds=plan.seeds,
        data=data.CHECKSUMS,
        samples=SAMPLES,
        versions=bundle.software_versions(),
        results=tuple(
            _result(each, by_name[each.name], by_name[each.baseline] if each.baseline else [])
            for each in plan.configurations
        ),
        # In an order of their own, whichever ended first.
        failures=tuple(sorted(failures, key=lambda failure: (failure.name, failure.seed))),
    )


def _result(
    configuration: Configuration, runs: Sequence[RunResult], baseline: Sequence[RunResult]
) -> ConfigurationResult:
    means, differences = {}, {}
    others = {run.seed: run for run in baseline}
    for measure in MEASURES:
        own = [value for run in runs if (value := measure_of(run, measure)) is not None]
        if own:
            means[measure] = interval(own)
        pairs = [
            (measure_of(run, measure), measure_of(others[run.seed], measure)) for run in runs if run.seed in others
        ]
        if measure.startswith("mc_"):
            # A baseline without dropout is what it is, sampled or not.
            plain = _unsampled(measure)
            pairs = [
                (value, other if other is not None else measure_of(others[run.seed], plain))
                for run, (value, other) in zip([run for run in runs if run.seed in others], pairs, strict=True)
            ]
        apart = [value - other for value, other in pairs if value is not None and other is not None]
        if apart:
            differences[measure] = interval(apart)
    both = [(run, others[run.seed]) for run in runs if run.seed in others]
    return ConfigurationResult(
        configuration=configuration,
        parameters=runs[0].parameters if runs else None,
        runs=tuple(runs),
        means=means,
        differences=differences,
        detection={name: interval([_detection(run)[name] for run in runs]) for name in _detected(runs)},
        detection_differences={
            name: interval([_detection(run)[name] - _detection(other)[name] for run, other in both])
            for name in _detected([run for pair in both for run in pair])
        },
    )


def _detection(run: RunResult) -> dict[str, float]:
    return run.sampled.detection if run.sampled else {}


def _detected(runs: Sequence[RunResult]) -> list[str]:
    """The sets that each of ``runs`` has an AUROC of."""
    return [name for name in _detection(runs[0]) if all(name in _detection(run) for run in runs)] if runs else []


def _unsampled(measure: Measure) -> Measure:
    """What a sampled measure is where nothing is sampled."""
    match measure:
        case "mc_nll":
            return "test_loss"
        case "mc_accuracy":
            return "test_accuracy"
        case _:
            return "ece"


def table(study: Study) -> str:
    """Every run as a line of CSV, with all measures; empty where a run has none."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["group", "name", "network", "train_images", "seed", "parameters", "stopped", "kept_epoch", *MEASURES, "key"]
    )
    for result in study.results:
        own = result.configuration
        for run in result.runs:
            measures = [measure_of(run, measure) for measure in MEASURES]
            writer.writerow(
                [
                    own.group, own.name, own.network, own.train_images, run.seed, run.parameters, run.stopped,
                    run.kept_epoch, *("" if value is None else value for value in measures), run.key,
                ]
            )  # fmt: skip
    return buffer.getvalue()
