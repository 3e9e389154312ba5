from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calibration.predictive import PredictiveDistribution, entropy, temper


def some_members(samples: int, images: int, classes: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, images, classes, generator=generator, dtype=torch.float64)
    logits = spread * (logits + torch.randn(samples, images, classes, generator=generator, dtype=torch.float64))
    return logits.softmax(-1)


def test_two_members_that_contradict_each_other() -> None:
    distribution = PredictiveDistribution(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
    assert distribution.mean.tolist() == [[0.5, 0.5]]
    assert distribution.predictive_entropy.item() == pytest.approx(math.log(2))
    assert distribution.expected_entropy.item() == pytest.approx(0, abs=1e-30)
    assert distribution.mutual_information.item() == pytest.approx(math.log(2))
    assert distribution.variation_ratio.item() == 0.5


def test_members_that_agree_on_not_knowing() -> None:
    distribution = PredictiveDistribution(torch.full((8, 1, 10), 0.1))
    assert distribution.predictive_entropy.item() == pytest.approx(math.log(10))
    assert distribution.expected_entropy.item() == pytest.approx(math.log(10))
    assert distribution.mutual_information.item() == pytest.approx(0, abs=1e-6)
    assert distribution.variation_ratio.item() == 0
    assert distribution.standard_error.max().item() == pytest.approx(0, abs=1e-8)


def test_the_total_is_the_entropy_of_the_mean_not_the_mean_of_entropies() -> None:
    members = torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]], dtype=torch.float64)
    distribution = PredictiveDistribution(members)

    def binary(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    assert distribution.predictive_entropy.item() == pytest.approx(binary(0.55))
    assert distribution.expected_entropy.item() == pytest.approx((binary(0.9) + binary(0.2)) / 2)
    assert distribution.mutual_information.item() == pytest.approx(binary(0.55) - (binary(0.9) + binary(0.2)) / 2)


@given(
    samples=st.integers(1, 12),
    classes=st.integers(2, 10),
    seed=st.integers(0, 1000),
    temperature=st.floats(0.1, 10),
    spread=st.floats(0, 30),
)
@settings(deadline=None, max_examples=200)
def test_the_decomposition_is_an_identity_at_every_temperature(
    samples: int, classes: int, seed: int, temperature: float, spread: float
) -> None:
    members = some_members(samples, 3, classes, seed, spread)
    distribution = PredictiveDistribution(members, temperature)
    total, parts = distribution.predictive_entropy, distribution.expected_entropy + distribution.mutual_information
    torch.testing.assert_close(total, parts, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(total, entropy(distribution.mean))
    torch.testing.assert_close(distribution.mean.sum(-1), torch.ones(3, dtype=torch.float64))
    assert (distribution.expected_entropy >= -1e-12).all()
    assert (distribution.mutual_information <= math.log(samples) + 1e-9).all()


def test_calibrated_uncertainty_against_the_explicit_projection() -> None:
    """The I-projection by iterative definition: reweight the joint table of member and label, then read it off."""
    members, temperature = some_members(5, 1, 4), 0.6
    joint = members[:, 0] / 5
    calibrated = joint.sum(0) ** (1 / temperature)
    calibrated /= calibrated.sum()
    joint = joint * calibrated / joint.sum(0)
    conditional = joint / joint.sum(1, keepdim=True)
    distribution = PredictiveDistribution(members, temperature)
    torch.testing.assert_close(distribution.mean[0], calibrated)
    torch.testing.assert_close(distribution.expected_entropy[0], (joint.sum(1) * entropy(conditional)).sum())
    marginals = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    torch.testing.assert_close(distribution.mutual_information[0], (joint * (joint / marginals).log()).sum())


@given(temperature=st.floats(0.05, 20), seed=st.integers(0, 100))
@settings(deadline=None)
def test_tempering_probabilities_is_dividing_logits(temperature: float, seed: int) -> None:
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(temper(logits.softmax(-1), temperature), (logits / temperature).softmax(-1))


def test_underflowing_probabilities_stay_finite() -> None:
    logits = torch.tensor([[[500.0, 0.0, -500.0]], [[400.0, 0.0, -300.0]]])
    for temperature in (0.1, 1.0, 5.0):
        distribution = PredictiveDistribution.from_logits(logits, temperature)
        for value in (
            distribution.mean, distribution.predictive_entropy, distribution.expected_entropy,
            distribution.mutual_information, distribution.standard_error,
        ):  # fmt: skip
            assert value.isfinite().all()
        torch.testing.assert_close(
            distribution.predictive_entropy, distribution.expected_entropy + distribution.mutual_information
        )


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_the_standard_error_is_the_spread_over_repetitions(temperature: float) -> None:
    """Over 4,000 repetitions with T = 64, the prediction's standard deviation is what a repetition says it is."""
    population = some_members(512, 1, 4, spread=1.0)
    generator = torch.Generator().manual_seed(1)
    means, errors = [], []
    for _ in range(4000):
        drawn = population[torch.randint(512, (64,), generator=generator)]
        distribution = PredictiveDistribution(drawn, temperature)
        means.append(distribution.mean)
        errors.append(distribution.standard_error)
    spread = torch.stack(means).std(0)
    torch.testing.assert_close(torch.stack(errors).square().mean(0).sqrt(), spread, rtol=0.06, atol=0)


def test_one_member_has_no_standard_error() -> None:
    distribution = PredictiveDistribution(some_members(1, 2, 3), 0.7)
    assert distribution.standard_error.isnan().all()
    assert distribution.samples == 1
    torch.testing.assert_close(distribution.expected_entropy, distribution.predictive_entropy)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_impossible_temperatures_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        PredictiveDistribution(some_members(2, 1, 3), temperature)


def test_another_number_of_axes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \[T, B, C\], got shape \(3, 10\)"):
        PredictiveDistribution(torch.full((3, 10), 0.1))
