"""What the figures say, in sentences computed from them: none of them is there unless the figures show it."""

from __future__ import annotations

from collections.abc import Iterator

from calibration.report.schema import (
    Difference,
    Estimate,
    InterpretationSection,
    ModelReport,
    Report,
    StrategySection,
)

__all__ = ["conclusions", "model_conclusions", "named"]

MEASURES = {
    "accuracy": (100, "percentage points of accuracy"), "nll": (1, "nats of NLL"), "brier": (1, "of Brier score"),
    "calibration_error": (1, "of squared calibration error"), "aurc": (1, "of AURC"),
}  # fmt: skip
CLEARLY = 0.05
"""Probability below which something is not put down to chance."""


def conclusions(report: Report) -> list[str]:
    """Of several models; none for one."""
    return [
        f"{row.model} against {row.reference}, each by its default strategy: "
        f"{_difference(row.difference, row.measure)}, {_verdict(row.better)}."
        for row in report.model_differences
        if row.measure in {"accuracy", "nll"}
    ]


def model_conclusions(model: ModelReport) -> dict[str, list[str]]:
    """Of one model, by what they are about."""
    chapters = {
        "Which strategy": [*_which_is_best(model), *_against_weight_scaling(model)],
        "The ensemble interpretation": list(_interpretation(model.interpretation)) if model.interpretation else [],
        "Calibration": [*_calibration(model), *_sets(model)],
        "Out of distribution": list(_outliers(model)),
    }
    return {chapter: sentences for chapter, sentences in chapters.items() if sentences}


def named(name: str) -> str:
    """A name from the data as words."""
    return {"mc_dropout": "MC dropout", "mnist": "MNIST"}.get(name, name.replace("_", " "))


