"""What a study's figures say, in sentences computed from them: none of them is there unless the figures show it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from training.study.pictures import grids, sizes
from training.study.results import interval, measure_of
from training.study.schema import LOWER_IS_BETTER, Interval, Measure, Study

__all__ = ["better", "conclusions", "higher"]

NAMES: dict[Measure, tuple[str, float, int, str]] = {
    "test_accuracy": ("test accuracy", 100, 2, "percentage points"), "test_loss": ("test NLL", 1, 4, "nats"),
    "loss_gap": ("generalisation gap (test minus train loss)", 1, 4, "nats"),
}  # fmt: skip
MOST_NAMED = 8
"""Configurations in one sentence."""
MEANT = 0.002
"""Rise of the validation loss, in nats, that is called overfitting."""


def better(difference: Interval, measure: Measure) -> bool | None:
    """Whether the difference is an improvement; ``None`` if its interval has 0 inside, or there is none."""
    up = higher(difference)
    return None if up is None else up != (measure in LOWER_IS_BETTER)


def higher(difference: Interval) -> bool | None:
    """Whether the difference is above 0; ``None`` if its interval has 0 inside, or there is none."""
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return None
    return difference.mean > 0


def conclusions(study: Study) -> list[str]:
    """In the order of the report."""
    return [
        *_against_the_baseline(study),
        *_gap(study),
        *_overfitting(study),
        *_sampling(study),
        *_detection(study),
        *_sizes(study),
        *_grids(study),
        *_variance_shift(study),
    ]


def _against_the_baseline(study: Study) -> Iterator[str]:
    compared = [result for result in study.results if result.differences]
    if not compared:
        return
    told = [result for result in compared if result.differences["test_accuracy"].low is not None]
    if not told:
        yield "Each configuration was trained once: a second seed is needed to tell a difference from chance."
        return
    measures: tuple[Measure, ...] = ("test_accuracy", "test_loss")
    for measure in measures:
        name, scale, digits, unit = NAMES[measure]
        for verdict, word in ((True, "better"), (False, "worse")):
            found = [result for result in told if better(result.differences[measure], measure) is verdict]
            found.sort(key=lambda result: abs(result.differences[measure].mean), reverse=True)
            if found:
                listed = _listed(
                    f"{result.configuration.name} ({_signed(result.differences[measure], scale, digits)})"
                    for result in found
                )
                yield f"{name[0].upper()}{name[1:]} {word} than the baseline's, in {unit}: {listed}."
        alike = [result for result in told if better(result.differences[measure], measure) is None]
        if alike:
            yield (
                f"Not told apart from the baseline in {name}, at this number of seeds: "
                f"{_listed(result.configuration.name for result in alike)}."
            )
    count = 2 * len(told)
    if count >= 10:
        yield (
            f"Of {count} such comparisons about {count / 20:.0f} would exclude 0 by chance if nothing differed: "
            "single small differences mean little."
        )


def _gap(study: Study) -> Iterator[str]:
    found = [
        result for result in study.results
        if "loss_gap" in result.differences and better(result.differences["loss_gap"], "loss_gap")
    ]  # fmt: skip
    if found:
        most = min(found, key=lambda result: result.differences["loss_gap"].mean)
        _, scale, digits, unit = NAMES["loss_gap"]
        yield (
            f"The generalisation gap (test minus train loss) is smaller than the baseline's with {len(found)} of "
            f"{sum(1 for result in study.results if result.differences)} configurations, most with "
            f"{most.configuration.name} ({_signed(most.differences['loss_gap'], scale, digits)} {unit})."
        )


def _overfitting(study: Study) -> Iterator[str]:
    """Of the baselines."""
    for result in study.results:
        if result.configuration.baseline is not None or not result.runs:
            continue
        name = result.configuration.name
        rises = [
            run.history[-1].validation_loss - min(record.validation_loss for record in run.history)
            for run in result.runs
        ]
        if all(run.epochs_to_best == len(run.history) for run in result.runs):
            yield f"{name} is not overfitting yet: its validation loss is least in the last epoch of every run."
        elif min(rises) > MEANT:
            best = [run.epochs_to_best for run in result.runs]
            when = f"epoch {best[0]}" if len(set(best)) == 1 else f"epochs {min(best)} to {max(best)}"
            yield (
                f"{name} overfits: its validation loss is least after {when}, and at the end "
                f"{sum(rises) / len(rises):.3f} nats higher."
            )


def _sampling(study: Study) -> Iterator[str]:
    """MC dropout against weight scaling of the same network, paired over its runs."""
    pairs: tuple[tuple[Measure, Measure, str], ...] = (("mc_nll", "test_loss", "NLL"), ("mc_ece", "ece", "ECE"))
    for sampled, plain, name in pairs:
        verdicts: dict[bool, list[str]] = {True: [], False: []}
        total = 0
        for result in study.results:
            apart = [
                value - other
                for run in result.runs
                if (value := measure_of(run, sampled)) is not None and (other := measure_of(run, plain)) is not None
            ]
            if len(apart) < 2:
                continue
            total += 1
            verdict = better(interval(apart), sampled)
            if verdict is not None:
                verdicts[verdict].append(result.configuration.name)
        for verdict, word in ((True, "lower (better)"), (False, "higher (worse)")):
            if names := verdicts[verdict]:
                yield (
                    f"MC dropout's {name}, uncalibrated, is {word} than weight scaling's for {len(names)} of {total} "
                    f"configurations with dropout: {_listed(names)}."
                )


def _detection(study: Study) -> Iterator[str]:
    """By the mutual information of MC dropout, against the baseline."""
    for name in dict.fromkeys(name for result in study.results for name in result.detection_differences):
        verdicts: dict[bool, list[str]] = {True: [], False: []}
        for result in study.results:
            found = result.detection_differences.get(name)
            verdict = None if found is None else higher(found)
            if found is not None and verdict is not None:
                verdicts[verdict].append(f"{result.configuration.name} ({_signed(found, 1, 4)})")
        for verdict, word in ((True, "better"), (False, "worse")):
            if names := verdicts[verdict]:
                yield (
                    f"AUROC of {name.replace('_', ' ')} by mutual information {word} than the baseline's: "
                    f"{_listed(names)}."
                )


def _sizes(study: Study) -> Iterator[str]:
    pairs = sizes(study)
    measures: tuple[Measure, ...] = ("test_accuracy", "test_loss")
    for measure in measures if pairs else ():
        name = NAMES[measure][0]
        told = [
            (result.configuration.train_images, better(result.differences[measure], measure)) for _, result in pairs
        ]
        for verdict, word in ((True, "better"), (False, "worse"), (None, "not told apart")):
            found = [f"{images:,}" for images, each in told if each is verdict]
            if found:
                yield f"By size, {name} is {word} beside its baseline with {', '.join(found)} training images."


def _grids(study: Study) -> Iterator[str]:
    measures: tuple[Measure, ...] = ("test_accuracy", "test_loss")
    for grid in grids(study):
        for measure in measures:
            name, scale, digits, _ = NAMES[measure]
            means = {pair: result.means[measure].mean for pair, result in grid.cells.items()}
            first, second = (min if measure in LOWER_IS_BETTER else max)(means, key=means.__getitem__)
            yield (
                f"At learning rate {grid.learning_rate} the best mean {name} is "
                f"{scale * means[first, second]:.{digits}f} {'%' if scale > 1 else 'nats'}, with input dropout "
                f"{first:g} and hidden dropout {second:g}."
            )


def _variance_shift(study: Study) -> Iterator[str]:
    for result in study.results:
        shifts = [value for run in result.runs for value in run.variance_shift.values()]
        if shifts:
            yield (
                f"{result.configuration.name}: the variance that batch norm meets at test time is {min(shifts):.2f} to "
                f"{max(shifts):.2f} times that which it learnt in training (medians over units, by layer and run)."
            )


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = len(found) - MOST_NAMED
    return "; ".join(found[:MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _signed(value: Interval, scale: float, digits: int) -> str:
    return f"{scale * value.mean:+.{digits}f}".replace("-", "−")
