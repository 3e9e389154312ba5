from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.metrics import negative_log_likelihood
from calibration.predictive import temper
from calibration.scaling import calibrate, fit_temperature
from models import bundle
from tests.conftest import write_bundle
from training.data import FashionMNISTSplits


@given(temperature=st.floats(0.2, 6), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=25)
def test_a_known_temperature_is_recovered(temperature: float, seed: int) -> None:
    """Labels drawn from a softmax; the predictions are that softmax, sharpened by a known factor."""
    generator = torch.Generator().manual_seed(seed)
    true = (1.5 * torch.randn(20_000, 10, generator=generator, dtype=torch.float64)).softmax(-1)
    labels = torch.multinomial(true, 1, generator=generator).squeeze(1)
    record = fit_temperature(temper(true, 1 / temperature), labels)
    assert record.temperature == pytest.approx(temperature, rel=0.05)
    assert record.nll_after <= record.nll_before


def test_it_is_the_minimum() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = (3 * torch.randn(500, 10, generator=generator, dtype=torch.float64)).softmax(-1)
    labels = torch.multinomial(temper(probabilities, 2.0), 1, generator=generator).squeeze(1)
    record = fit_temperature(probabilities, labels)
    assert record.nll_after == pytest.approx(
        negative_log_likelihood(temper(probabilities, record.temperature), labels), abs=1e-9
    )
    for temperature in torch.linspace(0.05, 20, 400).tolist():
        assert record.nll_after <= negative_log_likelihood(temper(probabilities, temperature), labels) + 1e-9


def test_impossible_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        fit_temperature(torch.zeros(0, 10), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="not finite"):
        fit_temperature(torch.full((1, 10), torch.nan), torch.zeros(1, dtype=torch.int64))


def test_the_shipped_temperatures_are_those_of_the_calibration_images(
    shipped: bundle.Bundle, fashion: FashionMNISTSplits
) -> None:
    assert shipped.calibration is not None
    again = calibrate(shipped, fashion.calibration)
    assert again.images == shipped.calibration.images == 5_000
    for name, record in shipped.calibration.strategies.items():
        assert again.strategies[name].temperature == pytest.approx(record.temperature, rel=1e-3)
        assert again.strategies[name].nll_after == pytest.approx(record.nll_after, rel=1e-4)


def test_mc_dropout_is_better_calibrated_after_than_before(shipped: bundle.Bundle, fashion: FashionMNISTSplits) -> None:
    from calibration import strategies
    from calibration.metrics import expected_calibration_error

    strategy = strategies.build("mc_dropout", shipped.network, (28, 28))
    distribution = strategy(shipped.prepare(fashion.test.pixels), shipped.temperature("mc_dropout"))
    before = expected_calibration_error(distribution.pooled, fashion.test.labels)
    after = expected_calibration_error(distribution.mean, fashion.test.labels)
    assert before > 0.05
    assert after < 0.02


def test_a_network_without_dropout_is_calibrated_for_weight_scaling(
    tmp_path_factory: pytest.TempPathFactory, fashion: FashionMNISTSplits
) -> None:
    folder = tmp_path_factory.mktemp("plain") / "plain"
    write_bundle(folder, "ReLUNet")
    calibration = calibrate(bundle.load(folder), fashion.calibration[slice(0, 500)])
    assert list(calibration.strategies) == ["weight_scaling"]
