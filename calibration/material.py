"""What networks are measured on: Fashion-MNIST, or the images of one that was trained elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from calibration.calibrators import halves
from calibration.conformal import image_uniforms
from models.bundle import Bundle
from models.records import Card, InputRecord
from training import data, outliers, own_images
from training.data import DataError, FashionMNISTSplits, LabelledImages

__all__ = ["LEAST_IMAGES", "Material", "check_calibrated_on", "fashion", "own"]

LEAST_IMAGES = 100
"""Of the images measured on, and of those for temperatures: with fewer, intervals say nothing."""
SHARED = 0.01
"""Fraction of the test images that may be among the calibration images: data may hold some images twice."""


@dataclass(frozen=True)
class Material:
    """All images are of ``inputs``' shape and range.

    ``test`` are what is measured on, ``title`` what they are together and ``names`` what each is called, if it is not
    its number. ``calibration`` is for temperatures and thresholds. ``train`` are the images that were trained on,
    ``None`` if they aren't there. ``outliers`` are sets ``[N, *shape]`` by name, ``missing`` what can't be measured,
    with why. ``splits`` is set if all this is of Fashion-MNIST.
    """

    title: str
    inputs: InputRecord
    test: LabelledImages
    names: tuple[str, ...]
    calibration: LabelledImages
    train: LabelledImages | None
    outliers: dict[str, Tensor]
    missing: dict[str, str]
    splits: FashionMNISTSplits | None


def fashion(splits: FashionMNISTSplits, foreign: Sequence[Path] = (), *, images: int | None = None) -> Material:
    """``splits``, with the sets out of distribution that are on this machine and those in ``foreign``, as :func:`own`
    takes them; of the test images and of each set the first ``images`` alone, if a number is given."""
    found = outliers.load_outliers()
    test = splits.test[slice(images)]
    inputs = InputRecord()
    return Material(
        title=f"{data.NAME} test images", inputs=inputs, test=test, names=(), calibration=splits.calibration,
        train=splits.train,
        outliers=_cut(found.sets | _read_foreign(foreign, inputs, found.sets), images), missing=dict(found.missing),
        splits=splits,
    )  # fmt: skip


def own(
    card: Card,
    test: Path,
    calibration: Path,
    *,
    train: Path | None = None,
    foreign: Sequence[Path] = (),
    images: int | None = None,
) -> Material:
    """Images of one's own, for networks that were trained elsewhere and take what ``card`` says: each path is read as
    :func:`training.own_images.read` does, and all but those of ``foreign``, which are out of distribution, must have
    labels. Noise with the calibration images' mean and deviation is added. ``images`` as for :func:`fashion`, of the
    test images in random order.

    Raises :class:`~training.data.DataError` if something can't be read, for fewer than :data:`LEAST_IMAGES`, and if
    test images are among the calibration images.
    """
    tested, names = own_images.read_labelled(test, card)
    for_calibration, _ = own_images.read_labelled(calibration, card)
    for path, found in ((test, tested), (calibration, for_calibration)):
        if len(found) < LEAST_IMAGES:
            raise DataError(f"{path} holds {len(found)} images; at least {LEAST_IMAGES} are needed to measure anything")
    _check_apart(tested, for_calibration, test, calibration)
    pixels = for_calibration.pixels.float()
    noise = outliers.noise_sets(
        card.input, float(pixels.mean()), float(pixels.std()), dtype=tested.pixels.dtype,
        images=min(outliers.NOISE_IMAGES, len(tested)),
    )  # fmt: skip
    missing = {}
    if len(card.input.shape) == 1:
        missing["rotation, blur and occlusion"] = "vectors have no lines and columns"
    return Material(
        title=f"images of {test.name}", inputs=card.input, test=tested[slice(images)], names=names[:images],
        calibration=for_calibration,
        train=None if train is None else own_images.read_labelled(train, card)[0],
        outliers=_cut(_read_foreign(foreign, card.input, noise) | noise, images), missing=missing, splits=None,
    )  # fmt: skip


def check_calibrated_on(bundle: Bundle, images: LabelledImages) -> None:
    """Raise :class:`~training.data.DataError` if ``bundle`` is calibrated, and was on other images than these."""
    if bundle.calibration is None or bundle.scores is None:
        return
    _, for_thresholds = halves(images)
    if bundle.calibration.images != len(images) or not bundle.scores.labels.equal(for_thresholds.labels):
        raise DataError(
            f"{bundle.card.name} was calibrated on {bundle.calibration.images} other images than the {len(images)} for "
            "calibration: name those, or calibrate it on these with `python -m calibration fit`"
        )


def _check_apart(test: LabelledImages, calibration: LabelledImages, *paths: Path) -> None:
    # What is hashed is an image's content.
    shared = int(torch.isin(image_uniforms(test.pixels), image_uniforms(calibration.pixels)).sum())
    if shared > SHARED * len(test):
        raise DataError(
            f"{shared} of the {len(test)} images in {paths[0]} are in {paths[1]} too: what is measured on images that "
            "it was calibrated on says nothing of others. Put each image into one of the two"
        )


def _read_foreign(paths: Sequence[Path], inputs: InputRecord, taken: dict[str, Tensor]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in paths:
        # It becomes part of file names.
        name = re.sub(r"[^\w.-]+", "-", path.absolute().stem)
        if name in found or name in taken:
            raise DataError(f"{path} would be a second set named {name!r}: rename it")
        found[name] = own_images.read(path, None, inputs).pixels
    return found


def _cut(sets: dict[str, Tensor], images: int | None) -> dict[str, Tensor]:
    return {name: pixels[:images] for name, pixels in sets.items()}
