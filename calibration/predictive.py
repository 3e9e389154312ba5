"""The predictive distribution: what every test-time strategy returns and all else reads."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PredictiveDistribution", "entropy"]


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy in nats over the last axis; 0 log 0 = 0."""
    total: Tensor = torch.special.entr(probabilities).sum(-1)
    return total


@dataclass(frozen=True)
class PredictiveDistribution:
    """Class probabilities of T members for B images and C classes: ``members`` ``[T, B, C]``.

    A strategy that gives one distribution per image has T = 1; nothing can then be said about what is epistemic.

    The decomposition of uncertainty is that of Depeweg et al. (2018), "Decomposition of uncertainty in Bayesian deep
    learning": total = aleatoric + epistemic, that is

        predictive_entropy = expected_entropy + mutual_information

    All entropies are in nats, between 0 and log C.
    """

    members: Tensor

    @classmethod
    def from_logits(cls, logits: Tensor, temperature: float = 1.0) -> PredictiveDistribution:
        """Members from their logits ``[T, B, C]``, each divided by ``temperature`` before the softmax.

        Members are scaled, not their mean, so that the decomposition of uncertainty stays an identity after
        calibration. Raises ``ValueError`` unless the temperature is positive and finite.
        """
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        return cls(F.softmax(logits / temperature, dim=-1))

    @property
    def samples(self) -> int:
        """T, the number of members."""
        return self.members.shape[0]

    @property
    def mean(self) -> Tensor:
        """Arithmetic mean over the members ``[B, C]``: the prediction."""
        return self.members.mean(0)

    @property
    def predictive_entropy(self) -> Tensor:
        """Total uncertainty ``[B]``: the entropy of the mean."""
        return entropy(self.mean)

    @property
    def expected_entropy(self) -> Tensor:
        """Aleatoric uncertainty ``[B]``: the mean of the members' entropies."""
        return entropy(self.members).mean(0)

    @property
    def mutual_information(self) -> Tensor:
        """Epistemic uncertainty ``[B]``: between the label and the choice of member (BALD; Houlsby et al. 2011).

        Computed as the mean Kullback-Leibler divergence of the members from their mean, which is the difference of
        the two entropies without the cancellation, and never negative but for rounding. The estimate from few
        members is biased downwards.
        """
        divergences = torch.xlogy(self.members, self.members) - torch.xlogy(self.members, self.mean)
        return divergences.sum(-1).mean(0).clamp_min(0)

    @property
    def variation_ratio(self) -> Tensor:
        """``[B]``: the fraction of members that vote for another class than the most voted one (Freeman 1965)."""
        votes = F.one_hot(self.members.argmax(-1), self.members.shape[-1]).sum(0)
        return 1 - votes.amax(-1) / self.samples

    @property
    def standard_error(self) -> Tensor:
        """Monte Carlo standard error of :attr:`mean` ``[B, C]``: how far it may be from that of infinitely many
        members, as the standard deviation of that error. Valid for members drawn independently; NaN if T = 1."""
        if self.samples == 1:
            return torch.full_like(self.members[0], math.nan)
        return self.members.std(0) / math.sqrt(self.samples)
