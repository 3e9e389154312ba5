from __future__ import annotations

import math
from decimal import Decimal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom, kstest
from torch import Tensor

from calibration.conformal import (
    class_thresholds,
    image_uniforms,
    nonconformity,
    prediction_sets,
    threshold,
)
from models.records import CONFORMAL_METHODS, ConformalMethod

REPETITIONS = 4000
TESTED = 20
"""Images tested in each repetition."""


def some_probabilities(images: int, classes: int = 10, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(images, classes, generator=generator, dtype=torch.float64)).softmax(-1)


def some_uniforms(images: int, seed: int = 0) -> Tensor:
    return torch.rand(images, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tolerance(rank: int, calibrated: int, tested: int, repetitions: int) -> float:
    """Four standard errors of the mean coverage of ``tested`` images over repetitions, each with its threshold."""
    return float(4 * betabinom(tested, rank, calibrated + 1 - rank).std() / tested / math.sqrt(repetitions))


@pytest.fixture(scope="module")
def population() -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, and the probabilities of a network that is far too sure of them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(REPETITIONS * (20 + TESTED), 10, generator=generator)
    labels = torch.multinomial(images.softmax(-1), 1, generator=generator)
    return images, labels, (3 * images.double()).softmax(-1)


def test_each_method_by_hand() -> None:
    probabilities = torch.tensor([[0.1, 0.5, 0.05, 0.35], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    uniforms = torch.tensor([0.2, 0.6], dtype=torch.float64)
    expected: dict[ConformalMethod, list[list[float]]] = {
        "lac": [[0.9, 0.5, 0.95, 0.65], [0.75, 0.75, 0.75, 0.75]],
        "aps": [[0.87, 0.1, 0.96, 0.57], [0.15, 0.4, 0.65, 0.9]],
        "raps": [[0.97, 0.1, 1.16, 0.57], [0.15, 0.4, 0.75, 1.1]],
    }
    for method in CONFORMAL_METHODS:
        scores = nonconformity(probabilities.float(), method, uniforms)
        assert scores.dtype == torch.float64
        torch.testing.assert_close(scores, torch.tensor(expected[method], dtype=torch.float64), atol=1e-7, rtol=0)


def test_sets_are_the_classes_up_to_the_threshold() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.9], [0.6, 0.7, 0.8]])
    assert prediction_sets(scores, 0.5).tolist() == [[True, True, False], [False, False, False]]
    assert prediction_sets(scores, torch.tensor([0.1, math.inf, 0.7])).tolist() == [
        [True, True, False], [False, True, False],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("images", "coverage", "rank"),
    [
        (19, 0.9, 18), (19, 0.95, 19), (20, 0.9, 19), (20, 0.95, 20), (9, 0.9, 9), (10_000, 0.9, 9001), (1, 0.5, 1),
        (99, 0.55, 55), (99, 0.07, 7),  # in floating point these products are above the integer
    ],
)  # fmt: skip
def test_the_rank_of_the_threshold(images: int, coverage: float, rank: int) -> None:
    scores = torch.randperm(images, generator=torch.Generator().manual_seed(0)).double() + 1
    assert threshold(scores, coverage) == rank


@given(images=st.integers(1, 200), percent=st.integers(1, 999), seed=st.integers(0, 100))
@settings(deadline=None)
def test_the_threshold_by_its_definition(images: int, percent: int, seed: int) -> None:
    scores = torch.randint(40, (images,), generator=torch.Generator().manual_seed(seed)).double()
    product = (images + 1) * (Decimal(percent) / 1000)
    rank = int(product.to_integral_value("ROUND_CEILING"))
    expected = sorted(scores.tolist())[rank - 1] if rank <= images else math.inf
    assert threshold(scores, percent / 1000) == expected


@pytest.mark.parametrize(("images", "coverage"), [(8, 0.9), (18, 0.95), (0, 0.5)])
@pytest.mark.parametrize("method", CONFORMAL_METHODS)
def test_too_few_images_give_full_sets(images: int, coverage: float, method: ConformalMethod) -> None:
    bound = threshold(torch.rand(images), coverage)
    assert bound == math.inf
    assert prediction_sets(nonconformity(some_probabilities(5), method, some_uniforms(5)), bound).all()


