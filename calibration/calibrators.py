"""All that is fitted on a bundle's calibration images: temperatures, prediction sets, abstention, novelty.

The first half of the images serves the temperatures, the second half what promises something: a prediction set's
coverage and an abstention's error are guaranteed only on images that had no part in the probabilities.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from calibration import conformal, strategies
from calibration.abstention import guaranteed_threshold
from calibration.density import fit_density
from calibration.masks import DEFAULT_DESIGN
from calibration.predictive import PredictiveSummary
from calibration.scaling import FittedScaling, fit_scaling
from calibration.sites import UnsupportedNetworkError
from calibration.strategies import DEFAULT_SAMPLES, DEFAULT_SEED
from models.bundle import Bundle, CalibrationScores, StrategyScores, software_versions
from models.records import CONFORMAL_METHODS, Calibration, MaskDesign, StrategyCalibration
from training.data import LabelledImages
from training.own_images import digest

__all__ = ["TARGET_ERRORS", "calibrate", "calibrate_strategy", "halves"]

TARGET_ERRORS = (0.01, 0.02, 0.05, 0.1)
DELTA = 0.05


def halves(images: LabelledImages) -> tuple[LabelledImages, LabelledImages]:
    """The images that temperatures are fitted on, and those for thresholds."""
    middle = len(images) // 2
    return images[slice(middle)], images[slice(middle, None)]


def calibrate(
    bundle: Bundle,
    images: LabelledImages,
    *,
    train: LabelledImages | None = None,
    samples: int = DEFAULT_SAMPLES,
    seed: int = DEFAULT_SEED,
    design: MaskDesign = DEFAULT_DESIGN,
    on_strategy: Callable[[str], None] = lambda _: None,
    on_no_density: Callable[[str], None] = lambda _: None,
) -> tuple[Calibration, CalibrationScores]:
    """Calibrate every strategy that the bundle's network allows, on ``images``; and fit the density of the features of
    the images that it was trained on, if ``train`` are given and the network has such features: if not,
    ``on_no_density`` is told why.

    ``on_strategy`` is told the name of each strategy done. ``images`` must be the bundle's own calibration split:
    those of :func:`training.data.load` for the split seed in its card, or for a network that was trained elsewhere
    those of :func:`training.own_images.read_labelled`. They must be in random order.
    """
    for_temperature, for_thresholds = halves(images)
    inputs = bundle.prepare(for_temperature.pixels), bundle.prepare(for_thresholds.pixels)
    uniforms = conformal.image_uniforms(for_thresholds.pixels)
    shape = bundle.card.input.shape
    records, scores = {}, {}
    for name in strategies.applicable(bundle.network, shape):
        strategy = strategies.build(name, bundle.network, shape, samples=samples, seed=seed, design=design)
        fitted = fit_scaling(strategy.logits(inputs[0]), for_temperature.labels)
        summary = strategy.summarise(inputs[1], fitted.scaling)
        records[name], scores[name] = calibrate_strategy(fitted, summary, for_thresholds.labels, uniforms)
        on_strategy(name)
    calibration = Calibration(
        weights_sha256=bundle.card.weights_sha256,
        images_sha256=digest(images) if bundle.card.data is None else "",
        images=len(images),
        samples=samples,
        seed=seed,
        design=design,
        strategies=records,
        versions=software_versions(),
    )
    density = None
    if train is not None:
        try:
            density = fit_density(bundle, train, images)
        except UnsupportedNetworkError as error:
            on_no_density(str(error))
    return calibration, CalibrationScores(for_thresholds.labels, scores, density)


def calibrate_strategy(
    fitted: FittedScaling, summary: PredictiveSummary, labels: Tensor, uniforms: Tensor
) -> tuple[StrategyCalibration, StrategyScores]:
    """A strategy's record and scores, from its scaled predictions for n images that the scaling was not fitted on.

    ``labels`` ``[n]`` and ``uniforms`` ``[n]`` (:func:`~calibration.conformal.image_uniforms`) are those of the images.
    """
    confidence, predicted = summary.mean.max(1)
    uncertainty, wrong = 1 - confidence, predicted != labels
    record = StrategyCalibration(
        scaling=fitted.scaling,
        nll_before=fitted.nll_before,
        nll_after=fitted.nll_after,
        cross_validated_nll=fitted.cross_validated_nll,
        abstention=tuple(guaranteed_threshold(uncertainty, wrong, target, DELTA) for target in TARGET_ERRORS),
    )
    return record, StrategyScores(
        {
            method: conformal.nonconformity(summary.mean, method, uniforms).gather(1, labels.unsqueeze(1)).squeeze(1)
            for method in CONFORMAL_METHODS
        },
        confidence=confidence,
        correct=~wrong,
        total=summary.predictive_entropy,
        epistemic=summary.mutual_information,
    )
