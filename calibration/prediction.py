"""From a bundle and an array of images to a calibrated predictive distribution: what ``calibration.predict`` is."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from calibration import strategies
from calibration.predictive import PredictiveDistribution
from calibration.strategies import Sampling, Strategy
from models.bundle import Bundle
from training.arrays import checked_pixels

__all__ = ["DEFAULT_STRATEGIES", "build_strategy", "predict"]

DEFAULT_STRATEGIES = ("mc_dropout", "weight_scaling")
"""The first that the network allows is taken."""


def predict(
    bundle: Bundle, images: ArrayLike, *, strategy: str | None = None, samples: int | None = None
) -> PredictiveDistribution:
    """The calibrated prediction for ``images``, the same that the service gives.

    ``images`` is an array or tensor of pixels, uint8 or float, of the shape and range in the bundle's card: for those
    that ship ``[N, 28, 28]`` or ``[N, 784]`` in 0..255, white on black. ``strategy`` and ``samples`` are those of
    :func:`build_strategy`, whose strategy is made anew by each call: to ask often, make it once, and call it with
    ``bundle.prepare(pixels), bundle.scaling(strategy.name)``.

    What comes back holds the N by C probabilities as ``mean``, and per image its ``predictive_entropy``,
    ``expected_entropy`` and ``mutual_information`` in nats; see
    :class:`~calibration.predictive.PredictiveDistribution`. Of a bundle that is not calibrated, nothing is scaled.

    Raises :class:`~training.data.DataError` for images of another shape, type or range, and what
    :func:`build_strategy` raises.
    """
    pixels = checked_pixels(np.asarray(images), "the images", bundle.card.input)
    built = build_strategy(bundle, strategy, samples)
    return built(bundle.prepare(pixels), bundle.scaling(built.name))


def build_strategy(bundle: Bundle, name: str | None = None, samples: int | None = None) -> Strategy:
    """The strategy that the service would use: with the sub-networks that ``bundle`` was calibrated with.

    ``name`` is by default the first of :data:`DEFAULT_STRATEGIES` that the network allows, ``samples`` as many as the
    calibration was fitted with. Raises what :func:`calibration.strategies.build` raises.
    """
    shape = bundle.card.input.shape
    if name is None:
        allowed = strategies.applicable(bundle.network, shape)
        name = next(default for default in DEFAULT_STRATEGIES if default in allowed)
    fitted = Sampling.of(bundle.calibration)
    return strategies.build(
        name,
        bundle.network,
        shape,
        samples=fitted.samples if samples is None else samples,
        seed=fitted.seed,
        design=fitted.design,
    )