@pytest.mark.parametrize(("images", "coverage", "rank"), [(20, 0.9, 19), (20, 0.95, 20), (19, 0.9, 18)])
@pytest.mark.parametrize("method", CONFORMAL_METHODS)
def test_coverage_is_exact_for_few_images(
    population: tuple[Tensor, Tensor, Tensor], method: ConformalMethod, images: int, coverage: float, rank: int
) -> None:
    """Over repetitions with a new threshold each, and with the hashes as uniforms. The 0.9 quantile of 20 scores
    without the correction for their number would cover 0.86."""
    pixels, labels, probabilities = population
    scores = nonconformity(probabilities, method, image_uniforms(pixels)).unflatten(0, (REPETITIONS, -1))
    labels = labels.unflatten(0, (REPETITIONS, -1))
    calibrated, tested = scores[:, :images].gather(2, labels[:, :images]).squeeze(2), scores[:, -TESTED:]
    sets = torch.stack([
        prediction_sets(new, threshold(old, coverage)) for old, new in zip(calibrated, tested, strict=True)
    ])  # fmt: skip
    covered = float(sets.gather(2, labels[:, -TESTED:]).double().mean())
    assert covered == pytest.approx(rank / (images + 1), abs=tolerance(rank, images, TESTED, REPETITIONS))


def test_each_class_is_covered_where_one_threshold_fails_one() -> None:
    """Of two classes the second is rare and hard: 20 of 200 images."""
    repetitions, tested, coverage = 1000, 40, 0.9
    labels = torch.tensor([0] * 180 + [1] * 20)
    generator = torch.Generator().manual_seed(0)

    def some_scores(labels: Tensor) -> Tensor:
        """By ``lac``, where the second class gets a lower probability, right or wrong."""
        logits = torch.randn(repetitions, len(labels), generator=generator, dtype=torch.float64)
        second = (logits - 2 + labels).sigmoid().flatten()
        scores = nonconformity(torch.stack([1 - second, second], 1), "lac", torch.zeros(len(second)))
        return scores.view(repetitions, -1, 2)

    calibrated = some_scores(labels).gather(2, labels.expand(repetitions, -1).unsqueeze(2)).squeeze(2)
    new = [some_scores(torch.full((tested,), index)) for index in range(2)]
    of_all = [threshold(scores, coverage) for scores in calibrated]
    of_class = torch.stack([class_thresholds(scores, labels, 2, coverage) for scores in calibrated])

    def covered(index: int, thresholds: Tensor) -> float:
        return float(prediction_sets(new[index], thresholds.unsqueeze(1))[..., index].double().mean())

    assert covered(1, torch.tensor(of_all).unsqueeze(1)) < 0.5
    for index, (images, rank) in enumerate([(180, 163), (20, 19)]):
        expected = pytest.approx(rank / (images + 1), abs=tolerance(rank, images, tested, repetitions))
        assert covered(index, of_class) == expected


def test_a_class_of_too_few_images_is_in_every_set() -> None:
    scores, labels = torch.arange(14).double(), torch.tensor([0] * 9 + [2] * 5)
    thresholds = class_thresholds(scores, labels, 3, 0.9)
    assert thresholds.tolist() == [8, math.inf, math.inf]
    assert prediction_sets(torch.full((4, 3), 100.0), thresholds).tolist() == [[False, True, True]] * 4


