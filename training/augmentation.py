"""Random changes of training images that leave their class as it is."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.records import Augmentation

__all__ = ["augmented", "erased", "flipped", "shifted"]

ERASED_AREA = (0.02, 0.33)
"""Shares of the image, as in Zhong et al. (2020)."""
ERASED_ASPECT = (0.3, 1 / 0.3)
"""Height by width of what is erased."""


def augmented(pixels: Tensor, wanted: Augmentation) -> Tensor:
    """``pixels``, uint8 ``[B, H, W]``, changed as ``wanted``, each image by random numbers of its own: torch's global
    ones, as those of dropout in training are."""
    if wanted.flip:
        pixels = flipped(pixels)
    if wanted.shift:
        pixels = shifted(pixels, wanted.shift)
    if wanted.erase:
        pixels = erased(pixels, wanted.erase)
    return pixels


def flipped(pixels: Tensor) -> Tensor:
    """Every other image, by chance, mirrored left to right."""
    return torch.where(torch.rand(len(pixels), 1, 1) < 0.5, pixels.flip(-1), pixels)


def shifted(pixels: Tensor, most: int) -> Tensor:
    """Moved by up to ``most`` pixels in either direction of both axes; what comes in is background, 0."""
    images, height, width = pixels.shape
    rows = torch.randint(2 * most + 1, (images, 1)) + torch.arange(height)
    columns = torch.randint(2 * most + 1, (images, 1)) + torch.arange(width)
    padded = F.pad(pixels, (most, most, most, most))
    return padded[torch.arange(images).view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)]


def erased(pixels: Tensor, probability: float) -> Tensor:
    """With ``probability`` a rectangle, of random area, aspect and place, filled with noise (Zhong et al. 2020)."""
    images, height, width = pixels.shape
    area = height * width * torch.empty(images).uniform_(*ERASED_AREA)
    aspect = torch.empty(images).uniform_(*map(math.log, ERASED_ASPECT)).exp()
    inside = _span((area * aspect).sqrt(), height).unsqueeze(2) & _span((area / aspect).sqrt(), width).unsqueeze(1)
    chosen = torch.rand(images, 1, 1) < probability
    return torch.where(inside & chosen, torch.randint(256, pixels.shape, dtype=torch.uint8), pixels)


def _span(lengths: Tensor, size: int) -> Tensor:
    """For each of the ``lengths`` ``[B]``, which of ``size`` places lie in an interval of that length: bool
    ``[B, size]``."""
    whole = lengths.round().clamp(1, size)
    start = (torch.rand(len(lengths)) * (size + 1 - whole)).floor().unsqueeze(1)
    places = torch.arange(size)
    return (places >= start) & (places < start + whole.unsqueeze(1))
