from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from calibration import strategies
from calibration.predictive import PredictiveDistribution
from models import bundle, networks, records
from models.records import Diversity
from training.data import FashionMNISTSplits
from training.diversity import curves, disagreement, outliers_from, shuffled
from training.fit import Recipe, evaluate, fit


def prepare(pixels: Tensor) -> Tensor:
    return bundle.normalise(pixels, records.InputRecord())


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 20), count=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_disagreement_is_the_jensen_shannon_divergence_and_the_mutual_information(
    seed: int, scale: float, count: int
) -> None:
    logits = scale * torch.randn(2, count, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    one, other = logits.softmax(2).numpy()
    expected = np.mean([jensenshannon(p, q) ** 2 for p, q in zip(one, other, strict=True)])
    assert float(disagreement(*logits)) == pytest.approx(expected, abs=1e-9)
    of_two = PredictiveDistribution(logits.softmax(2)).mutual_information
    assert float(of_two.mean()) == pytest.approx(expected, abs=1e-9)


def test_disagreement_is_bounded_and_its_gradient_finite_where_it_is_certain() -> None:
    certain = (1000 * torch.eye(10)).requires_grad_()
    found = disagreement(certain, certain.detach().roll(1, 0))
    assert float(found.detach()) == pytest.approx(math.log(2))
    found.backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()
    assert float(disagreement(certain, certain).detach()) == pytest.approx(0, abs=1e-6)


def test_shuffled_images_have_the_same_tiles_elsewhere() -> None:
    torch.manual_seed(0)
    before = torch.arange(784).view(1, 28, 28).remainder(251).to(torch.uint8).repeat(50, 1, 1)
    seen = set()
    for _ in range(20):
        after = shuffled(before)
        assert not (after == before).flatten(1).all(1).any()
        assert torch.equal(after.flatten(1).sort(1).values, before.flatten(1).sort(1).values)
        for tiles in (2, 4, 7):
            size = 28 // tiles
            known = {
                tile.numpy().tobytes() for tile in before[0].unfold(0, size, size).unfold(1, size, size).flatten(0, 1)
            }
            cut = after.unfold(1, size, size).unfold(2, size, size).flatten(0, 2)
            if all(tile.contiguous().numpy().tobytes() in known for tile in cut):
                seen.add(tiles)
    assert seen == {2, 4, 7}


def test_curves_are_lines_and_areas_on_black() -> None:
    torch.manual_seed(0)
    drawn = curves(2000)
    assert drawn.shape == (2000, 28, 28)
    assert drawn.dtype == torch.uint8
    assert (drawn[:, [0, 0, -1, -1], [0, -1, 0, -1]] < 10).float().mean() > 0.95, "nothing outside the disc"
    bright = (drawn > 100).float().mean((1, 2))
    assert 0.03 < float(bright.median()) < 0.4
    assert len(drawn.flatten(1).unique(dim=0)) > 1990


def test_outliers_are_of_both_kinds_and_from_the_global_generator(fashion: FashionMNISTSplits) -> None:
    pixels = fashion.train.pixels[:32]
    torch.manual_seed(3)
    first = outliers_from(pixels, 7)
    torch.manual_seed(3)
    assert torch.equal(first, outliers_from(pixels, 7))
    assert first.shape == (7, 28, 28)
    contents = {tuple(sorted(image.flatten().tolist())) for image in pixels}
    assert [tuple(sorted(image.flatten().tolist())) in contents for image in first] == [False] * 4 + [True] * 3


def test_trained_to_disagree_sub_networks_do_so_on_outliers_alone(fashion: FashionMNISTSplits) -> None:
    train, validation = fashion.train[slice(0, 6000)], fashion.validation[slice(0, 2000)]
    found = {}
    for weight in (0.0, 1.0):
        network = networks.build("WideMLP", {"hidden_widths": [128, 64]}, seed=0)
        recipe = Recipe(epochs=6, batch_size=100, learning_rate=0.003, diversity=Diversity(weight=weight))
        fit(network, train, validation, recipe, prepare=prepare)
        strategy = strategies.build("mc_dropout", network, (28, 28), samples=32)
        torch.manual_seed(1)
        outliers = outliers_from(fashion.test.pixels[:500], 500)
        of_outliers, of_test = (
            float(strategy(prepare(pixels)).mutual_information.mean()) for pixels in (outliers, validation.pixels)
        )
        found[weight] = of_outliers, of_test, evaluate(network, prepare(validation.pixels), validation.labels)[1]
    assert found[1.0][0] > 1.5 * found[0.0][0]
    assert found[1.0][0] / found[1.0][1] > 1.5 * found[0.0][0] / found[0.0][1]
    assert found[1.0][2] > 0.7, "it still classifies"
