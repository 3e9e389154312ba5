"""A user's own images: read as they are, or refused with what is wrong and what to do."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from models import bundle
from models.pictures import decode
from training import own_images
from training.data import CLASSES, DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (28, 28), value).save(path, format="PNG")
    return path


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "mine.npz", **arrays)
    return folder / "mine.npz"


def test_a_flat_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name, value in (("b.png", 20), ("a.PNG", 10), ("C.bmp", 30), ("d", 40)):
        picture(tmp_path / name, value)
    (tmp_path / ".DS_Store").write_bytes(b"hidden")
    done: list[tuple[int, int]] = []
    images = own_images.read(tmp_path, CLASSES, on_pictures=lambda *progress: done.append(progress))
    assert images.names == ("C.bmp", "a.PNG", "b.png", "d")
    assert images.pixels[:, 0, 0].tolist() == [30, 10, 20, 40]
    assert (images.pixels.shape, images.pixels.dtype) == ((4, 28, 28), torch.uint8)
    assert images.labels is None
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_pictures_are_decoded_as_over_http(tmp_path: Path) -> None:
    """Of any size and colour, and inverted where the border is light."""
    shirt = Image.new("RGB", (90, 60), (250, 240, 230))
    shirt.paste((200, 30, 60), (20, 10, 70, 50))
    shirt.save(tmp_path / "shirt.jpg")
    images = own_images.read(tmp_path, CLASSES)
    assert np.array_equal(images.pixels[0].numpy(), decode((tmp_path / "shirt.jpg").read_bytes(), "auto"))
    assert images.pixels[0, 0, 0] < 20 < images.pixels[0, 14, 14]


def test_subfolders_named_after_classes_give_labels(tmp_path: Path) -> None:
    for name in ("Trouser/2.png", "Trouser/1.png", "T-shirt-top/1.png", "T-shirt_top/1.png", "Ankle boot/1.png"):
        picture(tmp_path / name)
    (tmp_path / "Bag").mkdir()
    images = own_images.read(tmp_path, CLASSES)
    assert images.names == (
        "Ankle boot/1.png", "T-shirt-top/1.png", "T-shirt_top/1.png", "Trouser/1.png", "Trouser/2.png",
    )  # fmt: skip
    assert images.labels is not None
    assert (images.labels.tolist(), images.labels.dtype) == ([9, 0, 0, 1, 1], torch.int64)


def test_without_classes_labels_are_not_looked_at(tmp_path: Path) -> None:
    for folder in ("hedgehogs", "owls"):
        (tmp_path / "pictures" / folder).mkdir(parents=True)
        Image.new("L", (28, 28), 3).save(tmp_path / "pictures" / folder / "one.png")
    found = own_images.read(tmp_path / "pictures", None)
    assert (found.names, found.labels) == (("hedgehogs/one.png", "owls/one.png"), None)
    np.savez(tmp_path / "images.npz", images=np.full((2, 28, 28), 3, np.uint8), labels=np.array(["owl", "owl"]))
    assert own_images.read(tmp_path / "images.npz", None).labels is None


def test_labelled_images_are_shuffled_with_their_names(tmp_path: Path, shipped: bundle.Bundle) -> None:
    """Whatever order and type they are stored in."""
    pixels = np.repeat(np.arange(2, 142, dtype=np.uint8), 784).reshape(140, 28, 28)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(140) % 10)
    found, names = own_images.read_labelled(tmp_path / "images.npz", shipped.card)
    places = [int(name) for name in names]
    assert sorted(places) == list(range(140))
    assert abs(stats.spearmanr(places, range(140)).statistic) < 0.3
    assert (found.pixels[:, 0, 0] - 2).tolist() == places
    assert found.labels.tolist() == [place % 10 for place in places]
    np.savez(tmp_path / "images.npz", images=pixels[::-1].astype(np.float64), labels=np.arange(140)[::-1] % 10)
    again, names = own_images.read_labelled(tmp_path / "images.npz", shipped.card)
    assert torch.equal(again.pixels, found.pixels.float())
    assert [139 - int(name) for name in names] == places
    assert own_images.digest(again) == own_images.digest(found)
    np.savez(tmp_path / "images.npz", images=pixels[:99], labels=np.arange(99) % 10)
    with pytest.raises(DataError, match="holds 99 images; at least 100"):
        own_images.read_labelled(tmp_path / "images.npz", shipped.card)


def test_folders_of_classes_with_odd_names(tmp_path: Path) -> None:
    classes = ("a/b", "a-b", ".net", "\u00fc")
    for name in ("a_b", "a-b", ".net", "u\u0308", ".hidden"):
        picture(tmp_path / name / "one.png")
    found = own_images.read(tmp_path, classes)
    assert found.labels is not None
    assert dict(zip(found.names, found.labels.tolist(), strict=True)) == {
        "a_b/one.png": 0, "a-b/one.png": 1, ".net/one.png": 2, "u\u0308/one.png": 3,
    }  # fmt: skip


def test_a_name_that_is_not_utf8_can_be_written(tmp_path: Path) -> None:
    picture(tmp_path / os.fsdecode(b"caf\xe9.png"))
    assert own_images.read(tmp_path, CLASSES).names == ("caf\\udce9.png",)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 784)])
def test_arrays_of_either_shape_and_any_float(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    path = npz(tmp_path, images=PIXELS.reshape(shape).astype(dtype), labels=np.array([0, 9, 4], dtype=np.uint8))
    images = own_images.read(path, CLASSES)
    assert images.names == ("0", "1", "2")
    assert images.pixels.dtype == (torch.uint8 if dtype == "uint8" else torch.float32)
    assert np.array_equal(images.pixels.numpy(), PIXELS)
    assert images.labels is not None
    assert (images.labels.tolist(), images.labels.dtype) == ([0, 9, 4], torch.int64)


def test_a_single_array_may_have_any_name(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "mine.npz", np.asfortranarray(PIXELS))
    images = own_images.read(tmp_path / "mine.npz", CLASSES)
    assert np.array_equal(images.pixels.numpy(), PIXELS)
    assert images.labels is None


BAD_FOLDERS: dict[str, tuple[list[str], str]] = {
    "empty": ([], "{folder} holds no pictures; put PNG"),
    "empty classes": (["Bag/"], "{folder} holds no pictures; put PNG"),
    "unknown class": (
        ["Bag/a.png", "Hat/b.png"],
        "the folder {folder}/Hat is not named after a class; rename it to one of T-shirt",
    ),
    "mixed": (["a.png", "Bag/b.png"], "{folder} holds both files, as a.png, and folders, as Bag: put all"),
    "folder in a class": (["Bag/a.png", "Bag/more/b.png"], "{folder}/Bag/more is not a file; move it elsewhere"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_folder_is_refused_with_a_reason(tmp_path: Path, case: str) -> None:
    names, message = BAD_FOLDERS[case]
    for name in names:
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            picture(tmp_path / name)
    with pytest.raises(DataError) as refusal:
        own_images.read(tmp_path, CLASSES)
    assert str(refusal.value).startswith(message.format(folder=tmp_path))


@pytest.mark.parametrize("content", [b"text", b"", b"\x89PNG\r\n\x1a\n"])
def test_an_unreadable_picture_is_named(tmp_path: Path, content: bytes) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(DataError, match=r"b\.png: .*image.*\. Mend it, or move it elsewhere$"):
        own_images.read(tmp_path, CLASSES)


FLOATS = PIXELS.astype(np.float64)
LABELS = np.zeros(3, dtype=np.int64)


def changed(value: float) -> np.ndarray[Any, Any]:
    pixels = FLOATS.copy()
    pixels[1, 27, 27] = value
    return pixels


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "no arrays": ({}, "does not hold an array `images`, but nothing"),
    "no such array": ({"x": PIXELS, "y": LABELS}, "does not hold an array `images`, but x, y; save them with np.savez"),
    "objects": ({"images": np.array([{}, None])}, "`images` in .* can't be read: Object arrays cannot be loaded"),
    "labels of objects": ({"images": PIXELS, "labels": np.array([{}])}, "`labels` in .* can't be read: Object arrays"),
    "integers": ({"images": PIXELS.astype(int)}, "`images` in .* are of type int64; they should be uint8, or float"),
    "text": ({"images": np.array(["a"])}, "are of type <U1"),
    "one image": ({"images": PIXELS[0]}, r"have shape \(28, 28\); it should be \[N, 28, 28\] or \[N, 784\]"),
    "colour": ({"images": np.zeros((2, 28, 28, 3))}, r"have shape \(2, 28, 28, 3\)"),
    "a number": ({"images": np.uint8(1)}, r"have shape \(\)"),
    "no images": ({"images": PIXELS[:0]}, "`images` in .* are none"),
    "NaN": ({"images": changed(np.nan)}, r"NaN or outside 0\.\.255, first at index 1"),
    "infinite": ({"images": changed(np.inf)}, r"outside 0\.\.255, first at index 1"),
    "negative": ({"images": changed(-0.5)}, r"outside 0\.\.255, first at index 1"),
    "just above": ({"images": changed(np.nextafter(255, 256))}, r"outside 0\.\.255, first at index 1"),
    "scaled": ({"images": FLOATS / 255}, r"no pixel above 1, as if scaled to 0\.\.1; multiply them by 255"),
    "too few labels": ({"images": PIXELS, "labels": LABELS[:2]}, r"`labels` in .* have shape \(2,\); .* \(3,\)"),
    "one-hot labels": ({"images": PIXELS, "labels": np.eye(3, 10, dtype=int)}, r"have shape \(3, 10\)"),
    "float labels": (
        {"images": PIXELS, "labels": LABELS.astype(float)},
        "are of type float64; they should be integers",
    ),
    "labels from 1": ({"images": PIXELS, "labels": np.array([1, 2, 10])}, r"in 0\.\.9, .*; at index 2 is 10"),
    "negative label": ({"images": PIXELS, "labels": LABELS - 1}, r"in 0\.\.9, .*; at index 0 is -1"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused_with_a_reason(tmp_path: Path, case: str) -> None:
    arrays, message = BAD_ARRAYS[case]
    with pytest.raises(DataError, match=message):
        own_images.read(npz(tmp_path, **arrays), CLASSES)


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage")


def bare_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, PIXELS)


def truncated(path: Path) -> None:
    np.savez(path, images=PIXELS)
    path.write_bytes(path.read_bytes()[:1000])


def with_a_broken_directory(path: Path) -> None:
    np.savez(path, images=PIXELS)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"PK\x01\x02", b"PK\x09\x09"))


def after_something_else(path: Path) -> None:
    np.savez(path, images=PIXELS)
    path.write_bytes(b"something else" + path.read_bytes())


def altered(path: Path) -> None:
    np.savez(path, images=PIXELS)
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)


def a_text_inside(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("images", "text")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (garbage, "is neither a folder of pictures nor a whole .npz file; save them with"),
        (bare_array, "is neither a folder of pictures nor a whole .npz file; save them with"),
        (truncated, "is neither a folder of pictures nor a whole .npz file; save them with"),
        (with_a_broken_directory, "is neither a folder of pictures nor a whole .npz file; save them with"),
        (after_something_else, "is neither a folder of pictures nor a whole .npz file; save them with"),
        (altered, "can't be read: Bad CRC-32"),
        (a_text_inside, "`images` in .* is not an array"),
    ],
)
def test_a_damaged_file_is_refused_with_a_reason(tmp_path: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(tmp_path / "mine.npz")
    with pytest.raises(DataError, match=message):
        own_images.read(tmp_path / "mine.npz", CLASSES)
