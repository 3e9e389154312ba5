"""Temperature scaling (Guo et al. 2017), fitted for each test-time strategy on its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from calibration import strategies
from calibration.masks import DEFAULT_DESIGN
from calibration.predictive import temper
from calibration.strategies import DEFAULT_SAMPLES, DEFAULT_SEED
from models.bundle import Bundle, Calibration, MaskDesign, TemperatureRecord, software_versions
from training.data import LabelledImages

__all__ = ["calibrate", "fit_temperature"]

LOG_RANGE = (math.log(0.05), math.log(20.0))


def fit_temperature(probabilities: Tensor, labels: Tensor) -> TemperatureRecord:
    """The temperature between 0.05 and 20 that minimises the negative log-likelihood.

    ``probabilities`` ``[N, C]`` are a strategy's predictions, ``labels`` ``[N]``. For a strategy that averages
    members they are the averages ("pool then calibrate"): Rahaman & Thiery (2021) found that better than averaging
    calibrated members, and so it was here. The loss is convex in 1 / temperature.

    Raises ``ValueError`` if there are no images or the probabilities are not finite.
    """
    if not len(labels):
        raise ValueError("a temperature can't be fitted on no images")
    if not probabilities.isfinite().all():
        raise ValueError("a temperature can't be fitted on probabilities that are not finite")

    logits = temper(probabilities, 1.0).double().log()

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits / math.exp(log_temperature), labels).item()

    found = minimize_scalar(loss, bounds=LOG_RANGE, method="bounded", options={"xatol": 1e-5})
    return TemperatureRecord(temperature=math.exp(found.x), nll_before=loss(0.0), nll_after=float(found.fun))


def calibrate(
    bundle: Bundle,
    images: LabelledImages,
    *,
    samples: int = DEFAULT_SAMPLES,
    seed: int = DEFAULT_SEED,
    design: MaskDesign = DEFAULT_DESIGN,
    on_strategy: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Fit a temperature for every strategy that the bundle's network allows, on ``images``.

    ``on_strategy`` is told the name of each strategy done. ``images`` must be the bundle's own calibration split:
    those of :func:`training.data.load` for the split seed in its card.
    """
    inputs = bundle.prepare(images.pixels)
    shape = bundle.card.input.shape
    records = {}
    for name in strategies.applicable(bundle.network, shape):
        strategy = strategies.build(name, bundle.network, shape, samples=samples, seed=seed, design=design)
        records[name] = fit_temperature(strategy.summarise(inputs).pooled, images.labels)
        on_strategy(name)
    return Calibration(
        weights_sha256=bundle.card.weights_sha256,
        images=len(images),
        samples=samples,
        seed=seed,
        design=design,
        strategies=records,
        versions=software_versions(),
    )
