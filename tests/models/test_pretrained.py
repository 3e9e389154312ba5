"""The bundles that ship, on the real test images."""

from __future__ import annotations

import pytest

from models import bundle
from training.data import FashionMNISTSplits
from training.fit import evaluate
from training.outliers import load_outliers
from training.release.command import DETECTED
from training.release.measure import measured, unmet
from training.release.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_it_reaches_what_its_card_says(name: str, fashion: FashionMNISTSplits) -> None:
    """Within two images, and the roundings of another machine; MNIST where it is there."""
    loaded = bundle.load(name)
    metrics = loaded.card.metrics
    loss, accuracy = evaluate(loaded.network, loaded.prepare(fashion.test.pixels), fashion.test.labels)
    assert accuracy == pytest.approx(metrics["test_accuracy"], abs=2e-4)
    assert loss == pytest.approx(metrics["test_loss"], abs=1e-4)
    found = load_outliers().sets
    again = measured(loaded, [], fashion, {kind: found[kind] for kind in DETECTED if kind in found})
    assert {"mc_dropout_accuracy", "mc_dropout_nll", "mc_dropout_ece", "digits_novelty_auroc"} <= set(again)
    for metric, value in again.items():
        assert value == pytest.approx(metrics[metric], abs=3e-4), metric


@pytest.mark.parametrize("name", PRESETS)
def test_it_reaches_its_floors(name: str) -> None:
    card = bundle.load(name).card
    assert {*card.floors.least, *card.floors.most} <= set(card.metrics)
    assert card.floors.least["mc_dropout_accuracy"] > 0.85
    assert list(unmet(card)) == []


@pytest.mark.parametrize("name", PRESETS)
def test_it_is_calibrated_for_every_strategy_and_knows_its_training_images(name: str) -> None:
    loaded = bundle.load(name)
    assert loaded.calibration is not None
    assert set(loaded.calibration.strategies) == {
        "weight_scaling", "mc_dropout", "geometric_mean", "last_layer", "moment_propagation",
    }  # fmt: skip
    for record in loaded.calibration.strategies.values():
        assert record.nll_after <= record.nll_before
    assert loaded.scores is not None
    assert loaded.scores.density is not None
    assert bundle.attached_report(loaded) is not None


def test_the_weights_are_small() -> None:
    sizes = {name: (bundle.PRETRAINED / name / "weights.safetensors").stat().st_size for name in PRESETS}
    assert sum(sizes.values()) < 5_000_000
    assert sizes["cnn"] < 3_000_000
