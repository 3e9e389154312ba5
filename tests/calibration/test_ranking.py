from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from calibration import ranking


def some_scores(images: int, others: int, levels: int, seed: int) -> tuple[Tensor, Tensor]:
    """With ties, unless there are many levels."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        torch.randint(low, levels + low, (count,), generator=generator).double() / 7
        for low, count in ((0, images), (levels // 4, others))
    )


@given(images=st.integers(1, 80), others=st.integers(1, 80), levels=st.integers(2, 1000), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=100)
def test_detection_against_scikit_learn(images: int, others: int, levels: int, seed: int) -> None:
    own, found = some_scores(images, others, levels, seed)
    truth, scores = np.r_[np.zeros(images), np.ones(others)], torch.cat([own, found]).numpy()
    assert float(ranking.auroc(own, found)) == pytest.approx(roc_auc_score(truth, scores))
    assert float(ranking.average_precision(own, found)) == pytest.approx(average_precision_score(truth, scores))
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert float(ranking.false_positive_rate(own, found)) == pytest.approx(false[np.argmax(true >= 0.95 - 1e-12)])


@given(images=st.integers(1, 60), levels=st.integers(2, 500), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_risk_and_coverage_against_their_definition(images: int, levels: int, seed: int) -> None:
    """Ties in every order, on average: the mean over orders of the mean risk is that of many shuffles."""
    scores, _ = some_scores(images, images, levels, seed)
    errors = torch.rand(images, generator=torch.Generator().manual_seed(seed)) < 0.3
    risks, generalised = [], []
    unique = len(scores.unique()) == images
    generator = torch.Generator().manual_seed(seed)
    for _ in range(1 if unique else 200):
        shuffled = torch.randperm(images, generator=generator)
        order = shuffled[scores[shuffled].argsort(stable=True)]
        wrong = errors[order].double().cumsum(0)
        risks.append(float((wrong / torch.arange(1, images + 1)).mean()))
        generalised.append(float((wrong / images).mean()))
    spread = 4 * float(np.std(risks)) / len(risks) ** 0.5 + 1e-9
    assert float(ranking.area_under_risk_coverage(scores, errors)) == pytest.approx(np.mean(risks), abs=spread)
    spread = 4 * float(np.std(generalised)) / len(risks) ** 0.5 + 1e-9
    assert float(ranking.area_under_generalized_risk_coverage(scores, errors)) == pytest.approx(
        np.mean(generalised), abs=spread
    )


def test_risk_and_coverage_by_hand() -> None:
    scores, errors = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([False, True, False, True])
    assert ranking.risk_coverage(scores, errors).tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert float(ranking.area_under_risk_coverage(scores, errors)) == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert float(ranking.area_under_generalized_risk_coverage(scores, errors)) == pytest.approx((0 + 1 + 1 + 2) / 16)
    for coverage, expected in ((0.25, 1), (0.5, 0.5), (0.75, 2 / 3), (0.6, 2 / 3), (1, 0.5), (0.01, 1)):
        assert float(ranking.accuracy_at_coverage(scores, errors, coverage)) == pytest.approx(expected)


def test_against_torch_uncertainty() -> None:
    """torch-uncertainty 0.13 integrates by trapezoids from the first image on, which the definitions do not."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(1000, 10, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((0.7 * logits).softmax(-1), 1, generator=generator).squeeze(1)
    confidence, predicted = logits.softmax(-1).max(1)
    scores, errors = 1 - confidence, predicted != labels
    assert float(ranking.accuracy_at_coverage(scores, errors, 0.8)) == pytest.approx(1 - 0.5525000095, abs=1e-7)
    curve, coverage = ranking.risk_coverage(scores, errors), torch.arange(1, 1001) / 1000
    trapezoids = float(torch.trapezoid(curve, coverage)) / (1 - 1 / 1000)
    assert trapezoids == pytest.approx(0.4442797601, abs=1e-7)
    assert float(ranking.area_under_risk_coverage(scores, errors)) == pytest.approx(trapezoids, abs=1e-3)
    shifted = torch.cat([scores[:500], 1.3 * scores[500:]])
    assert float(ranking.false_positive_rate(shifted[:500], shifted[500:])) == pytest.approx(0.9, abs=1e-6)


MEASURES: list[Callable[[Tensor, Tensor, Tensor | None], Tensor]] = [
    ranking.area_under_risk_coverage,
    ranking.area_under_generalized_risk_coverage,
    lambda scores, errors, weights: ranking.accuracy_at_coverage(scores, errors, 0.8, weights),
]


@pytest.mark.parametrize("measure", MEASURES[:2])
def test_weights_of_tied_images_are_repetitions(measure: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> None:
    scores, errors = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([True, False, False])
    weights = torch.tensor([3.0, 0.0, 1.0], dtype=torch.float64)
    expected = measure(torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([True, True, True, False]), None)
    # Three of one image are in the way of each other: each order of them is the same.
    assert float(measure(scores, errors, weights)) == pytest.approx(float(expected), abs=0.25)
    tied = torch.zeros(400), torch.arange(400) < 100
    many = torch.randint(0, 4, (50, 400), generator=torch.Generator().manual_seed(0)).double()
    rates = (many * tied[1].double()).sum(1) / many.sum(1)
    found = measure(*tied, many)
    assert torch.corrcoef(torch.stack([found, rates]))[0, 1] > 0.999, "the error rate of each resample is seen"


@pytest.mark.parametrize("measure", MEASURES)
def test_weights_are_repetitions(measure: Callable[[Tensor, Tensor, Tensor | None], Tensor]) -> None:
    """But for the order within the repetitions of one image, all of which are right or wrong."""
    generator = torch.Generator().manual_seed(0)
    scores, errors = torch.randperm(500, generator=generator).double(), torch.rand(500, generator=generator) < 0.3
    weights = torch.randint(0, 4, (3, 500), generator=generator).double()
    found = measure(scores, errors, weights)
    for row, value in zip(weights, found, strict=True):
        repeated = torch.arange(500).repeat_interleave(row.long())
        assert float(value) == pytest.approx(float(measure(scores[repeated], errors[repeated], None)), abs=2e-3)
    assert float(measure(scores, errors, torch.ones(500).double())) == pytest.approx(
        float(measure(scores, errors, None))
    )


@pytest.mark.parametrize("measure", [ranking.auroc, ranking.average_precision, ranking.false_positive_rate])
def test_weights_are_repetitions_of_either_kind(measure: Callable[..., Tensor]) -> None:
    own, found = some_scores(50, 40, 12, 0)
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randint(0, 4, (3, count), generator=generator).double() for count in (50, 40))
    values = measure(own, found, first, second)
    for row, other, value in zip(first, second, values, strict=True):
        expected = measure(own.repeat_interleave(row.long()), found.repeat_interleave(other.long()))
        assert float(value) == pytest.approx(float(expected))


def test_perfect_and_useless_scores() -> None:
    low, high = torch.arange(50.0), torch.arange(50.0, 90.0)
    assert float(ranking.auroc(low, high)) == float(ranking.average_precision(low, high)) == 1
    assert float(ranking.false_positive_rate(low, high)) == 0
    assert float(ranking.auroc(high, low)) == 0
    constant = torch.zeros(50), torch.zeros(40)
    assert float(ranking.auroc(*constant)) == 0.5
    assert float(ranking.average_precision(*constant)) == pytest.approx(40 / 90)
    assert float(ranking.false_positive_rate(*constant)) == 1
