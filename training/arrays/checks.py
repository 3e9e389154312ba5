"""An open file of images, and what is asked of what it holds."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.records import InputRecord
from training.data import DataError

__all__ = ["UNREADABLE", "ArrayFile", "Rows", "check_kind", "check_label_kind", "checked_pixels", "read_rows"]

UNREADABLE = (ValueError, OSError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
"""What damaged files make readers raise."""
Rows = Callable[[int, int], NDArray[Any]]
"""Of an array in a file: the rows from the first to before the second."""


@dataclass(frozen=True)
class ArrayFile:
    """An open file of ``images`` images, as ``inputs`` says, whose labels are indices into ``classes``.

    ``name`` and ``labels_name`` are what its arrays are called in messages.
    """

    images: int
    name: str
    pixels: Rows
    labels_name: str
    labels: Rows | None
    classes: Sequence[str] | None
    inputs: InputRecord

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """The images from ``start`` to before ``stop`` as :func:`checked_pixels` gives them; and their labels, int64,
        if there are any. A checksum is held against what is read only as far as the format can: an
        .npz file's when all of it is read at once, that of an idx file packed with gzip when its end is.

        Raises :class:`~training.data.DataError` for what can't be read, and for labels that are no such indices.
        """
        found = checked_pixels(self.pixels(start, stop), self.name, self.inputs, first=start)
        if self.labels is None or self.classes is None:
            return found, None
        labels = self.labels(start, stop)
        check_label_kind(labels.dtype, labels.shape, len(found), self.labels_name)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(self.classes)))
        if len(wrong):
            raise DataError(
                f"{self.labels_name} should be in 0..{len(self.classes) - 1}, indices of classes; at index "
                f"{start + wrong[0]} is {labels[wrong[0]]}"
            )
        return found, torch.from_numpy(labels.astype(np.int64))


def checked_pixels(
    array: NDArray[Any],
    place: str,
    inputs: InputRecord = InputRecord(),  # noqa: B008  (frozen)
    *,
    first: int = 0,
) -> Tensor:
    """``array`` ``[N, *shape]`` of ``inputs``, or flat, ``[N, P]``: uint8, or float, in 0..the maximum, 255 by default;
    as uint8 or float32 ``[N, *shape]``.

    Raises :class:`~training.data.DataError` for another; ``place`` is what it is called there, and ``first`` the index
    there of the first image.
    """
    most = f"{inputs.maximum:g}"
    check_kind(array.dtype, array.shape, place, inputs)
    if not len(array):
        raise DataError(f"{place} are none; there should be one at least")
    flat = array.reshape(len(array), -1)
    wrong = np.flatnonzero(~((flat >= 0) & (flat <= inputs.maximum)).all(axis=1))  # NaN is neither.
    if len(wrong):
        raise DataError(
            f"{place} have pixels that are NaN or outside 0..{most}, first at index {first + wrong[0]}; mend them"
        )
    # Told by a file's first images, wherever it is cut: later ones may be nearly black.
    if not first and array.dtype != np.uint8 and 0 < array.max() <= 1 < inputs.maximum:
        raise DataError(f"{place} have no pixel above 1, as if scaled to 0..1; multiply them by {most}")
    # What can't be written to is copied: a tensor can.
    found = np.require(flat, np.uint8 if array.dtype == np.uint8 else np.float32, ["C", "W"])
    return torch.from_numpy(found).reshape(-1, *inputs.shape)


def check_kind(dtype: np.dtype[Any], shape: tuple[int, ...], place: str, inputs: InputRecord) -> None:
    """Raise :class:`~training.data.DataError` if no images as ``inputs`` says are of that type and shape."""
    if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
        raise DataError(f"{place} are of type {dtype}; they should be uint8, or float in 0..{inputs.maximum:g}")
    if shape[1:] not in (inputs.shape, (inputs.pixels,)):
        known = " or ".join(
            f"[N, {', '.join(map(str, each))}]" for each in dict.fromkeys((inputs.shape, (inputs.pixels,)))
        )
        raise DataError(f"{place} have shape {shape}; it should be {known}")


def check_label_kind(dtype: np.dtype[Any], shape: tuple[int, ...], images: int, place: str) -> None:
    """Raise :class:`~training.data.DataError` if these are no labels of so many images."""
    if not np.issubdtype(dtype, np.integer):
        raise DataError(f"{place} are of type {dtype}; they should be integers, indices of classes")
    if shape != (images,):
        raise DataError(f"{place} have shape {shape}; it should be ({images},), one for each image")


def read_rows(
    file: BufferedIOBase, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...], *, start: int, stop: int
) -> NDArray[Any]:
    """From ``start`` to before ``stop`` of the array of ``shape`` that lies in ``file`` from ``offset`` on, row by row.

    Raises ``EOFError`` if it does not go so far.
    """
    size = prod(shape[1:]) * dtype.itemsize
    file.seek(offset + start * size)
    content = file.read((stop - start) * size)
    if len(content) < (stop - start) * size:
        raise EOFError("it ends too early")
    return np.frombuffer(content, dtype).reshape(stop - start, *shape[1:])
