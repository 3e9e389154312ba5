from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.noise import Dropout, GaussianDropout


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_rate_and_expectation(rate: float) -> None:
    torch.manual_seed(0)
    outputs = Dropout(rate)(torch.ones(1_000_003))
    dropped = float((outputs == 0).double().mean())
    five_sigma = 5 * (rate * (1 - rate) / 1_000_003) ** 0.5
    assert abs(dropped - rate) < five_sigma
    assert outputs.double().mean() == pytest.approx(1, abs=five_sigma / (1 - rate))
    assert outputs[outputs != 0].unique().tolist() == pytest.approx([1 / (1 - rate)], rel=1e-4)


def test_units_are_dropped_independently() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(200_000, 8)) != 0).double()
    correlations = torch.corrcoef(kept.T) - torch.eye(8)
    assert correlations.abs().max() < 5 / 200_000**0.5


@given(shape=st.lists(st.integers(1, 7), min_size=1, max_size=4), rate=st.floats(0, 0.99), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_an_output_is_zero_or_the_scaled_input(shape: list[int], rate: float, seed: int) -> None:
    torch.manual_seed(seed)
    inputs = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    outputs = Dropout(rate)(inputs)
    factors = (outputs / inputs).detach()
    kept = factors != 0
    assert torch.allclose(factors[kept], torch.full_like(factors[kept], 1 / (1 - rate)), rtol=2e-3)
    outputs.sum().backward()
    assert inputs.grad is not None
    torch.testing.assert_close(inputs.grad, factors)


def test_eval_mode_is_the_identity() -> None:
    inputs = torch.randn(5, 5)
    assert torch.equal(Dropout(0.9).eval()(inputs), inputs)


def test_the_rate_next_to_one_stays_finite() -> None:
    assert Dropout(1 - 1e-9)(torch.ones(1000)).isfinite().all()


def test_it_is_recognised_as_dropout() -> None:
    assert isinstance(Dropout(0.5), nn.Dropout)


def test_the_generator_decides() -> None:
    def draw() -> torch.Tensor:
        torch.manual_seed(3)
        outputs: torch.Tensor = Dropout(0.5)(torch.ones(100))
        return outputs

    assert torch.equal(draw(), draw())


class TestGaussianDropout:
    def test_mean_and_variance_are_those_of_dropout(self) -> None:
        torch.manual_seed(0)
        layer = GaussianDropout(0.2).train()
        found = layer(torch.full((1_000_000,), 2.0)).double()
        assert float(found.mean()) == pytest.approx(2, abs=0.005)
        assert float(found.var()) == pytest.approx(4 * 0.2 / 0.8, rel=0.01)

    def test_it_is_the_identity_in_eval_mode_and_at_rate_0(self) -> None:
        inputs = torch.randn(9)
        assert torch.equal(GaussianDropout(0.5).eval()(inputs), inputs)
        assert torch.equal(GaussianDropout(0.0).train()(inputs), inputs)

    def test_gradients_flow_through_the_noise(self) -> None:
        torch.manual_seed(0)
        inputs = torch.ones(5, requires_grad=True)
        outputs = GaussianDropout(0.5).train()(inputs)
        outputs.sum().backward()
        assert inputs.grad is not None
        torch.testing.assert_close(inputs.grad, outputs.detach())

    @pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
    def test_an_impossible_rate_is_refused(self, rate: float) -> None:
        with pytest.raises(ValueError, match="must lie in"):
            GaussianDropout(rate)

    def test_it_shows_its_rate(self) -> None:
        assert repr(GaussianDropout(0.3)) == "GaussianDropout(p=0.3)"
