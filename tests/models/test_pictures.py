from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from models import pictures
from training.data import FashionMNISTSplits


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def garment(size: int = 280, ink: int = 40, paper: int = 250) -> NDArray[np.uint8]:
    """A dark square in the middle of light paper."""
    values = np.full((size, size), paper, dtype=np.uint8)
    values[size // 4 : -size // 4, size // 4 : -size // 4] = ink
    return values


def test_a_28x28_grey_picture_passes_unchanged(fashion: FashionMNISTSplits) -> None:
    for pixels in fashion.test.pixels[:50].numpy():
        assert np.array_equal(pictures.decode(encoded(Image.fromarray(pixels)), "false"), pixels)


def test_auto_inversion_on_the_real_images(fashion: FashionMNISTSplits) -> None:
    """How many test images does "auto" leave as they are, and turn back when they come inverted?"""
    pixels = fashion.test.pixels[:1000].numpy()
    as_they_are = [np.array_equal(pictures.decode(encoded(Image.fromarray(p)), "auto"), p) for p in pixels]
    inverted = [np.array_equal(pictures.decode(encoded(Image.fromarray(255 - p)), "auto"), p) for p in pixels]
    assert np.mean(as_they_are) > 0.995
    assert np.mean(inverted) > 0.995


def test_inversion() -> None:
    light, dark = (encoded(Image.fromarray(values)) for values in (garment(), 255 - garment()))
    assert pictures.decode(light, "auto")[0, 0] < 10
    assert pictures.decode(dark, "auto")[0, 0] < 10
    assert pictures.decode(light, "false")[0, 0] > 240
    assert pictures.decode(dark, "true")[0, 0] > 240
    assert pictures.decode(light, "auto")[14, 14] == 255 - 40


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_pixel_format_gives_the_same_picture(mode: str) -> None:
    values = garment(ink=0, paper=255)
    if mode == "I;16":
        picture = Image.fromarray(values.astype(np.uint16) * 257)
        kind = "PNG"
    else:
        picture = Image.fromarray(values).convert(mode)
        kind = "JPEG" if mode == "CMYK" else "PNG"
    found = pictures.decode(encoded(picture, kind), "auto").astype(int)
    expected = pictures.decode(encoded(Image.fromarray(values)), "auto").astype(int)
    assert abs(found - expected).max() <= 3


def test_transparent_parts_are_paper() -> None:
    cut_out = Image.fromarray(garment(ink=0, paper=0)).convert("RGBA")
    alpha = np.zeros((280, 280), dtype=np.uint8)
    alpha[70:210, 70:210] = 255
    cut_out.putalpha(Image.fromarray(alpha))
    decoded = pictures.decode(encoded(cut_out), "auto")
    assert decoded[0, 0] == 0
    assert decoded[14, 14] == 255


@pytest.mark.parametrize("size", [(100, 400), (400, 100), (1, 1), (3000, 7)])
def test_proportions_are_kept_and_the_rest_is_background(size: tuple[int, int]) -> None:
    decoded = pictures.decode(encoded(Image.new("L", size, 200)), "false")
    assert decoded.shape == (28, 28)
    assert (decoded == 200).all()


def test_a_picture_taken_sideways_is_turned_upright() -> None:
    values = np.zeros((56, 56), dtype=np.uint8)
    values[:20] = 255
    upright = pictures.decode(encoded(Image.fromarray(values)), "false")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to look at it
    sideways = encoded(Image.fromarray(np.rot90(values).copy()), "PNG", exif=exif)
    assert np.array_equal(pictures.decode(sideways, "false"), upright)


def test_all_orientations_are_those_of_pillow() -> None:
    values = np.arange(28 * 28, dtype=np.uint32).reshape(28, 28).astype(np.uint8)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(Image.fromarray(values), "PNG", exif=exif)
        with Image.open(io.BytesIO(content)) as picture:
            expected = np.asarray(ImageOps.exif_transpose(picture))
        assert np.array_equal(pictures.decode(content, "false"), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("notes", ["a text where a number should be", "garbage"])
def test_unreadable_notes_do_not_spoil_a_picture(kind: str, notes: str) -> None:
    exif: Image.Exif | bytes = b"garbage"
    if notes != "garbage":
        # As some cameras write it: the tag of the resolution, 0x011A, holds text instead of a fraction.
        entries = struct.pack("<HHHII", 2, 0x0112, 3, 1, 6) + struct.pack("<HHI4s", 0x011A, 2, 4, b"72x\0")
        exif = b"Exif\0\0II*\0\x08\0\0\0" + entries + b"\0\0\0\0"
    content = encoded(Image.new("L", (30, 30), 77), kind, exif=exif)
    assert (abs(pictures.decode(content, "false").astype(int) - 77) <= 1).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "not an image of a kind read here: PNG, JPEG, WEBP, BMP"),
        (encoded(Image.new("L", (28, 28)), "GIF"), "not an image of a kind"),
        (encoded(Image.fromarray(garment()))[:100], "the image is damaged: "),
        (encoded(Image.new("1", (5000, 5000))), "^the image has 5000 x 5000 pixels; the limit is 16,000,000$"),
    ],
    ids=["text", "GIF", "truncated", "bomb"],
)
def test_what_is_no_such_picture_is_refused_with_a_reason(content: bytes, message: str) -> None:
    with pytest.raises(pictures.PictureError, match=message):
        pictures.decode(content, "auto")


def read_or_refused(content: bytes) -> None:
    try:
        decoded = pictures.decode(content, "auto")
    except pictures.PictureError:
        return
    assert decoded.shape == (28, 28)


@given(
    content=st.binary(max_size=300),
    prefix=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"BM", b"\xff\xd8\xff\xe0", b"RIFF"]),
)
@settings(deadline=None, max_examples=300)
def test_no_bytes_are_worse_than_unreadable(content: bytes, prefix: bytes) -> None:
    read_or_refused(prefix + content)


@given(position=st.integers(8, 600), value=st.integers(0, 255), kind=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP"]))
@settings(deadline=None, max_examples=300)
def test_a_damaged_picture_is_read_or_refused(position: int, value: int, kind: str) -> None:
    content = bytearray(encoded(Image.fromarray(garment(40)), kind))
    content[position % len(content)] = value
    read_or_refused(bytes(content))
