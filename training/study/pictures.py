"""The figures of a study's report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from calibration.report.figures import INK, Picture, drawing, panel, slug
from training.study.schema import ConfigurationResult, Interval, Measure, RunResult, Study

__all__ = ["Grid", "curves", "families", "forest", "grids", "heat_maps", "size_pictures", "sizes"]

COLOURS = ("#555555", "#4477aa", "#bb5566", "#228833", "#ccbb44", "#aa3377", "#66ccee")
WEIGHT_SCALING, MC = "#4477aa", "#bb5566"
MOST_CURVES = 6
SHADES = LinearSegmentedColormap.from_list("shades", ["#f2f6fa", "#0a3a6b"])
WHITE = 0.45
"""Share of the darkest shade from which on white text is read better."""
FRAME = "#ddaa33"


def families(study: Study) -> dict[str, list[ConfigurationResult]]:
    """The results by group, those that they are compared with first; results without runs are left out."""
    by_name = {result.configuration.name: result for result in study.results if result.runs}
    groups: dict[str, list[ConfigurationResult]] = {}
    for result in by_name.values():
        own = groups.setdefault(result.configuration.group, [])
        baseline = by_name.get(result.configuration.baseline or "")
        if baseline is not None and baseline not in own:
            own.insert(0, baseline)
        if result not in own:
            own.append(result)
    # A baseline alone, without a group, is shown with each group that is compared with it.
    return {name: own for name, own in groups.items() if len(own) > 1 or len(groups) == 1}


def forest(study: Study) -> Picture | None:
    """Differences to the baseline with their intervals; none without a baseline."""
    rows = [result for result in study.results if result.differences]
    if not rows:
        return None

    def draw(measure: Measure, sampled: Measure, scale: float, label: str) -> Callable[[Figure], None]:
        def on(figure: Figure) -> None:
            axes = figure.subplots()
            axes.axvline(0, color=INK, linewidth=0.8)
            series: tuple[tuple[Measure, str, str, str, float], ...] = (
                (measure, "weight scaling", WEIGHT_SCALING, "o", -0.14), (sampled, "MC dropout", MC, "s", 0.14)
            )  # fmt: skip
            for name, legend, colour, marker, shift in series:
                points = [(index, row.differences[name]) for index, row in enumerate(rows) if _has(row, name)]
                for index, found in points:
                    if found.low is not None and found.high is not None:
                        axes.plot([scale * found.low, scale * found.high], [index + shift] * 2, color=colour)
                axes.plot(
                    [scale * found.mean for _, found in points], [index + shift for index, _ in points], marker,
                    color=colour, label=legend, markersize=4.5,
                )  # fmt: skip
            axes.set_yticks(range(len(rows)), [row.configuration.name for row in rows])
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.grid(axis="x", alpha=0.25)
            axes.set_xlabel(label)
            figure.legend(loc="outside upper center", ncols=2)

        return on

    height = 1.3 + 0.3 * len(rows)
    return Picture(
        "Difference to the baseline, paired by seed, with 95 % intervals of Student's t. MC dropout of a configuration "
        "is compared with the baseline as it answers: sampled too if it has dropout, else as it is.",
        (
            drawing(
                "forest-accuracy", "Differences of the test accuracy to the baseline, in percentage points",
                draw("test_accuracy", "mc_accuracy", 100, "test accuracy, percentage points"), width=6, height=height,
            ),
            drawing(
                "forest-nll", "Differences of the test NLL to the baseline, in nats",
                draw("test_loss", "mc_nll", 1, "test NLL, nats (less is better)"), width=6, height=height,
            ),
        ),
    )  # fmt: skip


def _has(row: ConfigurationResult, measure: Measure) -> bool:
    sampled = measure.startswith("mc_")
    return measure in row.differences and (not sampled or measure in row.means)


def curves(study: Study) -> dict[str, Picture]:
    """By group: loss and accuracy over the epochs, train and validation."""
    pictures = {}
    for group, results in families(study).items():
        shown = _selected(results)
        rest = len(results) - len(shown)
        caption = (
            "Mean over the seeds, from the least to the greatest of them shaded. Dashed: on the training images while "
            "training, dropout and noise on; solid: on the validation images, both off."
        )
        if rest:
            caption += f" {rest} more are left out: shown are the baseline and the {MOST_CURVES - 1} of least test NLL."
        panels = tuple(
            panel(
                f"curves-{slug(group or study.name)}-{what}",
                f"{what} over epochs of {', '.join(result.configuration.name for result in shown)}",
                _curve(shown, what),
                width=5.6,
                height=4.2,
            )
            for what in ("loss", "accuracy")
        )
        pictures[group] = Picture(caption, panels)
    return pictures


def _selected(results: Sequence[ConfigurationResult]) -> list[ConfigurationResult]:
    if len(results) <= MOST_CURVES:
        return list(results)
    best = sorted(results[1:], key=lambda result: result.means["test_loss"].mean)[: MOST_CURVES - 1]
    return [results[0], *(result for result in results[1:] if result in best)]


def _curve(results: Sequence[ConfigurationResult], what: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        tops = []
        for colour, result in zip(COLOURS, results, strict=False):
            for part, style in (("train", "--"), ("validation", "-")):
                table = _over_epochs(result.runs, f"{part}_{what}")
                epochs = np.arange(1, table.shape[1] + 1)
                mean = np.nanmean(table, 0)
                label = result.configuration.name if part == "validation" else None
                axes.plot(epochs, mean, style, color=colour, label=label, linewidth=1.4)
                if len(result.runs) > 1:
                    axes.fill_between(
                        epochs, np.nanmin(table, 0), np.nanmax(table, 0), color=colour, alpha=0.15, linewidth=0
                    )
                tops.append(np.nanmax(table[:, 1:]) if table.shape[1] > 1 else np.nanmax(table))
        axes.set(xlabel="epoch", ylabel="loss (nats)" if what == "loss" else "accuracy")
        if what == "loss":
            # The first epoch's may be so high that nothing could be told of the others.
            axes.set_ylim(0, 1.1 * max(tops))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.legend()

    return draw


def _over_epochs(runs: Sequence[RunResult], field: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    longest = max(len(run.history) for run in runs)
    table = np.full((len(runs), longest), np.nan)
    for row, run in zip(table, runs, strict=True):
        row[: len(run.history)] = [getattr(record, field) for record in run.history]
    # What stopped early has no later figures; columns without any would only warn.
    return table[:, ~np.isnan(table).all(0)]


@dataclass(frozen=True)
class Grid:
    """Results of equal learning rate by their rates of input and hidden dropout, ``cells[input, hidden]``."""

    learning_rate: float
    inputs: tuple[float, ...]
    hidden: tuple[float, ...]
    cells: dict[tuple[float, float], ConfigurationResult]


def grids(study: Study) -> list[Grid]:
    """One for each learning rate whose results cover every pair of two or more rates of either kind."""
    found: dict[float, dict[tuple[float, float], ConfigurationResult]] = {}
    for result in study.results:
        rates = result.configuration.arguments.get("dropout")
        if result.runs and isinstance(rates, list) and len(rates) > 1 and len(set(rates[1:])) == 1:
            cells = found.setdefault(result.configuration.recipe.learning_rate, {})
            cells[float(rates[0]), float(rates[1])] = result
    made = []
    for learning_rate, cells in sorted(found.items()):
        inputs, hidden = (tuple(sorted({pair[axis] for pair in cells})) for axis in (0, 1))
        if len(inputs) > 1 and len(hidden) > 1 and len(cells) == len(inputs) * len(hidden):
            made.append(Grid(learning_rate, inputs, hidden, cells))
    return made


def heat_maps(study: Study) -> Picture | None:
    found = grids(study)
    if not found:
        return None
    measures: tuple[tuple[Measure, str, float, int], ...] = (
        ("test_accuracy", "test accuracy (%)", 100, 2), ("test_loss", "test NLL (nats)", 1, 3),
        ("mc_nll", "test NLL by MC dropout (nats)", 1, 3),
    )  # fmt: skip
    panels = tuple(
        panel(
            f"rates-{measure.replace('_', '-')}-{slug(str(grid.learning_rate))}",
            f"{label} by rates of input and hidden dropout, learning rate {grid.learning_rate}",
            _heat_map(grid, measure, f"{label}, learning rate {grid.learning_rate}", (scale, digits)),
        )
        for measure, label, scale, digits in measures
        for grid in found
    )
    return Picture(
        "Mean over the seeds; darker is better, and the best is framed. Without dropout there is nothing to sample.",
        panels,
    )


def _heat_map(grid: Grid, measure: Measure, title: str, form: tuple[float, int]) -> Callable[[Axes], None]:
    scale, digits = form
    values = np.full((len(grid.inputs), len(grid.hidden)), np.nan)
    for row, first in enumerate(grid.inputs):
        for column, second in enumerate(grid.hidden):
            if mean := grid.cells[first, second].means.get(measure):
                values[row, column] = mean.mean
    goodness = values if measure == "test_accuracy" else -values
    span = np.nanmax(goodness) - np.nanmin(goodness) or 1.0
    # Most differences are far smaller than that to the worst cell, which would leave them one shade.
    shares = ((goodness - np.nanmin(goodness)) / span) ** 3

    def draw(axes: Axes) -> None:
        axes.imshow(shares, cmap=SHADES, vmin=0, vmax=1, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            if np.isnan(share):
                continue
            text = f"{scale * values[row, column]:.{digits}f}"
            axes.text(column, row, text, ha="center", va="center", color="#ffffff" if share > WHITE else "#111111")
            if share == 1:
                axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor=FRAME, lw=2.5))
        axes.set_xlim(-0.5, len(grid.hidden) - 0.5)
        axes.set_ylim(-0.5, len(grid.inputs) - 0.5)  # The lowest rates at the bottom.
        axes.set_xticks(range(len(grid.hidden)), [f"{rate:g}" for rate in grid.hidden])
        axes.set_yticks(range(len(grid.inputs)), [f"{rate:g}" for rate in grid.inputs])
        axes.set(xlabel="rate of hidden dropout", ylabel="rate of input dropout", title=title)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)

    return draw


def sizes(study: Study) -> list[tuple[ConfigurationResult, ConfigurationResult]]:
    """Baseline and the one compared with it, by the number of training images, if there are three or more numbers and
    one pair for each."""
    by_name = {result.configuration.name: result for result in study.results}
    pairs = [
        (by_name[result.configuration.baseline], result)
        for result in study.results
        if result.configuration.baseline and result.differences
    ]
    counts = [result.configuration.train_images for _, result in pairs]
    if len(set(counts)) < 3 or len(set(counts)) < len(counts):
        return []
    return sorted(pairs, key=lambda pair: pair[1].configuration.train_images)


def size_pictures(study: Study) -> Picture | None:
    pairs = sizes(study)
    if not pairs:
        return None
    panels = []
    measures: tuple[tuple[Measure, str, float], ...] = (
        ("test_accuracy", "test accuracy (%)", 100), ("test_loss", "test NLL (nats)", 1)
    )  # fmt: skip
    for measure, label, scale in measures:
        name = measure.replace("_", "-")
        panels += [
            panel(f"sizes-{name}", f"{label} by training images", _by_size(pairs, measure, label, scale)),
            panel(
                f"sizes-{name}-difference", f"Difference of the {label} to the baseline by training images",
                _gain_by_size(pairs, measure, label, scale),
            ),
        ]  # fmt: skip
    return Picture("By the number of training images; bars are 95 % intervals of Student's t.", tuple(panels))


def _by_size(
    pairs: Sequence[tuple[ConfigurationResult, ConfigurationResult]], measure: Measure, label: str, scale: float
) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        for side, (colour, name) in enumerate(((COLOURS[0], "baseline"), (WEIGHT_SCALING, "compared"))):
            points = [(pair[side].configuration.train_images, pair[side].means[measure]) for pair in pairs]
            _with_bars(axes, points, scale, colour, name)
        axes.legend()
        _size_axis(axes, pairs, label)

    return draw


def _gain_by_size(
    pairs: Sequence[tuple[ConfigurationResult, ConfigurationResult]], measure: Measure, label: str, scale: float
) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        axes.axhline(0, color=INK, linewidth=0.8)
        points = [(result.configuration.train_images, result.differences[measure]) for _, result in pairs]
        _with_bars(axes, points, scale, WEIGHT_SCALING, None)
        _size_axis(axes, pairs, f"difference of the {label}")

    return draw


def _with_bars(
    axes: Axes, points: Sequence[tuple[int, Interval]], scale: float, colour: str, label: str | None
) -> None:
    for images, found in points:
        if found.low is not None and found.high is not None:
            axes.plot([images] * 2, [scale * found.low, scale * found.high], color=colour, linewidth=1)
    means = [scale * found.mean for _, found in points]
    axes.plot([images for images, _ in points], means, "o-", color=colour, label=label, markersize=4.5)


def _size_axis(axes: Axes, pairs: Sequence[tuple[ConfigurationResult, ConfigurationResult]], label: str) -> None:
    counts = [result.configuration.train_images for _, result in pairs]
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set(xlabel="training images", ylabel=label)
    axes.grid(alpha=0.25)
