"""A study's table and conclusions as Markdown."""

from __future__ import annotations

from training.study.conclusions import better, conclusions, higher
from training.study.schema import ConfigurationResult, Measure, Study

__all__ = ["summary"]

COLUMNS: tuple[tuple[str, Measure, float, int, bool], ...] = (
    ("test accuracy, %", "test_accuracy", 100, 2, False),
    ("difference", "test_accuracy", 100, 2, True),
    ("test NLL", "test_loss", 1, 4, False),
    ("difference", "test_loss", 1, 4, True),
    ("ECE", "ece", 1, 4, False),
    ("MC NLL", "mc_nll", 1, 4, False),
    ("MC ECE", "mc_ece", 1, 4, False),
    ("gap", "loss_gap", 1, 3, False),
    ("best epoch", "epochs_to_best", 1, 1, False),
)
"""Heading, measure, factor, digits, and whether it is the difference to the baseline."""


def summary(study: Study) -> str:
    """Means over seeds; differences with half the width of their 95 % interval, bold where it excludes 0. Then, if it
    was measured, how well images out of distribution are detected, bold where the difference to the baseline excludes
    0."""
    lines = [
        f"| configuration | {' | '.join(heading for heading, *_ in COLUMNS)} |",
        f"|---|{'---|' * len(COLUMNS)}",
    ]
    for result in study.results:
        cells = [_cell(result, column) for column in COLUMNS]
        lines.append(f"| {result.configuration.name} | {' | '.join(cells)} |")
    sets = list(dict.fromkeys(name for result in study.results for name in result.detection))
    if sets:
        headings = (name.replace("_", " ") for name in sets)
        lines += ["", "AUROC by the mutual information of MC dropout:", ""]
        lines += [f"| configuration | {' | '.join(headings)} |", f"|---|{'---|' * len(sets)}"]
        for result in study.results:
            cells = [_detection(result, name) for name in sets]
            lines.append(f"| {result.configuration.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {sentence}" for sentence in conclusions(study)), ""])


def _cell(result: ConfigurationResult, column: tuple[str, Measure, float, int, bool]) -> str:
    _, measure, scale, digits, apart = column
    found = (result.differences if apart else result.means).get(measure)
    if found is None:
        return ""
    if not apart:
        return f"{scale * found.mean:.{digits}f}".replace("-", "−")
    half = "" if found.high is None else f" ± {scale * (found.high - found.mean):.{digits}f}"
    text = f"{scale * found.mean:+.{digits}f}{half}".replace("-", "−")
    return text if better(found, measure) is None else f"**{text}**"


def _detection(result: ConfigurationResult, name: str) -> str:
    if name not in result.detection:
        return ""
    text = f"{result.detection[name].mean:.4f}"
    apart = result.detection_differences.get(name)
    return text if apart is None or higher(apart) is None else f"**{text}**"
