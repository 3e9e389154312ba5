"""The report's figures, drawn from its data alone."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["as_png", "as_svg", "reliability"]

INK = "#010203"
"""Stands for the page's own text colour: :func:`as_svg` replaces it, so that figures follow light and dark."""
STYLE: dict[Any, Any] = {
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
    "svg.fonttype": "none", "svg.hashsalt": "dropout-uncertainty",
}  # fmt: skip
OBSERVED, TOO_MUCH, TOO_LITTLE = "#4477aa", "#ee8866", "#ddcc77"


def as_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element without background that takes the surrounding text colour."""
    with mpl.rc_context(STYLE):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def as_png(figure: Figure) -> bytes:
    """The figure as PNG on white."""
    with mpl.rc_context(STYLE):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def reliability(strategies: dict[str, Any]) -> Figure:
    """Reliability diagrams: a column per strategy; raw above, calibrated below; confidence counts as a strip."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(strategies), 7.6), layout="constrained")
        panels = figure.subplots(
            4, len(strategies), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 0.8, 3, 0.8]
        )
        for column, (name, section) in enumerate(strategies.items()):
            for row, stage in ((0, "raw"), (2, "calibrated")):
                quality = section[stage]
                temperature = "" if stage == "raw" else f", T = {section['temperature']:.2f}"
                _diagram(panels[row, column], quality)
                panels[row, column].set_title(f"{name}\n{stage}{temperature}", fontsize=10)
                _counts(panels[row + 1, column], quality["reliability"])
            panels[3, column].set_xlabel("confidence")
        for row in (0, 2):
            panels[row, 0].set_ylabel("accuracy")
            panels[row + 1, 0].set_ylabel("images")
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return figure


def _diagram(axes: Axes, quality: dict[str, Any]) -> None:
    bins = quality["reliability"]
    filled = [k for k, count in enumerate(bins["count"]) if count]
    width = bins["edges"][1] - bins["edges"][0]
    centres = [bins["edges"][k] + width / 2 for k in filled]
    accuracies = [bins["accuracy"][k] for k in filled]
    gaps = [bins["confidence"][k] - bins["accuracy"][k] for k in filled]
    axes.bar(centres, accuracies, width * 0.92, color=OBSERVED, label="accuracy")
    for sign, colour, label in ((1, TOO_MUCH, "too much confidence"), (-1, TOO_LITTLE, "too little confidence")):
        heights = [gap if gap * sign > 0 else 0.0 for gap in gaps]
        axes.bar(centres, heights, width * 0.36, bottom=accuracies, color=colour, label=label)
    axes.plot([0, 1], [0, 1], linestyle="--", linewidth=1, color=INK, alpha=0.6)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.text(0.04, 0.93, f"ECE {quality['ece']:.3f}", transform=axes.transAxes, fontsize=9)


def _counts(axes: Axes, bins: dict[str, Any]) -> None:
    width = bins["edges"][1] - bins["edges"][0]
    axes.bar([edge + width / 2 for edge in bins["edges"][:-1]], bins["count"], width * 0.92, color=INK, alpha=0.35)
