from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calibration.masks import DESIGNS
from calibration.predictive import PredictiveDistribution, PredictiveSummary, entropy, temper
from calibration.subnetworks import SubnetworkEnsemble
from models.bundle import Bundle
from models.records import MaskDesign
from training.data import FashionMNISTSplits


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


@pytest.mark.parametrize("members", [
    [[500.0, 0.0, -500.0], [400.0, 0.0, -300.0]],
    # One of many dissents, by as much.
    [[500.0, 0.0, -500.0]] * 63 + [[0.0, 5.0, 500.0]],
    [[5.0, 4.0, 0.0]] * 255 + [[0.0, 0.0, 30.0]],
])  # fmt: skip
@pytest.mark.parametrize("temperature", [0.05, 0.119, 1.0, 5.0])
def test_underflowing_probabilities_stay_finite(members: list[list[float]], temperature: float) -> None:
    distribution = PredictiveDistribution.from_logits(torch.tensor(members).unsqueeze(1), temperature)
    for value in (
        distribution.mean, distribution.predictive_entropy, distribution.expected_entropy,
        distribution.mutual_information, distribution.standard_error, *distribution.credible_interval(),
    ):  # fmt: skip
        assert value.isfinite().all()
    assert 0 <= distribution.mutual_information.item() <= math.log(3)
    torch.testing.assert_close(
        distribution.predictive_entropy, distribution.expected_entropy + distribution.mutual_information
    )
    low, high = distribution.credible_interval()
    assert ((low >= 0) & (low <= high) & (high <= 1)).all()


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


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("design", DESIGNS)
def test_intervals_cover_what_they_should(
    shipped: Bundle, fashion: FashionMNISTSplits, design: MaskDesign, temperature: float
) -> None:
    """Of nominal 95 % intervals for the probability of the top class, on images that the network is not sure of, 93 to
    97 % hold that of 16,000 sub-networks; over 120 banks of 64. And the standard error is the spread."""
    inputs = shipped.prepare(fashion.test.pixels[:100])

    def ask(samples: int, seed: int, kind: MaskDesign) -> PredictiveDistribution:
        ensemble = SubnetworkEnsemble(shipped.network, (28, 28), samples=samples, seed=seed, design=kind)
        return PredictiveDistribution.from_logits(ensemble.logits(inputs), temperature, ensemble.bank.replicates)

    truth = PredictiveDistribution(
        torch.cat([ask(1000, 1000 + part, "orthogonal").members for part in range(16)]), temperature
    ).mean
    top = truth.argmax(1, keepdim=True)
    unsure = truth.amax(1) < 0.9
    assert unsure.sum() > 20
    covered, squares, errors = [], [], []
    for seed in range(120):
        distribution = ask(64, seed, design)
        low, high = distribution.confidence_interval(0.95)
        covered.append(((low <= truth) & (truth <= high)).gather(1, top)[unsure])
        squares.append((distribution.mean - truth).square())
        errors.append(distribution.standard_error.square())
    assert 0.93 < torch.stack(covered).double().mean() < 0.97
    assert float(torch.stack(errors).mean() / torch.stack(squares).mean()) == pytest.approx(1, abs=0.1)


def test_the_interval_is_students() -> None:
    distribution = PredictiveDistribution(some_members(8, 1, 2, spread=0.2), replicates=4)
    low, high = distribution.confidence_interval(0.9)
    torch.testing.assert_close((high - low) / 2, 2.3533634 * distribution.standard_error, rtol=1e-6, atol=0)
    torch.testing.assert_close((high + low) / 2, distribution.mean)


def test_only_blocks_count_as_independent() -> None:
    """Members that cancel within their block have no error; the same ones taken as independent have."""
    half = some_members(1, 1, 3)
    members = torch.cat([half, 2 / 3 - half]).repeat(4, 1, 1)
    assert PredictiveDistribution(members, replicates=4).standard_error.max() < 1e-12
    assert PredictiveDistribution(members).standard_error.min() > 1e-3
    assert PredictiveDistribution(members, replicates=1).standard_error.isnan().all()
    assert PredictiveDistribution(members, replicates=1).mutual_information_jackknife.isnan().all()


@given(
    samples=st.integers(1, 200), classes=st.integers(2, 4), temperature=st.sampled_from([1.0, 0.6, 1.7]),
    seed=st.integers(0, 50),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_credible_intervals_hold_their_share_of_members(
    samples: int, classes: int, temperature: float, seed: int
) -> None:
    distribution = PredictiveDistribution(some_members(samples, 2, classes, seed), temperature)
    factor = distribution.mean / distribution.pooled
    joint = distribution.members * factor
    weights = joint.sum(-1, keepdim=True) / samples
    conditional = joint / joint.sum(-1, keepdim=True)
    low, high = distribution.credible_interval(0.8)
    rounding = 1e-9
    below = (weights * (conditional < low - rounding)).sum(0)
    above = (weights * (conditional > high + rounding)).sum(0)
    assert (below <= 0.1 + rounding).all()
    assert (above <= 0.1 + rounding).all()
    assert (below + (weights * ((conditional - low).abs() < rounding)).sum(0) >= 0.1 - rounding).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("replicates", [16, 64])
def test_the_jackknife_takes_most_of_the_bias_away(temperature: float, replicates: int) -> None:
    population = some_members(4096, 30, 5, spread=1.0)
    truth = PredictiveDistribution(population, temperature).mutual_information
    generator = torch.Generator().manual_seed(1)
    plain, corrected = [], []
    for _ in range(300):
        drawn = PredictiveDistribution(population[torch.randint(4096, (replicates,), generator=generator)], temperature)
        plain.append(drawn.mutual_information - truth)
        corrected.append(drawn.mutual_information_jackknife - truth)
    bias, left = (float(torch.stack(errors).mean()) for errors in (plain, corrected))
    assert abs(left) < 0.25 * abs(bias)


def test_the_jackknife_by_hand() -> None:
    members = some_members(4, 2, 3)
    parts = [members[torch.arange(4) != left] for left in range(4)]
    expected = 4 * PredictiveDistribution(members, 0.8).mutual_information - 3 * torch.stack(
        [PredictiveDistribution(part, 0.8).mutual_information for part in parts]
    ).mean(0)
    torch.testing.assert_close(PredictiveDistribution(members, 0.8).mutual_information_jackknife, expected)


def test_a_summary_is_the_distribution_without_members() -> None:
    distribution = PredictiveDistribution(some_members(6, 5, 3), 0.8, replicates=3)
    whole = distribution.summary()
    parts = [PredictiveDistribution(part, 0.8, 3).summary() for part in distribution.members.split(2, dim=1)]
    joined = PredictiveSummary.cat(parts)
    for name in vars(whole):
        torch.testing.assert_close(getattr(whole, name), getattr(distribution, name))
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name))


@pytest.mark.parametrize("replicates", [0, 4, -1, 12])
def test_replicates_must_divide_the_members(replicates: int) -> None:
    with pytest.raises(ValueError, match=f"replicates must divide the 6 members, got {replicates}"):
        PredictiveDistribution(some_members(6, 1, 3), replicates=replicates)


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
