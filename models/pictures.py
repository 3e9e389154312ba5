"""From a picture of any size and colour to what the network was trained on: 28x28, grey, light on dark."""

from __future__ import annotations

import io
import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

__all__ = ["FORMATS", "MAX_PIXELS", "SIDE", "PictureError", "decode"]

SIDE = 28

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


def decode(content: bytes, invert: Literal["auto", "true", "false"]) -> NDArray[np.uint8]:
    """The picture as ``[28, 28]`` in 0..255.

    Transparent parts become white; the picture is turned upright, made grey, padded to a square with the colour of
    its border, and reduced with antialiasing. A 28x28 grey picture passes unchanged. ``invert`` "true", "false" or
    "auto": then a picture whose border is light is inverted.

    Raises :class:`PictureError` for what is no such picture, damaged or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures; the limit below is lower than its own.
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise PictureError(f"the image has {picture.width} x {picture.height} pixels; the limit is {MAX_PIXELS:,}")
        picture.draft("L", (8 * SIDE, 8 * SIDE))  # Spares a JPEG's decoder the details that the reduction drops.
        grey = _grey(picture)
    except PictureError:  # A ValueError too, but none of Pillow's.
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"this is not an image of a kind read here: {', '.join(FORMATS)}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"the image is damaged: {error}") from error
    background = _border_median(grey)
    if grey.size != (SIDE, SIDE):
        grey = ImageOps.pad(grey, (SIDE, SIDE), Image.Resampling.LANCZOS, color=background)
    if invert == "true" or (invert == "auto" and background > 127):
        grey = ImageOps.invert(grey)
    return np.asarray(grey)


def _upright(picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises many kinds of them; a picture is no worse for unreadable notes on it.
        return picture
    turn = TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _grey(picture: Image.Image) -> Image.Image:
    upright = _upright(picture)
    if upright.mode.startswith("I"):
        # 16 bits a pixel; convert("L") would cut them off at 255 instead of scaling them.
        return Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8))
    if upright.has_transparency_data:
        opaque = Image.new("RGBA", upright.size, "white")
        opaque.alpha_composite(upright.convert("RGBA"))
        upright = opaque
    return upright.convert("L")


def _border_median(grey: Image.Image) -> int:
    values = np.asarray(grey)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    return int(np.median(border))
