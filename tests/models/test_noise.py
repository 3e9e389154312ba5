from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.noise import DropConnectLinear, Dropout, GaussianDropout


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


class TestDropConnectLinear:
    def test_each_weight_is_dropped_on_its_own(self) -> None:
        """One-hot inputs show the weights; none of the bias is dropped."""
        torch.manual_seed(0)
        layer = DropConnectLinear(3, 4, 0.3).train()
        weight, bias = layer.linear.weight.detach(), layer.linear.bias.detach()
        draws = 20_000
        with torch.no_grad():
            factors = torch.stack([(layer(torch.eye(3)) - bias).T / weight for _ in range(draws)])
        kept = factors.abs() > 0.5
        torch.testing.assert_close(factors[kept], torch.full_like(factors[kept], 1 / 0.7), rtol=1e-3, atol=0)
        five_sigma = 5 * (0.3 * 0.7 / draws) ** 0.5
        assert ((~kept).double().mean(0) - 0.3).abs().max() < five_sigma
        correlations = torch.corrcoef(kept.double().flatten(1).T) - torch.eye(12)
        assert correlations.abs().max() < 5 / draws**0.5

    def test_its_expectation_is_the_plain_layer(self) -> None:
        torch.manual_seed(0)
        layer = DropConnectLinear(20, 5, 0.5)
        inputs = torch.randn(20)
        with torch.no_grad():
            found = torch.stack([layer.train()(inputs) for _ in range(20_000)])
        error = 5 * found.std(0) / 20_000**0.5
        assert torch.all((found.mean(0) - layer.linear(inputs)).abs() < error)

    def test_one_mask_serves_a_batch_and_the_next_has_another(self) -> None:
        torch.manual_seed(0)
        layer = DropConnectLinear(20, 5, 0.5).train()
        batch = torch.randn(1, 20).expand(6, 20)
        first, second = layer(batch), layer(batch)
        torch.testing.assert_close(first, first[:1].expand(6, 5))
        assert not torch.allclose(first, second)

    def test_eval_mode_is_the_plain_layer(self) -> None:
        layer = DropConnectLinear(7, 3, 0.9).eval()
        inputs = torch.randn(4, 7)
        torch.testing.assert_close(layer(inputs), layer.linear(inputs))

    def test_gradients_reach_the_weights_that_are_kept_alone(self) -> None:
        torch.manual_seed(0)
        layer = DropConnectLinear(30, 30, 0.5).train()
        layer(torch.ones(1, 30)).sum().backward()
        gradient = layer.linear.weight.grad
        assert gradient is not None
        assert 0.4 < float((gradient == 0).double().mean()) < 0.6

    @pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
    def test_an_impossible_rate_is_refused(self, rate: float) -> None:
        with pytest.raises(ValueError, match="must lie in"):
            DropConnectLinear(3, 3, rate)


def test_spatial_dropout_drops_whole_channels() -> None:
    """torch's own, which the convolutional network uses (Tompson et al. 2015)."""
    torch.manual_seed(0)
    found = nn.Dropout2d(0.3).train()(torch.ones(500, 40, 5, 5))
    channels = found.flatten(2)
    assert torch.equal(channels, channels[:, :, :1].expand_as(channels))
    assert float((channels[:, :, 0] == 0).double().mean()) == pytest.approx(0.3, abs=5 * (0.21 / 20_000) ** 0.5)


def test_alpha_dropout_keeps_mean_and_variance_of_selus_units() -> None:
    """torch's own, which the MLPs use with SELU (Klambauer et al. 2017): over four layers with LeCun's weights, where
    plain dropout's variance grows away."""
    torch.manual_seed(0)
    moments = {}
    for name, dropout in (("alpha", nn.AlphaDropout(0.2)), ("plain", nn.Dropout(0.2))):
        values = torch.randn(2_000, 400)
        for _ in range(4):
            weights = torch.randn(400, 400) * 400**-0.5
            values = dropout.train()(nn.functional.selu(values @ weights))
        moments[name] = float(values.mean()), float(values.var())
    mean, variance = moments["alpha"]
    assert mean == pytest.approx(0, abs=0.08)
    assert variance == pytest.approx(1, abs=0.1)
    assert moments["plain"][1] > 1.3
