from __future__ import annotations

import numpy as np
import pytest
import torch

from calibration import metrics
from calibration.report.evaluate import quality
from calibration.resampling import bootstrap_weights, interval


def test_each_resample_draws_as_many_images() -> None:
    weights = bootstrap_weights(300, 50, seed=1)
    assert weights.shape == (50, 300)
    assert (weights.sum(1) == 300).all()
    assert weights.mean() == 1
    assert torch.equal(weights, bootstrap_weights(300, 50, seed=1))
    assert not torch.equal(weights, bootstrap_weights(300, 50, seed=2))


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    values = torch.randn(2_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    weights = bootstrap_weights(2_000, 4_000)
    low, high = interval(float(values.mean()), weights @ values / 2_000)
    margin = 1.96 * float(values.std()) / 2_000**0.5
    assert low == pytest.approx(float(values.mean()) - margin, abs=0.05 * margin)
    assert high == pytest.approx(float(values.mean()) + margin, abs=0.05 * margin)


def test_bias_is_turned_round() -> None:
    """Resampled values that are all higher say that the value is too high itself."""
    assert interval(1.0, torch.full((100,), 1.2)) == pytest.approx((0.8, 0.8))
    assert interval(1.0, torch.full((100,), 1.2), plug_in=1.1) == pytest.approx((0.9, 0.9))
    assert interval(1.0, torch.tensor([torch.nan, 1.2])) == pytest.approx((0.8, 0.8)), "a resample that says nothing"


@pytest.mark.parametrize("gap", [0.0, 0.1])
def test_intervals_of_calibration_errors_hold_the_truth(gap: float) -> None:
    """Of 60 sets of images whose confidence is too high by a known gap: about 95 % of the intervals."""
    generator = torch.Generator().manual_seed(0)
    held, debiased = 0, 0
    for _ in range(60):
        confidence = 0.65 + 0.3 * torch.rand(1_000, generator=generator, dtype=torch.float64)
        right = torch.rand(1_000, generator=generator, dtype=torch.float64) < confidence - gap
        probabilities = torch.stack([confidence, 1 - confidence], 1)
        found = quality(probabilities, (~right).long(), bootstrap_weights(1_000, 200))
        held += found.ece.low <= gap + 1e-9 <= found.ece.high + 1e-9
        debiased += found.debiased_calibration_error.low <= gap**2 <= found.debiased_calibration_error.high
        assert found.overconfidence.value == pytest.approx(gap, abs=0.06)
    assert debiased >= 54
    # At 0 the ECE has a kink, and its bootstrap is not valid: there is a p-value for that.
    assert held >= 54 or gap == 0


def test_a_calibrated_prediction_is_told_from_another() -> None:
    """p is uniform if labels are drawn from the prediction, and small if it is overconfident."""
    generator = torch.Generator().manual_seed(0)
    weights = bootstrap_weights(500, 10)
    calibrated, overconfident = [], []
    for _ in range(40):
        probabilities = (2 * torch.randn(500, 5, generator=generator, dtype=torch.float64)).softmax(-1)
        labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        calibrated.append(quality(probabilities, labels, weights).ece_p_value)
        sharpened = probabilities.square() / probabilities.square().sum(1, keepdim=True)
        overconfident.append(quality(sharpened, labels, weights).ece_p_value)
    assert 0.3 < np.mean(calibrated) < 0.7
    assert np.mean(np.array(calibrated) < 0.1) < 0.3
    assert max(overconfident) < 0.02
    assert metrics.BINS == 15
