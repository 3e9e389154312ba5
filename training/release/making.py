"""Makes a bundle that ships: trains it and its fellows of other seeds, calibrates and measures it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from calibration.calibrators import calibrate
from models import bundle as bundles
from models import storage
from models.command_line import error_console
from models.records import Recipe
from training import bundling, data
from training.progress import train_with_progress
from training.release.measure import measured
from training.release.presets import Preset

__all__ = ["MakingError", "make"]


class MakingError(Exception):
    """A bundle can't be made; the message says why."""


def make(
    name: str, preset: Preset, out: Path, splits: data.FashionMNISTSplits, sets: Mapping[str, Tensor]
) -> bundles.Bundle:
    """The bundle ``name`` in ``out``, calibrated and with its measured card; in the folder ``ensembles`` beside it, its
    fellows of other seeds. What is trained there already is kept. ``sets`` are images out of distribution.

    Raises :class:`MakingError` if something else is there, or training diverges.
    """
    own = _trained(out / name, name, preset, preset.recipe, splits)
    others = [
        _trained(
            bundling.member_folder(out / "ensembles" / name, seed), f"{name}-seed-{seed}", preset,
            preset.recipe.model_copy(update={"seed": seed}), splits,
        )
        for seed in range(preset.recipe.seed + 1, preset.recipe.seed + preset.seeds)
    ]  # fmt: skip
    with error_console().status(f"Calibrating {name}"):
        calibration, scores = calibrate(own, splits.calibration, train=splits.train)
        own = bundles.save_calibration(own, calibration, scores)
    with error_console().status(f"Measuring {name}"):
        figures = measured(own, others, splits, sets)
    training_metrics = {key: value for key, value in own.card.metrics.items() if key in bundling.METRICS}
    card = own.card.model_copy(update={"metrics": training_metrics | figures, "floors": preset.floors})
    return bundles.save_card(own, card)


def _trained(
    folder: Path, name: str, preset: Preset, recipe: Recipe, splits: data.FashionMNISTSplits
) -> bundles.Bundle:
    """The bundle in ``folder``, trained if it isn't there. Raises :class:`MakingError` if another is."""
    if not folder.exists():
        with storage.new_folder(folder) as temporary:
            trained = train_with_progress(
                temporary, name=name, network_name=preset.network, arguments=preset.arguments, recipe=recipe,
                splits=splits,
            )  # fmt: skip
            if trained.diverged:
                raise MakingError(f"{name}: {trained.diverged}")
    found = bundles.load(folder, calibrated=False)
    network = (found.card.network.name, found.card.network.arguments)
    if network != (preset.network, preset.arguments) or bundling.recipe_of(found.card) != recipe:
        raise MakingError(f"{folder} was made by another recipe; remove it, or name another --out")
    return found
