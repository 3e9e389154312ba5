"""The predictive distribution: what every test-time strategy returns and all else reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
import torch.nn.functional as F
from scipy.special import stdtrit
from torch import Tensor

from models.records import Scaling

__all__ = ["UNSCALED", "PredictiveDistribution", "PredictiveSummary", "entropy", "temper"]

UNSCALED = Scaling()
"""A temperature of 1, which changes nothing."""

JACKKNIFE_GROUPS = 16


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

    ``temperature`` calibrates the members' mean ("pool then calibrate", Rahaman & Thiery 2021); members calibrated
    before they are pooled, as by :meth:`scaled`, are members like any others. The uncertainty is that of the
    calibrated prediction, decomposed after Depeweg et al. (2018) as total = aleatoric + epistemic:

        predictive_entropy = expected_entropy + mutual_information

    At temperature 1 these are the familiar quantities of the members. Otherwise the joint distribution of member and
    label is first multiplied by the factor per class that turns the mean into the calibrated one. Of all joint
    distributions with that mean it is the nearest in Kullback-Leibler divergence (the I-projection, Csiszar 1975),
    and the identity above stays exact.

    Members need not be independent: those of a designed mask bank are not. ``replicates`` is the number of equal blocks
    of members, one after another, that are independent of each other and alike: T, as by default, for members drawn
    independently; 1 where nothing is known or drawn. What is said of Monte Carlo error comes from differences between
    blocks alone.

    Zeros among ``members``, which an underflowing softmax gives, become the least positive number, so that logarithms
    stay finite. All entropies are in nats, between 0 and log C.

    Raises ``ValueError`` unless the temperature is positive and finite, ``members`` has three axes, and
    ``replicates`` divides T.
    """

    members: Tensor
    temperature: float = 1.0
    replicates: int | None = None

    def __post_init__(self) -> None:
        if self.members.dim() != 3:
            raise ValueError(f"members must be [T, B, C], got shape {tuple(self.members.shape)}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be positive and finite, got {self.temperature}")
        if self.replicates is None:
            object.__setattr__(self, "replicates", len(self.members))
        if not self.replicates or self.replicates < 1 or len(self.members) % self.replicates:
            raise ValueError(f"replicates must divide the {len(self.members)} members, got {self.replicates}")
        object.__setattr__(self, "members", _positive(self.members))

    @classmethod
    def from_logits(
        cls, logits: Tensor, temperature: float = 1.0, replicates: int | None = None
    ) -> PredictiveDistribution:
        """Members from their logits ``[T, B, C]``."""
        return cls(F.softmax(logits, dim=-1), temperature, replicates)

    @classmethod
    def scaled(cls, logits: Tensor, scaling: Scaling, replicates: int | None = None) -> PredictiveDistribution:
        """The distribution of members with ``logits`` ``[T, B, C]``, calibrated before or after they are pooled."""
        if scaling.order == "calibrate_then_pool":
            return cls.from_logits(logits / scaling.temperature, 1.0, replicates)
        return cls.from_logits(logits, scaling.temperature, replicates)

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
        cancellation, and never negative but for rounding. The estimate from few members is too low; see
        :attr:`mutual_information_jackknife`.
        """
        joint = self._joint
        # Where it underflows, the joint probability is next to nothing.
        independent = _positive(joint.sum(-1, keepdim=True) * self.mean)
        divergence: Tensor = (torch.xlogy(joint, joint) - torch.xlogy(joint, independent)).sum(-1)
        return divergence.mean(0).clamp_min(0)

    @property
    def mutual_information_jackknife(self) -> Tensor:
        """:attr:`mutual_information` with its bias of order 1 / T removed ``[B]``; NaN for one replicate.

        By the jackknife (Quenouille 1956) that leaves out one of up to 16 groups of whole replicates at a time. It
        varies a little more than the plain estimate, and may be negative where that is near 0.
        """
        blocks = self.members.unflatten(0, (self._independent, -1))
        groups = torch.tensor_split(blocks, min(JACKKNIFE_GROUPS, self._independent))
        if len(groups) == 1:
            return torch.full_like(self.mutual_information, math.nan)
        without = [
            PredictiveDistribution(
                torch.cat([*groups[:left_out], *groups[left_out + 1 :]]).flatten(0, 1), self.temperature
            )
            for left_out in range(len(groups))
        ]
        left = torch.stack([distribution.mutual_information for distribution in without]).mean(0)
        corrected: Tensor = len(groups) * self.mutual_information - (len(groups) - 1) * left
        return corrected

    @property
    def variation_ratio(self) -> Tensor:
        """``[B]``: the fraction of members that vote for another class than the most voted one (Freeman 1965)."""
        votes = F.one_hot(self.members.argmax(-1), self.members.shape[-1]).sum(0)
        return 1 - votes.amax(-1) / self.samples

    @property
    def influence(self) -> Tensor:
        """What each member adds to the error of :attr:`mean`, to first order ``[T, B, C]``; of mean 0 over members."""
        joint = self._joint
        return (joint - joint.sum(-1, keepdim=True) * self.mean) / self.temperature

    @property
    def standard_error(self) -> Tensor:
        """Monte Carlo standard error of :attr:`mean` ``[B, C]``: the standard deviation of its distance from the
        prediction of infinitely many members. From the spread of the replicates' means; NaN for one replicate.

        To first order in that distance (the delta method), which is exact at temperature 1.
        """
        if self._independent == 1 or not len(self.mean):
            return torch.full_like(self.mean, math.nan)
        blocks = self.influence.unflatten(0, (self._independent, -1)).mean(1)
        error: Tensor = blocks.std(0) / math.sqrt(self._independent)
        return error

    def confidence_interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Where the prediction of infinitely many members lies with confidence ``level``: lower and upper ``[B, C]``.

        :attr:`standard_error` times Student's quantile for replicates - 1 degrees of freedom, cut to [0, 1]. Raises
        ``ValueError`` unless 0 < level < 1.
        """
        _check_level(level)
        reach = self.standard_error * float(stdtrit(max(self._independent - 1, 1), (1 + level) / 2))
        return (self.mean - reach).clamp(0, 1), (self.mean + reach).clamp(0, 1)

    def credible_interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """The central range of the members' calibrated probabilities of each class: lower and upper ``[B, C]``.

        It says how far sub-networks differ, and doesn't shrink with T. Calibration weighs members: their probabilities
        are conditional on the member in the calibrated joint distribution, and count with its marginal. Raises
        ``ValueError`` unless 0 < level < 1.
        """
        _check_level(level)
        weights = _positive(self._joint.sum(-1, keepdim=True))
        ordered, order = (self._joint / weights).sort(0)
        shares = (weights / self.samples).expand_as(ordered).gather(0, order).cumsum(0)
        lower, upper = (
            ordered.gather(0, (shares < share * shares[-1:]).sum(0, keepdim=True).clamp_max(self.samples - 1))[0]
            for share in ((1 - level) / 2, (1 + level) / 2)
        )
        return lower, upper

    def summary(self) -> PredictiveSummary:
        """What is worth keeping when the members are not."""
        return PredictiveSummary(
            self.pooled,
            self.mean,
            self.predictive_entropy,
            self.expected_entropy,
            self.mutual_information,
            self.variation_ratio,
            self.standard_error,
        )

    @property
    def _independent(self) -> int:
        assert self.replicates is not None  # noqa: S101
        return self.replicates


@dataclass(frozen=True)
class PredictiveSummary:
    """A :class:`PredictiveDistribution` without its members: its fields, for B images and C classes."""

    pooled: Tensor
    mean: Tensor
    predictive_entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    variation_ratio: Tensor
    standard_error: Tensor

    def empty(self, images: int) -> PredictiveSummary:
        """A summary of as many images, of this one's kind, to be filled."""
        values = (getattr(self, field.name) for field in fields(self))
        return PredictiveSummary(*(value.new_empty(images, *value.shape[1:]) for value in values))

    def fill(self, start: int, part: PredictiveSummary) -> None:
        """Set the images from ``start`` on to those of ``part``."""
        for field in fields(self):
            values = getattr(part, field.name)
            getattr(self, field.name)[start : start + len(values)] = values

    @classmethod
    def cat(cls, parts: Sequence[PredictiveSummary]) -> PredictiveSummary:
        """The images of all ``parts``, in order."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")


def _positive(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny)
