"""What the report says, as plain data: everything on the page is in here.

Schema 1:

    schema      1
    model       name, version, network, parameters, training, calibration ("stored" or "fitted for this report")
    data        name, images
    strategies  per strategy: samples, seed, design, temperature; "raw" and "calibrated", each with accuracy, nll
                (nats), brier, ece (15 bins) and the bins of its reliability diagram
    comparison  per strategy but weight_scaling: accuracy and nll minus those of weight_scaling, both calibrated, each
                as difference and 95 % interval over images (paired)
    gallery     strategy; "most_uncertain" and "most_certain", each a list of test images: index, label, predicted,
                confidence, total, aleatoric, epistemic (nats; the last two null if nothing was sampled)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from calibration import metrics, strategies
from calibration.predictive import PredictiveSummary
from models.bundle import Bundle, Calibration
from training.data import NAME, LabelledImages

__all__ = ["SCHEMA", "measure"]

SCHEMA = 1
GALLERY_SIZE = 12


def measure(
    bundle: Bundle, calibration: Calibration, test: LabelledImages, *, on_images: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """Compare the strategies that the network allows, on the images of ``test``.

    A strategy that ``calibration`` has no temperature for is left as it is. ``on_images`` is told the number of
    images of each step done, for each strategy.
    """
    inputs = bundle.prepare(test.pixels)
    sections: dict[str, Any] = {}
    calibrated: dict[str, PredictiveSummary] = {}
    for name in strategies.applicable(bundle.network, bundle.card.input.shape):
        temperature = calibration.temperature(name)
        strategy = strategies.build(
            name, bundle.network, bundle.card.input.shape, samples=calibration.samples, seed=calibration.seed,
            design=calibration.design,
        )  # fmt: skip
        calibrated[name] = strategy.summarise(inputs, temperature, on_images=on_images)
        sections[name] = {
            "samples": strategy.samples,
            "seed": calibration.seed if strategy.samples > 1 else None,
            "design": calibration.design if strategy.samples > 1 else None,
            "temperature": temperature,
            "raw": _quality(calibrated[name].pooled, test.labels),
            "calibrated": _quality(calibrated[name].mean, test.labels),
        }
    shown = "mc_dropout" if "mc_dropout" in calibrated else "weight_scaling"
    card = bundle.card
    return {
        "schema": SCHEMA,
        "model": {
            "name": card.name,
            "version": bundle.version,
            "network": card.network.name,
            "parameters": card.network.parameters,
            "training": card.training.model_dump(mode="json"),
            "calibration": "stored" if calibration is bundle.calibration else "fitted for this report",
            "calibration_images": calibration.images,
        },
        "data": {"name": f"{NAME} test images", "images": len(test)},
        "strategies": sections,
        "comparison": {
            name: _difference(distribution.mean, calibrated["weight_scaling"].mean, test.labels)
            for name, distribution in calibrated.items()
            if name != "weight_scaling"
        },
        "gallery": _gallery(shown, calibrated[shown], test, card.classes),
    }


def _quality(probabilities: Tensor, labels: Tensor) -> dict[str, Any]:
    bins = metrics.reliability_bins(probabilities, labels)
    return {
        "accuracy": metrics.accuracy(probabilities, labels),
        "nll": metrics.negative_log_likelihood(probabilities, labels),
        "brier": metrics.brier(probabilities, labels),
        "ece": metrics.expected_calibration_error(probabilities, labels),
        "reliability": {
            "edges": bins.edges.tolist(),
            "count": bins.count.tolist(),
            "accuracy": bins.accuracy.tolist(),
            "confidence": bins.confidence.tolist(),
        },
    }


def _difference(probabilities: Tensor, reference: Tensor, labels: Tensor) -> dict[str, Any]:
    def per_image(p: Tensor) -> dict[str, Tensor]:
        likelihood = p.double().gather(1, labels.unsqueeze(1)).squeeze(1)
        return {"accuracy": (p.argmax(1) == labels).double(), "nll": -likelihood.log()}

    ours, theirs = per_image(probabilities), per_image(reference)
    result = {}
    for measure_name, values in ours.items():
        differences = values - theirs[measure_name]
        mean, margin = float(differences.mean()), 1.96 * float(differences.std()) / len(labels) ** 0.5
        result[measure_name] = {"difference": mean, "interval": [mean - margin, mean + margin]}
    return result


def _gallery(
    strategy: str, distribution: PredictiveSummary, test: LabelledImages, classes: tuple[str, ...]
) -> dict[str, Any]:
    total = distribution.predictive_entropy
    aleatoric, epistemic = distribution.expected_entropy, distribution.mutual_information
    confidence, predicted = distribution.mean.max(1)
    several = strategy != "weight_scaling"

    def entries(order: Tensor) -> list[dict[str, Any]]:
        return [
            {
                "index": index,
                "label": classes[int(test.labels[index])],
                "predicted": classes[int(predicted[index])],
                "confidence": float(confidence[index]),
                "total": float(total[index]),
                "aleatoric": float(aleatoric[index]) if several else None,
                "epistemic": float(epistemic[index]) if several else None,
            }
            for index in order[:GALLERY_SIZE].tolist()
        ]

    ascending = total.argsort(stable=True)
    return {
        "strategy": strategy,
        "most_uncertain": entries(ascending.flip(0)),
        "most_certain": entries(ascending),
    }
