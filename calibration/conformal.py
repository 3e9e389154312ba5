"""Split conformal prediction sets (Papadopoulos et al. 2002): sets of classes that hold the label as often as promised.

A label's nonconformity is computed for n held-out images, and a set is all classes whose nonconformity is not above
their quantile. It holds the label with probability ⌈(n + 1) coverage⌉ / (n + 1), over the draw of the n images and of
the new one; more often only where nonconformities tie. That is exact at every n and for every network, as long as the
n images and the new one are exchangeable and neither served to fit what gives the probabilities.
"""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import torch
from torch import Tensor

from models.records import CONFORMAL_METHODS, ConformalMethod

__all__ = [
    "class_thresholds",
    "image_uniforms",
    "nonconformity",
    "prediction_sets",
    "quantile_rank",
    "threshold",
]

RANK_PENALTY = 0.1
FREE_RANKS = 2
"""RAPS adds the penalty for every rank after these. Both are fixed: tuned on the images that set the threshold, they
would cost the exactness."""


def image_uniforms(pixels: Tensor) -> Tensor:
    """A number in [0, 1) for each image of ``pixels`` ``[N, ...]``, as if drawn uniformly: float64 ``[N]``.

    It is a hash of the image's content as float32, and of nothing else. Any function of image and class is a valid
    nonconformity, so that coverage stays exact; and an image gets the same set whenever and with whatever others it
    is asked about, which a generator's numbers would not give.
    """
    # Adding 0 makes -0 the 0 that it equals.
    images = (pixels.detach().cpu().float() + 0.0).numpy().astype("<f4", copy=False)
    hashes = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    # 53 bits are what a float64 holds.
    bits = [int.from_bytes(digest, "little") >> 11 for digest in hashes]
    return torch.tensor(bits, dtype=torch.float64, device=pixels.device) * 2.0**-53


def nonconformity(probabilities: Tensor, method: ConformalMethod, uniforms: Tensor) -> Tensor:
    """How badly each class fits each image: float64 ``[N, C]``, from ``probabilities`` ``[N, C]``.

    - ``lac``: 1 - p, for the smallest sets on average (Sadinle, Lei & Wasserman 2019);
    - ``aps``: the probability of the classes ranked above, plus u p, for sets that grow with the image's difficulty
      (Romano, Sesia & Candès 2020);
    - ``raps``: that plus 0.1 for every rank after the second, against long tails of improbable classes (Angelopoulos
      et al. 2021).

    u is the image's of ``uniforms`` ``[N]``, which ``lac`` doesn't use. Classes of equal probability rank by index.

    Raises ``ValueError`` for an unknown method, or if the probabilities are not finite.
    """
    if method not in CONFORMAL_METHODS:
        raise ValueError(f"unknown method {method!r}; known are {', '.join(CONFORMAL_METHODS)}")
    if not probabilities.isfinite().all():
        raise ValueError("no prediction sets can be had from probabilities that are not finite")
    probabilities = probabilities.double()
    if method == "lac":
        return 1 - probabilities
    ranked, order = probabilities.sort(dim=1, descending=True, stable=True)
    # Summed without the class itself: subtracting it again would leave rounding errors that disturb the order.
    above = torch.cat([torch.zeros_like(ranked[:, :1]), ranked[:, :-1].cumsum(1)], dim=1)
    scores = above + uniforms.unsqueeze(1) * ranked
    if method == "raps":
        ranks = torch.arange(1, ranked.shape[1] + 1, device=ranked.device)
        scores += RANK_PENALTY * (ranks - FREE_RANKS).clamp_min(0)
    return torch.empty_like(scores).scatter_(1, order, scores)


def quantile_rank(images: int, coverage: float) -> int:
    """⌈(n + 1) ``coverage``⌉: which of n sorted nonconformities is the threshold; n + 1 if none is high enough.

    Raises ``ValueError`` unless 0 < coverage < 1.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie in (0, 1), got {coverage}")
    # Exact, with the decimal that was written: in floating point 100 * 0.55 is above 55, and the rank one too high.
    return math.ceil((images + 1) * Fraction(repr(float(coverage))))


def threshold(scores: Tensor, coverage: float) -> float:
    """The ⌈(n + 1) ``coverage``⌉-th smallest of the labels' nonconformities, ``scores`` ``[n]``.

    Infinite if there are fewer: then every class is in every set. Raises ``ValueError`` unless 0 < coverage < 1.
    """
    rank = quantile_rank(len(scores), coverage)
    return float(scores.kthvalue(rank).values) if rank <= len(scores) else math.inf


def class_thresholds(scores: Tensor, labels: Tensor, classes: int, coverage: float) -> Tensor:
    """The :func:`threshold` of each class's own images, so that each is covered as promised: float64 ``[C]``.

    ``scores`` ``[n]`` are the nonconformities of ``labels`` ``[n]``. Infinite for a class of too few images. These are
    label-conditional, or Mondrian, predictors (Vovk 2012).
    """
    quantiles = [threshold(scores[labels == index], coverage) for index in range(classes)]
    return torch.tensor(quantiles, dtype=torch.float64, device=scores.device)


def prediction_sets(scores: Tensor, threshold: float | Tensor) -> Tensor:
    """Which classes are in each image's set: bool ``[N, C]``, from :func:`nonconformity` and the threshold or ``[C]``
    thresholds.

    A set may be empty: no class fits the image as well as was promised. Filling it would cost the exactness.
    """
    return scores <= threshold
