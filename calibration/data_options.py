"""Options that say what commands measure and calibrate on: Fashion-MNIST, or images of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from calibration import material
from calibration.material import Material
from models.bundle import Bundle
from training import data, own_images
from training.data import LabelledImages

__all__ = ["FASHION", "calibration_images", "measured_data_options", "measured_on", "path_option"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
FASHION = (
    "Folder with the Fashion-MNIST files.  [default: as for `training fit`] For a BUNDLE that was trained elsewhere: "
)
"""Of the help of an option that has another meaning then."""


def path_option(*names: str, text: str, multiple: bool = False) -> Callable[[Decorated], Decorated]:
    """An option that takes a path to what is there."""
    return click.option(*names, type=click.Path(exists=True, path_type=Path), multiple=multiple, help=text)


def measured_data_options(function: Decorated) -> Decorated:
    """``--data`` and ``--calibration-data``, as ``data_path`` and ``calibration_path``."""
    measured = path_option(
        "--data", "data_path", text=f"{FASHION}labelled images to measure on, as `score` takes them."
    )  # fmt: skip
    calibrated = path_option(
        "--calibration-data", "calibration_path",
        text="For a BUNDLE that was trained elsewhere: the labelled images that it was, or is to be, calibrated on.",
    )  # fmt: skip
    return measured(calibrated(function))


def measured_on(
    bundles: Sequence[Bundle], data_path: Path | None, calibration_path: Path | None, *,
    train_path: Path | None = None, foreign: Sequence[Path] = (), images: int | None = None,
) -> Material:  # fmt: skip
    """What the options say, for ``bundles`` to be measured on together.

    Raises :class:`click.ClickException` if they don't fit the bundles or these not each other, and
    :class:`~training.data.DataError` for what can't be read.
    """
    first = bundles[0].card
    elsewhere = [bundle for bundle in bundles if bundle.card.data is None]
    if not elsewhere:
        _refuse_own_images(first.name, data_path, calibration_path or train_path)
        if len({bundle.card.data.split_seed for bundle in bundles if bundle.card.data}) > 1:
            raise click.ClickException(
                "the bundles were trained on different splits of the data, so that no images are new to all of them"
            )
        return material.fashion(_splits(bundles[0], data_path), foreign, images=images)
    if len(elsewhere) < len(bundles):
        raise click.ClickException(
            f"{elsewhere[0].card.name} was trained elsewhere, and others on {data.NAME}: measure each by itself"
        )
    taken = {
        (card.input.shape, card.input.maximum, card.input.light_on_dark, card.classes)
        for card in (bundle.card for bundle in bundles)
    }
    if len(taken) > 1:
        raise click.ClickException("the bundles take other images, or tell other classes: measure each by itself")
    if data_path is None or calibration_path is None:
        raise click.UsageError(
            f"{first.name} was trained elsewhere: name labelled images to measure on with --data, and those for its "
            "calibration with --calibration-data",
            click.get_current_context(),
        )
    found = material.own(first, data_path, calibration_path, train=train_path, foreign=foreign, images=images)
    for bundle in bundles:
        material.check_calibrated_on(bundle, found.calibration)
    return found


def calibration_images(
    bundle: Bundle, path: Path | None, train: Path | None
) -> tuple[LabelledImages, LabelledImages | None]:
    """The images to calibrate ``bundle`` on, and those that it was trained on if they are there.

    Raises as :func:`measured_on`.
    """
    if bundle.card.data is None:
        if path is None:
            raise click.UsageError(
                f"{bundle.card.name} was trained elsewhere: name labelled images for its calibration with --data",
                click.get_current_context(),
            )
        images, _ = own_images.read_labelled(path, bundle.card)
        if train is None:
            return images, None
        trained_on, _ = own_images.read_labelled(train, bundle.card)
        material.check_apart((path, images), (train, trained_on))
        return images, trained_on
    _refuse_own_images(bundle.card.name, path, train)
    splits = _splits(bundle, path)
    return splits.calibration, splits.train


def _refuse_own_images(name: str, path: Path | None, other: Path | None) -> None:
    if other is not None or (path is not None and not path.is_dir()):
        raise click.UsageError(
            f"{name} was trained on {data.NAME}: --data is a folder with its files, and no other images are needed",
            click.get_current_context(),
        )


def _splits(bundle: Bundle, path: Path | None) -> data.FashionMNISTSplits:
    assert bundle.card.data is not None  # noqa: S101  (asked before)
    return data.load(path, split_seed=bundle.card.data.split_seed)
