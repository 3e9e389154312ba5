"""Calibration as the command lines show it."""

from __future__ import annotations

from collections.abc import Callable

from calibration.calibrators import calibrate
from calibration.strategies import Sampling, applicable
from models.bundle import Bundle, CalibrationScores
from models.command_line import progress_bar
from models.records import Calibration
from training.data import LabelledImages

__all__ = ["calibrate_with_progress"]


def calibrate_with_progress(
    bundle: Bundle,
    images: LabelledImages,
    train: LabelledImages | None,
    sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
    *,
    on_no_density: Callable[[str], None],
) -> tuple[Calibration, CalibrationScores]:
    """:func:`calibration.calibrators.calibrate` with a progress bar."""
    with progress_bar("strategies") as progress:
        task = progress.add_task("Calibrating", total=len(applicable(bundle.network, bundle.card.input.shape)))
        return calibrate(
            bundle, images, train=train, samples=sampling.samples, seed=sampling.seed, design=sampling.design,
            on_strategy=lambda _: progress.advance(task), on_no_density=on_no_density,
        )  # fmt: skip
