"""Comparing uncertainties with the calibration's: against scipy, by hand, and how often it is right."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import stats

from calibration import drift

Sample = NDArray[np.float64]

# Few different values, so that there are ties within and between samples.
samples = st.integers(2, 60).flatmap(
    lambda size: arrays(np.float64, size, elements=st.integers(-8, 8).map(lambda number: number / 4))
)


def gamma(seed: int, size: int, scale: float = 1.0) -> Sample:
    """Skewed as uncertainties are: most near 0."""
    return scale * np.random.default_rng(seed).gamma(0.5, size=size)


@given(samples, samples)
def test_distance_and_direction_are_scipys(reference: Sample, live: Sample) -> None:
    statistic, _ = drift.kolmogorov_smirnov(reference, live)
    assert statistic == pytest.approx(stats.ks_2samp(reference, live, method="asymp").statistic)
    greater = stats.mannwhitneyu(live, reference).statistic / (len(live) * len(reference))
    assert drift.direction(reference, live) == pytest.approx(2 * greater - 1)


@pytest.mark.parametrize(("size", "scale"), [(200, 1.0), (200, 1.8), (1_000, 1.25), (2_000, 1.0), (2_000, 1.2)])
def test_the_p_value_is_scipys_or_a_little_larger(size: int, scale: float) -> None:
    reference, live = gamma(0, 2_500), gamma(1, size, scale)
    _, p_value = drift.kolmogorov_smirnov(reference, live)
    exact = stats.ks_2samp(reference, live, method="exact").pvalue
    assert exact <= p_value <= 1.3 * exact + 1e-3


@given(samples, samples)
def test_bounds_and_symmetry(reference: Sample, live: Sample) -> None:
    found = drift.compare(reference, live)
    assert found.psi >= 0
    assert 0 <= found.ks <= 1
    assert 0 <= found.p_value <= 1
    assert abs(found.direction) <= 1
    assert found.ks == 1 or abs(found.direction) < 1
    assert (found.window, found.verdict) == (len(live), "too_few")
    turned = drift.compare(live, reference)
    assert turned.direction == pytest.approx(-found.direction)
    assert turned.ks == pytest.approx(found.ks)


@given(samples)
def test_the_same_sample_has_not_moved(values: Sample) -> None:
    found = drift.compare(values, values[::-1])
    assert (found.psi, found.ks, found.p_value, found.direction) == (0, 0, 1, 0)


@given(samples, samples)
def test_an_increasing_function_changes_nothing(reference: Sample, live: Sample) -> None:
    assert drift.compare(np.exp(reference), np.exp(live)) == drift.compare(reference, live)
    assert drift.compare(reference**3 - 5, live**3 - 5) == drift.compare(reference, live)


def test_by_hand() -> None:
    """Deciles of 1 to 100, ten values in each bin; all 20 live values in the highest."""
    reference, live = np.arange(1, 101), np.full(20, 95)
    found = drift.compare(reference, live)
    p, empty, full = 10.5 / 105, 0.5 / 25, 20.5 / 25
    assert found.psi == pytest.approx(9 * (empty - p) * math.log(empty / p) + (full - p) * math.log(full / p))
    assert found.psi == drift.population_stability_index(reference, live)
    assert found.psi_expected == pytest.approx(9 * (1 / 20 + 1 / 100))
    assert found.ks == pytest.approx(0.94)
    assert found.direction == pytest.approx(0.94 - 0.05)


def test_a_bin_holds_its_upper_edge() -> None:
    reference = np.arange(1, 101)
    assert drift.population_stability_index(reference, np.arange(10, 101, 10)) == pytest.approx(0)
    assert drift.population_stability_index(reference, np.arange(1, 101, 10)) == pytest.approx(0)
    assert drift.population_stability_index(reference, np.arange(10, 101, 10) + 0.5) > 0.1


def test_a_value_that_many_share_is_a_bin_of_its_own() -> None:
    """Forty of 100 are 0 and the rest spread above it, as when certain answers are rounded."""
    reference = np.concatenate([np.zeros(40), np.arange(1, 61)])
    assert drift.population_stability_index(reference, np.repeat(reference, 3)) < 0.001
    fewer = np.concatenate([np.zeros(20), np.repeat(np.arange(1, 61), 2)])
    p, q = np.array([40, *[10] * 6]) + 0.5, np.array([20, *[20] * 6]) + 0.5
    p, q = p / p.sum(), q / q.sum()
    assert drift.population_stability_index(reference, fewer) == pytest.approx(((q - p) * np.log(q / p)).sum())
    for shifted in (reference - 0.5, reference + 0.5):
        moved = np.where(reference == 0, shifted, reference)
        assert drift.population_stability_index(reference, moved) > 1


def test_a_constant_reference() -> None:
    reference = np.ones(500)
    same = drift.compare(reference, np.ones(300))
    assert (same.psi, same.psi_expected, same.direction, same.verdict) == (0, 0, 0, "stable")
    for value, way in ((0.5, -1), (1.5, 1)):
        other = drift.compare(reference, np.full(300, value))
        assert (other.ks, other.direction, other.verdict) == (1, way, "major")
        assert math.isfinite(other.psi)


@pytest.mark.parametrize("size", [200, 1_000])
def test_without_drift_there_is_hardly_an_alarm(size: int) -> None:
    found = [drift.compare(gamma(2 * seed, 2_500), gamma(2 * seed + 1, size)) for seed in range(400)]
    assert sum(one.verdict != "stable" for one in found) <= 2
    assert np.mean([one.psi for one in found]) == pytest.approx(found[0].psi_expected, rel=0.05)
    assert 0.02 < np.mean([one.p_value <= 0.05 for one in found]) < 0.08
    assert abs(np.mean([one.direction for one in found])) < 0.01
    alarmed_by_size_alone = np.mean([one.psi >= drift.MODERATE_PSI for one in found])
    assert (alarmed_by_size_alone > 0.01) == (size == 200)


@pytest.mark.parametrize(("size", "share"), [(200, 0.9), (1_000, 1.0)])
def test_a_modest_shift_is_found(size: int, share: float) -> None:
    """Half of the images twice as uncertain."""
    found = []
    for seed in range(40):
        live = gamma(2 * seed + 1, size)
        live[::2] = 0.3 + 2 * live[::2]
        found.append(drift.compare(gamma(2 * seed, 2_500), live))
    assert np.mean([one.verdict in ("moderate", "major") for one in found]) >= share
    assert all(one.direction > 0 for one in found)


def test_a_difference_too_small_to_matter_is_stable() -> None:
    found = drift.compare(gamma(0, 50_000), gamma(1, 50_000, 1.15))
    assert found.p_value < 1e-6
    assert found.psi < drift.MODERATE_PSI
    assert found.verdict == "stable"


def test_limits_of_the_verdict() -> None:
    reference = np.arange(10_000) / 10_000
    verdicts = {
        shift: drift.compare(reference, np.random.default_rng(0).beta(1 + shift, 1, 2_000)).verdict
        for shift in (0.0, 0.4, 1.5)
    }
    assert verdicts == {0.0: "stable", 0.4: "moderate", 1.5: "major"}
    assert drift.compare(reference, np.full(199, 2.0)).verdict == "too_few"
    assert drift.compare(reference, np.full(200, 2.0)).verdict == "major"


@pytest.mark.parametrize("values", [[], [[0.1]], [0.1, math.nan], [math.inf], 0.3])
def test_what_is_no_sample(values: Any) -> None:
    for measure in (drift.compare, drift.population_stability_index, drift.kolmogorov_smirnov, drift.direction):
        with pytest.raises(ValueError, match="one or more finite numbers"):
            measure(values, [0.1, 0.2])
        with pytest.raises(ValueError, match="one or more finite numbers"):
            measure([0.1, 0.2], values)
