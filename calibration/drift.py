"""Whether uncertainties met in service are distributed as those of the calibration images were.

A calibration promises something about images like those that it was fitted on. Labels that would test the promise come
late or never, uncertainties at once: if their distribution has moved, so have the images. Nothing is said of images
that changed without it, and a window is no independent sample if the same image is asked about again and again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import kolmogorov

__all__ = [
    "MAJOR_PSI",
    "MAX_P_VALUE",
    "MIN_WINDOW",
    "MODERATE_PSI",
    "Drift",
    "Verdict",
    "as_sample",
    "compare",
    "direction",
    "kolmogorov_smirnov",
    "population_stability_index",
]

BINS = 10
PSEUDO_COUNT = 0.5
MIN_WINDOW = 200
MODERATE_PSI, MAJOR_PSI = 0.1, 0.25
MAX_P_VALUE = 0.001

Verdict = Literal["too_few", "stable", "moderate", "major"]


@dataclass(frozen=True)
class Drift:
    """How far n live values are from the m of the reference.

    ``window`` is n; ``psi`` the population stability index, in nats, and ``psi_expected`` what it comes to on average
    without drift; ``ks`` the Kolmogorov-Smirnov statistic, in 0..1, and ``p_value`` how likely one so large is without
    drift; ``direction``, in -1..1, is positive where live values are higher; ``verdict`` is by :func:`compare`.
    """

    window: int
    psi: float
    psi_expected: float
    ks: float
    p_value: float
    direction: float
    verdict: Verdict


def compare(reference: ArrayLike, live: ArrayLike) -> Drift:
    """Compare ``live`` values ``[n]`` with those of the ``reference`` ``[m]``.

    The verdict needs a difference that is large and one that is not chance, for either alone misleads. It is "moderate"
    from a PSI of 0.1 and "major" from 0.25, the limits in use since Lewis (1994) and Siddiqi (2006). They are about
    size and know nothing of n: without drift the PSI is (1/n + 1/m) times a chi-squared variable with one degree of
    freedom less than there are bins (Yurdakul & Naranjo 2020), so that with 200 values against 2,500 it passes 0.1 in
    3 % of windows by chance. A p-value alone says "drift" of any difference, however small, once n is large. So the
    verdict stays "stable" unless the Kolmogorov-Smirnov test, which needs no bins, has p <= 0.001 besides; so low, as
    windows are looked at again and again, for several strategies. Up to some 500 values the test is the stricter one,
    above all for a spread that changes about the same median; beyond them the PSI's limit is. Below 200 values there is
    no verdict but "too_few".

    Raises what :func:`as_sample` raises.
    """
    expected, found = as_sample(reference), as_sample(live)
    counts = _counts(expected, found)
    psi = _psi(*counts)
    ks, p_value = kolmogorov_smirnov(expected, found)
    verdict: Verdict = "stable"
    if len(found) < MIN_WINDOW:
        verdict = "too_few"
    elif p_value <= MAX_P_VALUE and psi >= MODERATE_PSI:
        verdict = "major" if psi >= MAJOR_PSI else "moderate"
    return Drift(
        window=len(found),
        psi=psi,
        psi_expected=(len(counts[0]) - 1) * (1 / len(found) + 1 / len(expected)),
        ks=ks,
        p_value=p_value,
        direction=direction(expected, found),
        verdict=verdict,
    )


def population_stability_index(reference: ArrayLike, live: ArrayLike) -> float:
    """The sum of (q - p) ln(q / p) over the reference's deciles, p being its share of a bin and q that of ``live``.

    That is the Jeffreys divergence of the two histograms, in nats: 0 if they are the same. A value that fills more
    than one decile gets a bin of its own, so that others on either side of it are told from it. As the logarithm knows
    no empty bin, half an observation is added to every bin on both sides, which is Jeffreys' prior of a multinomial;
    bins that are empty on both are left out. It stays the same if both are transformed by the same increasing function.

    Raises what :func:`as_sample` raises.
    """
    return _psi(*_counts(as_sample(reference), as_sample(live)))


def kolmogorov_smirnov(reference: ArrayLike, live: ArrayLike) -> tuple[float, float]:
    """The largest difference of the two distribution functions, and its p-value: two-sided, asymptotic.

    It errs to the safe side: for samples of some hundred, and for tied values, the true p-value is lower.

    Raises what :func:`as_sample` raises.
    """
    expected, found = np.sort(as_sample(reference)), np.sort(as_sample(live))
    values = np.concatenate([expected, found])
    shares = [np.searchsorted(sample, values, side="right") / len(sample) for sample in (expected, found)]
    statistic = float(np.abs(shares[0] - shares[1]).max())
    size = len(expected) * len(found) / len(values)
    return statistic, float(kolmogorov(np.sqrt(size) * statistic))


def direction(reference: ArrayLike, live: ArrayLike) -> float:
    """P(live > reference) - P(live < reference) for one value drawn of each: Cliff's delta (1993), in -1..1.

    It is the Mann-Whitney statistic on another scale. Raises what :func:`as_sample` raises.
    """
    expected, found = np.sort(as_sample(reference)), as_sample(live)
    below = np.searchsorted(expected, found, side="left").sum()
    above = (len(expected) - np.searchsorted(expected, found, side="right")).sum()
    return float((below - above) / (len(expected) * len(found)))


def as_sample(values: ArrayLike) -> NDArray[np.float64]:
    """``values`` as float64 ``[n]``. Raises ``ValueError`` unless there is one at least, and all are finite."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample) or not np.isfinite(sample).all():
        raise ValueError("a sample should be a row of one or more finite numbers")
    return sample


def _counts(reference: NDArray[np.float64], live: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """How many of either are in each bin that is not empty on both sides. Bins hold their upper edge."""
    # Observed values and not between them: else the bins of transformed values would be others.
    deciles = np.quantile(reference, np.arange(1, BINS) / BINS, method="inverted_cdf")
    edges, repeated = np.unique(deciles, return_counts=True)
    edges = np.union1d(edges, np.nextafter(edges[repeated > 1], -np.inf))
    expected, found = (
        np.bincount(np.searchsorted(edges, sample), minlength=len(edges) + 1) for sample in (reference, live)
    )
    occupied = expected + found > 0
    return expected[occupied], found[occupied]


def _psi(expected: NDArray[Any], found: NDArray[Any]) -> float:
    p, q = ((counts + PSEUDO_COUNT) / (counts + PSEUDO_COUNT).sum() for counts in (expected, found))
    return float(((q - p) * np.log(q / p)).sum())
