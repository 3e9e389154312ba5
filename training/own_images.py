"""A user's own images as a whole: pictures or arrays, with labels if they have any."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.records import Card, InputRecord
from training import pieces
from training.data import DataError, LabelledImages
from training.pieces import OwnImages

__all__ = ["LEAST_LABELLED", "content_hashes", "digest", "read", "read_labelled"]

LEAST_LABELLED = 100
"""With fewer, neither a temperature nor an interval says anything."""


def read(
    path: Path,
    classes: Sequence[str] | None,
    inputs: InputRecord = InputRecord(),  # noqa: B008  (frozen)
    *,
    on_pictures: Callable[[int, int], None] = lambda _, __: None,
) -> OwnImages:
    """The images in ``path``, as :func:`training.pieces.split` finds them, all together.

    ``on_pictures`` is told how many pictures are decoded, and of how many. Raises what it raises, and
    :class:`~training.data.DataError` that says which file or array is wrong, why, and what to do.
    """
    found = pieces.split(path, classes, inputs)
    parts = [pieces.read(piece, classes, inputs, on_pictures=on_pictures) for piece in found]
    if len(parts) == 1:
        return parts[0]
    return OwnImages(
        tuple(name for part in parts for name in part.names),
        torch.cat([part.pixels for part in parts]),
        None if parts[0].labels is None else torch.cat([part.labels for part in parts if part.labels is not None]),
    )


def read_labelled(path: Path, card: Card) -> tuple[LabelledImages, tuple[str, ...]]:
    """The images in ``path``, which must have labels, in an order that is as good as random and that theirs in ``path``
    has no part in; and their names.

    Raises what :func:`read` raises, and :class:`~training.data.DataError` if there are no labels, or fewer than
    :data:`LEAST_LABELLED` images.
    """
    images = read(path, card.classes, card.input)
    if images.labels is None:
        raise DataError(
            f"{path} holds images without labels: put pictures into one subfolder for each class, or an array `labels` "
            "into the .npz file"
        )
    if len(images) < LEAST_LABELLED:
        raise DataError(f"{path} holds {len(images)} images; at least {LEAST_LABELLED} are needed to learn anything")
    hashes = content_hashes(images.pixels)
    order = sorted(range(len(images)), key=hashes.__getitem__)
    return LabelledImages(images.pixels[order], images.labels[order]), tuple(images.names[index] for index in order)


def content_hashes(pixels: Tensor) -> list[bytes]:
    """Of the content of each of ``pixels`` ``[N, *shape]``, as float32."""
    # Another hash than that of conformal prediction, whose values must not depend on the order.
    return [
        hashlib.blake2b(
            image.float().numpy().astype("<f4", copy=False).tobytes(), digest_size=16, person=b"order"
        ).digest()
        for image in pixels
    ]


def digest(images: LabelledImages) -> str:
    """SHA-256 of the images, whatever their type, and their labels, in their order."""
    labels = images.labels.numpy().astype("<i8", copy=False).tobytes()
    return hashlib.sha256(b"".join(content_hashes(images.pixels)) + labels).hexdigest()
