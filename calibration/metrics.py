"""Measures of predictive quality: pure functions of probabilities ``[N, C]`` and labels ``[N]``.

Each takes ``weights`` ``[..., N]``, how often every image counts, and gives a float64 tensor of shape ``[...]``: one
value for each set of weights, so that a bootstrap is a matrix product. Without weights every image counts once, and
the result has no axes. Measures of ranking and of detection are in :mod:`calibration.ranking`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn.isotonic import isotonic_regression
from torch import Tensor

__all__ = [
    "BINS",
    "BrierDecomposition",
    "ReliabilityBins",
    "accuracy",
    "adaptive_calibration_error",
    "brier",
    "brier_decomposition",
    "classwise_calibration_error",
    "debiased_calibration_error",
    "expected_calibration_error",
    "maximum_calibration_error",
    "negative_log_likelihood",
    "reliability_bins",
]

BINS = 15


def accuracy(probabilities: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Fraction of images whose most probable class is the label."""
    return _mean(_correct(probabilities, labels), weights)


def negative_log_likelihood(probabilities: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of -log p(label), in nats. Infinite if a label was given probability 0."""
    return _mean(-probabilities.double().gather(1, labels.unsqueeze(1)).squeeze(1).log(), weights)


def brier(probabilities: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared distance of the probabilities to the one-hot label, between 0 and 2 (Brier 1950)."""
    targets = F.one_hot(labels, probabilities.shape[1]).double()
    return _mean((probabilities.double() - targets).square().sum(1), weights)


@dataclass(frozen=True)
class BrierDecomposition:
    """``calibration`` + ``refinement`` = the Brier score. Calibration: what recalibrating each class's probability by
    its best non-decreasing function would gain. Refinement: what would be left."""

    calibration: float
    refinement: float


def brier_decomposition(probabilities: Tensor, labels: Tensor) -> BrierDecomposition:
    """The Brier score's two parts, class by class, without bins (CORP: Dimitriadis, Gneiting & Jordan 2021).

    The recalibrated probabilities are isotonic regressions of the labels, so that both parts are never negative. As
    they are fitted to the same images, the calibration part of a calibrated prediction is a little above 0.
    """
    refinement = 0.0
    for column, values in enumerate(probabilities.double().unbind(1)):
        # Equal probabilities can't be told apart: they get one value, that of their mean, with their number as weight.
        unique, groups, counts = values.unique(return_inverse=True, return_counts=True)
        hits = (labels == column).double()
        frequency = torch.zeros_like(unique).index_add_(0, groups, hits) / counts
        recalibrated = torch.from_numpy(isotonic_regression(frequency.numpy(), sample_weight=counts.double().numpy()))
        refinement += float((recalibrated[groups] - hits).square().mean())
    return BrierDecomposition(float(brier(probabilities, labels)) - refinement, refinement)


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
    confidence, index = _by_confidence(probabilities, bins)
    count = torch.bincount(index, minlength=bins)
    filled = count.clamp_min(1)
    return ReliabilityBins(
        _edges(bins),
        count,
        torch.bincount(index, _correct(probabilities, labels), minlength=bins) / filled,
        torch.bincount(index, confidence, minlength=bins) / filled,
    )


def expected_calibration_error(
    probabilities: Tensor, labels: Tensor, weights: Tensor | None = None, *, bins: int = BINS
) -> Tensor:
    """Mean over images of |accuracy - confidence| of their bin, of equal width (ECE; Naeini et al. 2015).

    Never 0 for a finite number of images, even of a calibrated prediction.
    """
    confidence, index = _by_confidence(probabilities, bins)
    return _binned_error(confidence - _correct(probabilities, labels), index, bins, weights)


def adaptive_calibration_error(
    probabilities: Tensor, labels: Tensor, weights: Tensor | None = None, *, bins: int = BINS
) -> Tensor:
    """The same with bins of equally many images (Nixon et al. 2019). Weights leave the bins as they are."""
    confidence = probabilities.double().amax(1)
    ordered = confidence.sort().values
    # Equal confidences share a bin: that of the first of them.
    positions = torch.searchsorted(ordered, confidence)
    starts = torch.tensor([part[0] for part in torch.arange(len(labels)).tensor_split(bins) if len(part)])
    index = torch.bucketize(positions, starts, right=True) - 1
    return _binned_error(confidence - _correct(probabilities, labels), index, bins, weights)


def classwise_calibration_error(
    probabilities: Tensor, labels: Tensor, weights: Tensor | None = None, *, bins: int = BINS
) -> Tensor:
    """Mean over classes of the calibration error of their probability, bins of equal width (Kull et al. 2019)."""
    classes = probabilities.shape[1]
    values = probabilities.double()
    gaps = values - F.one_hot(labels, classes).double()
    index = torch.bucketize(values, _edges(bins)[1:-1])
    errors = [_binned_error(gaps[:, column], index[:, column], bins, weights) for column in range(classes)]
    return torch.stack(errors).mean(0)


def maximum_calibration_error(
    probabilities: Tensor, labels: Tensor, weights: Tensor | None = None, *, bins: int = BINS
) -> Tensor:
    """The largest |accuracy - confidence| of a bin of equal width (MCE; Naeini et al. 2015): of few images, mostly."""
    confidence, index = _by_confidence(probabilities, bins)
    counts = _sums(torch.ones_like(confidence), index, bins, weights)
    sums = _sums(confidence - _correct(probabilities, labels), index, bins, weights)
    return (sums.abs() / counts.clamp_min(1e-300)).amax(-1)


def debiased_calibration_error(
    probabilities: Tensor, labels: Tensor, weights: Tensor | None = None, *, bins: int = BINS
) -> Tensor:
    """The squared calibration error of the confidence, without the bias of the ECE (Kumar, Liang & Ma 2019).

    The mean over images of (accuracy - confidence)² of their bin, of equal width, less what chance adds to it: its
    expectation is 0 for a calibrated prediction, and single values may be negative. Bins of one image say nothing and
    are left out.
    """
    confidence, index = _by_confidence(probabilities, bins)
    gaps = confidence - _correct(probabilities, labels)
    counts, sums, squares = (
        _sums(values, index, bins, weights) for values in (torch.ones_like(gaps), gaps, gaps.square())
    )
    mean = sums / counts.clamp_min(1e-300)
    variance_of_mean = (squares / counts.clamp_min(1e-300) - mean.square()) / (counts - 1).clamp_min(1e-300)
    return torch.where(counts > 1, counts * (mean.square() - variance_of_mean), 0).sum(-1) / counts.sum(-1)


def _correct(probabilities: Tensor, labels: Tensor) -> Tensor:
    return (probabilities.argmax(1) == labels).double()


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.mean() if weights is None else weights @ values / weights.sum(-1)


def _edges(bins: int) -> Tensor:
    return torch.linspace(0, 1, bins + 1, dtype=torch.float64)


def _by_confidence(probabilities: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    confidence = probabilities.double().amax(1)
    return confidence, torch.bucketize(confidence, _edges(bins)[1:-1])


def _sums(values: Tensor, index: Tensor, bins: int, weights: Tensor | None) -> Tensor:
    """Sums of ``values`` ``[N]`` in each bin: ``[..., bins]``."""
    if weights is None:
        return torch.zeros(bins, dtype=torch.float64).index_add_(0, index, values)
    return weights @ (F.one_hot(index, bins) * values.unsqueeze(1))


def _binned_error(gaps: Tensor, index: Tensor, bins: int, weights: Tensor | None) -> Tensor:
    total = len(gaps) if weights is None else weights.sum(-1)
    return _sums(gaps, index, bins, weights).abs().sum(-1) / total
