"""From a recipe to a bundle: trains a network and writes it with its card, history and curves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import bundle, networks, records, storage
from training import data
from training.curves import save_curves
from training.fit import DivergedError, EpochRecord, Fitted, Recipe, evaluate, fit

__all__ = [
    "BUNDLE_FILES",
    "ENSEMBLES",
    "METRICS",
    "Trained",
    "load_ensemble",
    "load_member",
    "member_folder",
    "recipe_of",
    "train",
]

ENSEMBLES = Path("runs/ensembles")
"""Where deep ensembles are, in a folder for each bundle, unless another place is named."""
HISTORY, CURVES = "history.json", "curves.png"
METRICS = ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
"""What :func:`train` writes into the card, of weight scaling before calibration."""
BUNDLE_FILES = (*bundle.FILES, HISTORY, CURVES)
"""What :func:`train` may have written and calibration added, as patterns of names."""


@dataclass(frozen=True)
class Trained:
    """The card, how training went, and the error that ended it early, if the loss diverged after the first epoch."""

    card: records.Card
    fitted: Fitted
    diverged: DivergedError | None


def recipe_of(card: records.Card, seed: int | None = None) -> Recipe:
    """The recipe of a bundle, with another seed if one is given.

    Raises :class:`~models.bundle.BundleError` if it is not known.
    """
    if card.training is None:
        raise bundle.BundleError(f"{card.name} was trained elsewhere: how is not known, so that it can't be done again")
    recipe = card.training.recipe
    return recipe if seed is None else recipe.model_copy(update={"seed": seed})


def load_member(folder: Path, card: records.Card) -> bundle.Bundle:
    """A network trained as that of ``card``, on the same data by the same recipe, but for the seed; or like it in all
    that is known, if both were trained elsewhere.

    Raises :class:`~models.bundle.BundleError` if it is another, or none.
    """
    found = bundle.load(folder, calibrated=False)
    known = ("network", "data", "input", "classes")
    same = all(getattr(found.card, name) == getattr(card, name) for name in known)
    if card.training and found.card.training:
        same = same and recipe_of(found.card) == recipe_of(card, recipe_of(found.card).seed)
    if not same or (card.training is None) != (found.card.training is None):
        raise bundle.BundleError(f"{folder} was not trained as {card.name} was: choose another folder for its ensemble")
    return found


def member_folder(ensemble: Path, seed: int) -> Path:
    """Where :func:`load_ensemble` finds the member of a seed."""
    return ensemble / f"seed-{seed}"


def load_ensemble(folder: Path, card: records.Card) -> tuple[bundle.Bundle, ...]:
    """The members of a deep ensemble in ``folder``; none if there is no such folder.

    Raises what :func:`load_member` raises, so that no other network is taken for one of them.
    """
    members = tuple(load_member(path.parent, card) for path in sorted(folder.glob(f"seed-*/{bundle.CARD}")))
    weights = [card.weights_sha256, *(member.card.weights_sha256 for member in members)]
    if len(set(weights)) < len(weights):
        raise bundle.BundleError(f"{folder} holds the same network twice, or {card.name} itself: that is no ensemble")
    return members


def train(
    folder: Path,
    *,
    name: str,
    network_name: str,
    arguments: Mapping[str, Any],
    recipe: Recipe,
    splits: data.FashionMNISTSplits,
    on_batch: Callable[[int], None] = lambda _: None,
    on_epoch: Callable[[EpochRecord], None] = lambda _: None,
) -> Trained:
    """Train a network, on a GPU if there is one, and write its bundle into ``folder``, which should come from
    :func:`models.storage.new_folder`.

    The test images are looked at once, at the end, for the card. Raises ``ValueError`` for wrong ``arguments`` and
    :class:`~training.fit.DivergedError` if the loss diverges in the first epoch; later the last good weights are kept.
    """
    network = networks.build(network_name, arguments, seed=recipe.seed)
    inputs = records.InputRecord()
    diverged = None
    try:
        fitted = fit(
            network, splits.train, splits.validation, recipe,
            prepare=lambda pixels: bundle.normalise(pixels, inputs), device=_device(), on_batch=on_batch,
            on_epoch=on_epoch,
        )  # fmt: skip
    except DivergedError as error:
        if not error.fitted.history:
            raise
        diverged, fitted = error, error.fitted
    network_record = records.NetworkRecord(
        name=network_name, arguments=dict(arguments), parameters=sum(p.numel() for p in network.parameters())
    )
    card = bundle.write(
        folder, network,
        _card(name, network_record, network, splits=splits, recipe=recipe, fitted=fitted, inputs=inputs),
    )  # fmt: skip
    history = {"recipe": recipe.model_dump(mode="json"), **asdict(fitted)}
    storage.write_text(folder / HISTORY, json.dumps(history, indent=2) + "\n")
    save_curves(fitted.history, fitted.best_epoch, network_name, folder / CURVES)
    return Trained(card, fitted, diverged)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _card(
    name: str, network_record: records.NetworkRecord, network: nn.Module, *, splits: data.FashionMNISTSplits,
    recipe: Recipe, fitted: Fitted, inputs: records.InputRecord,
) -> dict[str, Any]:  # fmt: skip
    best = fitted.history[fitted.best_epoch - 1]
    test_loss, test_accuracy = evaluate(network, bundle.normalise(splits.test.pixels, inputs), splits.test.labels)
    return {
        "name": name,
        "network": network_record,
        "classes": data.CLASSES,
        "input": inputs,
        "training": records.TrainingRecord(
            optimizer="adam", **dict(recipe), epochs_run=len(fitted.history), best_epoch=fitted.best_epoch,
            stopped=fitted.stopped,
        ),
        "data": records.DataRecord(
            name=data.NAME, sha256=data.CHECKSUMS, split_seed=splits.split_seed, train=len(splits.train),
            validation=len(splits.validation), calibration=len(splits.calibration),
        ),
        "metrics": dict(
            zip(METRICS, (best.validation_loss, best.validation_accuracy, test_loss, test_accuracy), strict=True)
        ),
        "versions": bundle.software_versions(),
    }  # fmt: skip
