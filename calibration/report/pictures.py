"""What is drawn of one model, from the report's data alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from calibration.report.conclusions import named
from calibration.report.figures import INK, Panel, Picture, colour, panel, slug
from calibration.report.schema import ModelReport, Reliability, Score
from calibration.report.subnetwork_pictures import members_picture, sizes_picture
from training.shifts import SHIFTS

__all__ = ["model_pictures"]

OBSERVED, TOO_MUCH, TOO_LITTLE = "#4477aa", "#ee8866", "#ddcc77"
OWN, FOREIGN = "#4477aa", "#cc4466"
SCORE_NAMES: dict[Score, str] = {
    "confidence": "1 - confidence", "total": "total uncertainty (nats)", "epistemic": "epistemic uncertainty (nats)"
}  # fmt: skip


def model_pictures(model: ModelReport) -> dict[str, Picture]:
    """By the name of the place that the page has for each."""
    pictures = {
        "reliability": _reliability(model),
        "risk": _risk(model),
        "sets": _sets(model),
        "rotation": _rotation(model),
        "shifts": _shifts(model),
        "outliers": _outliers(model),
    }
    if model.interpretation:
        pictures |= {
            "tradeoff": _tradeoff(model),
            "sizes": sizes_picture(model, model.interpretation),
            "members": members_picture(model, model.interpretation),
        }
    return pictures


def _reliability(model: ModelReport) -> Picture:
    def panels() -> Iterator[Panel]:
        for name, section in model.strategies.items():
            for stage, quality in (("raw", section.raw), ("calibrated", section.calibrated)):
                title, ece = f"{named(name)}, {stage}", f"ECE {quality.ece.value:.4f}"
                yield panel(
                    f"{slug(model.name)}-reliability-{name}-{stage}",
                    f"Reliability diagram of {title}: {ece}, confidence minus accuracy "
                    f"{quality.overconfidence.value:+.3f}",
                    partial(_diagram, bins=quality.reliability, title=title, ece=ece),
                    height=3.6,
                )

    return Picture(
        "Accuracy (wide bars) against confidence, in 15 bins. A calibrated model's bars end on the dashed line: of the "
        "images that it is 80 % sure of, it has 80 % right. The narrow bars lead from a bin's accuracy to its mean "
        "confidence: up where the model is surer than it is right, down where it is right more often than it says. The "
        "steps below show how many images have which confidence.",
        tuple(panels()),
    )


def _diagram(axes: Axes, *, bins: Reliability, title: str, ece: str) -> None:
    filled = [k for k, count in enumerate(bins.count) if count]
    width = bins.edges[1] - bins.edges[0]
    centres = [bins.edges[k] + width / 2 for k in filled]
    accuracies = [bins.accuracy[k] for k in filled]
    gaps = [bins.confidence[k] - bins.accuracy[k] for k in filled]
    axes.bar(centres, accuracies, width * 0.92, color=OBSERVED, label="accuracy")
    for sign, tone, label in ((1, TOO_MUCH, "too much confidence"), (-1, TOO_LITTLE, "too little")):
        heights = [gap if gap * sign > 0 else 0.0 for gap in gaps]
        axes.bar(centres, heights, width * 0.36, bottom=accuracies, color=tone, label=label)
    axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color=INK, alpha=0.6)
    share = 0.24 * np.array(bins.count) / max(bins.count)
    axes.stairs(share - 0.27, bins.edges, baseline=-0.27, fill=True, color=INK, alpha=0.3)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set(xlim=(0, 1), ylim=(-0.27, 1), xlabel="confidence", ylabel="accuracy", yticks=[0, 0.25, 0.5, 0.75, 1])
    axes.set_title(title)
    axes.legend(loc="upper left", title=ece, title_fontsize=9, alignment="left")


def _tradeoff(model: ModelReport) -> Picture:
    many = model.strategies[model.default].cost.many

    def draw(axes: Axes) -> None:
        for name, section in model.strategies.items():
            nll = section.calibrated.nll
            # Where all images have one loss, rounding may leave it outside its interval.
            low, high = max(nll.value - nll.low, 0), max(nll.high - nll.value, 0)
            axes.errorbar(
                [section.cost.among_many], [nll.value], [[low], [high]],
                marker="o", capsize=3, color=colour(name), label=named(name),
            )  # fmt: skip
        axes.set(xscale="log", xlabel=f"milliseconds per image, among {many}", ylabel="NLL, calibrated (nats)")
        axes.margins(x=0.2)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.22), ncols=2)

    costs = ", ".join(f"{named(n)} {s.cost.among_many:.3g} ms" for n, s in model.strategies.items())
    alt = f"Time against loss of each strategy: {costs}"
    return Picture(
        f"What each strategy costs and what it gives: time for an image among {many} against the calibrated NLL with "
        "its interval over images. The intervals are wider than those of paired differences.",
        (panel(f"{slug(model.name)}-tradeoff", alt, draw),),
    )


def _risk(model: ModelReport) -> Picture:
    def draw(axes: Axes, *, score: Score) -> None:
        for name, section in model.strategies.items():
            if score in section.ranking:
                ranking = section.ranking[score]
                label = f"{named(name)} ({1000 * ranking.aurc.value:.1f})"
                axes.plot(range(1, 101), [100 * value for value in ranking.risk], color=colour(name), label=label)
        axes.set(xlabel="coverage: images answered (%)", ylabel="errors among them (%)", title=SCORE_NAMES[score])
        axes.set(xlim=(0, 100), ylim=(0, None))
        axes.legend(loc="upper left", title="strategy (1000 AURC)", title_fontsize=8.5)

    scores: list[Score] = ["confidence"]
    if any("epistemic" in section.ranking for section in model.strategies.values()):
        scores.append("epistemic")
    return Picture(
        "If only the least uncertain images are answered, how many of the answers are wrong: lower is better.",
        tuple(
            panel(
                f"{slug(model.name)}-risk-{score}",
                f"Risk against coverage, images ranked by {SCORE_NAMES[score]}",
                partial(draw, score=score),
            )
            for score in scores
        ),
    )  # fmt: skip


def _sets(model: ModelReport) -> Picture:
    rows = model.strategies[model.default].conformal

    def coverage(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=1, linestyle="--", alpha=0.6)
        for number, method in enumerate(dict.fromkeys(row.method for row in rows)):
            for by_class in (False, True):
                own = [row for row in rows if row.method == method and row.class_conditional == by_class]
                places = np.arange(len(own)) + 0.22 * (number - 1) + 0.07 * by_class
                axes.plot(places, [100 * (row.coverage - row.nominal) for row in own], "ov"[by_class],
                          color=("#4477aa", "#ee8866", "#228833")[number], markersize=6,
                          label=f"{method.upper()}{', by class' if by_class else ''}")  # fmt: skip
        levels = list(dict.fromkeys(row.nominal for row in rows))
        tested = sum(model.strategies[model.default].calibrated.reliability.count)
        for place, level in enumerate(levels):
            chance = 196 * math.sqrt(level * (1 - level) * (1 / tested + 2 / model.calibration_images))
            axes.bar(place, 2 * chance, 0.75, bottom=-chance, color=INK, alpha=0.1)
        axes.set_xticks(range(len(levels)), [f"{100 * level:g} %" for level in levels])
        axes.set(xlabel="nominal coverage", ylabel="coverage - nominal (points)")
        axes.margins(y=0.12)
        axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), columnspacing=1, fontsize=8)

    def size(axes: Axes) -> None:
        for number, method in enumerate(dict.fromkeys(row.method for row in rows)):
            own = [row for row in rows if row.method == method and not row.class_conditional]
            axes.plot([100 * row.coverage for row in own], [row.size for row in own], "o-",
                      color=("#4477aa", "#ee8866", "#228833")[number], label=method.upper())  # fmt: skip
        axes.set(xlabel="coverage (%)", ylabel="classes in a set, on average")
        axes.legend()

    return Picture(
        f"Conformal prediction sets of {named(model.default)}. Left: how far their coverage on the test images is "
        "from nominal, with the range that chance leaves to 95 % of those with one threshold (grey). Right: how many "
        "classes that takes.",
        (
            panel(
                f"{slug(model.name)}-sets-coverage", "Coverage of prediction sets against nominal", coverage, height=3.8
            ),
            panel(f"{slug(model.name)}-sets-size", "Mean size of prediction sets against their coverage", size),
        )
        if rows
        else (),
    )


def _rotation(model: ModelReport) -> Picture:
    def rows(strategy: str) -> list[tuple[float, float, float, float | None, float | None]]:
        return [
            (row.amount, row.accuracy, row.total, row.aleatoric, row.epistemic)
            for row in model.shifts
            if row.shift == "turned" and row.strategy == strategy
        ]

    own = rows(model.default)
    if not own:
        return Picture("", ())
    angles = [row[0] for row in own]

    def split(axes: Axes) -> None:
        parts = [(row[3], row[4]) for row in own]
        if parts[0][0] is None:
            axes.plot(angles, [row[2] for row in own], color=OBSERVED, label="total")
        else:
            axes.stackplot(angles, [part[0] or 0 for part in parts], [part[1] or 0 for part in parts],
                           colors=["#99bbdd", "#ee8866"], labels=["aleatoric", "epistemic"])  # fmt: skip
        axes.set(xlabel="rotation (degrees)", ylabel="uncertainty (nats)", xticks=range(0, 181, 30))
        other = axes.twinx()
        other.plot(angles, [100 * row[1] for row in own], color=INK, linestyle="--", label="accuracy")
        other.set(ylabel="accuracy (%)", ylim=(0, 100))
        other.spines["right"].set_visible(True)
        handles = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
        axes.legend(handles=handles, loc="lower center", ncols=3, bbox_to_anchor=(0.5, 1))

    def epistemic(axes: Axes) -> None:
        for name in model.strategies:
            values = [row[4] for row in rows(name)]
            if values[0] is not None:
                axes.plot(angles, values, color=colour(name), label=named(name))  # type: ignore[arg-type]
        axes.set(xlabel="rotation (degrees)", ylabel="epistemic uncertainty (nats)", xticks=range(0, 181, 30))
        axes.legend(loc="lower center", ncols=2, bbox_to_anchor=(0.5, 1))

    alt = f"Uncertainty and accuracy of {named(model.default)} against rotation"
    panels = [panel(f"{slug(model.name)}-rotation", alt, split)]
    if own[0][4] is not None:
        alt = "Epistemic uncertainty against rotation, by strategy"
        panels.append(panel(f"{slug(model.name)}-rotation-epistemic", alt, epistemic))
    return Picture(
        f"The test images turned. Left: total uncertainty of {named(model.default)}, split into its parts, and "
        "accuracy. Right: the epistemic part of each strategy that has one.",
        tuple(panels),
    )


def _shifts(model: ModelReport) -> Picture:
    kinds = [kind for kind in SHIFTS if any(row.shift == kind for row in model.shifts)]

    def draw(axes: Axes, *, kind: str, measure: str, label: str, scale: float) -> None:
        for name in model.strategies:
            rows = [row for row in model.shifts if row.shift == kind and row.strategy == name]
            values = [scale * getattr(row, measure) for row in rows]
            severities = [row.severity for row in rows]
            axes.plot(severities, values, "o-", markersize=3.5, color=colour(name), label=named(name))
        axes.set(title=kind, xlabel="severity", ylabel=label, xticks=range(1, 6), ylim=(0, None))
        if kind == kinds[0]:
            axes.legend()

    panels = tuple(
        panel(
            f"{slug(model.name)}-shift-{kind}-{measure}",
            f"{label} under {kind} of five severities, by strategy",
            partial(draw, kind=kind, measure=measure, label=label, scale=scale),
            width=3.6,
            height=2.9,
        )
        for kind in kinds
        for measure, label, scale in (("accuracy", "accuracy (%)", 100), ("ece", "ECE", 1))
    )
    return Picture(
        "Test images under shift, at five severities: accuracy, and how far the confidence, calibrated on unshifted "
        "images, is then from it.",
        panels,
    )


def _outliers(model: ModelReport) -> Picture:
    score: Score = "epistemic" if "epistemic" in model.test_histogram[model.default] else "total"
    edges = np.array(model.score_edges[score])

    own = np.array(model.test_histogram[model.default][score], dtype=float)

    def draw(axes: Axes, *, name: str, title: str) -> None:
        other = np.array(model.outliers[name].histogram[model.default][score], dtype=float)
        last = max(int(np.nonzero(other + own)[0].max()) + 1, 2)
        for values, tone, label in ((own, OWN, "test images"), (other, FOREIGN, "others")):
            shares = (values / values.sum())[:last]
            axes.stairs(shares, edges[: last + 1], fill=True, alpha=0.5, color=tone, label=label)
        axes.set(yscale="log", xlabel=SCORE_NAMES[score], ylabel="share of images", title=title)
        axes.legend()

    def panels() -> Iterator[Panel]:
        for name, section in model.outliers.items():
            title = f"{named(name)}: AUROC {section.detection[model.default][score].auroc.value:.3f}"
            yield panel(
                f"{slug(model.name)}-outliers-{name}",
                f"Histograms of {SCORE_NAMES[score]}, test images and {title}",
                partial(draw, name=name, title=title),
                width=3.6,
                height=2.9,
            )

    return Picture(
        f"Images out of distribution beside the test images, by {SCORE_NAMES[score]} of {named(model.default)}. AUROC "
        "is the probability that one of the others has the higher value; shares are on a logarithmic scale.",
        tuple(panels()),
    )
