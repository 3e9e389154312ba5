from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calibration.metrics import negative_log_likelihood
from calibration.predictive import PredictiveDistribution, temper
from calibration.scaling import fit_scaling
from models.records import PoolingOrder, Scaling

ORDERS: tuple[PoolingOrder, PoolingOrder] = ("pool_then_calibrate", "calibrate_then_pool")


def drawn_labels(probabilities: Tensor, seed: int = 1) -> Tensor:
    return torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(seed)).squeeze(1)


def some_logits(members: int, images: int, seed: int, scale: float = 1.5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(1, images, 10, generator=generator, dtype=torch.float64)
    own = torch.randn(members, images, 10, generator=generator, dtype=torch.float64)
    return scale * (common + own)


@given(temperature=st.floats(0.2, 6), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_a_known_temperature_is_recovered(temperature: float, seed: int) -> None:
    """Labels drawn from a softmax; the predictions are that softmax, sharpened by a known factor."""
    logits = some_logits(1, 20_000, seed, scale=1.0)
    labels = drawn_labels(logits[0].softmax(-1), seed)
    found = fit_scaling(logits * temperature, labels)
    assert found.scaling.temperature == pytest.approx(temperature, rel=0.05)
    assert found.scaling.order == "pool_then_calibrate"
    assert list(found.cross_validated_nll) == ["pool_then_calibrate"]
    assert found.nll_after <= found.nll_before


@pytest.mark.parametrize("order", ORDERS)
def test_it_is_the_minimum_in_its_order(order: PoolingOrder) -> None:
    logits = some_logits(8, 500, 0)
    truth = PredictiveDistribution.scaled(logits, Scaling(temperature=2.5, order=order)).mean
    labels = drawn_labels(truth)
    found = fit_scaling(logits if order == "calibrate_then_pool" else truth.log().unsqueeze(0) * 2.5, labels)
    source = logits if found.scaling.order == "calibrate_then_pool" else truth.log().unsqueeze(0) * 2.5

    def loss(temperature: float) -> float:
        scaling = Scaling(temperature=temperature, order=found.scaling.order)
        return float(negative_log_likelihood(PredictiveDistribution.scaled(source, scaling).mean, labels))

    assert found.nll_after == pytest.approx(loss(found.scaling.temperature), abs=1e-9)
    for temperature in torch.linspace(0.05, 20, 400).tolist():
        assert found.nll_after <= loss(temperature) + 1e-9


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_that_made_the_labels_is_found(order: PoolingOrder) -> None:
    """Members that disagree widely, so that the orders differ; either is right for labels drawn by it."""
    logits = some_logits(16, 8_000, 3)
    scaling = Scaling(temperature=0.4 if order == "pool_then_calibrate" else 3.0, order=order)
    labels = drawn_labels(PredictiveDistribution.scaled(logits, scaling).mean)
    found = fit_scaling(logits, labels)
    assert found.scaling.order == order
    assert found.scaling.temperature == pytest.approx(scaling.temperature, rel=0.1)
    assert found.cross_validated_nll[order] == min(found.cross_validated_nll.values())


def test_cross_validation_is_on_images_left_out() -> None:
    """Fold by fold with the public parts; the loss of an image is by a temperature that never saw it."""
    logits = some_logits(4, 60, 5)
    labels = drawn_labels(logits.softmax(-1).mean(0), 2)
    pooled = logits.softmax(-1).mean(0)
    losses = []
    for fold in torch.arange(60).chunk(5):
        rest = torch.tensor([image for image in range(60) if image not in fold])
        temperature = fit_scaling(pooled[rest].log().unsqueeze(0), labels[rest]).scaling.temperature
        losses.append(float(negative_log_likelihood(temper(pooled[fold], temperature), labels[fold])))
    assert fit_scaling(logits, labels).cross_validated_nll["pool_then_calibrate"] == pytest.approx(
        sum(losses) / 5, abs=1e-5
    )


def test_impossible_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"can't be fitted on 4 images"):
        fit_scaling(torch.zeros(1, 4, 10), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="not finite"):
        fit_scaling(torch.full((1, 9, 10), math.nan), torch.zeros(9, dtype=torch.int64))
