"""Abstention with a guarantee: answer only where the error among the answers stays below a target."""

from __future__ import annotations

import math

import torch
from scipy.special import betainccinv
from torch import Tensor

from models.records import AbstentionRecord

__all__ = ["clopper_pearson_upper", "guaranteed_threshold"]


def clopper_pearson_upper(errors: int, trials: int, delta: float) -> float:
    """The upper bound that a probability of error exceeds with probability at most ``delta`` (Clopper & Pearson 1934).

    Exact, for the number of ``errors`` in independent ``trials``; 1 if there are no trials, or nothing but errors.
    Raises ``ValueError`` unless 0 <= errors <= trials and 0 < delta < 1.
    """
    if not 0 <= errors <= trials:
        raise ValueError(f"errors must lie between 0 and the {trials} trials, got {errors}")
    _check_fraction("delta", delta)
    return 1.0 if errors == trials else float(betainccinv(errors + 1, trials - errors, delta))


def guaranteed_threshold(
    uncertainty: Tensor, errors: Tensor, target_error: float, delta: float = 0.05
) -> AbstentionRecord:
    """A threshold of high coverage whose error is at most ``target_error`` with probability 1 - ``delta``.

    "Selection with guaranteed risk" (Geifman & El-Yaniv 2017) on n images of any ``uncertainty`` ``[n]``, with
    ``errors`` ``[n]`` true where the prediction is wrong: a binary search tests ⌈log2 n⌉ thresholds at most, each with
    :func:`clopper_pearson_upper` at delta / ⌈log2 n⌉. Images tied at a threshold are answered, and counted.

    The images must be drawn independently, and must not have served to fit what gives the uncertainty. What is tested
    depends on earlier tests; that costs nothing where the error among answers doesn't fall as the threshold rises, for
    then every wrong threshold that could be reached before one is passed lies on one path of the search.

    Raises ``ValueError`` if there are no images, not as many errors as uncertainties, an uncertainty is not finite, or
    unless target and delta lie in (0, 1).
    """
    if not len(uncertainty):
        raise ValueError("a threshold can't be guaranteed on no images")
    if uncertainty.shape != errors.shape:
        raise ValueError(f"as many errors are needed as the {len(uncertainty)} uncertainties, got {len(errors)}")
    if not uncertainty.isfinite().all():
        raise ValueError("a threshold can't be guaranteed on uncertainties that are not finite")
    _check_fraction("target_error", target_error)
    _check_fraction("delta", delta)

    images = len(uncertainty)
    ordered, order = uncertainty.sort()
    wrong_so_far = errors[order].cumsum(0)
    share = delta / max(1, (images - 1).bit_length())  # bit_length: ⌈log2 n⌉ in integers.
    best = AbstentionRecord(
        target_error=target_error, delta=delta, threshold=None, error_bound=1.0, coverage=0.0, selective_error=None
    )
    # With fewer answers than this, not even none wrong would be proof enough.
    least = math.ceil(math.log(share) / math.log1p(-target_error))
    # The most images that can be answered lie between these two; the lower one stands for none, and is not tested.
    low, high = max(1, least - 1), images
    while low < high:
        candidate = ordered[(low + high + 1) // 2 - 1]
        answered = int(torch.searchsorted(ordered, candidate, right=True))
        wrong = int(wrong_so_far[answered - 1])
        bound = clopper_pearson_upper(wrong, answered, share)
        if bound <= target_error:
            best = AbstentionRecord(
                target_error=target_error, delta=delta, threshold=float(candidate), error_bound=bound,
                coverage=answered / images, selective_error=wrong / answered,
            )  # fmt: skip
            low = answered
        else:
            high = int(torch.searchsorted(ordered, candidate))
    return best


def _check_fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value}")
