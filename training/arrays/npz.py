"""Images in .npz files."""

from __future__ import annotations

import zipfile
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

__all__ = ["SUFFIX", "opened"]

SUFFIX = ".npz"
HOW_TO_SAVE = "save them with np.savez(file, images=pixels, labels=class_indices), labels being optional"
HEADERS = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}


@contextmanager
def opened(path: Path, classes: Sequence[str] | None, inputs: InputRecord) -> Iterator[ArrayFile]:
    """See :func:`training.arrays.open_arrays`."""
    # Opened here, because numpy does not close what it fails to read.
    with path.open("rb") as file, _archive(path, file) as arrays:
        name = "images" if "images" in arrays.files or len(arrays.files) != 1 else arrays.files[0]
        if name not in arrays.files:
            found = ", ".join(arrays.files) or "nothing"
            raise DataError(f"{path} does not hold an array `images`, but {found}; {HOW_TO_SAVE}")
        images = _Member.of(path, file, arrays, name)
        check_kind(images.dtype, images.shape, images.place, inputs)
        labels = None
        if classes is not None and "labels" in arrays.files and name != "labels":
            labels = _Member.of(path, file, arrays, "labels")
            check_label_kind(labels.dtype, labels.shape, images.shape[0], labels.place)
        yield ArrayFile(
            images.shape[0],
            images.place,
            images.rows,
            f"`labels` in {path}",
            None if labels is None else labels.rows,
            classes,
            inputs,
        )


def _archive(path: Path, file: BufferedIOBase) -> Any:
    problem = DataError(f"{path} is neither a folder of pictures nor a whole .npz file; {HOW_TO_SAVE}")
    # numpy takes what isn't a zip archive for a bare array or a pickle.
    if not zipfile.is_zipfile(file):
        raise problem
    file.seek(0)
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise problem from error


@dataclass(frozen=True)
class _Member:
    """An array in an archive; ``offset`` is where its rows begin in the file, ``None`` if there are none to be found:
    of what is compressed, or stored column by column."""

    file: BufferedIOBase
    arrays: Any
    name: str
    place: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int | None

    @classmethod
    def of(cls, path: Path, file: BufferedIOBase, arrays: Any, name: str) -> _Member:
        place = f"`{name}` in {path}"
        try:
            info = arrays.zip.getinfo(name if name in arrays.zip.namelist() else f"{name}.npy")
            with arrays.zip.open(info) as stream:
                if stream.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
                    raise DataError(f"{place} is not an array; {HOW_TO_SAVE}")
                version, _ = stream.read(2)
                if version not in HEADERS:
                    raise ValueError(f"version {version} of its format is for arrays of records")
                shape, by_column, dtype = HEADERS[version](stream)
                header = stream.tell()
            if dtype.hasobject:
                raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
            file.seek(info.header_offset + 26)
            # Of the name and of what follows it, before what is stored.
            lengths = int.from_bytes(file.read(2), "little"), int.from_bytes(file.read(2), "little")
        except UNREADABLE as error:
            raise _unreadable(place, error) from error
        in_rows = info.compress_type == zipfile.ZIP_STORED and not by_column
        offset = info.header_offset + 30 + sum(lengths) + header if in_rows else None
        return cls(file, arrays, name, place, dtype, shape, offset)

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        try:
            if self.offset is None or (start, stop) == (0, self.shape[0]):
                return np.asarray(self.arrays[self.name])[start:stop]
            return read_rows(self.file, self.offset, self.dtype, self.shape, start=start, stop=stop)
        except UNREADABLE as error:
            raise _unreadable(self.place, error) from error


def _unreadable(place: str, error: Exception) -> DataError:
    return DataError(f"{place} can't be read: {error}. Arrays of Python objects never are; {HOW_TO_SAVE}")
