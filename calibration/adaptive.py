"""As many sub-networks for each image as its decision needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from calibration.predictive import UNSCALED, PredictiveDistribution, PredictiveSummary
from calibration.subnetworks import SubnetworkEnsemble
from models.records import Scaling

__all__ = ["AdaptivePrediction", "predict_adaptively"]

FIRST_LOOK = 16
IMAGES_AT_ONCE = 1024
"""Images whose members are held at a time."""


@dataclass(frozen=True)
class AdaptivePrediction:
    """The ``summary`` of B images; the number of sub-networks used for each, ``samples`` ``[B]``; and whether its
    decision was ``settled`` ``[B]`` by them, rather than that there were no more."""

    summary: PredictiveSummary
    samples: Tensor
    settled: Tensor


@torch.inference_mode()
def predict_adaptively(
    ensemble: SubnetworkEnsemble,
    inputs: Tensor,
    scaling: Scaling = UNSCALED,
    *,
    confidence: float = 0.999,
    tolerance: float | None = None,
    threshold: float | None = None,
) -> AdaptivePrediction:
    """Ask the first 16, 32, 64 ... sub-networks of ``ensemble`` until each image's decision is settled.

    The decision is the top class and, if there is a ``threshold``, whether the calibrated probability of that class is
    above it. It is settled when it differs from every other by more than chance allows: each image's error over all
    looks is at most 1 - ``confidence`` by the union bound, as far as means over 16 sub-networks and more are normal.
    They are not where the decision hangs on a few rare sub-networks that disagree; therefore one more than was seen is
    counted, of the kind that speaks most against the decision. ``tolerance`` also ends the search for an image whose
    top class has a standard error below it. An image's answer does not depend on the others.

    The sub-networks must be independent (``design="independent"``): of designed ones the spread says nothing valid
    about the error of the first few. Raises ``ValueError`` if they are not, or unless 0 < confidence < 1.
    """
    if ensemble.bank.replicates != ensemble.samples:
        raise ValueError("the number of sub-networks can be adapted for independent ones alone: design='independent'")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    return _joined([
        _predict(ensemble, part, scaling, confidence=confidence, tolerance=tolerance, threshold=threshold)
        for part in torch.split(inputs, IMAGES_AT_ONCE)
    ])  # fmt: skip


def _looks(most: int) -> list[int]:
    """The numbers of sub-networks after which to look: 16, 32, 64 ... ``most``."""
    sizes = []
    size = FIRST_LOOK
    while size < most:
        sizes.append(size)
        size *= 2
    return [*sizes, most]


def _predict(
    ensemble: SubnetworkEnsemble,
    inputs: Tensor,
    scaling: Scaling,
    *,
    confidence: float,
    tolerance: float | None,
    threshold: float | None,
) -> AdaptivePrediction:
    sizes = _looks(ensemble.samples)
    error = (1 - confidence) / len(sizes)
    waiting = torch.arange(len(inputs), device=inputs.device)
    members: Tensor | None = None
    done: list[tuple[Tensor, AdaptivePrediction]] = []
    for start, size in zip([0, *sizes], sizes, strict=False):
        new = PredictiveDistribution.scaled(ensemble.logits(inputs[waiting], slice(start, size)), scaling)
        temperature = new.temperature
        members = new.members if members is None else torch.cat([members, new.members])
        distribution = PredictiveDistribution(members, temperature)
        quantile = float(stdtrit(size, 1 - error / 2))
        settled = _is_settled(distribution, quantile, threshold)
        finished = settled | (size == sizes[-1])
        if tolerance is not None:
            finished |= _top_error(distribution) < tolerance
        part = PredictiveDistribution(members[:, finished], temperature)
        counts = torch.full_like(waiting[finished], size)
        done.append((waiting[finished], AdaptivePrediction(part.summary(), counts, settled[finished])))
        waiting, members = waiting[~finished], members[:, ~finished]
        if not len(waiting):
            break
    order = torch.cat([images for images, _ in done]).argsort()
    joined = _joined([prediction for _, prediction in done])
    summary = PredictiveSummary(*(getattr(joined.summary, name)[order] for name in vars(joined.summary)))
    return AdaptivePrediction(summary, joined.samples[order], joined.settled[order])


def _is_settled(distribution: PredictiveDistribution, quantile: float, threshold: float | None) -> Tensor:
    """``[B]``: whether the top class leads every other, and is above or below the threshold, by more than chance."""
    members = distribution.members
    if not members.shape[1]:
        return torch.zeros(0, dtype=torch.bool, device=members.device)
    top = distribution.pooled.argmax(1, keepdim=True)
    lead = members.gather(2, top.expand(len(members), -1, -1)) - members
    settled = _beyond_chance(lead, quantile).scatter(1, top, True).all(1)
    if threshold is not None:
        distance = distribution.mean.gather(1, top) - threshold
        influence = distribution.influence.gather(2, top.expand(len(members), -1, -1))
        settled &= _beyond_chance((distance + influence) * distance.sign(), quantile).squeeze(1)
    return settled


def _beyond_chance(values: Tensor, quantile: float) -> Tensor:
    """Whether the mean of T ``values`` ``[T, ...]`` between -1 and 1, and of one -1, is above 0 by more than chance."""
    count = len(values) + 1
    mean = (values.sum(0) - 1) / count
    variance = ((values.square().sum(0) + 1) / count - mean.square()).clamp_min(0)
    return mean > quantile * (variance / (count - 1)).sqrt()


def _top_error(distribution: PredictiveDistribution) -> Tensor:
    top = distribution.mean.argmax(1, keepdim=True)
    error: Tensor = distribution.standard_error.gather(1, top).squeeze(1)
    return error


def _joined(parts: list[AdaptivePrediction]) -> AdaptivePrediction:
    return AdaptivePrediction(
        PredictiveSummary.cat([part.summary for part in parts]),
        torch.cat([part.samples for part in parts]),
        torch.cat([part.settled for part in parts]),
    )
