"""The notebook's two panels: loss and accuracy over epochs, train and validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.fit import EpochRecord

__all__ = ["save_curves"]

TRAIN, VALIDATION = "#4477aa", "#cc6677"
MARKED_EPOCHS = 30


def save_curves(history: Sequence[EpochRecord], best_epoch: int, title: str, path: Path) -> None:
    """Write the figure to ``path``; its ending chooses the format. ``best_epoch`` is marked by a vertical line."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    epochs = [record.epoch for record in history]
    marked = len(epochs) <= MARKED_EPOCHS
    for axes, measure, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), ("loss (nats)", "accuracy"), strict=True
    ):
        for part, colour, marker in (("train", TRAIN, "o"), ("validation", VALIDATION, "s")):
            values = [getattr(record, f"{part}_{measure}") for record in history]
            axes.plot(epochs, values, "-", marker=marker if marked else "", color=colour, markersize=4, label=part)
        axes.axvline(best_epoch, color="grey", linestyle=":", label="weights kept")
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
