"""A user's own images: a folder of pictures, or an .npz file of pixels; with labels, if they have any."""

from __future__ import annotations

import hashlib
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.pictures import PictureError, decode
from models.records import Card, InputRecord
from training.data import DataError, LabelledImages

__all__ = ["LEAST_LABELLED", "OwnImages", "checked_pixels", "content_hashes", "digest", "read", "read_labelled"]

LEAST_LABELLED = 100
"""With fewer, neither a temperature nor an interval says anything."""
HOW_TO_SAVE = "save them with np.savez(file, images=pixels, labels=class_indices), labels being optional"


@dataclass(frozen=True)
class OwnImages:
    """``pixels`` ``[N, *shape]`` of the network's input, uint8 or float32 in 0..its maximum; N is at least 1.

    ``names`` are the pictures' paths below their folder, or the indices in the file; ``labels``, if there are any, are
    int64 ``[N]``, indices into the classes.
    """

    names: tuple[str, ...]
    pixels: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.names)


def read(
    path: Path,
    classes: Sequence[str] | None,
    inputs: InputRecord = InputRecord(),  # noqa: B008  (frozen)
    *,
    on_pictures: Callable[[int, int], None] = lambda _, __: None,
) -> OwnImages:
    """The images in ``path``, in the order of their names or in that of the file.

    A folder holds pictures (PNG, JPEG, WebP, BMP); hidden files are passed over. They may lie in one subfolder for each
    class, named as in ``classes``, where "-" or "_" may stand for "/", which labels them. They become arrays of the
    shape of ``inputs``, those with a light border inverted if it says so; see :func:`models.pictures.decode`.
    ``on_pictures`` is told how many are decoded, and of how many.

    An .npz file holds ``images``, or a single array of any name, as :func:`checked_pixels` takes them; and ``labels``
    if there are any: integer ``[N]``, indices into ``classes``.

    Without ``classes`` labels are passed over, and subfolders may have any name.

    Raises :class:`~training.data.DataError` that says which file or array is wrong, why, and what to do.
    """
    if path.is_dir():
        return _read_folder(path, classes, inputs, on_pictures)
    return _read_arrays(path, classes, inputs)


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


def _read_folder(
    folder: Path, classes: Sequence[str] | None, inputs: InputRecord, on_pictures: Callable[[int, int], None]
) -> OwnImages:
    entries = _visible(folder, () if classes is None else _folders(classes))
    subfolders = [entry for entry in entries if entry.is_dir()]
    if subfolders and len(subfolders) < len(entries):
        loose = next(entry for entry in entries if not entry.is_dir())
        raise DataError(
            f"{folder} holds both files, as {loose.name}, and folders, as {subfolders[0].name}: "
            "put all pictures directly into it, or all into one subfolder for each class"
        )
    files, labels = _by_class(subfolders, classes) if subfolders else (entries, None)
    if not files:
        raise DataError(f"{folder} holds no pictures; put PNG, JPEG, WebP or BMP files into it")
    pixels = []
    for file in files:
        pixels.append(_decode(file, inputs))
        on_pictures(len(pixels), len(files))
    # A name that isn't UTF-8 could not be written into a table.
    names = (file.relative_to(folder).as_posix().encode(errors="backslashreplace").decode() for file in files)
    found = torch.from_numpy(np.stack(pixels))
    return OwnImages(tuple(names), found if inputs.maximum == 255 else found.float() * (inputs.maximum / 255), labels)