@given(
    seed=st.integers(0, 1000), method=st.sampled_from(CONFORMAL_METHODS),
    coverages=st.lists(st.floats(0.01, 0.99), min_size=2, max_size=2),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_sets_grow_with_coverage(seed: int, method: ConformalMethod, coverages: list[float]) -> None:
    scores = nonconformity(some_probabilities(80, seed=seed), method, some_uniforms(80, seed))
    low, high = (prediction_sets(scores, threshold(scores[:50, 0], coverage)) for coverage in sorted(coverages))
    assert (low <= high).all()


@given(
    seed=st.integers(0, 1000),
    method=st.sampled_from(CONFORMAL_METHODS),
    bound=st.floats(0, 1.5),
    classes=st.integers(2, 12),
)
@settings(deadline=None, max_examples=60)
def test_sets_hold_the_most_probable_classes(seed: int, method: ConformalMethod, bound: float, classes: int) -> None:
    probabilities = some_probabilities(30, classes, seed)
    sets = prediction_sets(nonconformity(probabilities, method, some_uniforms(30, seed)), bound)
    ranked = sets.gather(1, probabilities.argsort(1, descending=True))
    assert (ranked[:, 1:] <= ranked[:, :-1]).all()


@given(seed=st.integers(0, 1000), classes=st.integers(2, 12))
@settings(deadline=None, max_examples=30)
def test_raps_is_aps_with_a_penalty_on_low_ranks(seed: int, classes: int) -> None:
    probabilities, uniforms = some_probabilities(30, classes, seed), some_uniforms(30, seed)
    aps, raps = (nonconformity(probabilities, method, uniforms) for method in ("aps", "raps"))
    ranked = (raps - aps).gather(1, probabilities.argsort(1, descending=True))
    expected = torch.tensor([0.1 * max(0, rank - 2) for rank in range(1, classes + 1)], dtype=torch.float64)
    torch.testing.assert_close(ranked, expected.expand_as(ranked))


@pytest.mark.parametrize("method", CONFORMAL_METHODS)
def test_an_image_is_scored_alone(method: ConformalMethod) -> None:
    probabilities, uniforms = some_probabilities(50).float(), some_uniforms(50)
    alone = [nonconformity(probabilities[i : i + 1], method, uniforms[i : i + 1]) for i in range(50)]
    assert torch.equal(torch.cat(alone), nonconformity(probabilities, method, uniforms))


def test_hashes_are_uniform_even_for_images_that_are_nearly_the_same() -> None:
    images = torch.zeros(5000, 28, 28, dtype=torch.uint8)
    images.flatten(1)[torch.arange(5000), torch.arange(5000) % 784] = (1 + torch.arange(5000) // 784).byte()
    uniforms = image_uniforms(images)
    assert uniforms.dtype == torch.float64
    assert uniforms.min() >= 0
    assert uniforms.max() < 1
    assert len(uniforms.unique()) == 5000
    assert kstest(uniforms.numpy(), "uniform").pvalue > 0.01


def test_hashes_depend_on_the_content_alone() -> None:
    images = torch.randint(256, (40, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    uniforms = image_uniforms(images)
    assert torch.equal(image_uniforms(images[7:8]), uniforms[7:8])
    assert torch.equal(image_uniforms(images.flip(0)), uniforms.flip(0))
    assert torch.equal(image_uniforms(images.float()), uniforms)
    assert torch.equal(image_uniforms(images.double().unsqueeze(1)), uniforms)
    assert torch.equal(image_uniforms(images.mT.contiguous().mT), uniforms)
    assert torch.equal(image_uniforms(-torch.zeros(1, 28, 28)), image_uniforms(torch.zeros(1, 28, 28)))
    assert image_uniforms(images[:0]).shape == (0,)


def test_hashes_stay_the_same_from_one_version_to_the_next() -> None:
    assert image_uniforms(torch.arange(784).reshape(1, 28, 28)).item() == 0.07482646970363116


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.1, math.nan])
def test_impossible_coverages_are_refused(coverage: float) -> None:
    with pytest.raises(ValueError, match=r"coverage must lie in \(0, 1\)"):
        threshold(torch.rand(10), coverage)


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        nonconformity(torch.tensor([[math.nan, 1.0]]), "lac", torch.zeros(1))
    with pytest.raises(ValueError, match="unknown method 'naive'; known are lac, aps, raps"):
        nonconformity(torch.tensor([[0.5, 0.5]]), "naive", torch.zeros(1))  # type: ignore[arg-type]
