"""What is promised of prediction sets and abstention, on fresh images and against the calibrators' records."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from calibration import strategies
from calibration.calibrators import TARGET_ERRORS
from calibration.decisions import DecisionRule
from calibration.strategies import STRATEGIES, Sampling
from models import bundle
from training.data import FashionMNISTSplits


def fitted(shipped: bundle.Bundle, strategy: str, coverage: float = 0.9, target_error: float = 0.05) -> DecisionRule:
    rule = DecisionRule.fitted(shipped, strategy, coverage, target_error)
    assert rule is not None
    return rule


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("target_error", TARGET_ERRORS)
def test_abstention_is_the_calibrations(shipped: bundle.Bundle, strategy: str, target_error: float) -> None:
    assert shipped.calibration is not None
    (record,) = (
        record for record in shipped.calibration.strategies[strategy].abstention if record.target_error == target_error
    )
    assert fitted(shipped, strategy, target_error=target_error).uncertainty == record.threshold


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.99])
def test_promises_are_kept_on_the_test_images(
    shipped: bundle.Bundle, fashion: FashionMNISTSplits, coverage: float
) -> None:
    rule = fitted(shipped, "mc_dropout", coverage)
    sampling = Sampling.of(shipped.calibration)
    strategy = strategies.build("mc_dropout", shipped.network, (28, 28), **vars(sampling))
    mean = strategy.summarise(shipped.prepare(fashion.test.pixels), shipped.scaling("mc_dropout")).mean
    labels = fashion.test.labels
    held = rule.prediction_sets(mean).gather(1, labels.unsqueeze(1)).double().mean()
    # Three standard deviations of the coverage that 2,500 calibration images give, and of 10,000 test images.
    assert float(held) == pytest.approx(coverage, abs=3 * (coverage * (1 - coverage) * (1 / 2500 + 1 / 10_000)) ** 0.5)
    answered = ~rule.abstains(mean)
    wrong = mean.argmax(1)[answered] != labels[answered]
    assert float(wrong.double().mean()) <= rule.target_error
    assert float(answered.double().mean()) > 0.6


def test_the_thresholds_that_are_told_decide(shipped: bundle.Bundle) -> None:
    rule = fitted(shipped, "mc_dropout", 0.9)
    assert rule.min_confidence is not None
    low, high = 0.9 * rule.min_probability, 1.1 * rule.min_probability
    mean = torch.tensor([[low, high, 1 - low - high], [rule.min_confidence + 1e-4, 0.0, 1 - rule.min_confidence - 1e-4],
                         [rule.min_confidence - 1e-4, 0.0, 1 - rule.min_confidence + 1e-4]])  # fmt: skip
    assert rule.prediction_sets(mean)[0].tolist()[:2] == [False, True]
    assert rule.abstains(mean)[1:].tolist() == [False, True]


def test_without_a_threshold_all_is_abstained_from(shipped: bundle.Bundle) -> None:
    rule = fitted(shipped, "mc_dropout", target_error=0.001)
    assert (rule.uncertainty, rule.min_confidence, rule.reason) == (None, None, "no_guarantee")
    assert rule.abstains(torch.tensor([[1.0, 0.0]])).tolist() == [True]


def test_more_coverage_than_the_images_can_promise_leaves_every_class_possible(shipped: bundle.Bundle) -> None:
    rule = fitted(shipped, "mc_dropout", 0.9999)
    assert rule.min_probability == 0
    assert rule.prediction_sets(torch.tensor([[1.0, 0.0]])).all()


def test_an_uncalibrated_bundle_has_no_rule(shipped: bundle.Bundle) -> None:
    assert DecisionRule.fitted(replace(shipped, calibration=None, scores=None), "mc_dropout", 0.9, 0.05) is None
