"""What the figures say, in sentences computed from them: none of them is there unless the figures show it."""

from __future__ import annotations

from collections.abc import Iterator

from calibration.report.evaluate import first_from_which_on
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
    if "mc_dropout" not in model.strategies:
        yield "This network has no active dropout, so that no sub-networks can be sampled."
    if len(model.strategies) == 1:
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
        found = raw.overconfidence
        if found.low <= 0 <= found.high:
            before = "is neither over- nor under-confident on average beyond chance"
        else:
            before = f"is {'over' if found.value > 0 else 'under'}-confident by {abs(found.value):.3f} on average"
        p = "p < 0.01" if calibrated.ece_p_value < 0.01 else f"p = {calibrated.ece_p_value:.3f}"
        chance = f"(a calibrated prediction would have {calibrated.ece_if_calibrated:.4f} on average, {p})"
        verdict = (
            f"That is not distinguishable from perfect calibration {chance}"
            if calibrated.ece_p_value >= CLEARLY
            else f"That is still more than chance explains {chance}; {_worst_bin(section)}"
        )
        yield (
            f"{_with_samples(strategy, section)} {before} before calibration; temperature "
            f"{section.temperature:.2f} takes its ECE from {raw.ece.value:.4f} to {calibrated.ece.value:.4f}. "
            f"{verdict}."
        )


def _worst_bin(section: StrategySection) -> str:
    bins = section.calibrated.reliability
    total = sum(bins.count)
    shares = [
        count * abs(confidence - accuracy) / total
        for count, accuracy, confidence in zip(bins.count, bins.accuracy, bins.confidence, strict=True)
    ]
    worst = max(range(len(shares)), key=shares.__getitem__)
    return (
        f"its largest part, {100 * shares[worst] / sum(shares):.0f} %, comes from the {bins.count[worst]:,} images "
        f"with confidence {bins.edges[worst]:.2f} to {bins.edges[worst + 1]:.2f}, of which "
        f"{100 * bins.accuracy[worst]:.1f} % are right and not {100 * bins.confidence[worst]:.1f} %"
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
    better = first_from_which_on(section.sizes, lambda row: row.difference_accuracy.low > 0)
    yield (
        f"{_against(section.level_accuracy, section.crossing_accuracy, better, whole.samples, 'accurate')} With "
        f"{whole.samples} the difference is {_difference(whole.difference_accuracy, 'accuracy')}. Srivastava et al. "
        "(2014) found that about 50 match weight scaling."
    )
    better = first_from_which_on(section.sizes, lambda row: row.difference_nll.high < 0)
    yield (
        f"{_against(section.level_nll, section.crossing_nll, better, whole.samples, 'good by calibrated NLL')} With "
        f"{whole.samples} the difference is {_difference(whole.difference_nll, 'nll')}."
    )
    geometric, arithmetic = section.kl_geometric.mean, section.kl_arithmetic.mean
    near = "as near to the geometric as to the arithmetic"
    if abs(geometric - arithmetic) > 0.01 * max(geometric, arithmetic):
        near = f"nearer to the {'geometric' if geometric < arithmetic else 'arithmetic'}"
    yield (
        f"Weight scaling is {near} mean of the sub-networks: KL divergence {geometric:.4f} nats from the geometric and "
        f"{arithmetic:.4f} from the arithmetic mean, averaged over images."
    )


def _against(level: int | None, crossing: int | None, better: int | None, most: int, what: str) -> str:
    """From how many sub-networks on their mean is how ``what`` beside weight scaling."""
    if level is None:
        return f"Even {most} sub-networks are significantly less {what} than weight scaling."
    parts = [f"From {level} sub-networks on their mean is not significantly less {what} than weight scaling"]
    if crossing:
        parts.append(f"from {crossing} on at least as {what} on these images")
    if better:
        parts.append(f"from {better} on significantly more so")
    return f"{', '.join(parts)}."


def _outliers(model: ModelReport) -> Iterator[str]:
    scores = {"confidence": "1 − confidence", "total": "total uncertainty", "epistemic": "epistemic uncertainty"}
    for name, section in model.outliers.items():
        strategy, score = section.best
        value = section.detection[strategy][score].auroc.value
        shown = named(name)
        found = (
            f"{shown[0].upper()}{shown[1:]} images against test images: the highest AUROC, {value:.3f}, is that of "
            f"{scores[score]} of {named(strategy)}"
        )
        apart = f" The novelty of the features: {section.novelty.auroc.value:.3f}." if section.novelty else ""
        if section.best == ("weight_scaling", "total"):
            yield f"{found}.{apart}"
            continue
        low, high = (_number(part, 3) for part in (section.gain.low, section.gain.high))
        difference = (
            f"{_number(section.gain.value, 3)} against the entropy of weight scaling (95 % interval {low} to {high})"
        )
        beyond = section.gain.low > 0
        yield f"{found}: {difference}{'' if beyond else ', not distinguishable'}.{apart}"


def _sets(model: ModelReport) -> Iterator[str]:
    rows = [row for row in model.strategies[model.default].conformal if row.probability is not None]
    if not rows:
        return
    # As many looks as rows: Bonferroni's correction.
    off = [row for row in rows if row.probability is not None and row.probability < CLEARLY / len(rows)]
    about = f"The coverage of {named(model.default)}'s prediction sets with one threshold"
    if off:
        which = [f"{row.method.upper()} at {100 * row.nominal:g} % ({100 * row.coverage:.1f} %)" for row in off]
        yield f"{about} is further from nominal than chance explains for {_listed(which)}."
    else:
        yield f"{about} is not further from nominal than chance explains, at any level and by any method."
