"""Outliers made of nothing but random numbers and the training images themselves, on which sub-networks are trained to
disagree (Jain et al. 2020, "Maximizing overall diversity for improved uncertainty estimates in deep ensembles")."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["curves", "disagreement", "outliers_from", "shuffled"]

SMOOTHNESS = (1.5, 6.0)
"""Standard deviations, in pixels, of the filters that random fields are smoothed by."""
LINE_WIDTH = (0.6, 2.2)
"""Half, in pixels."""
FILLED = 0.25
"""Share of the fields that are shown as areas instead of lines."""
RADIUS = (6.0, 14.0)
"""Of the disc outside which there is nothing, in pixels of 28."""
TILES = (2, 4, 7)
"""Along one side of a 28x28 image."""


def outliers_from(pixels: Tensor, count: int) -> Tensor:
    """``count`` images that are none of clothing: uint8 ``[count, 28, 28]``, one half :func:`curves`, the other
    :func:`shuffled` out of ``pixels``, uint8 ``[B, 28, 28]``. Drawn by torch's global random numbers."""
    drawn = (count + 1) // 2
    return torch.cat([curves(drawn), shuffled(pixels[torch.randint(len(pixels), (count - drawn,))])])


def curves(count: int) -> Tensor:
    """Level curves of smooth random fields, or the areas above a level, within a disc: uint8 ``[count, 28, 28]``."""
    fields = _smooth(torch.randn(count, 1, 28, 28), float(torch.empty(()).uniform_(*SMOOTHNESS)))
    fields = fields / fields.std((2, 3), keepdim=True)
    above = fields - torch.randn(count, 1, 1, 1) * 0.5
    slope = ((fields - fields.roll(1, 2)).square() + (fields - fields.roll(1, 3)).square()).sqrt().clamp_min(1e-3)
    lines = torch.sigmoid(4 * (torch.empty(count, 1, 1, 1).uniform_(*LINE_WIDTH) - above.abs() / slope))
    filled = torch.rand(count, 1, 1, 1) < FILLED
    places = torch.arange(28.0)
    rows, columns = (torch.empty(count, 1, 1, 1).uniform_(10, 17) for _ in range(2))
    distance = ((places.view(28, 1) - rows).square() + (places - columns).square()).sqrt()
    disc = torch.sigmoid(1.5 * (torch.empty(count, 1, 1, 1).uniform_(*RADIUS) - distance))
    brightness = torch.empty(count, 1, 1, 1).uniform_(0.5, 1)
    shown = torch.where(filled, torch.sigmoid(8 * above), lines) * disc * brightness
    return (255 * shown).round().to(torch.uint8).squeeze(1)


def shuffled(pixels: Tensor) -> Tensor:
    """``pixels``, uint8 ``[B, 28, 28]``, cut into square tiles that change places within each image, two at least."""
    tiles = TILES[int(torch.randint(len(TILES), ()))]
    size = 28 // tiles
    cut = pixels.view(-1, tiles, size, tiles, size).transpose(2, 3).reshape(-1, tiles * tiles, size, size)
    order, places = torch.rand(len(cut), tiles * tiles).argsort(1), torch.arange(tiles * tiles)
    order = torch.where((order == places).all(1, keepdim=True), places.roll(1), order)
    mixed = cut[torch.arange(len(cut)).unsqueeze(1), order]
    return mixed.view(-1, tiles, tiles, size, size).transpose(2, 3).reshape(-1, 28, 28)


def disagreement(one: Tensor, other: Tensor) -> Tensor:
    """Mean Jensen-Shannon divergence, in nats, of two sub-networks' predictions for the same images, from logits
    ``[B, C]``: the mutual information of an ensemble of the two, log 2 at most."""
    first, second = one.log_softmax(1), other.log_softmax(1)
    pooled = torch.logaddexp(first, second) - math.log(2)
    return (_entropy(pooled) - (_entropy(first) + _entropy(second)) / 2).mean()


def _entropy(log_probabilities: Tensor) -> Tensor:
    return -(log_probabilities.exp() * log_probabilities).sum(1)


def _smooth(fields: Tensor, deviation: float) -> Tensor:
    reach = math.ceil(3 * deviation)
    weights = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * deviation**2))
    weights = weights / weights.sum()
    along_rows = F.conv2d(fields, weights.view(1, 1, 1, -1), padding=(0, reach))
    return F.conv2d(along_rows, weights.view(1, 1, -1, 1), padding=(reach, 0))
