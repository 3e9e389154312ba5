"""Bootstrap intervals over images (Efron 1979), paired between predictions of the same images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["RESAMPLES", "bootstrap_weights", "interval"]

RESAMPLES = 1000


def bootstrap_weights(images: int, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """How often each of N images is drawn when N are drawn with replacement: float64 ``[resamples, N]``.

    The measures of :mod:`calibration.metrics` and :mod:`calibration.ranking` take them. Used for two predictions of the
    same images, they make the interval of the difference a paired one.
    """
    counts = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    return torch.from_numpy(counts).double()


def interval(value: float, resampled: Tensor, *, plug_in: float | None = None) -> tuple[float, float]:
    """The 95 % interval of a measure with ``value`` on the images and ``resampled`` ones ``[resamples]`` (the "basic"
    bootstrap: Davison & Hinkley 1997, 5.2).

    What a resampled value is off from that of the images is taken for what the latter is off from the truth, bias
    included: calibration errors are too high on images, and as much higher again on resampled ones. ``plug_in`` is the
    measure of the images as a population of their own, where that is not ``value``. Resamples that a measure can say
    nothing of, NaN, are left out.
    """
    low, high = torch.nanquantile(resampled.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    centre = value if plug_in is None else plug_in
    return value + centre - high, value + centre - low
