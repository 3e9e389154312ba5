"""Images in Parquet files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ArrowException, compute, parquet, types

from models.pictures import PictureError, decode
from models.records import InputRecord
from training.arrays.checks import UNREADABLE, ArrayFile
from training.data import DataError

__all__ = ["SUFFIX", "opened"]

SUFFIX = ".parquet"


@contextmanager
def opened(path: Path, classes: Sequence[str] | None, inputs: InputRecord) -> Iterator[ArrayFile]:
    """See :func:`training.arrays.open_arrays`."""
    try:
        file = parquet.ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path} is not a whole Parquet file: {error}") from error
    with file:
        names = file.schema_arrow.names
        image = next((name for name in ("image", "images") if name in names), None)
        label = next((name for name in ("label", "labels") if name in names and classes is not None), None)
        if image is None:
            found = ", ".join(names) or "none"
            raise DataError(f"{path} does not have a column `image`, but {found}; rename the one that holds the images")
        for name in filter(None, (image, label)):
            if names.count(name) > 1:
                raise DataError(f"{path} has {names.count(name)} columns `{name}`; leave one")
        kind = None if label is None else file.schema_arrow.field(label).type
        if kind is not None and not types.is_integer(kind.value_type if types.is_dictionary(kind) else kind):
            raise DataError(f"`{label}` in {path} are of type {kind}; they should be integers, indices of classes")
        table = _Table(path, file, inputs)
        yield ArrayFile(
            file.metadata.num_rows,
            f"`{image}` in {path}",
            lambda start, stop: table.pixels(image, start, stop),
            f"`{label}` in {path}",
            None if label is None else lambda start, stop: table.column(label, start, stop).to_numpy(),
            classes,
            inputs,
        )


@dataclass(frozen=True)
class _Table:
    path: Path
    file: parquet.ParquetFile
    inputs: InputRecord

    def column(self, name: str, start: int, stop: int) -> Any:
        """Of the rows from ``start`` to before ``stop``. Those before them that were written together with them are
        read too, but not kept."""
        parts: list[Any] = []
        try:
            first = 0
            for group in range(self.file.num_row_groups):
                after = first + self.file.metadata.row_group(group).num_rows
                if first < stop and after > start:
                    for batch in self.file.iter_batches(stop - start, row_groups=[group], columns=[name]):
                        inside = max(start - first, 0)
                        parts.append(batch.column(0).slice(inside, max(stop - first - inside, 0)))
                        first += len(batch)
                        if first >= stop:
                            break
                first = after
            whole = pa.concat_arrays(parts)
            if whole.null_count:
                raise ValueError("some of its rows are empty")
        except (*UNREADABLE, ArrowException) as error:
            raise DataError(f"`{name}` in {self.path} can't be read: {error}") from error
        return whole

    def pixels(self, name: str, start: int, stop: int) -> NDArray[Any]:
        found = self.column(name, start, stop)
        if types.is_struct(found.type) and found.type.get_field_index("bytes") >= 0:
            found = compute.struct_field(found, "bytes")
        if any(test(found.type) for test in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)):
            return np.stack([self._decoded(content.as_py(), start + row) for row, content in enumerate(found)])
        rows = len(found)
        while types.is_list(found.type) or types.is_large_list(found.type) or types.is_fixed_size_list(found.type):
            if len(compute.unique(compute.list_value_length(found))) > 1:
                raise DataError(f"`{name}` in {self.path} are of different sizes; bring them to one")
            found = found.flatten()
        if not types.is_primitive(found.type):
            raise DataError(
                f"`{name}` in {self.path} are of type {found.type}; they should be lists of numbers, or pictures' bytes"
            )
        if found.null_count:
            raise DataError(f"`{name}` in {self.path} have pixels that are missing; mend them")
        return np.asarray(found.to_numpy(zero_copy_only=False)).reshape(rows, -1)

    def _decoded(self, content: bytes | None, row: int) -> NDArray[Any]:
        try:
            found = decode(content or b"", "auto" if self.inputs.light_on_dark else "false", self.inputs.shape)
        except PictureError as error:
            raise DataError(f"the picture in row {row} of {self.path}: {error}. Mend it, or leave it out") from error
        most = self.inputs.maximum
        return found if most == 255 else found.astype(np.float32) * np.float32(most / 255)
