"""Files of images as arrays, read in part: .npz, Parquet, and the idx format of MNIST; with labels, if any."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from models.records import InputRecord
from training.arrays import idx, npz, table
from training.arrays.checks import ArrayFile, checked_pixels
from training.data import DataError

__all__ = ["ArrayFile", "checked_pixels", "files_of", "is_array_file", "open_arrays"]


def is_array_file(path: Path) -> bool:
    """By its name."""
    return path.suffix.lower() in {npz.SUFFIX, table.SUFFIX} or idx.is_idx(path)


def files_of(path: Path) -> list[Path]:
    """The array file ``path``, and that of its labels where there is one."""
    labels = idx.labels_of(path)
    return [path] if labels is None else [path, labels]


@contextmanager
def open_arrays(path: Path, classes: Sequence[str] | None, inputs: InputRecord) -> Iterator[ArrayFile]:
    """The file at ``path``, of images as ``inputs`` says; of what it holds the types and the shapes are looked at.

    An .npz file holds ``images``, or a single array of any name, as :func:`checked_pixels` takes them; and ``labels``
    if there are any: integer ``[N]``, indices into ``classes``. A Parquet file has a column ``image`` or ``images`` of
    numbers in lists, or of pictures (PNG, JPEG, WebP, BMP) as bytes, which may lie in a field ``bytes``; and a column
    ``label`` or ``labels`` if there are any. An idx file, compressed with gzip or not, has its labels in one beside it
    that is named as it is, but with ``labels-idx1``. Without ``classes`` labels are passed over. What ends otherwise
    than in .parquet or -ubyte is taken for an .npz file.

    Raises :class:`~training.data.DataError` that says which array is wrong, why, and what to do.
    """
    opened = idx.opened if idx.is_idx(path) else table.opened if path.suffix.lower() == table.SUFFIX else npz.opened
    with opened(path, classes, inputs) as found:
        if not found.images:
            raise DataError(f"{found.name} are none; there should be one at least")
        yield found
