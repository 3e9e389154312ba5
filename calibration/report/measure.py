"""The whole report, measured: every model, and what several models have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from calibration.material import Material
from calibration.report.ahead import predict_ahead
from calibration.report.cache import PredictionCache
from calibration.report.evaluate import Measured
from calibration.report.interpretation import enumerated
from calibration.report.model import OUTLIER_RESAMPLES, SHIFT_IMAGES, Measures, Subject
from calibration.report.predictions import Predictions
from calibration.report.schema import ModelDifference, Report
from calibration.resampling import RESAMPLES
from models.bundle import software_versions
from training.engines import Engine

__all__ = ["measure"]


def measure(
    subjects: Sequence[Subject],
    material: Material,
    *,
    cache: PredictionCache,
    engine: Engine | None = None,
    on_images: Callable[[int], None] = lambda _: None,
    on_ahead: Callable[[int, int], None] = lambda _, __: None,
    on_failure: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure the models on ``material``, on which none may have been trained.

    With an ``engine`` predictions for all sets of images, and by all sub-networks, are made side by side on it first,
    for which ``cache`` must keep them; ``on_ahead`` and ``on_failure`` are told of it as
    :func:`~calibration.report.ahead.predict_ahead` says. ``on_images`` is told of as many images as
    :func:`calibration.report.model.work` says, whoever predicts for them.
    """
    models, defaults = [], []
    for subject in subjects:
        predictions = Predictions(subject.bundle, subject.ensemble, cache, on_images)
        measures = Measures(subject, predictions, material)
        if engine is not None:
            # What these ask for is told of when the report asks again.
            predictions.on_images = lambda _: None
            for requests in (measures.foreseen, measures.foreseen_next):
                predict_ahead(predictions, requests(), engine, on_images=on_ahead, on_failure=on_failure)
            predictions.on_images = on_images
        models.append(measures.report())
        defaults.append((subject.bundle.card.name, measures.measured[measures.default]))
    sampled = any(model.interpretation for model in models)
    return Report(
        data=material.title,
        images=len(material.test),
        shift_images=min(SHIFT_IMAGES, len(material.test)),
        resamples=RESAMPLES,
        outlier_resamples=OUTLIER_RESAMPLES,
        versions=software_versions(),
        missing=dict(material.missing),
        models=tuple(models),
        model_differences=tuple(_differences(defaults)),
        enumeration=enumerated(material.splits, cache) if sampled and material.splits else None,
    )


def _differences(defaults: Sequence[tuple[str, Measured]]) -> list[ModelDifference]:
    (reference, first), *others = defaults
    return [
        ModelDifference(model=name, reference=reference, measure=measure, difference=found, better=better)
        for name, measured in others
        for measure, (found, better) in measured.minus(first).items()
    ]
