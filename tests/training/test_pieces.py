"""A user's own images in pieces: of every kind of file, the same whichever way they are cut."""

from __future__ import annotations

import gzip
import io
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from models.records import InputRecord
from training import own_images, pieces
from training.data import CLASSES, DataError
from training.pieces import OwnImages

IMAGES = 23
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (IMAGES, 28, 28), dtype=np.uint8)
LABELS = RANDOM.integers(0, 10, IMAGES)
INPUTS = InputRecord()


def idx(path: Path, array: np.ndarray[Any, Any], kind: int = 8) -> None:
    content = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def save_idx(folder: Path, suffix: str = "", kind: int = 8, dtype: str = ">u1") -> Path:
    idx(folder / f"some-images-idx3-ubyte{suffix}", PIXELS.astype(dtype), kind)
    idx(folder / f"some-labels-idx1-ubyte{suffix}", LABELS.astype(np.uint8))
    return folder / f"some-images-idx3-ubyte{suffix}"


def save_table(folder: Path, images: pa.Array | list[Any], **columns: Any) -> Path:
    table = pa.table({"image": images, "label": columns.get("labels", LABELS)})
    parquet.write_table(table, folder / "some.parquet", row_group_size=7)
    return folder / "some.parquet"


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def save_npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "some.npz", **arrays)
    return folder / "some.npz"


def save_compressed(folder: Path) -> Path:
    np.savez_compressed(folder / "some.npz", images=PIXELS, labels=LABELS)
    return folder / "some.npz"


def save_shards(folder: Path) -> Path:
    for number, (start, stop) in enumerate([(0, 10), (10, 11), (11, IMAGES)]):
        np.savez(folder / f"{number}.npz", images=PIXELS[start:stop], labels=LABELS[start:stop])
    return folder


def flat(array: np.ndarray[Any, Any], kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1), kind), 784)


BRIGHT = PIXELS // 2
"""Dark borders, which are not inverted."""
SAVED: dict[str, Callable[[Path], Path]] = {
    "npz": lambda folder: save_npz(folder, images=PIXELS, labels=LABELS),
    "npz of floats": lambda folder: save_npz(folder, images=PIXELS.astype(">f8").reshape(-1, 784), labels=LABELS),
    "npz by columns": lambda folder: save_npz(folder, images=np.asfortranarray(PIXELS), labels=LABELS),
    "compressed npz": save_compressed,
    "idx": save_idx,
    "compressed idx": lambda folder: save_idx(folder, ".gz"),
    "idx of floats": lambda folder: save_idx(folder, "", 13, ">f4"),
    "parquet": lambda folder: save_table(folder, flat(PIXELS, pa.uint8())),
    "parquet of floats": lambda folder: save_table(folder, flat(PIXELS, pa.float32())),
    "parquet of lists of lists": lambda folder: save_table(
        folder, pa.array(PIXELS.tolist(), pa.list_(pa.list_(pa.uint8())))
    ),
    "shards": save_shards,
}


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("size", [None, 1, 5, 7, IMAGES])
def test_pieces_are_the_whole(tmp_path: Path, kind: str, size: int | None) -> None:
    path = SAVED[kind](tmp_path)
    found = pieces.split(path, CLASSES, INPUTS, size=size)
    parts = [pieces.read(piece, CLASSES, INPUTS) for piece in found]
    assert all(len(piece) == len(part) <= (size or IMAGES) for piece, part in zip(found, parts, strict=True))
    together = np.concatenate([part.pixels.numpy() for part in parts])
    assert np.array_equal(together, PIXELS)
    assert np.array_equal(torch.cat([part.labels for part in parts if part.labels is not None]).numpy(), LABELS)
    names = [name for part in parts for name in part.names]
    assert len(set(names)) == IMAGES
    if kind == "shards":
        assert (names[0], names[-1]) == ("0.npz/0", f"2.npz/{IMAGES - 12}")
    else:
        assert names == list(map(str, range(IMAGES)))
    whole = own_images.read(path, CLASSES)
    assert whole.names == tuple(names)
    assert np.array_equal(whole.pixels.numpy(), PIXELS)
    unlabelled = [pieces.read(piece, None, INPUTS) for piece in pieces.split(path, None, INPUTS, size=size)]
    assert all(part.labels is None for part in unlabelled)
    assert sum(map(len, unlabelled)) == IMAGES


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_pictures_in_a_table(tmp_path: Path, kind: str) -> None:
    """As Hugging Face's data sets hold them, and plainly."""
    encoded = [png(image) for image in BRIGHT]
    path = save_table(tmp_path, encoded if kind == "bytes" else [{"bytes": each, "path": None} for each in encoded])
    dark = InputRecord(light_on_dark=False)
    parts = [pieces.read(piece, CLASSES, dark) for piece in pieces.split(path, CLASSES, dark, size=10)]
    assert np.array_equal(np.concatenate([part.pixels.numpy() for part in parts]), BRIGHT)
    unit = InputRecord(light_on_dark=False, maximum=1.0)
    (piece,) = pieces.split(path, CLASSES, unit)
    assert np.allclose(pieces.read(piece, CLASSES, unit).pixels.numpy(), BRIGHT / 255)
    encoded[12] = b"text"
    path = save_table(tmp_path, encoded)
    with pytest.raises(DataError, match=r"the picture in row 12 of .*some\.parquet: this is not an image"):
        own_images.read(path, CLASSES)


