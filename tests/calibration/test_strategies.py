from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from calibration import strategies
from calibration.subnetworks import NoActiveDropoutError
from models import networks
from models.records import Scaling
from service.wire import StrategyName
from tests.calibration.reference import every_subnetwork


@pytest.fixture
def enumerable() -> nn.Sequential:
    """Nine units with dropout: 512 sub-networks."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Dropout(0.2), nn.Linear(4, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3)
    ).double().eval()  # fmt: skip


UNITS = {0: (4, 0.2), 3: (5, 0.5)}


@pytest.mark.parametrize("name", ["mc_dropout", "geometric_mean"])
def test_sampling_approaches_the_exact_mean_over_all_subnetworks(enumerable: nn.Sequential, name: str) -> None:
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.inference_mode():
        logits, weights = every_subnetwork(enumerable, inputs, UNITS)
    assert weights.sum() == pytest.approx(1)
    weights = weights[:, None, None]
    exact = {
        "mc_dropout": (weights * logits.softmax(-1)).sum(0),
        "geometric_mean": (weights * logits.log_softmax(-1)).sum(0).softmax(-1),
    }[name]
    found = strategies.build(name, enumerable, (4,), samples=40_000, seed=0)(inputs).mean
    torch.testing.assert_close(found, exact, atol=0.008, rtol=0)


def test_the_two_means_differ(enumerable: nn.Sequential) -> None:
    inputs = 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    arithmetic, geometric = (
        strategies.build(name, enumerable, (4,), samples=500)(inputs).mean for name in ("mc_dropout", "geometric_mean")
    )
    assert (arithmetic - geometric).abs().max() > 0.02


def test_the_geometric_mean_is_weight_scaling_for_one_softmax_layer() -> None:
    """Exactly, over all sub-networks (Goodfellow et al. 2013)."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 4)).double().eval()
    inputs = torch.randn(5, 8, dtype=torch.float64)
    with torch.inference_mode():
        logits, weights = every_subnetwork(layer, inputs, {0: (8, 0.5)})
    geometric = (weights[:, None, None] * logits.log_softmax(-1)).sum(0).softmax(-1)
    torch.testing.assert_close(strategies.build("weight_scaling", layer, (8,))(inputs).mean, geometric)


def test_weight_scaling_is_eval_mode() -> None:
    network = networks.build("RandomDropoutModel", seed=0).eval()
    inputs = torch.randn(5000, 28, 28)
    strategy = strategies.build("weight_scaling", network, (28, 28), samples=64)
    with torch.inference_mode():
        torch.testing.assert_close(strategy(inputs).mean, network(inputs).softmax(-1))
    assert strategy.samples == strategy(inputs).samples == 1


def test_as_rates_go_to_zero_sampling_becomes_weight_scaling() -> None:
    network = networks.build("YourDropoutModel", {"dropout": [1e-9, 1e-9, 1e-9]}, seed=0).eval()
    inputs = torch.randn(7, 28, 28)
    scaled = strategies.build("weight_scaling", network, (28, 28))(inputs).mean
    for name in ("mc_dropout", "geometric_mean"):
        torch.testing.assert_close(strategies.build(name, network, (28, 28), samples=8)(inputs).mean, scaled)


def test_the_last_layer_is_sampled_alone(enumerable: nn.Sequential) -> None:
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.inference_mode():
        logits, weights = every_subnetwork(enumerable, inputs, {3: (5, 0.5)})
    exact = (weights[:, None, None] * logits.softmax(-1)).sum(0)
    found = strategies.build("last_layer", enumerable, (4,), samples=4096)(inputs)
    torch.testing.assert_close(found.mean, exact, atol=0.005, rtol=0)


def test_a_deep_ensemble_is_its_networks() -> None:
    members = [networks.build("ReLUNet", seed=seed).eval() for seed in range(5)]
    inputs = torch.randn(7, 28, 28)
    found = strategies.deep_ensemble(members)(inputs, Scaling(temperature=0.8))
    with torch.inference_mode():
        probabilities = torch.stack([member(inputs).softmax(-1) for member in members])
    torch.testing.assert_close(found.members, probabilities)
    assert (found.samples, found.replicates) == (5, 5)
    assert found.standard_error.isfinite().all()
    for wrong in ([], [networks.build("ReLUNet", seed=0)]):
        with pytest.raises(ValueError, match="at least one network, and all of them in eval mode"):
            strategies.deep_ensemble(wrong)


