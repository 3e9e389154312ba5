"""What to do with a prediction: the classes that it leaves possible, and whether to abstain."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from calibration import conformal
from calibration.abstention import guaranteed_threshold
from models.bundle import Bundle

__all__ = ["DecisionRule"]


@dataclass(frozen=True)
class DecisionRule:
    """Two promises of a calibrated strategy, and the thresholds that keep them.

    A prediction set holds the true class with probability ``coverage``: it is all classes whose probability p has
    1 - p <= ``nonconformity`` (LAC; see :mod:`calibration.conformal`). Of the answers that are not abstained from at
    most the fraction ``target_error`` is wrong, with probability 95 % over the draw of the calibration images: those
    with 1 - confidence <= ``uncertainty``, which is ``None`` where no threshold can be guaranteed.

    Both hold for images like those of the calibration, answered by the sub-networks that it was fitted with.
    """

    coverage: float
    nonconformity: float
    target_error: float
    uncertainty: float | None

    @classmethod
    def fitted(cls, bundle: Bundle, strategy: str, coverage: float, target_error: float) -> DecisionRule | None:
        """The rule from the scores of the calibration images in ``bundle``; ``None`` if it holds none of ``strategy``.

        Raises ``ValueError`` unless both fractions lie in (0, 1).
        """
        if bundle.scores is None or strategy not in bundle.scores.strategies:
            return None
        scores = bundle.scores.strategies[strategy]
        abstention = guaranteed_threshold(1 - scores.confidence, ~scores.correct, target_error)
        return cls(
            coverage, conformal.threshold(scores.nonconformity["lac"], coverage), target_error, abstention.threshold
        )

    @property
    def min_probability(self) -> float:
        """The least probability of a class in a prediction set."""
        return max(0.0, 1 - self.nonconformity)

    @property
    def min_confidence(self) -> float | None:
        """The least confidence of an answer; ``None`` if there is no threshold, and all is abstained from."""
        return None if self.uncertainty is None else 1 - self.uncertainty

    def prediction_sets(self, mean: Tensor) -> Tensor:
        """Which classes are left possible: bool ``[B, C]`` from calibrated probabilities ``[B, C]``.

        None may be: then no class fits the image as well as was promised.
        """
        return conformal.prediction_sets(1 - mean.double(), self.nonconformity)

    def abstains(self, mean: Tensor) -> Tensor:
        """Which images should not be answered: bool ``[B]`` from calibrated probabilities ``[B, C]``."""
        return 1 - mean.amax(1) > (-math.inf if self.uncertainty is None else self.uncertainty)

    @property
    def reason(self) -> str:
        """Why an image is abstained from."""
        return "no_guarantee" if self.uncertainty is None else "low_confidence"
