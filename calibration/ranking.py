"""Measures of an uncertainty score as a ranking: who should be asked first, and who does not belong.

Scores ``[N]`` grow with uncertainty. As in :mod:`calibration.metrics`, ``weights`` ``[..., N]`` say how often an image
counts, and results are float64 of shape ``[...]``. Images of equal score count as if in every order, on average.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "accuracy_at_coverage",
    "area_under_generalized_risk_coverage",
    "area_under_risk_coverage",
    "auroc",
    "average_precision",
    "false_positive_rate",
    "risk_coverage",
]


def risk_coverage(scores: Tensor, errors: Tensor) -> Tensor:
    """The error rate among the k least uncertain images, for k = 1 ... N: float64 ``[N]`` (El-Yaniv & Wiener 2010).

    ``errors`` ``[N]`` is true, or 1, where the prediction is wrong.
    """
    _, mistaken, counts = _cumulative(scores, errors, None)
    return mistaken / counts.cumsum(0)


def area_under_risk_coverage(scores: Tensor, errors: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of :func:`risk_coverage` over k (AURC; Geifman, Uziel & El-Yaniv 2019). Less is better."""
    answered, mistaken, counts = _cumulative(scores, errors, weights)
    return (counts * (mistaken / answered.clamp_min(1e-300))).sum(-1) / counts.sum(-1)


def area_under_generalized_risk_coverage(scores: Tensor, errors: Tensor, weights: Tensor | None = None) -> Tensor:
    """The same of the fraction of all images that are answered wrongly (AUGRC; Traub et al. 2024): the risk of a wrong
    answer, averaged over coverage, at most half the error rate for a useful score."""
    _, mistaken, counts = _cumulative(scores, errors, weights)
    return (counts * mistaken).sum(-1) / counts.sum(-1).square()


def accuracy_at_coverage(scores: Tensor, errors: Tensor, coverage: float, weights: Tensor | None = None) -> Tensor:
    """Accuracy among the least uncertain ``coverage`` of all images, at least one."""
    answered, mistaken, counts = _cumulative(scores, errors, weights)
    wanted = (counts.sum(-1, keepdim=True) * coverage - 1e-9).ceil().clamp_min(1)
    index = (answered < wanted).sum(-1, keepdim=True).clamp_max(len(scores) - 1)
    # With weights the image at the edge may count several times: those beyond the coverage are not answered.
    until, own = answered.gather(-1, index), counts.gather(-1, index)
    wrong, before = mistaken.gather(-1, index), (mistaken.gather(-1, (index - 1).clamp_min(0)) * (index > 0))
    excess = (until - wanted).clamp_min(0) / own.clamp_min(1e-300)
    return (1 - (wrong - excess * (wrong - before)) / wanted).squeeze(-1)


def auroc(
    scores: Tensor, others: Tensor, weights: Tensor | None = None, weights_of_others: Tensor | None = None
) -> Tensor:
    """Probability that one of ``others`` ``[M]`` has a higher score than one of ``scores`` ``[N]``, ties counting half.

    ``others`` are what should be found: wrong predictions, or images out of distribution. ``weights`` ``[..., N]`` and
    ``weights_of_others`` ``[..., M]``. This is the area under the receiver operating characteristic.
    """
    own, found = _or_ones(weights, scores), _or_ones(weights_of_others, others)
    ordered, order = scores.double().sort()
    below = torch.nn.functional.pad(own[..., order].cumsum(-1), (1, 0))
    values = others.double().contiguous()
    lower, upper = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    wins = (below[..., lower] + below[..., upper]) / 2
    return (found * wins).sum(-1) / (found.sum(-1) * own.sum(-1))


def average_precision(
    scores: Tensor, others: Tensor, weights: Tensor | None = None, weights_of_others: Tensor | None = None
) -> Tensor:
    """Area under the precision-recall curve for finding ``others`` (AUPR), as the step-wise sum of precision times the
    gain in recall. It depends on how many there are of each."""
    flagged, found = _detection(scores, others, weights, weights_of_others)
    recall = found / found[..., -1:]
    gained = torch.diff(recall, dim=-1, prepend=torch.zeros_like(recall[..., :1]))
    return (found / flagged.clamp_min(1e-300) * gained).sum(-1)


def false_positive_rate(
    scores: Tensor,
    others: Tensor,
    weights: Tensor | None = None,
    weights_of_others: Tensor | None = None,
    *,
    recall: float = 0.95,
) -> Tensor:
    """Fraction of ``scores`` above the threshold that finds ``recall`` of ``others``, at least (FPR95)."""
    flagged, found = _detection(scores, others, weights, weights_of_others)
    enough = found >= recall * found[..., -1:] - 1e-9
    first = enough.double().argmax(-1, keepdim=True)
    false = flagged - found
    return (false.gather(-1, first) / false[..., -1:]).squeeze(-1)


def _or_ones(weights: Tensor | None, values: Tensor) -> Tensor:
    return torch.ones(len(values), dtype=torch.float64) if weights is None else weights


def _cumulative(scores: Tensor, errors: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """From the least uncertain image on: how many there are so far, how many of them wrong, how often each counts.

    Of images of equal score each is wrong as often as they are on average, by their weights.
    """
    _, groups = scores.unique(return_inverse=True)
    counts = _or_ones(weights, scores)
    groups_shape = (*counts.shape[:-1], int(groups.max()) + 1)
    total, wrong = (
        torch.zeros(groups_shape, dtype=torch.float64).index_add_(-1, groups, values)
        for values in (counts, counts * errors.double())
    )
    order = scores.argsort(stable=True)
    share = (wrong / total.clamp_min(1e-300))[..., groups[order]]
    counts = counts[..., order]
    return counts.cumsum(-1), (counts * share).cumsum(-1), counts


def _detection(
    scores: Tensor, others: Tensor, weights: Tensor | None, weights_of_others: Tensor | None
) -> tuple[Tensor, Tensor]:
    """For each threshold from the highest score down: how many images are flagged, and how many of them are of
    ``others``. Thresholds are the different scores, ``[..., thresholds]``."""
    both = torch.cat([scores.double(), others.double()])
    own, found = _or_ones(weights, scores), _or_ones(weights_of_others, others)
    unique, groups = both.unique(return_inverse=True)
    shape = torch.broadcast_shapes(own.shape[:-1], found.shape[:-1])

    def per_threshold(values: Tensor, of: Tensor) -> Tensor:
        sums = torch.zeros(*shape, len(unique), dtype=torch.float64)
        return sums.index_add_(-1, of, values.expand(*shape, -1)).flip(-1)

    right, false = per_threshold(found, groups[len(scores) :]), per_threshold(own, groups[: len(scores)])
    return (right + false).cumsum(-1), right.cumsum(-1)