@settings(max_examples=30, deadline=None)
@given(names=st.sets(st.sampled_from("abcdefgh"), min_size=1), size=st.integers(1, 9))
def test_pictures_in_pieces(tmp_path_factory: pytest.TempPathFactory, names: set[str], size: int) -> None:
    folder = tmp_path_factory.mktemp("pictures")
    for value, name in enumerate(sorted(names)):
        kind = folder / ("Bag" if value % 2 else "Coat")
        kind.mkdir(exist_ok=True)
        Image.new("L", (28, 28), value).save(kind / f"{name}.png")
    whole = own_images.read(folder, CLASSES)
    found = pieces.split(folder, CLASSES, INPUTS, size=size)
    assert [len(piece) for piece in found[:-1]] == [size] * (len(found) - 1)
    parts = [pieces.read(piece, CLASSES, INPUTS) for piece in found]
    assert tuple(name for part in parts for name in part.names) == whole.names
    assert whole.labels is not None
    assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)
    assert torch.equal(torch.cat([part.labels for part in parts if part.labels is not None]), whole.labels)


def spoilt(folder: Path, change: Callable[[bytes], bytes], name: str = "some-images-idx3-ubyte") -> Path:
    path = save_idx(folder)
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    return path


def without_a_pixel(folder: Path) -> Path:
    rows = PIXELS.reshape(IMAGES, 784).tolist()
    rows[3] = rows[3][1:]
    return save_table(folder, rows)


def no_table(folder: Path) -> Path:
    (folder / "some.parquet").write_bytes(b"x")
    return folder / "some.parquet"


def other_columns(folder: Path) -> Path:
    parquet.write_table(pa.table({"x": [1]}), folder / "some.parquet")
    return folder / "some.parquet"


def two_columns(folder: Path) -> Path:
    table = pa.Table.from_arrays([flat(PIXELS, pa.uint8())] * 2, ["image", "image"])
    parquet.write_table(table, folder / "some.parquet")
    return folder / "some.parquet"


def labels_alone(folder: Path) -> Path:
    save_idx(folder).unlink()
    return folder


def altered_gz(folder: Path) -> Path:
    path = save_idx(folder, ".gz")
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    content[1000] ^= 1
    path.write_bytes(content)
    return path


def two_kinds(folder: Path) -> Path:
    save_npz(folder, images=PIXELS)
    Image.new("L", (28, 28)).save(folder / "a.png")
    return folder


def half_labelled(folder: Path) -> Path:
    save_npz(folder, images=PIXELS)
    np.savez(folder / "more.npz", images=PIXELS, labels=LABELS)
    return folder


def with_a_bad_label(folder: Path) -> Path:
    labels = LABELS.copy()
    labels[21] = 10
    return save_npz(folder, images=PIXELS, labels=labels)


def bad_pixel(folder: Path) -> Path:
    pixels = PIXELS.astype(np.float32)
    pixels[22] = np.nan
    return save_npz(folder, images=pixels)


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "cut idx": (lambda folder: spoilt(folder, lambda content: content[:-1]), "ubyte can't be read: it ends too early"),
    "idx of a header": (lambda folder: spoilt(folder, lambda content: content[:6]), "is not a whole idx file"),
    "no idx": (lambda folder: spoilt(folder, lambda _: b"something else"), "not a whole idx file: it does not begin"),
    "idx of vectors": (
        lambda folder: spoilt(folder, lambda _: struct.pack(">HBBI", 0, 8, 1, 3) + b"abc"), r"have shape \(3,\)",
    ),
    "labels of others": (
        lambda folder: spoilt(
            folder, lambda _: struct.pack(">HBBI", 0, 8, 1, 3) + b"abc", "some-labels-idx1-ubyte"
        ),
        r"the labels in .*labels-idx1-ubyte have shape \(3,\); it should be \(23,\)",
    ),
    "no Parquet": (no_table, "is not a whole Parquet file"),
    "no images": (other_columns, "does not have a column `image`, but x; rename"),
    "ragged": (without_a_pixel, "`image` in .* are of different sizes"),
    "integers": (
        lambda folder: save_table(folder, PIXELS.reshape(IMAGES, -1).astype(int).tolist()),
        "`image` in .* are of type int64; they should be uint8",
    ),
    "missing": (lambda folder: save_table(folder, [None, *PIXELS.reshape(IMAGES, -1)[1:].tolist()]), "rows are empty"),
    "text": (lambda folder: save_table(folder, ["a"] * IMAGES), "are of type string; they should be lists"),
    "class names": (
        lambda folder: save_table(folder, flat(PIXELS, pa.uint8()), labels=["Bag"] * IMAGES),
        "`label` in .* are of type string; they should be integers",
    ),
    "two columns": (two_columns, "has 2 columns `image`; leave one"),
    "labels alone": (labels_alone, "labels-idx1-ubyte holds labels, and no images"),
    "longer idx": (lambda folder: spoilt(folder, lambda content: content + b"x"), "it goes on after its end"),
    "altered gz": (altered_gz, "can't be read: CRC check failed"),
    "two kinds": (two_kinds, r"holds both files of arrays, as some\.npz, and others, as a\.png: part them"),
    "half labelled": (half_labelled, r"more\.npz holds labels, and .*some\.npz does not"),
    "label": (with_a_bad_label, r"in 0\.\.9, indices of classes; at index 21 is 10"),
    "NaN": (bad_pixel, "NaN or outside 0..255, first at index 22"),
}  # fmt: skip


