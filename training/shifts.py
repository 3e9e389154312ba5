"""Fashion-MNIST's images under shift: five kinds of corruption, each at five severities.

After Hendrycks & Dietterich (2019), "Benchmarking neural network robustness to common corruptions and perturbations",
and Ovadia et al. (2019), "Can you trust your model's uncertainty?", for small grey images on black. What lies outside
an image is black. All functions take and return uint8 ``[N, 28, 28]``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SHIFTS", "blur", "contrast", "noise", "occlude", "rotate", "shift"]

SHIFTS: dict[str, tuple[float, ...]] = {
    "rotation": (10, 20, 30, 45, 90),
    "blur": (0.5, 1, 1.5, 2, 3),
    "noise": (16, 32, 64, 96, 128),
    "occlusion": (6, 10, 14, 18, 22),
    "contrast": (0.75, 0.5, 0.35, 0.2, 0.1),
}
"""Severities 1 to 5: degrees counter-clockwise; the Gaussian's standard deviation in pixels; the noise's standard
deviation in grey levels; the side of the square in pixels; the factor of the deviations from the image's mean."""


def shift(pixels: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
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
            return noise(pixels, amount, seed)
        case "occlusion":
            return occlude(pixels, int(amount), seed)
        case _:
            return contrast(pixels, amount)


def rotate(pixels: Tensor, degrees: float) -> Tensor:
    """Rotated about the centre, counter-clockwise if ``degrees`` are positive; interpolated bilinearly."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # From a place in the result to that in the image; rows run downwards.
    turned = torch.tensor([[[cosine, -sine, 0], [sine, cosine, 0]]])
    grid = F.affine_grid(turned, [1, 1, *pixels.shape[1:]], align_corners=False)
    # As channels, all images share one grid.
    return _grey(F.grid_sample(pixels[None].float(), grid, padding_mode="zeros", align_corners=False)[0])


def blur(pixels: Tensor, sd: float) -> Tensor:
    """Convolved with a Gaussian of standard deviation ``sd`` pixels, ``sd`` > 0."""
    density = torch.exp(-0.5 * (torch.arange(-27, 28) / sd) ** 2)
    # Row i holds the weights of all pixels of a line for its pixel i, centred there; the matrix is symmetric.
    weights = (density / density.sum()).unfold(0, 28, 1).flip(0)
    return _grey(weights @ pixels.float() @ weights)


def noise(pixels: Tensor, sd: float, seed: int) -> Tensor:
    """With independent normal noise of standard deviation ``sd`` grey levels on every pixel, clipped to 0..255."""
    normal = np.random.default_rng(seed).standard_normal(tuple(pixels.shape), dtype=np.float32)
    return _grey(pixels + sd * torch.from_numpy(normal))


def occlude(pixels: Tensor, side: int, seed: int) -> Tensor:
    """With a black square of ``side`` by ``side`` pixels, ``side`` <= 28, anywhere inside each image."""
    corners = np.random.default_rng(seed).random((len(pixels), 2, 1)) * (28 - side + 1)
    first = torch.from_numpy(corners).floor()
    covered = (torch.arange(28) >= first) & (torch.arange(28) < first + side)
    rows, columns = covered.unbind(1)
    return pixels.masked_fill(rows[:, :, None] & columns[:, None, :], 0)


def contrast(pixels: Tensor, factor: float) -> Tensor:
    """With each pixel's deviation from its image's mean multiplied by ``factor``, 0 to 1."""
    grey = pixels.float()
    mean = grey.mean((1, 2), keepdim=True)
    return _grey(mean + factor * (grey - mean))


def _grey(levels: Tensor) -> Tensor:
    return levels.round().clamp(0, 255).to(torch.uint8)