def _number(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _difference(found: Estimate, measure: str) -> str:
    scale, unit = MEASURES[measure]
    digits = 2 if measure == "accuracy" else 4
    value, low, high = (_number(scale * part, digits) for part in (found.value, found.low, found.high))
    return f"{value} {unit} (95 % interval {low} to {high})"


def _verdict(better: bool | None) -> str:
    return "not distinguishable" if better is None else "better" if better else "worse"


def _which_is_best(model: ModelReport) -> Iterator[str]:
    if len(model.strategies) == 1:
        yield "This network has no active dropout, so that weight scaling is all that can be measured."
        return
    for measure, label in (("accuracy", "accuracy"), ("nll", "calibrated NLL")):
        winner = model.best[measure]
        if winner:
            yield f"By {label}, {named(winner)} is better than every other strategy."
        else:
            yield f"By {label}, no strategy is better than every other beyond the intervals of the paired differences."


def _against_weight_scaling(model: ModelReport) -> Iterator[str]:
    by_strategy: dict[str, dict[str, Difference]] = {}
    for row in model.differences:
        by_strategy.setdefault(row.strategy, {})[row.measure] = row
    for strategy, rows in by_strategy.items():
        section = model.strategies[strategy]
        plain = model.strategies["weight_scaling"]
        times = section.cost.among_many / plain.cost.among_many
        parts = "; ".join(
            f"{_difference(rows[measure].difference, measure)}, {_verdict(rows[measure].better)}"
            for measure in ("accuracy", "nll")
        )
        worse = [MEASURES[measure][1].split(" of ")[-1].removeprefix("of ") for measure, row in rows.items()
                 if row.better is False]  # fmt: skip
        also = f" It is worse by {_listed(worse)}." if worse else ""
        yield (
            f"{_with_samples(strategy, section)} against weight scaling, both calibrated: {parts}. It takes "
            f"{times:.1f} times as long per image.{also}"
        )


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _with_samples(strategy: str, section: StrategySection) -> str:
    name = named(strategy)
    if strategy == "deep_ensemble":
        return f"The deep ensemble of {section.samples} networks"
    name = name[0].upper() + name[1:]
    return f"{name} with {section.samples} sub-networks" if section.samples > 1 else name


def _calibration(model: ModelReport) -> Iterator[str]:
    for strategy, section in model.strategies.items():
        raw, calibrated = section.raw, section.calibrated
        direction = "over" if raw.overconfidence > 0 else "under"
        sentence = (
            f"{_with_samples(strategy, section)} before calibration is {direction}-confident by "
            f"{abs(raw.overconfidence):.3f} on average; temperature {section.temperature:.2f} takes its ECE from "
            f"{raw.ece.value:.4f} to {calibrated.ece.value:.4f}. "
        )
        p = "p < 0.01" if calibrated.ece_p_value < 0.01 else f"p = {calibrated.ece_p_value:.2f}"
        chance = f"(a calibrated prediction would have {calibrated.ece_if_calibrated:.4f} on average, {p})"
        if calibrated.ece_p_value >= CLEARLY:
            yield f"{sentence}That is not distinguishable from perfect calibration {chance}."
        else:
            yield f"{sentence}That is still more than chance explains {chance}: {_worst_bin(section)}."


def _worst_bin(section: StrategySection) -> str:
    bins = section.calibrated.reliability
    total = sum(bins.count)
    shares = [
        count * abs(confidence - accuracy) / total
        for count, accuracy, confidence in zip(bins.count, bins.accuracy, bins.confidence, strict=True)
    ]
    worst = max(range(len(shares)), key=shares.__getitem__)
    return (
        f"most of it from the {bins.count[worst]:,} images with confidence {bins.edges[worst]:.2f} to "
        f"{bins.edges[worst + 1]:.2f}, of which {100 * bins.accuracy[worst]:.1f} % are right and not "
        f"{100 * bins.confidence[worst]:.1f} %"
    )


def _interpretation(section: InterpretationSection) -> Iterator[str]:
    low, _, median, _, high = section.member_accuracy
    whole = section.sizes[-1]
    yield (
        f"A single sub-network has {100 * median:.1f} % accuracy (median; {100 * low:.1f} to {100 * high:.1f} %), the "
        f"mean of {whole.samples} has {100 * whole.accuracy:.2f} %, weight scaling "
        f"{100 * section.weight_scaling_accuracy:.2f} %. Two sub-networks disagree on "
        f"{100 * section.disagreement:.1f} % of the images."
    )
    reached = section.crossing_accuracy
    if reached:
        first = f"From {reached} sub-networks on their mean is at least as accurate as weight scaling"
    else:
        first = f"Up to {whole.samples} sub-networks their mean is never quite as accurate as weight scaling"
    level = section.level_accuracy
    second = (
        f"; from {level} on it can no longer be told from it"
        if level
        else "; the difference is beyond chance at every size"
    )
    yield f"{first}{second}. Srivastava et al. (2014) found about 50."
    reached = section.crossing_nll
    yield (
        f"By calibrated NLL {reached} sub-networks are enough to be no worse than weight scaling."
        if reached
        else f"By calibrated NLL even {whole.samples} sub-networks are worse than weight scaling."
    )
    geometric, arithmetic = section.kl_geometric.mean, section.kl_arithmetic.mean
    nearer = "geometric" if geometric < arithmetic else "arithmetic"
    yield (
        f"Weight scaling is nearer to the {nearer} mean of the sub-networks: KL divergence {geometric:.4f} nats from "
        f"the geometric and {arithmetic:.4f} from the arithmetic mean, averaged over images."
    )


def _outliers(model: ModelReport) -> Iterator[str]:
    for name, section in model.outliers.items():
        found = [
            (detection.auroc.value, strategy, score)
            for strategy, scores in section.detection.items()
            for score, detection in scores.items()
        ]
        value, strategy, score = max(found)
        plain = section.detection["weight_scaling"]["total"].auroc.value
        scores = {"confidence": "1 - confidence", "total": "total uncertainty", "epistemic": "epistemic uncertainty"}
        shown = named(name)
        yield (
            f"{shown[0].upper()}{shown[1:]} images are told from test images best by {scores[score]} of "
            f"{named(strategy)}: AUROC {value:.3f}, against {plain:.3f} by the entropy of weight scaling."
        )


def _sets(model: ModelReport) -> Iterator[str]:
    rows = [row for row in model.strategies[model.default].conformal if row.probability is not None]
    if not rows:
        return
    off = [row for row in rows if row.probability is not None and row.probability < CLEARLY]
    about = f"The coverage of {named(model.default)}'s prediction sets"
    if off:
        which = _listed(
            [f"{row.method.upper()} at {100 * row.nominal:g} % ({100 * row.coverage:.1f} %)" for row in off]
        )
        yield f"{about} is further from nominal than 95 % of chance for {which}."
    else:
        yield f"{about} is within what chance allows at every level and for every method."
