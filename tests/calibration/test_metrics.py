from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor

from calibration import metrics


def some_predictions(images: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = (2 * torch.randn(images, classes, generator=generator, dtype=torch.float64)).softmax(-1)
    return probabilities, torch.randint(classes, (images,), generator=generator)


@given(images=st.integers(1, 300), classes=st.integers(2, 10), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_against_scikit_learn(images: int, classes: int, seed: int) -> None:
    probabilities, labels = some_predictions(images, classes, seed)
    p, y = probabilities.numpy(), labels.numpy()
    assert float(metrics.accuracy(probabilities, labels)) == pytest.approx(accuracy_score(y, p.argmax(1)))
    assert float(metrics.negative_log_likelihood(probabilities, labels)) == pytest.approx(
        log_loss(y, p, labels=list(range(classes)))
    )
    one_hot = np.eye(classes)[y]
    assert float(metrics.brier(probabilities, labels)) == pytest.approx(((p - one_hot) ** 2).sum(1).mean())


@given(images=st.integers(1, 300), classes=st.integers(2, 10), bins=st.integers(1, 20), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_against_torchmetrics(images: int, classes: int, bins: int, seed: int) -> None:
    from training import torchvision_compat  # noqa: F401  (torchmetrics imports torchvision, which this prepares)

    # isort: split
    from torchmetrics.functional.classification import multiclass_calibration_error

    probabilities, labels = some_predictions(images, classes, seed)
    probabilities = probabilities.float().clamp_max(0.9999)  # torchmetrics opens a bin of its own for exactly 1.
    norms: dict[Literal["l1", "max"], Any] = {
        "l1": metrics.expected_calibration_error, "max": metrics.maximum_calibration_error
    }  # fmt: skip
    for norm, measure in norms.items():
        theirs = multiclass_calibration_error(probabilities, labels, classes, n_bins=bins, norm=norm)
        assert float(measure(probabilities, labels, bins=bins)) == pytest.approx(float(theirs), abs=2e-6)


def test_against_netcal_and_torch_uncertainty() -> None:
    """What netcal 1.4 (ECE, MCE, ECE of equal mass) and torch-uncertainty 0.13 (adaptive error) say of these."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1000, 10, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((0.7 * logits).softmax(-1), 1, generator=generator).squeeze(1)
    probabilities = logits.softmax(-1)
    assert float(metrics.expected_calibration_error(probabilities, labels)) == pytest.approx(0.1239654970844519)
    assert float(metrics.maximum_calibration_error(probabilities, labels)) == pytest.approx(0.1977994959360685)
    assert float(metrics.adaptive_calibration_error(probabilities, labels)) == pytest.approx(0.1244448741234496)
    assert float(metrics.adaptive_calibration_error(probabilities, labels)) == pytest.approx(0.1244448721, abs=1e-7)


@pytest.mark.parametrize(
    "measure",
    [
        metrics.accuracy, metrics.negative_log_likelihood, metrics.brier, metrics.expected_calibration_error,
        metrics.classwise_calibration_error, metrics.maximum_calibration_error, metrics.debiased_calibration_error,
    ],
)  # fmt: skip
def test_weights_are_repetitions(measure: Callable[..., Tensor]) -> None:
    probabilities, labels = some_predictions(60, 4, 0)
    weights = torch.randint(0, 4, (3, 60), generator=torch.Generator().manual_seed(1)).double()
    found = measure(probabilities, labels, weights)
    for row, value in zip(weights, found, strict=True):
        repeated = torch.arange(60).repeat_interleave(row.long())
        assert float(value) == pytest.approx(float(measure(probabilities[repeated], labels[repeated])), abs=1e-9)
    assert float(measure(probabilities, labels, torch.ones(60).double())) == pytest.approx(
        float(measure(probabilities, labels))
    )


def test_adaptive_bins_hold_equally_many_images() -> None:
    """Six images in three bins by hand: gaps .1 (both right at .9), .4, .3."""
    confidence = torch.tensor([0.6, 0.9, 0.8, 0.9, 0.6, 0.8], dtype=torch.float64)
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    labels = torch.tensor([1, 0, 1, 0, 0, 0])
    expected = (abs(0.6 - 0.5) + abs(0.8 - 0.5) + abs(0.9 - 1)) / 3
    assert float(metrics.adaptive_calibration_error(probabilities, labels, bins=3)) == pytest.approx(expected)


def test_adaptive_bins_do_not_depend_on_the_order_of_images() -> None:
    confidence = torch.tensor([0.9] * 30 + [0.6] * 10, dtype=torch.float64)
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    labels = (torch.arange(40) % 3 == 0).long()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    one = metrics.adaptive_calibration_error(probabilities, labels, bins=5)
    other = metrics.adaptive_calibration_error(probabilities[order], labels[order], bins=5)
    assert float(one) == pytest.approx(float(other))


def test_classwise_by_hand() -> None:
    """Class 0: predicted .8 for two images, one of which has it; class 1 the complement; in one bin each."""
    probabilities = torch.tensor([[0.8, 0.2], [0.8, 0.2]], dtype=torch.float64)
    assert float(metrics.classwise_calibration_error(probabilities, torch.tensor([0, 1]))) == pytest.approx(0.3)


def test_the_debiased_error_has_no_bias() -> None:
    """Over many small sets of a calibrated prediction its mean is 0, that of the ECE is not; a known gap is found."""
    generator = torch.Generator().manual_seed(0)
    for gap in (0.0, 0.1):
        found = []
        for _ in range(2000):
            confidence = 0.6 + 0.3 * torch.rand(100, generator=generator, dtype=torch.float64)
            right = torch.rand(100, generator=generator, dtype=torch.float64) < confidence - gap
            probabilities = torch.stack([confidence, 1 - confidence], 1)
            found.append(float(metrics.debiased_calibration_error(probabilities, (~right).long(), bins=5)))
            if gap == 0:
                assert metrics.expected_calibration_error(probabilities, (~right).long(), bins=5) > 0
        error = float(np.std(found)) / 2000**0.5
        assert np.mean(found) == pytest.approx(gap**2, abs=4 * error)
        assert error < 3e-4


@given(images=st.integers(1, 200), classes=st.integers(2, 5), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_the_parts_of_the_brier_score(images: int, classes: int, seed: int) -> None:
    probabilities, labels = some_predictions(images, classes, seed)
    parts = metrics.brier_decomposition(probabilities, labels)
    assert parts.calibration >= -1e-9
    assert parts.refinement >= -1e-9
    assert parts.calibration + parts.refinement == pytest.approx(float(metrics.brier(probabilities, labels)))
    one_hot = np.eye(classes)[labels.numpy()]
    recalibrated = np.stack(
        [IsotonicRegression().fit(p, y).predict(p) for p, y in zip(probabilities.T.numpy(), one_hot.T, strict=True)], 1
    )
    assert parts.refinement == pytest.approx(((recalibrated - one_hot) ** 2).sum(1).mean())


def test_the_parts_of_the_brier_score_by_hand() -> None:
    """A forecaster of .9 who is right in 7 of 10 cases: (.9 - .7)^2 for each of two classes, and .7 * .3 for each."""
    probabilities = torch.tensor([[0.9, 0.1]] * 10, dtype=torch.float64)
    parts = metrics.brier_decomposition(probabilities, torch.tensor([0] * 7 + [1] * 3))
    assert parts.calibration == pytest.approx(2 * 0.04)
    assert parts.refinement == pytest.approx(2 * 0.21)


@given(images=st.integers(1, 300), bins=st.integers(1, 20), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_ece_against_a_loop_over_bins(images: int, bins: int, seed: int) -> None:
    probabilities, labels = some_predictions(images, 4, seed)
    confidence, predicted = probabilities.max(1)
    expected = 0.0
    for k in range(bins):
        inside = (confidence > k / bins) & (confidence <= (k + 1) / bins)
        if inside.any():
            correct = (predicted == labels)[inside].double().mean()
            expected += float(inside.double().mean() * (correct - confidence[inside].mean()).abs())
    assert metrics.expected_calibration_error(probabilities, labels, bins=bins).item() == pytest.approx(
        expected, abs=1e-12
    )


def test_ece_by_hand() -> None:
    """Two bins: (0, .5] is empty; in (.5, 1] accuracy is 3/4 and mean confidence .8."""
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.7, 0.3], [0.3, 0.7]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 0])
    assert float(metrics.expected_calibration_error(probabilities, labels, bins=2)) == pytest.approx(0.05)
    bins = metrics.reliability_bins(probabilities, labels, bins=2)
    assert bins.count.tolist() == [0, 4]
    assert bins.accuracy.tolist() == pytest.approx([0, 0.75])
    assert bins.confidence.tolist() == pytest.approx([0, 0.8])


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    probabilities = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    assert metrics.reliability_bins(probabilities, torch.tensor([0, 0]), bins=4).count.tolist() == [1, 1, 0, 0]


def test_confidence_one_falls_into_the_last_bin() -> None:
    bins = metrics.reliability_bins(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([0, 1]))
    assert bins.count.sum() == 2
    assert bins.count[-1] == 1


def test_a_calibrated_forecaster_has_little_ece() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (2 * torch.randn(200_000, 5, generator=generator)).softmax(-1)
    labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    assert metrics.expected_calibration_error(probabilities, labels) < 0.005
    overconfident = probabilities.square() / probabilities.square().sum(1, keepdim=True)
    assert metrics.expected_calibration_error(overconfident, labels) > 0.1


def test_extremes() -> None:
    sure = torch.eye(3)
    labels = torch.arange(3)
    assert metrics.negative_log_likelihood(sure, labels) == 0
    assert metrics.brier(sure, labels) == 0
    assert metrics.brier(sure, labels.roll(1)) == 2
    assert math.isinf(metrics.negative_log_likelihood(sure, labels.roll(1)))
