"""What networks are measured on: Fashion-MNIST, or the images of one that was trained elsewhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from torch import Tensor

from models.bundle import Bundle
from models.records import Card, InputRecord
from training import data, outliers, own_images
from training.data import DataError, FashionMNISTSplits, LabelledImages

__all__ = ["Material", "check_apart", "check_calibrated_on", "fashion", "own"]

SHARED = 0.01
"""Fraction of the smaller of two sets of images that may be in the other too: data may hold some images twice."""


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

    Raises :class:`~training.data.DataError` if something can't be read, and if images of one set are in another.
    """
    tested, names = own_images.read_labelled(test, card)
    for_calibration, _ = own_images.read_labelled(calibration, card)
    sets, trained = [(test, tested), (calibration, for_calibration)], None
    if train is not None:
        trained, _ = own_images.read_labelled(train, card)
        sets.append((train, trained))
    check_apart(*sets)
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
        calibration=for_calibration, train=trained,
        outliers=_cut(_read_foreign(foreign, card.input, noise) | noise, images), missing=missing, splits=None,
    )  # fmt: skip


def check_calibrated_on(bundle: Bundle, images: LabelledImages) -> None:
    """Raise :class:`~training.data.DataError` if ``bundle`` is calibrated, and was on other images than these."""
    if bundle.calibration is not None and bundle.calibration.images_sha256 != own_images.digest(images):
        raise DataError(
            f"{bundle.card.name} was calibrated on {bundle.calibration.images} other images than the {len(images)} for "
            "calibration: name those, or calibrate it on these with `python -m calibration fit`"
        )


def check_apart(*sets: tuple[Path, LabelledImages]) -> None:
    """Raise :class:`~training.data.DataError` if images of one set are in another; each with where it was read from."""
    hashes = [(path, own_images.content_hashes(images.pixels)) for path, images in sets]
    for (first, own), (second, others) in combinations(hashes, 2):
        known = set(others)
        shared = sum(each in known for each in own)
        if shared > SHARED * min(len(own), len(others)):
            raise DataError(
                f"{shared} of the {len(own)} images in {first} are in {second} too: what is learnt from images says "
                "nothing of others if it is measured on them. Put each image into one of the two"
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
