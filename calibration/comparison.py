"""A quick comparison of ways to use a network at test time, for the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from calibration import metrics, strategies
from calibration.calibrators import halves
from calibration.masks import DEFAULT_DESIGN
from calibration.scaling import fit_scaling
from calibration.strategies import DEFAULT_SAMPLES, DEFAULT_SEED, SAMPLING_STRATEGIES
from models.bundle import Bundle
from models.records import MaskDesign
from training.data import LabelledImages

__all__ = ["Row", "as_table", "compare"]


@dataclass(frozen=True)
class Row:
    """One way: losses in nats before and after its temperature, milliseconds per image among all of them."""

    strategy: str
    samples: int
    temperature: float
    accuracy: float
    raw_nll: float
    raw_ece: float
    nll: float
    ece: float
    milliseconds: float


def compare(
    bundle: Bundle,
    calibration: LabelledImages,
    test: LabelledImages,
    *,
    chosen: Sequence[str] | None = None,
    samples: Sequence[int] | None = None,
    design: MaskDesign | None = None,
    on_start: Callable[[int], object] = lambda _: None,
    on_way: Callable[[], object] = lambda: None,
) -> Iterator[Row]:
    """Each of the ``chosen`` strategies at each number of sub-networks; by default as in the bundle's calibration.

    Temperatures are fitted anew on the first half of the ``calibration`` images. ``on_start`` is told the number of
    ways, ``on_way`` of each one done. Raises what :func:`calibration.strategies.build` raises.
    """
    stored = bundle.calibration
    names = chosen or strategies.applicable(bundle.network, bundle.card.input.shape)
    numbers = samples or (stored.samples if stored else DEFAULT_SAMPLES,)
    ways = [(name, number) for name in names for number in (numbers if name in SAMPLING_STRATEGIES else numbers[:1])]
    on_start(len(ways))
    for_temperature, _ = halves(calibration)
    inputs = bundle.prepare(test.pixels)
    for name, number in ways:
        strategy = strategies.build(
            name, bundle.network, bundle.card.input.shape, samples=number,
            seed=stored.seed if stored else DEFAULT_SEED,
            design=design or (stored.design if stored else DEFAULT_DESIGN),
        )  # fmt: skip
        scaling = fit_scaling(strategy.logits(bundle.prepare(for_temperature.pixels)), for_temperature.labels).scaling
        raw = strategy.summarise(inputs).mean
        started = time.perf_counter()
        mean = strategy.summarise(inputs, scaling).mean
        seconds = time.perf_counter() - started
        yield Row(
            strategy=name,
            samples=strategy.samples,
            temperature=scaling.temperature,
            accuracy=float(metrics.accuracy(mean, test.labels)),
            raw_nll=float(metrics.negative_log_likelihood(raw, test.labels)),
            raw_ece=float(metrics.expected_calibration_error(raw, test.labels)),
            nll=float(metrics.negative_log_likelihood(mean, test.labels)),
            ece=float(metrics.expected_calibration_error(mean, test.labels)),
            milliseconds=1000 * seconds / len(test),
        )
        on_way()


def as_table(name: str, images: int, rows: Sequence[Row]) -> Table:
    """``rows`` for the terminal."""
    title = f"{name}: {images:,} test images; raw, and with a temperature of each one's own"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 0, 0, 1))
    table.add_column("strategy", no_wrap=True)
    for heading in ("nets", "acc. %", "raw NLL", "raw ECE", "temp.", "NLL", "ECE", "ms/image"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.strategy, str(row.samples) if row.samples > 1 else "-", f"{100 * row.accuracy:.2f}",
            f"{row.raw_nll:.4f}", f"{row.raw_ece:.4f}", f"{row.temperature:.3f}", f"{row.nll:.4f}", f"{row.ece:.4f}",
            f"{row.milliseconds:.3f}",
        )  # fmt: skip
    return table
