"""The README's figures of the benchmarks, drawn from their results alone."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibration.report.figures import drawing, panel

__all__ = ["error_by_samples", "time_by_batch"]

DESIGN_COLOURS = {
    "independent": "#bb5566", "antithetic": "#ddaa33", "latin_hypercube": "#88bbdd", "orthogonal": "#004488"
}  # fmt: skip
ENGINE_COLOUR, PASS_COLOUR = "#004488", "#777777"
PEER_COLOURS = {
    "loop": "#bb5566", "torch-uncertainty": "#ddaa33", "Baal": "#228833", "pytorch-ood": "#aa3377"
}  # fmt: skip


def error_by_samples(rows: list[dict[str, Any]]) -> bytes:
    """Root mean square error of the predictive mean against the number of sub-networks, a line for each design."""

    def draw(axes: Axes) -> None:
        for design, colour in DESIGN_COLOURS.items():
            points = [
                (row["samples"], row["squared_error"] ** 0.5)
                for row in rows
                if row["design"] == design and not row["one_block"]
            ]
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=design.replace("_", " "), markersize=4)
        _log(axes, [16, 32, 64, 128, 256, 1024])
        axes.set_yticks([0.001, 0.002, 0.005, 0.01, 0.02], ["0.001", "0.002", "0.005", "0.01", "0.02"])
        axes.set(xlabel="sub-networks", ylabel="error of the predictive mean (RMS)")
        axes.legend(frameon=False)

    return panel("error", "", draw, width=6.4, height=4.2).png


def time_by_batch(rows: list[dict[str, Any]]) -> bytes:
    """Milliseconds for 64 sub-networks against the batch on two threads: the engine, its peers, one plain pass."""
    networks = list(dict.fromkeys(row["network"] for row in rows))

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(networks), squeeze=False)[0]
        for axes, network in zip(panels, networks, strict=True):
            own = [row for row in rows if row["network"] == network and row["threads"] == 2]
            batches = sorted({row["batch"] for row in own})
            for name in dict.fromkeys(row["engine"] for row in own):
                points = sorted((row["batch"], row["milliseconds"]) for row in own if row["engine"] == name)
                library = name.removesuffix(", loop")
                colour = PEER_COLOURS.get(library, PASS_COLOUR)
                style = {"color": colour, "linestyle": ":" if name.endswith(", loop") else "-", "linewidth": 1.5}
                label = name
                if name == "engine":
                    style = {"color": ENGINE_COLOUR, "linestyle": "-", "linewidth": 3}
                elif name == "deterministic":
                    label, style["linestyle"] = "one deterministic pass", "--"
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label, **style)
            _log(axes, batches)
            axes.set(xlabel="images at once", title=network)
        panels[0].set_ylabel("milliseconds")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)

    return drawing("time", "", draw, width=10, height=4.4).png


def _log(axes: Axes, ticks: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.2)