def read_all(path: Path) -> None:
    for piece in pieces.split(path, CLASSES, INPUTS, size=10):
        pieces.read(piece, CLASSES, INPUTS)


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_told(tmp_path: Path, case: str) -> None:
    save, message = BAD[case]
    path = save(tmp_path)
    with pytest.raises(DataError, match=message):
        read_all(path)


def test_a_stamp_tells_whether_a_piece_is_still_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_idx(tmp_path)

    def stamps() -> list[str]:
        time.sleep(0.02)  # A file system's clock goes in steps.
        return [pieces.stamp(piece) for piece in pieces.split(path, CLASSES, INPUTS, size=12)]

    seen = [stamps()]
    assert stamps() == seen[0]
    os.utime(path, (1, 1))
    seen.append(stamps())
    labels = tmp_path / "some-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes())
    seen.append(stamps())
    labels.unlink()
    seen.append(stamps())
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    seen.append(stamps())
    monkeypatch.chdir(tmp_path)
    path = Path(path.name)
    assert stamps() == seen[-1], "the same file by another way"
    path = tmp_path / "other-images-idx3-ubyte"
    path.write_bytes(content)
    seen.append(stamps())
    folder = tmp_path / "pictures"
    folder.mkdir()
    path = folder
    for name in "ab":
        Image.new("L", (28, 28)).save(folder / f"{name}.png")
    seen.append(stamps())
    Image.new("L", (28, 28), 1).save(folder / "b.png")
    seen.append(stamps())
    every = [stamp for each in seen for stamp in each]
    assert len(set(every)) == len(every)


def test_notes_of_what_wrote_shards_are_passed_over(tmp_path: Path) -> None:
    folder = save_shards(tmp_path)
    (folder / "_SUCCESS").touch()
    (folder / "._0.npz").touch()
    assert len(own_images.read(folder, CLASSES)) == IMAGES


def test_labels_may_be_packed_otherwise_than_images(tmp_path: Path) -> None:
    path = save_idx(tmp_path, ".gz")
    labels = tmp_path / "some-labels-idx1-ubyte.gz"
    labels.with_suffix("").write_bytes(gzip.decompress(labels.read_bytes()))
    labels.unlink()
    found = own_images.read(path, CLASSES).labels
    assert found is not None
    assert np.array_equal(found.numpy(), LABELS)


def test_nearly_black_images_are_no_scaled_ones(tmp_path: Path) -> None:
    """Wherever they are cut from the others."""
    pixels = PIXELS.astype(np.float32)
    pixels[10:] = 0
    pixels[22, 0, 0] = 1
    path = save_npz(tmp_path, images=pixels)
    for size in (None, 10, 3):
        assert sum(len(pieces.read(piece, CLASSES, INPUTS)) for piece in pieces.split(path, CLASSES, INPUTS, size=size))
    path = save_npz(tmp_path, images=pixels / 255)
    with pytest.raises(DataError, match="as if scaled"):
        read_all(path)


def test_a_large_file_is_not_read_to_find_its_end(tmp_path: Path) -> None:
    """A hole of 400 GB, of which nothing but the images asked for is read."""
    path = tmp_path / "many-images-idx3-ubyte"
    images = 500_000_000
    with path.open("wb") as file:
        file.write(struct.pack(">HBB3I", 0, 8, 3, images, 28, 28))
        file.truncate(16 + images * 784)
    found = pieces.split(path, CLASSES, INPUTS, size=1_000_000)
    assert len(found) == 500
    last = found[-1]
    assert isinstance(last, pieces.Rows)
    read = pieces.read(pieces.Rows(path, "", images - 2, images, labelled=False), CLASSES, INPUTS)
    assert isinstance(read, OwnImages)
    assert read.names == ("499999998", "499999999")
