from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calibration import conformal, strategies
from calibration.calibrators import TARGET_ERRORS, calibrate, calibrate_strategy, halves
from calibration.metrics import expected_calibration_error
from calibration.predictive import PredictiveDistribution
from calibration.scaling import FittedScaling
from models import bundle
from models.records import Scaling
from tests.conftest import write_bundle
from training.data import FashionMNISTSplits


def test_the_shipped_calibration_is_that_of_the_calibration_images(
    shipped: bundle.Bundle, fashion: FashionMNISTSplits
) -> None:
    assert shipped.calibration is not None
    assert shipped.scores is not None
    again, scores = calibrate(shipped, fashion.calibration)
    assert again.images == shipped.calibration.images == 5_000
    assert set(again.strategies) == set(shipped.calibration.strategies)
    for name, record in shipped.calibration.strategies.items():
        fitted = again.strategies[name]
        assert fitted.scaling.temperature == pytest.approx(record.scaling.temperature, rel=1e-3)
        assert fitted.scaling.order == record.scaling.order
        assert fitted.nll_after == pytest.approx(record.nll_after, rel=1e-4)
        assert [found.target_error for found in fitted.abstention] == list(TARGET_ERRORS)
        for found, stored in zip(fitted.abstention, record.abstention, strict=True):
            assert found.coverage == pytest.approx(stored.coverage, abs=2e-3)
        for method, values in shipped.scores.strategies[name].nonconformity.items():
            assert (scores.strategies[name].nonconformity[method] - values).abs().mean() < 1e-4


def test_thresholds_come_from_images_that_no_temperature_was_fitted_on(
    shipped: bundle.Bundle, fashion: FashionMNISTSplits
) -> None:
    assert shipped.scores is not None
    first, second = halves(fashion.calibration)
    assert (len(first), len(second)) == (2_500, 2_500)
    assert torch.equal(shipped.scores.labels, second.labels)
    strategy = strategies.build("mc_dropout", shipped.network, (28, 28))
    inputs = shipped.prepare(second.pixels)
    mean = strategy.summarise(inputs, shipped.scaling("mc_dropout")).mean
    stored = shipped.scores.strategies["mc_dropout"]
    assert (stored.confidence - mean.amax(1)).abs().max() < 1e-5
    expected = conformal.nonconformity(mean, "aps", conformal.image_uniforms(second.pixels))
    expected = expected.gather(1, second.labels.unsqueeze(1)).squeeze(1)
    assert (stored.nonconformity["aps"] - expected).abs().mean() < 1e-5


def test_the_stored_sets_cover_the_test_images(shipped: bundle.Bundle, fashion: FashionMNISTSplits) -> None:
    """Within the error of as many test images and of as many calibration images, at each level."""
    assert shipped.scores is not None
    inputs, labels = shipped.prepare(fashion.test.pixels), fashion.test.labels
    mean = (
        strategies.build("mc_dropout", shipped.network, (28, 28)).summarise(inputs, shipped.scaling("mc_dropout")).mean
    )
    uniforms = conformal.image_uniforms(fashion.test.pixels)
    for method, scores in shipped.scores.strategies["mc_dropout"].nonconformity.items():
        tested = conformal.nonconformity(mean, method, uniforms)
        for coverage in (0.8, 0.9, 0.95, 0.99):
            sets = conformal.prediction_sets(tested, conformal.threshold(scores, coverage))
            covered = sets.gather(1, labels.unsqueeze(1)).double().mean()
            error = (coverage * (1 - coverage) * (1 / len(labels) + 1 / len(scores))) ** 0.5
            assert abs(covered - coverage) < 2.6 * error, (method, coverage)


def test_the_stored_thresholds_keep_their_promise_on_the_test_images(
    shipped: bundle.Bundle, fashion: FashionMNISTSplits
) -> None:
    assert shipped.calibration is not None
    labels = fashion.test.labels
    for name, record in shipped.calibration.strategies.items():
        strategy = strategies.build(name, shipped.network, (28, 28))
        confidence, predicted = strategy.summarise(shipped.prepare(fashion.test.pixels), record.scaling).mean.max(1)
        for abstention in record.abstention:
            assert abstention.threshold is not None
            answered = 1 - confidence <= abstention.threshold
            assert answered.double().mean() == pytest.approx(abstention.coverage, abs=0.03)
            error = (predicted != labels)[answered].double().mean()
            assert error < abstention.target_error + 2.6 * (abstention.target_error / answered.sum()) ** 0.5


def test_tied_scores_are_covered() -> None:
    """A network that says the same of every image: every label that it met is as conforming as any other."""
    mean = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).expand(200, 4)
    labels = torch.arange(200) % 4
    summary = PredictiveDistribution(mean.unsqueeze(0)).summary()
    fitted = FittedScaling(Scaling(), 1.0, 1.0, {"pool_then_calibrate": 1.0})
    _, scores = calibrate_strategy(fitted, summary, labels, torch.full((200,), 0.5, dtype=torch.float64))
    sets = conformal.prediction_sets(
        conformal.nonconformity(mean, "lac", torch.zeros(200)), conformal.threshold(scores.nonconformity["lac"], 0.9)
    )
    assert sets.gather(1, labels.unsqueeze(1)).double().mean() >= 0.9


def test_mc_dropout_is_better_calibrated_after_than_before(shipped: bundle.Bundle, fashion: FashionMNISTSplits) -> None:
    strategy = strategies.build("mc_dropout", shipped.network, (28, 28))
    inputs = shipped.prepare(fashion.test.pixels)
    before = expected_calibration_error(strategy.summarise(inputs).mean, fashion.test.labels)
    after = expected_calibration_error(
        strategy.summarise(inputs, shipped.scaling("mc_dropout")).mean, fashion.test.labels
    )
    assert before > 0.05
    assert after < 0.02


def test_a_network_without_dropout_is_calibrated_for_weight_scaling(
    tmp_path: Path, fashion: FashionMNISTSplits
) -> None:
    write_bundle(tmp_path / "plain", "ReLUNet")
    calibration, scores = calibrate(bundle.load(tmp_path / "plain"), fashion.calibration[slice(0, 500)])
    assert list(calibration.strategies) == list(scores.strategies) == ["weight_scaling"]
    assert calibration.strategies["weight_scaling"].abstention[0].threshold is None, "an untrained network errs more"
