from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
    assert metrics.accuracy(probabilities, labels) == pytest.approx(accuracy_score(y, p.argmax(1)))
    assert metrics.negative_log_likelihood(probabilities, labels) == pytest.approx(
        log_loss(y, p, labels=list(range(classes)))
    )
    one_hot = np.eye(classes)[y]
    assert metrics.brier(probabilities, labels) == pytest.approx(((p - one_hot) ** 2).sum(1).mean())


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
    assert metrics.expected_calibration_error(probabilities, labels, bins) == pytest.approx(expected, abs=1e-12)


def test_ece_by_hand() -> None:
    """Two bins: (0, .5] is empty; in (.5, 1] accuracy is 3/4 and mean confidence .8."""
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.7, 0.3], [0.3, 0.7]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 0])
    assert metrics.expected_calibration_error(probabilities, labels, bins=2) == pytest.approx(0.05)
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
