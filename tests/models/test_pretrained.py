"""The bundle that ships, on the real test images."""

from __future__ import annotations

from models import bundle
from training.data import FashionMNISTSplits
from training.fit import evaluate


def test_it_reaches_the_cards_accuracy(shipped: bundle.Bundle, fashion: FashionMNISTSplits) -> None:
    loss, accuracy = evaluate(shipped.network, shipped.prepare(fashion.test.pixels), fashion.test.labels)
    assert abs(accuracy - shipped.card.metrics["test_accuracy"]) <= 2e-4  # two images, on another machine
    assert abs(loss - shipped.card.metrics["test_loss"]) <= 1e-4
    assert accuracy > 0.86


def test_it_is_calibrated_for_every_strategy(shipped: bundle.Bundle) -> None:
    assert shipped.calibration is not None
    assert set(shipped.calibration.strategies) == {
        "weight_scaling", "mc_dropout", "geometric_mean", "last_layer", "moment_propagation",
    }  # fmt: skip
    for record in shipped.calibration.strategies.values():
        assert record.nll_after <= record.nll_before


def test_all_that_ships_is_small() -> None:
    assert sum(path.stat().st_size for path in bundle.PRETRAINED.rglob("*") if path.is_file()) < 5_000_000
