"""Images in the idx format, in which MNIST and its like are published."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.records import InputRecord
from training.arrays.checks import UNREADABLE, ArrayFile, check_kind, check_label_kind, read_rows
from training.data import DataError

__all__ = ["is_idx", "labels_of", "opened"]

NAME = re.compile(r"idx\d-ubyte(\.gz)?$")
TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def is_idx(path: Path) -> bool:
    """By its name."""
    return NAME.search(path.name) is not None


def labels_of(path: Path) -> Path | None:
    """The file beside that of images at ``path`` that holds their labels."""
    plain = re.sub(r"images(.idx)\d", r"labels\g<1>1", path.name).removesuffix(".gz")
    if not is_idx(path) or plain == path.name.removesuffix(".gz"):
        return None
    return next(filter(Path.is_file, (path.with_name(plain), path.with_name(f"{plain}.gz"))), None)


@contextmanager
def opened(path: Path, classes: Sequence[str] | None, inputs: InputRecord) -> Iterator[ArrayFile]:
    """See :func:`training.arrays.open_arrays`."""
    name, beside = f"the images in {path}", None if classes is None else labels_of(path)
    labels_name = f"the labels in {beside}"
    with _array(path) as images:
        if len(images.shape) == 1 and "labels" in path.name:
            raise DataError(f"{path} holds labels, and no images: name the file of images, or put it beside this one")
        check_kind(images.dtype, images.shape, name, inputs)
        if beside is None:
            yield ArrayFile(images.shape[0], name, images.rows, labels_name, None, classes, inputs)
            return
        with _array(beside) as labels:
            check_label_kind(labels.dtype, labels.shape, images.shape[0], labels_name)
            yield ArrayFile(images.shape[0], name, images.rows, labels_name, labels.rows, classes, inputs)


@dataclass(frozen=True)
class _Array:
    path: Path
    file: BufferedIOBase
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        try:
            found = read_rows(self.file, 4 + 4 * len(self.shape), self.dtype, self.shape, start=start, stop=stop)
            # At its end a compressed file is held against its checksum.
            if stop == self.shape[0] and self.file.read(1):
                raise ValueError("it goes on after its end")
            return found
        except UNREADABLE as error:
            raise DataError(f"{self.path} can't be read: {error}; get it anew") from error


@contextmanager
def _array(path: Path) -> Iterator[_Array]:
    kind: int
    axes: int
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        try:
            zero, (kind, axes) = file.read(2), file.read(2)
            if zero != bytes(2) or kind not in TYPES or not axes:
                raise ValueError("it does not begin as one")
            shape = tuple(np.frombuffer(file.read(4 * axes), ">u4", axes).tolist())
        except UNREADABLE as error:
            raise DataError(f"{path} is not a whole idx file: {error}; get it anew") from error
        yield _Array(path, file, np.dtype(TYPES[kind]), shape)
