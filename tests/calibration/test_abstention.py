from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from torch import Tensor

from calibration.abstention import clopper_pearson_upper, guaranteed_threshold

DRAWS = 600


@given(trials=st.integers(1, 3000), share=st.floats(0, 1), delta=st.floats(0.001, 0.5))
@settings(deadline=None, max_examples=60)
def test_the_bound_against_scipy(trials: int, share: float, delta: float) -> None:
    errors = round(share * trials)
    interval = binomtest(errors, trials, alternative="less").proportion_ci(1 - delta, method="exact")
    assert clopper_pearson_upper(errors, trials, delta) == pytest.approx(interval.high, rel=1e-6)


def test_the_bound_where_it_is_known() -> None:
    assert clopper_pearson_upper(0, 100, 0.05) == pytest.approx(1 - 0.05**0.01)
    assert clopper_pearson_upper(7, 7, 0.05) == 1
    assert clopper_pearson_upper(0, 0, 0.05) == 1


def some_images(images: int, error_rate: Callable[[Tensor], Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """Uncertainties, uniform in [0, 1), and errors with the probability that ``error_rate`` gives each."""
    uncertainty, chance = torch.rand(2, images, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return uncertainty, chance < error_rate(uncertainty)


@pytest.mark.parametrize(
    ("error_rate", "selective_error", "found_in"),
    [
        pytest.param(lambda u: 0.3 * u**2, lambda t: 0.1 * t**2, 0.9, id="informative"),
        pytest.param(lambda u: torch.full_like(u, 0.0501), lambda _: 0.0501, 0, id="useless"),
        pytest.param(lambda u: 0.055 - 0.008 * u, lambda t: 0.055 - 0.004 * t, 0, id="misleading"),
    ],
)
def test_the_error_exceeds_the_target_as_rarely_as_promised(
    error_rate: Callable[[Tensor], Tensor], selective_error: Callable[[float], float], found_in: float
) -> None:
    """By the error known for every threshold, over draws of 500 images; and where there is a right threshold, one is
    found in most of them."""
    target, delta = 0.05, 0.2
    found = [guaranteed_threshold(*some_images(500, error_rate, seed), target, delta) for seed in range(DRAWS)]
    thresholds = [result.threshold for result in found if result.threshold is not None]
    exceeded = sum(selective_error(threshold) > target for threshold in thresholds)
    assert exceeded <= binom.ppf(0.999, DRAWS, delta)
    assert len(thresholds) >= found_in * DRAWS


def test_ties_do_not_break_the_promise() -> None:
    """Five values of uncertainty, of which the first three together have an error of 5 %, and a fourth 7 %."""
    rates = torch.tensor([0.01, 0.04, 0.1, 0.13, 0.3], dtype=torch.float64)
    exceeded = answered = 0
    for seed in range(DRAWS):
        values, errors = some_images(1500, lambda u: rates[(5 * u).long()], seed)
        found = guaranteed_threshold((5 * values).floor(), errors, 0.0501, 0.2)
        exceeded += found.threshold is not None and found.threshold > 2
        answered += found.threshold is not None
    assert exceeded <= binom.ppf(0.999, DRAWS, 0.2)
    assert answered > 0.9 * DRAWS


@given(
    images=st.integers(1, 600), levels=st.sampled_from([1, 3, 20, 10_000]), target=st.floats(0.02, 0.6),
    delta=st.floats(0.01, 0.5), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(deadline=None, max_examples=150)
def test_the_result_is_that_of_the_images_answered(
    images: int, levels: int, target: float, delta: float, seed: int
) -> None:
    uncertainty, errors = some_images(images, lambda u: u**2, seed)
    uncertainty = ((uncertainty * levels).floor() / levels).float()
    found = guaranteed_threshold(uncertainty, errors, target, delta)
    assert (found.target_error, found.delta) == (target, delta)
    if found.threshold is None:
        assert (found.error_bound, found.coverage) == (1, 0)
        assert found.selective_error is None
        return
    answered = uncertainty <= found.threshold
    wrong, count = int(errors[answered].sum()), int(answered.sum())
    assert found.coverage == count / images
    assert found.selective_error == wrong / count
    share = delta / math.ceil(math.log2(images))
    assert found.error_bound == clopper_pearson_upper(wrong, count, share) <= target


def test_everything_is_answered_where_nothing_is_wrong() -> None:
    uncertainty = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    found = guaranteed_threshold(uncertainty, torch.zeros(1000, dtype=torch.bool), 0.01, 0.05)
    assert found.threshold == uncertainty.max()
    assert (found.coverage, found.selective_error) == (1, 0)
    assert found.error_bound == pytest.approx(1 - (0.05 / 10) ** (1 / 1000))


def test_the_greatest_coverage_is_found() -> None:
    """Of 1,000 images the first 600 are right and all others wrong: so many may be answered that the bound allows."""
    uncertainty, errors = torch.linspace(0, 1, 1000), torch.arange(1000) >= 600
    bounds = [clopper_pearson_upper(max(0, count - 600), count, 0.005) for count in range(1, 1001)]
    most = max(count for count, bound in enumerate(bounds, 1) if bound <= 0.05)
    assert 600 < most < 1000
    found = guaranteed_threshold(uncertainty, errors, 0.05, 0.05)
    assert found.threshold == uncertainty[most - 1]
    assert found.coverage == most / 1000


def test_what_hardly_enough_images_prove_is_found() -> None:
    """Of 400 images 110 are all right, where 102 must be: halving all the images would pass them by."""
    uncertainty, errors = torch.linspace(0, 1, 400), torch.arange(400) >= 110
    assert guaranteed_threshold(uncertainty, errors, 0.05, 0.05).coverage == 110 / 400


def test_all_images_tied_at_the_threshold_are_answered_and_counted() -> None:
    uncertainty = torch.tensor([0.1] * 300 + [0.2] * 300 + [0.3] * 300)
    errors = torch.zeros(900, dtype=torch.bool)
    errors[599] = True
    errors[600:650] = True
    found = guaranteed_threshold(uncertainty.flip(0), errors.flip(0), 0.05, 0.05)
    assert found.threshold == uncertainty[300]
    assert found.coverage == 600 / 900
    assert found.selective_error == 1 / 600
    assert found.error_bound == clopper_pearson_upper(1, 600, 0.005)


@pytest.mark.parametrize("images", [1, 2, 50, 1000])
def test_a_target_out_of_reach_means_never_to_answer(images: int) -> None:
    uncertainty, errors = torch.linspace(0, 1, images), torch.arange(images) % 3 == 0
    assert guaranteed_threshold(uncertainty, errors, 0.05).threshold is None


@pytest.mark.parametrize(
    ("uncertainty", "errors", "message"),
    [
        ([], [], "on no images"),
        ([0.1, 0.2], [True], "as many errors are needed as the 2 uncertainties, got 1"),
        ([0.1, math.nan], [True, False], "not finite"),
        ([0.1, math.inf], [True, False], "not finite"),
    ],
)
def test_impossible_images_are_refused(uncertainty: list[float], errors: list[bool], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guaranteed_threshold(torch.tensor(uncertainty), torch.tensor(errors, dtype=torch.bool), 0.05)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, math.nan])
def test_impossible_probabilities_are_refused(value: float) -> None:
    uncertainty, errors = torch.rand(10), torch.zeros(10, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"target_error must lie in \(0, 1\)"):
        guaranteed_threshold(uncertainty, errors, value)
    with pytest.raises(ValueError, match=r"delta must lie in \(0, 1\)"):
        guaranteed_threshold(uncertainty, errors, 0.05, value)
    with pytest.raises(ValueError, match=r"delta must lie in \(0, 1\)"):
        clopper_pearson_upper(1, 10, value)


@pytest.mark.parametrize(("errors", "trials"), [(3, 2), (-1, 2), (0, -1)])
def test_impossible_counts_are_refused(errors: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"between 0 and the {trials} trials, got {errors}"):
        clopper_pearson_upper(errors, trials, 0.05)