def _visible(folder: Path, besides: Collection[str] = ()) -> list[Path]:
    """What is in ``folder`` but for what is hidden, unless it is ``besides``."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") or entry.name in besides)


def _by_class(subfolders: Sequence[Path], classes: Sequence[str] | None) -> tuple[list[Path], Tensor | None]:
    files: list[Path] = []
    labels: list[int] = []
    for subfolder in subfolders:
        found = _visible(subfolder)
        files += found
        if classes is not None:
            labels += [_class_index(subfolder, classes)] * len(found)
    return files, None if classes is None else torch.tensor(labels)


def _folders(classes: Sequence[str]) -> dict[str, int]:
    """The class of each name that a folder may have; a class's own name before what another's could be written as."""
    written = {name.replace("/", sign): index for sign in "_-" for index, name in reversed(list(enumerate(classes)))}
    return {
        unicodedata.normalize("NFC", name): index for name, index in [*written.items(), *zip(classes, count())]
    }  # fmt: skip


def _class_index(folder: Path, classes: Sequence[str]) -> int:
    # Some systems write an accent as a sign of its own.
    found = _folders(classes).get(unicodedata.normalize("NFC", folder.name))
    if found is None:
        known = ", ".join(name.replace("/", "-") for name in classes)
        raise DataError(f"the folder {folder} is not named after a class; rename it to one of {known}")
    return found


def _decode(file: Path, inputs: InputRecord) -> NDArray[np.uint8]:
    if not file.is_file():
        raise DataError(f"{file} is not a file; move it elsewhere")
    try:
        return decode(file.read_bytes(), "auto" if inputs.light_on_dark else "false", inputs.shape)
    except PictureError as error:
        raise DataError(f"{file}: {error}. Mend it, or move it elsewhere") from error


def _read_arrays(path: Path, classes: Sequence[str] | None, inputs: InputRecord) -> OwnImages:
    # Opened here, because numpy does not close what it fails to read.
    with path.open("rb") as file, _archive(path, file) as arrays:
        name = "images" if "images" in arrays.files or len(arrays.files) != 1 else arrays.files[0]
        if name not in arrays.files:
            found = ", ".join(arrays.files) or "nothing"
            raise DataError(f"{path} does not hold an array `images`, but {found}; {HOW_TO_SAVE}")
        pixels = checked_pixels(_array(path, arrays, name), f"`{name}` in {path}", inputs)
        labels = None
        if classes is not None and "labels" in arrays.files and name != "labels":
            labels = _checked_labels(_array(path, arrays, "labels"), len(pixels), classes, f"`labels` in {path}")
    return OwnImages(tuple(map(str, range(len(pixels)))), pixels, labels)


def _archive(path: Path, file: BinaryIO) -> Any:
    problem = DataError(f"{path} is neither a folder of pictures nor a whole .npz file; {HOW_TO_SAVE}")
    # numpy takes what isn't a zip archive for a bare array or a pickle.
    if not zipfile.is_zipfile(file):
        raise problem
    file.seek(0)
    try:
        return np.load(file, allow_pickle=False)
    except (ValueError, OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise problem from error


def _array(path: Path, arrays: Any, name: str) -> NDArray[Any]:
    try:
        array = arrays[name]
    except (ValueError, OSError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"`{name}` in {path} can't be read: {error}. Arrays of Python objects never are; {HOW_TO_SAVE}"
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"`{name}` in {path} is not an array; {HOW_TO_SAVE}")
    return array


def checked_pixels(array: NDArray[Any], place: str, inputs: InputRecord = InputRecord()) -> Tensor:  # noqa: B008
    """``array`` ``[N, *shape]`` of ``inputs``, or flat, ``[N, P]``: uint8, or float, in 0..the maximum, 255 by default;
    as uint8 or float32 ``[N, *shape]``.

    Raises :class:`~training.data.DataError` for another; ``place`` is what it is called there.
    """
    most = f"{inputs.maximum:g}"
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{place} are of type {array.dtype}; they should be uint8, or float in 0..{most}")
    if array.shape[1:] not in (inputs.shape, (inputs.pixels,)):
        known = " or ".join(
            f"[N, {', '.join(map(str, shape))}]" for shape in dict.fromkeys((inputs.shape, (inputs.pixels,)))
        )
        raise DataError(f"{place} have shape {array.shape}; it should be {known}")
    if not len(array):
        raise DataError(f"{place} are none; there should be one at least")
    flat = array.reshape(len(array), -1)
    wrong = np.flatnonzero(~((flat >= 0) & (flat <= inputs.maximum)).all(axis=1))  # NaN is neither.
    if len(wrong):
        raise DataError(f"{place} have pixels that are NaN or outside 0..{most}, first at index {wrong[0]}; mend them")
    if array.dtype != np.uint8 and 0 < array.max() <= 1 < inputs.maximum:
        raise DataError(f"{place} have no pixel above 1, as if scaled to 0..1; multiply them by {most}")
    dtype = np.uint8 if array.dtype == np.uint8 else np.float32
    return torch.from_numpy(np.ascontiguousarray(flat, dtype=dtype)).reshape(-1, *inputs.shape)


def _checked_labels(array: NDArray[Any], images: int, classes: Sequence[str], place: str) -> Tensor:
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{place} are of type {array.dtype}; they should be integers, indices of classes")
    if array.shape != (images,):
        raise DataError(f"{place} have shape {array.shape}; it should be ({images},), one for each image")
    wrong = np.flatnonzero((array < 0) | (array >= len(classes)))
    if len(wrong):
        raise DataError(
            f"{place} should be in 0..{len(classes) - 1}, indices of classes; at index {wrong[0]} is {array[wrong[0]]}"
        )
    return torch.from_numpy(array.astype(np.int64))
