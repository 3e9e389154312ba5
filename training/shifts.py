"""Images under shift: five kinds of corruption, each at five severities.

After Hendrycks & Dietterich (2019), "Benchmarking neural network robustness to common corruptions and perturbations",
and Ovadia et al. (2019), "Can you trust your model's uncertainty?". What lies outside an image is black.

All functions take and return images ``[N, H, W]`` or ``[N, C, H, W]``, uint8 or float32, in 0..``maximum``. Amounts are
those for Fashion-MNIST, 28x28 in 0..255: a length is ``H`` or ``W``, whichever is less, over 28 times as long for other
sizes, and a number of grey levels ``maximum`` / 255 times as great. Noise and contrast need no lines and columns: they
take ``[N, P]`` too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SHIFTS", "applicable", "blur", "contrast", "noise", "occlude", "rotate", "shift"]

SHIFTS: dict[str, tuple[float, ...]] = {
    "rotation": (10, 20, 30, 45, 90),
    "blur": (0.5, 1, 1.5, 2, 3),
    "noise": (16, 32, 64, 96, 128),
    "occlusion": (6, 10, 14, 18, 22),
    "contrast": (0.75, 0.5, 0.35, 0.2, 0.1),
}
"""Severities 1 to 5: degrees counter-clockwise; the Gaussian's standard deviation in pixels; the noise's standard
deviation in grey levels; the side of the square in pixels; the factor of the deviations from the image's mean."""
SIDE = 28
"""Of the images that lengths are for."""


def applicable(shape: Sequence[int]) -> dict[str, tuple[float, ...]]:
    """Those of :data:`SHIFTS` that images of ``shape`` can be under: vectors have no lines and columns."""
    return {name: amounts for name, amounts in SHIFTS.items() if len(shape) > 1 or name in {"noise", "contrast"}}


def shift(pixels: Tensor, name: str, severity: int, seed: int = 0, *, maximum: float = 255) -> Tensor:
    """``pixels`` under the shift ``name`` of :data:`SHIFTS` at ``severity``, 1 to 5.

    What is random depends on ``seed`` and on an image's index alone, so that severities differ in strength only.
    Raises ``ValueError`` for an unknown name or severity.
    """
    if name not in SHIFTS:
        raise ValueError(f"there is no shift {name!r}; there are {', '.join(SHIFTS)}")
    if severity not in range(1, len(SHIFTS[name]) + 1):
        raise ValueError(f"severity must be 1 to {len(SHIFTS[name])}, got {severity}")
    amount = SHIFTS[name][severity - 1]
    match name:
        case "rotation":
            return rotate(pixels, amount)
        case "blur":
            return blur(pixels, amount)
        case "noise":
            return noise(pixels, amount, seed, maximum=maximum)
        case "occlusion":
            return occlude(pixels, int(amount), seed)
        case _:
            return contrast(pixels, amount, maximum=maximum)


def rotate(pixels: Tensor, degrees: float) -> Tensor:
    """Rotated about the centre, counter-clockwise if ``degrees`` are positive; interpolated bilinearly."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    height, width = pixels.shape[-2:]
    # From a place in the result to that in the image, in units of half its width and height; rows run downwards.
    turned = torch.tensor([[[cosine, -sine * (height / width), 0], [sine * (width / height), cosine, 0]]])
    grid = F.affine_grid(turned, [1, 1, height, width], align_corners=False)
    # As channels, all images share one grid.
    planes = pixels.reshape(1, -1, height, width).float()
    return _as(pixels, F.grid_sample(planes, grid, padding_mode="zeros", align_corners=False).reshape(pixels.shape))


def blur(pixels: Tensor, sd: float) -> Tensor:
    """Convolved with a Gaussian of standard deviation ``sd`` pixels, ``sd`` > 0."""
    rows, columns = (_gaussian(length, sd * _scale(pixels)) for length in pixels.shape[-2:])
    return _as(pixels, rows @ pixels.float() @ columns)


def _gaussian(length: int, sd: float) -> Tensor:
    """Row i holds the weights of all pixels of a line for its pixel i, centred there; the matrix is symmetric."""
    density = torch.exp(-0.5 * (torch.arange(1 - length, length) / sd) ** 2)
    return (density / density.sum()).unfold(0, length, 1).flip(0)


def noise(pixels: Tensor, sd: float, seed: int, *, maximum: float = 255) -> Tensor:
    """With independent normal noise of standard deviation ``sd`` grey levels on every pixel, clipped."""
    normal = np.random.default_rng(seed).standard_normal(tuple(pixels.shape), dtype=np.float32)
    return _as(pixels, pixels + sd * (maximum / 255) * torch.from_numpy(normal), maximum)


def occlude(pixels: Tensor, side: int, seed: int) -> Tensor:
    """With a black square of ``side`` by ``side`` pixels, ``side`` <= 28, anywhere inside each image."""
    side = round(side * _scale(pixels))
    lengths = np.array(pixels.shape[-2:])[:, None]
    corners = np.random.default_rng(seed).random((len(pixels), 2, 1)) * (lengths - side + 1)
    rows, columns = (
        (torch.arange(length) >= first) & (torch.arange(length) < first + side)
        for length, first in zip(pixels.shape[-2:], torch.from_numpy(corners).floor().unbind(1), strict=True)
    )
    covered = rows[:, :, None] & columns[:, None, :]
    return pixels.masked_fill(covered if pixels.ndim == 3 else covered[:, None], 0)


def contrast(pixels: Tensor, factor: float, *, maximum: float = 255) -> Tensor:
    """With each pixel's deviation from its image's mean multiplied by ``factor``, 0 to 1."""
    grey = pixels.float()
    mean = grey.mean(tuple(range(1, grey.ndim)), keepdim=True)
    return _as(pixels, mean + factor * (grey - mean), maximum)


def _scale(pixels: Tensor) -> float:
    return min(pixels.shape[-2:]) / SIDE


def _as(pixels: Tensor, levels: Tensor, maximum: float = math.inf) -> Tensor:
    """``levels`` as the type of ``pixels``, clipped to what they may be; a mean of pixels is never beyond."""
    if pixels.dtype == torch.uint8:
        levels, maximum = levels.round(), min(maximum, 255)
    return levels.clamp(0, maximum).to(pixels.dtype)
