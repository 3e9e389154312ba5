"""The predictive distribution: what every test-time strategy returns and all else reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PredictiveDistribution", "entropy", "temper"]


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy in nats over the last axis; 0 log 0 = 0."""
    total: Tensor = torch.special.entr(probabilities).sum(-1)
    return total


def temper(probabilities: Tensor, temperature: float) -> Tensor:
    """Probabilities ``[..., C]`` raised to the power 1 / ``temperature`` and normalised.

    For a softmax this is the softmax of its logits divided by the temperature (Guo et al. 2017). Never zero: what
    underflows becomes the least positive number.
    """
    return _positive(F.softmax(_positive(probabilities).log() / temperature, dim=-1))


@dataclass(frozen=True)
class PredictiveDistribution:
    """Class probabilities of T members for B images and C classes: ``members`` ``[T, B, C]``.

    A strategy that gives one distribution per image has T = 1; nothing can then be said about what is epistemic.

    ``temperature`` calibrates the members' mean ("pool then calibrate", Rahaman & Thiery 2021). The uncertainty is
    that of the calibrated prediction, decomposed after Depeweg et al. (2018) as total = aleatoric + epistemic:

        predictive_entropy = expected_entropy + mutual_information

    At temperature 1 these are the familiar quantities of the members. Otherwise the joint distribution of member and
    label is first multiplied by the factor per class that turns the mean into the calibrated one. Of all joint
    distributions with that mean it is the nearest in Kullback-Leibler divergence (the I-projection, Csiszar 1975),
    and the identity above stays exact.

    Zeros among ``members``, which an underflowing softmax gives, become the least positive number, so that logarithms
    stay finite. All entropies are in nats, between 0 and log C.

    Raises ``ValueError`` unless the temperature is positive and finite and ``members`` has three axes.
    """

    members: Tensor
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.members.dim() != 3:
            raise ValueError(f"members must be [T, B, C], got shape {tuple(self.members.shape)}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        object.__setattr__(self, "members", _positive(self.members))

    @classmethod
    def from_logits(cls, logits: Tensor, temperature: float = 1.0) -> PredictiveDistribution:
        """Members from their logits ``[T, B, C]``."""
        return cls(F.softmax(logits, dim=-1), temperature)

    @property
    def samples(self) -> int:
        """T, the number of members."""
        return self.members.shape[0]

    @cached_property
    def pooled(self) -> Tensor:
        """Arithmetic mean of the members ``[B, C]``, before calibration."""
        return self.members.mean(0)

    @cached_property
    def mean(self) -> Tensor:
        """The prediction ``[B, C]``: the members' mean, calibrated."""
        return self.pooled if self.temperature == 1 else temper(self.pooled, self.temperature)

    @cached_property
    def _joint(self) -> Tensor:
        """T times the calibrated joint probability of member and label ``[T, B, C]``: its mean over T is ``mean``."""
        factor: Tensor = self.mean / self.pooled
        return self.members * factor

    @property
    def predictive_entropy(self) -> Tensor:
        """Total uncertainty ``[B]``: the entropy of :attr:`mean`."""
        return entropy(self.mean)

    @property
    def expected_entropy(self) -> Tensor:
        """Aleatoric uncertainty ``[B]``: the members' entropies, averaged with their probabilities."""
        excess: Tensor = torch.special.entr(self._joint.sum(-1))
        return (entropy(self._joint) - excess).mean(0)

    @property
    def mutual_information(self) -> Tensor:
        """Epistemic uncertainty ``[B]``: between the label and the choice of member (BALD; Houlsby et al. 2011).

        Computed as a mean Kullback-Leibler divergence, which is the difference of the two entropies without the
        cancellation, and never negative but for rounding. The estimate from few members is biased.
        """
        joint = self._joint
        independent = joint.sum(-1, keepdim=True) * self.mean
        divergence: Tensor = (torch.xlogy(joint, joint) - torch.xlogy(joint, independent)).sum(-1)
        return divergence.mean(0).clamp_min(0)

    @property
    def variation_ratio(self) -> Tensor:
        """``[B]``: the fraction of members that vote for another class than the most voted one (Freeman 1965)."""
        votes = F.one_hot(self.members.argmax(-1), self.members.shape[-1]).sum(0)
        return 1 - votes.amax(-1) / self.samples

    @property
    def standard_error(self) -> Tensor:
        """Monte Carlo standard error of :attr:`mean` ``[B, C]``: the standard deviation of its distance from the
        prediction of infinitely many members. Valid for members drawn independently; NaN if T = 1.

        To first order in that distance (the delta method), which is exact at temperature 1.
        """
        if self.samples == 1:
            return torch.full_like(self.mean, math.nan)
        joint = self._joint
        influence = (joint - joint.sum(-1, keepdim=True) * self.mean) / self.temperature
        return influence.std(0) / math.sqrt(self.samples)


def _positive(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny)
