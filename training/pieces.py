"""A user's own images in pieces that fit into memory: pictures in a folder, a file of arrays, or many of them."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.pictures import PictureError, decode
from models.records import InputRecord
from training import arrays
from training.data import DataError

__all__ = ["OwnImages", "Pictures", "Piece", "Rows", "read", "split", "stamp"]


@dataclass(frozen=True)
class OwnImages:
    """``pixels`` ``[N, *shape]`` of the network's input, uint8 or float32 in 0..its maximum; N is at least 1.

    ``names`` are the pictures' paths below their folder, or the indices in the file, after the file's name if it lies
    in a folder of several; ``labels``, if there are any, are int64 ``[N]``, indices into the classes.
    """

    names: tuple[str, ...]
    pixels: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Pictures:
    """Some of the pictures in ``folder``, as paths below it, with their labels if they have any."""

    folder: Path
    files: tuple[str, ...]
    labels: tuple[int, ...] | None

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True)
class Rows:
    """Some of the images in ``file``, from ``start`` to before ``stop``; each is named ``prefix`` and its index."""

    file: Path
    prefix: str
    start: int
    stop: int
    labelled: bool

    def __len__(self) -> int:
        return self.stop - self.start


Piece = Pictures | Rows


def split(path: Path, classes: Sequence[str] | None, inputs: InputRecord, *, size: int | None = None) -> list[Piece]:
    """The images in ``path``, in the order of their names or in that of the file, in pieces of at most ``size``.

    A folder holds pictures (PNG, JPEG, WebP, BMP); hidden files are passed over. They may lie in one subfolder for each
    class, named as in ``classes``, where "-" or "_" may stand for "/", which labels them. They become arrays of the
    shape of ``inputs``, those with a light border inverted if it says so; see :func:`models.pictures.decode`. Or it
    holds files as :func:`training.arrays.open_arrays` takes them, and so may ``path`` be one; no piece is of two files.

    Without ``classes`` labels are passed over, and subfolders may have any name.

    Raises :class:`~training.data.DataError` that says which file or array is wrong, why, and what to do; of pictures,
    and of the values in arrays, nothing is read yet.
    """
    path = path.absolute()
    if not path.is_dir():
        return list(_rows(path, "", classes, inputs, size))
    entries = _visible(path, () if classes is None else _folders(classes))
    files = [entry for entry in entries if arrays.is_array_file(entry)]
    if not files:
        return list(_pictures(path, entries, classes, size))
    # What writes folders of tables leaves notes beside them.
    entries = [entry for entry in entries if not entry.name.startswith("_")]
    if len(files) < len(entries):
        other = next(entry for entry in entries if entry not in files)
        raise DataError(
            f"{path} holds both files of arrays, as {files[0].name}, and others, as {other.name}: part them"
        )
    beside = {labels for file in files for labels in arrays.files_of(file)[1:]}
    found = [
        piece
        for file in files
        if file not in beside
        for piece in _rows(file, f"{file.name}/", classes, inputs, size)
    ]  # fmt: skip
    unlike = next((piece for piece in found if piece.labelled != found[0].labelled), None)
    if unlike is not None:
        has, has_not = (found[0], unlike) if found[0].labelled else (unlike, found[0])
        raise DataError(
            f"{has.file} holds labels, and {has_not.file} does not: let all in one folder have them, or none"
        )
    return [*found]


def read(
    piece: Piece,
    classes: Sequence[str] | None,
    inputs: InputRecord,
    *,
    on_pictures: Callable[[int, int], None] = lambda _, __: None,
) -> OwnImages:
    """The images of ``piece``, which was split for these ``classes`` and ``inputs``. ``on_pictures`` is told how many
    pictures are decoded, and of how many.

    Raises :class:`~training.data.DataError` that says what is wrong, why, and what to do.
    """
    if isinstance(piece, Rows):
        with arrays.open_arrays(piece.file, classes, inputs) as opened:
            pixels, labels = opened.rows(piece.start, piece.stop)
        return OwnImages(tuple(f"{piece.prefix}{index}" for index in range(piece.start, piece.stop)), pixels, labels)
    decoded = []
    for file in piece.files:
        decoded.append(_decode(piece.folder / file, inputs))
        on_pictures(len(decoded), len(piece))
    found = torch.from_numpy(np.stack(decoded))
    # A name that isn't UTF-8 could not be written into a table.
    names = (file.encode(errors="backslashreplace").decode() for file in piece.files)
    return OwnImages(
        tuple(names),
        found if inputs.maximum == 255 else found.float() * (inputs.maximum / 255),
        None if piece.labels is None else torch.tensor(piece.labels),
    )


def stamp(piece: Piece) -> str:
    """A hash that tells ``piece`` from others, and from itself before its files were changed, or others put in their
    place: of their paths, sizes and times, and of which images of them it has. Raises ``OSError`` if one is not there.
    """
    if isinstance(piece, Rows):
        files = arrays.files_of(piece.file)
        which = f"{piece.prefix} {piece.start} {piece.stop}"
    else:
        files = [piece.folder / file for file in piece.files]
        which = f"{piece.labels}"
    states = [(file, file.stat()) for file in files]
    told = [(str(file), state.st_size, state.st_mtime_ns, state.st_ctime_ns) for file, state in states]
    return hashlib.sha256(f"{which} {told}".encode(errors="backslashreplace")).hexdigest()


def _rows(
    file: Path, prefix: str, classes: Sequence[str] | None, inputs: InputRecord, size: int | None
) -> Iterator[Rows]:
    with arrays.open_arrays(file, classes, inputs) as opened:
        images, labelled = opened.images, opened.labels is not None
    for start in range(0, images, size or images):
        yield Rows(file, prefix, start, min(start + (size or images), images), labelled)


def _pictures(
    folder: Path, entries: Sequence[Path], classes: Sequence[str] | None, size: int | None
) -> Iterator[Pictures]:
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
    names = tuple(file.relative_to(folder).as_posix() for file in files)
    for start in range(0, len(names), size or len(names)):
        chosen = slice(start, start + (size or len(names)))
        yield Pictures(folder, names[chosen], None if labels is None else tuple(labels[chosen]))


def _visible(folder: Path, besides: Collection[str] = ()) -> list[Path]:
    """What is in ``folder`` but for what is hidden, unless it is ``besides``."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") or entry.name in besides)


def _by_class(subfolders: Sequence[Path], classes: Sequence[str] | None) -> tuple[list[Path], list[int] | None]:
    files: list[Path] = []
    labels: list[int] = []
    for subfolder in subfolders:
        found = _visible(subfolder)
        files += found
        if classes is not None:
            labels += [_class_index(subfolder, classes)] * len(found)
    return files, None if classes is None else labels


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
