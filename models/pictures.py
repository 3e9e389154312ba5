"""From a picture of any size and colour to the shape that a network was trained on: 28x28, grey, light on dark."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

__all__ = ["FORMATS", "MAX_PIXELS", "SIDE", "PictureError", "decode"]

SIDE = 28

MODES = {1: "L", 3: "RGB"}
"""Pillow's names, by the number of channels."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 16_000_000
TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""


class PictureError(ValueError):
    """Not a picture of a kind read here, damaged or too large; the message says which."""


def decode(
    content: bytes, invert: Literal["auto", "true", "false"], shape: Sequence[int] = (SIDE, SIDE)
) -> NDArray[np.uint8]:
    """The picture as an array of ``shape`` in 0..255: ``[H, W]`` or ``[1, H, W]`` in grey, ``[3, H, W]`` in colour.

    Transparent parts become white; the picture is turned upright, made grey if it must be, padded with the colour of
    its border to the wanted proportions, and brought to size with antialiasing. One that is as wanted passes unchanged.
    ``invert`` "true", "false" or "auto": then a picture whose border is light is inverted, unless colour is wanted.

    Raises :class:`PictureError` for what is no such picture, damaged or too large, and for another ``shape``.
    """
    channels, height, width = (1, *shape) if len(shape) == 2 else tuple(shape) if len(shape) == 3 else (0, 0, 0)
    if channels not in MODES:
        raise PictureError(f"a picture can't become an array of shape {list(shape)}; send numbers")
    mode = MODES[channels]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures; the limit below is lower than its own.
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise PictureError(f"the image has {picture.width} x {picture.height} pixels; the limit is {MAX_PIXELS:,}")
        picture.draft(mode, (8 * width, 8 * height))  # Spares a JPEG's decoder the details that the reduction drops.
        plain = _plain(picture, mode)
    except PictureError:  # A ValueError too, but none of Pillow's.
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"this is not an image of a kind read here: {', '.join(FORMATS)}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"the image is damaged: {error}") from error
    background = _border_median(plain)
    if plain.size != (width, height):
        plain = ImageOps.pad(plain, (width, height), Image.Resampling.LANCZOS, color=background)
    if invert == "true" or (invert == "auto" and channels == 1 and background[0] > 127):
        plain = ImageOps.invert(plain)
    values = np.asarray(plain)
    return values.reshape(shape) if channels == 1 else np.ascontiguousarray(values.transpose(2, 0, 1))


def _upright(picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises many kinds of them; a picture is no worse for unreadable notes on it.
        return picture
    turn = TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _plain(picture: Image.Image, mode: str) -> Image.Image:
    """Upright, opaque and in ``mode``."""
    upright = _upright(picture)
    if upright.mode.startswith("I"):
        # 16 bits a pixel; convert("L") would cut them off at 255 instead of scaling them.
        return Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8)).convert(mode)
    if upright.has_transparency_data:
        opaque = Image.new("RGBA", upright.size, "white")
        opaque.alpha_composite(upright.convert("RGBA"))
        upright = opaque
    return upright.convert(mode)


def _border_median(picture: Image.Image) -> tuple[int, ...]:
    """Of each channel."""
    values = np.atleast_3d(np.asarray(picture))
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    return tuple(int(value) for value in np.median(border, axis=0))