@pytest.mark.parametrize("name", [name for name in strategies.STRATEGIES if name != "weight_scaling"])
def test_the_rate_can_be_another_at_test_time(name: str) -> None:
    network = networks.build("RandomDropoutModel", seed=0).eval()
    again = networks.build("YourDropoutModel", {"dropout": [0.3, 0.3, 0.3]}, seed=1).eval()
    again.load_state_dict(network.state_dict())
    inputs = torch.randn(5, 28, 28)
    found = strategies.build(name, network, (28, 28), rate=0.3)(inputs)
    torch.testing.assert_close(found.mean, strategies.build(name, again, (28, 28))(inputs).mean)


@pytest.mark.parametrize("name", strategies.STRATEGIES)
def test_a_summary_needs_no_members(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = networks.build("RandomDropoutModel", seed=0).eval()
    strategy = strategies.build(name, network, (28, 28))
    inputs = torch.randn(90, 28, 28)
    expected = strategy(inputs, Scaling(temperature=0.7)).summary()
    monkeypatch.setattr(strategies, "MEMBERS_AT_ONCE", 20 * max(strategy.members, strategy.samples))
    steps: list[int] = []
    found = strategy.summarise(inputs, Scaling(temperature=0.7), on_images=steps.append)
    assert steps == [20, 20, 20, 20, 10]
    for field in vars(expected):
        torch.testing.assert_close(
            getattr(found, field), getattr(expected, field), equal_nan=True, atol=1e-5, rtol=1e-4
        )


def test_sampled_strategies_know_their_error() -> None:
    network = networks.build("RandomDropoutModel", seed=0).eval()
    errors = {
        name: strategies.build(name, network, (28, 28))(torch.randn(3, 28, 28)).standard_error
        for name in strategies.STRATEGIES
    }
    assert {name for name, error in errors.items() if error.isfinite().all()} == {"mc_dropout", "last_layer"}
    assert all(error.isnan().all() or error.isfinite().all() for error in errors.values())


def test_the_temperature_is_applied() -> None:
    network = networks.build("RandomDropoutModel", seed=0).eval()
    strategy = strategies.build("mc_dropout", network, (28, 28))
    inputs = torch.randn(3, 28, 28)
    sharp, plain = strategy(inputs, Scaling(temperature=0.5)).mean, strategy(inputs).mean
    torch.testing.assert_close(sharp, plain.square() / plain.square().sum(-1, keepdim=True))
    before_pooling = strategy(inputs, Scaling(temperature=0.5, order="calibrate_then_pool"))
    torch.testing.assert_close(before_pooling.mean, (2 * strategy.logits(inputs)).softmax(-1).mean(0))
    total = before_pooling.expected_entropy + before_pooling.mutual_information
    torch.testing.assert_close(before_pooling.predictive_entropy, total)


@pytest.mark.parametrize("name", ["weight_scaling", "geometric_mean"])
def test_the_order_makes_no_difference_to_a_single_distribution(name: str) -> None:
    network = networks.build("RandomDropoutModel", seed=0).eval()
    strategy = strategies.build(name, network, (28, 28))
    inputs = torch.randn(3, 28, 28)
    first, last = (
        strategy(inputs, Scaling(temperature=0.5, order=order)).mean
        for order in ("pool_then_calibrate", "calibrate_then_pool")
    )
    torch.testing.assert_close(first, last)


def test_a_network_without_dropout_allows_weight_scaling_alone() -> None:
    network = networks.build("ReLUNet", seed=0).eval()
    assert strategies.applicable(network, (28, 28)) == ("weight_scaling",)
    for name in ("mc_dropout", "geometric_mean"):
        with pytest.raises(NoActiveDropoutError):
            strategies.build(name, network, (28, 28))


def test_what_is_refused() -> None:
    network = networks.build("RandomDropoutModel", seed=0)
    with pytest.raises(ValueError, match=r"call network\.eval\(\) first"):
        strategies.build("mc_dropout", network, (28, 28))
    with pytest.raises(ValueError, match="unknown strategy 'bayes'; known are weight_scaling, mc_dropout"):
        strategies.build("bayes", network.eval(), (28, 28))


def test_the_service_offers_every_strategy() -> None:
    assert set(get_args(StrategyName)) == set(strategies.STRATEGIES)
