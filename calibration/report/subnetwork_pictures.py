"""What is drawn of a network's sub-networks: the report's chapter on the ensemble interpretation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from calibration.report.conclusions import named
from calibration.report.figures import INK, Picture, colour, panel, slug
from calibration.report.schema import EnumerationSection, InterpretationSection, ModelReport

__all__ = ["enumeration_picture", "members_picture", "sizes_picture"]

DESIGN_MARKERS = {"independent": "o", "antithetic": "s", "latin_hypercube": "^", "orthogonal": "D"}


def sizes_picture(model: ModelReport, section: InterpretationSection) -> Picture:
    """Error and loss against the number of sub-networks."""
    sizes = [row.samples for row in section.sizes]

    def accuracy(axes: Axes) -> None:
        values = np.array([100 - 100 * row.accuracy for row in section.sizes])
        spread = np.array([100 * row.accuracy_spread for row in section.sizes])
        axes.fill_between(sizes, values - spread, values + spread, color=colour("mc_dropout"), alpha=0.2, linewidth=0)
        axes.plot(sizes, values, "o-", color=colour("mc_dropout"), markersize=4, label="arithmetic mean")
        geometric = [100 - 100 * row.geometric_accuracy for row in section.sizes]
        axes.plot(sizes, geometric, "s:", color=colour("geometric_mean"), markersize=3, label="geometric mean")
        line = 100 - 100 * section.weight_scaling_accuracy
        axes.axhline(line, color=colour("weight_scaling"), label="weight scaling")
        if section.level_accuracy:
            axes.axvline(section.level_accuracy, color=INK, alpha=0.4, linestyle="--", linewidth=1)
        axes.set(xlabel="sub-networks", ylabel="test error (%)")
        _count_axis(axes, sizes)

    def loss(axes: Axes) -> None:
        axes.plot(sizes, [row.nll for row in section.sizes], "o-", color=colour("mc_dropout"), markersize=4,
                  label="arithmetic mean, calibrated")  # fmt: skip
        axes.plot(sizes, [row.raw_nll for row in section.sizes], "o--", color=colour("mc_dropout"), alpha=0.5,
                  markersize=3, label="arithmetic mean, raw")  # fmt: skip
        axes.plot(sizes, [row.geometric_nll for row in section.sizes], "s:", color=colour("geometric_mean"),
                  markersize=3, label="geometric mean, calibrated")  # fmt: skip
        axes.axhline(section.weight_scaling_nll, color=colour("weight_scaling"), label="weight scaling, calibrated")
        if section.crossing_nll:
            axes.axvline(section.crossing_nll, color=INK, alpha=0.4, linestyle="--", linewidth=1)
        axes.set(xlabel="sub-networks", ylabel="NLL (nats)")
        _count_axis(axes, sizes)

    first, last = section.sizes[0], section.sizes[-1]
    errors = [100 - 100 * value for value in (first.accuracy, last.accuracy, section.weight_scaling_accuracy)]
    fall = "goes from {:.{d}f} with one sub-network to {:.{d}f} with {}; weight scaling has {:.{d}f}"
    return Picture(
        "Left: test error of the mean of independently drawn sub-networks against their number, with the spread over "
        "disjoint sets of them (band); the dashed line, if any, is where it stops to be significantly above weight "
        "scaling (after Srivastava et al. 2014, figure 11). Right: the loss; the dashed line, if any, is where the "
        "calibrated mean of sub-networks is no worse than calibrated weight scaling.",
        (
            panel(
                f"{slug(model.name)}-ensemble-size-error",
                f"Test error in percent {fall.format(errors[0], errors[1], last.samples, errors[2], d=1)}",
                accuracy,
            ),
            panel(
                f"{slug(model.name)}-ensemble-size-loss",
                f"Calibrated loss {fall.format(first.nll, last.nll, last.samples, section.weight_scaling_nll, d=3)}",
                loss,
            ),
        ),
    )


def _count_axis(axes: Axes, counts: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.legend()


def members_picture(model: ModelReport, section: InterpretationSection) -> Picture:
    """Single sub-networks, and the distance of their means from weight scaling."""

    def accuracies(axes: Axes) -> None:
        axes.hist(100 * np.array(section.member_accuracies), bins=30, color=colour("mc_dropout"), alpha=0.6)
        lines = (("mean of all", section.sizes[-1].accuracy, "mc_dropout"),
                 ("weight scaling", section.weight_scaling_accuracy, "weight_scaling"))  # fmt: skip
        for (label, value, strategy), style in zip(lines, ("-", "--"), strict=True):
            axes.axvline(100 * value, color=colour(strategy), linestyle=style, label=label)
        axes.set(xlabel="accuracy of a single sub-network (%)", ylabel="sub-networks")
        axes.legend(loc="upper left")

    def divergences(axes: Axes) -> None:
        edges = [10.0**edge for edge in section.kl_edges]
        for name, label in (("geometric", "geometric mean"), ("arithmetic", "arithmetic mean")):
            tone = colour("geometric_mean" if name == "geometric" else "mc_dropout")
            axes.stairs(section.kl_histogram[name], edges, fill=True, alpha=0.45, color=tone, label=label)
        axes.set(xscale="log", xlabel="KL divergence to weight scaling (nats)", ylabel="images")
        axes.legend(loc="upper left")

    low, _, median, _, high = section.member_accuracy
    return Picture(
        "Left: how many of the sub-networks have which accuracy, each asked alone. Right: how far weight scaling is, "
        "image by image (10⁻⁶ nats or less in the first bar), from the geometric mean of the sub-networks, which it "
        "approximates, and from the arithmetic.",
        (
            panel(f"{slug(model.name)}-sub-networks", f"Single sub-networks have {100 * low:.1f} to {100 * high:.1f} % "
                  f"accuracy, half of them above {100 * median:.1f} %", accuracies),
            panel(f"{slug(model.name)}-divergence", f"Median divergence {section.kl_geometric.median:.2g} nats from "
                  f"the geometric and {section.kl_arithmetic.median:.2g} from the arithmetic mean", divergences),
        ),
    )  # fmt: skip


def enumeration_picture(section: EnumerationSection) -> Picture:
    """Sampling against the truth."""

    def draw(axes: Axes) -> None:
        for design, marker in DESIGN_MARKERS.items():
            rows = [row for row in section.errors if row.design == design]
            axes.plot([row.samples for row in rows], [row.error for row in rows], marker=marker, markersize=5,
                      label=named(design))  # fmt: skip
        rows = [row for row in section.errors if row.design == "independent"]
        sizes = [row.samples for row in rows]
        expected = rows[0].error * np.sqrt(sizes[0] / np.array(sizes))
        axes.plot(sizes, expected, color=INK, alpha=0.5, linestyle="--", linewidth=1, label="1 / √samples")
        axes.set(yscale="log", xlabel="sub-networks sampled", ylabel="error of probabilities (RMS)")
        _count_axis(axes, sizes)

    return Picture(
        "Distance of sampled from exact probabilities, by mask design: the exact ones are those of all sub-networks.",
        (
            panel(
                "enumeration", "Error of sampled probabilities against the number of sub-networks, by mask design", draw
            ),
        ),
    )
