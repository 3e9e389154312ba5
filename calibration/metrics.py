"""Measures of predictive quality: pure functions of probabilities ``[N, C]`` and labels ``[N]``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "ReliabilityBins",
    "accuracy",
    "brier",
    "expected_calibration_error",
    "negative_log_likelihood",
    "reliability_bins",
]

BINS = 15


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Fraction of images whose most probable class is the label."""
    return float((probabilities.argmax(1) == labels).double().mean())


def negative_log_likelihood(probabilities: Tensor, labels: Tensor) -> float:
    """Mean of -log p(label), in nats. Infinite if a label was given probability 0."""
    return float(-probabilities.double().gather(1, labels.unsqueeze(1)).log().mean())


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """Mean squared distance of the probabilities to the one-hot label, between 0 and 2 (Brier 1950)."""
    targets = F.one_hot(labels, probabilities.shape[1]).double()
    return float((probabilities.double() - targets).square().sum(1).mean())


@dataclass(frozen=True)
class ReliabilityBins:
    """Images by confidence in bins ``(edges[k], edges[k + 1]]`` of equal width.

    ``count``, ``accuracy`` and ``confidence`` (means within the bin; 0 in an empty one) have one value a bin.
    """

    edges: Tensor
    count: Tensor
    accuracy: Tensor
    confidence: Tensor


def reliability_bins(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> ReliabilityBins:
    """Confidence (the largest probability) and accuracy in ``bins`` bins of equal width over (0, 1]."""
    confidence, predicted = probabilities.double().max(1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    index = torch.bucketize(confidence, edges[1:-1])
    count = torch.bincount(index, minlength=bins)
    correct = (predicted == labels).double()
    filled = count.clamp_min(1)
    return ReliabilityBins(
        edges,
        count,
        torch.bincount(index, correct, minlength=bins) / filled,
        torch.bincount(index, confidence, minlength=bins) / filled,
    )


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Mean over images of |accuracy - confidence| of their bin (Naeini et al. 2015; Guo et al. 2017)."""
    binned = reliability_bins(probabilities, labels, bins)
    gaps = (binned.accuracy - binned.confidence).abs()
    return float((gaps * binned.count).sum() / binned.count.sum())
