"""Dropped weights as sub-networks: against networks whose weights are masked by hand, and exact enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from calibration import strategies
from calibration.masks import DESIGNS
from calibration.sites import UnsupportedNetworkError
from calibration.subnetworks import SubnetworkEnsemble, dropout_layers
from models import networks
from models.noise import DropConnectLinear, Dropout
from models.records import MaskDesign

SHAPE = (6,)


def example() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 7), nn.ReLU(), DropConnectLinear(7, 9, 0.3), nn.Tanh(), Dropout(0.4),
        DropConnectLinear(9, 4, 0.5, bias=False),
    ).eval()  # fmt: skip


def by_hand(network: nn.Sequential, ensemble: SubnetworkEnsemble, inputs: Tensor) -> Tensor:
    outputs = []
    for row in range(ensemble.samples):
        values = inputs
        for index, layer in enumerate(network):
            name = str(index)
            mask = ensemble.bank.layers.get(name)
            if mask is None:
                values = layer(values)
                continue
            kept = ensemble.bank.rows[name][row] / (1 - mask.rate)
            if isinstance(layer, DropConnectLinear):
                values = nn.functional.linear(values, layer.linear.weight * kept, layer.linear.bias)
            else:
                values = values * kept
        outputs.append(values)
    return torch.stack(outputs)


def test_the_survey_finds_its_weights() -> None:
    found = dropout_layers(example(), SHAPE)
    assert {name: (mask.kind, mask.rate, mask.shape) for name, mask in found.items()} == {
        "2": ("weights", 0.3, (9, 7)), "4": ("bernoulli", 0.4, (9,)), "5": ("weights", 0.5, (4, 9))
    }  # fmt: skip


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("batch", [1, 3, 200])
def test_subnetworks_are_those_with_masked_weights(design: MaskDesign, batch: int) -> None:
    network = example()
    ensemble = SubnetworkEnsemble(network, SHAPE, samples=16, seed=1, design=design)
    inputs = torch.randn(batch, 6)
    expected = by_hand(network, ensemble, inputs)
    torch.testing.assert_close(ensemble.logits(inputs), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ensemble.logits(inputs, slice(3, 7)), expected[3:7], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected[0], expected[1])


def test_another_rate_and_the_last_layer_alone() -> None:
    network, inputs = example(), torch.randn(5, 6)
    for options in ({"rate": 0.2}, {"last_layer_only": True}):
        ensemble = SubnetworkEnsemble(network, SHAPE, samples=8, seed=0, **options)
        torch.testing.assert_close(ensemble.logits(inputs), by_hand(network, ensemble, inputs), atol=1e-5, rtol=1e-5)


def test_inputs_with_more_axes() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(DropConnectLinear(4, 3, 0.5), nn.Flatten()).eval()
    ensemble = SubnetworkEnsemble(network, (2, 4), samples=4, seed=0)
    inputs = torch.randn(5, 2, 4)
    torch.testing.assert_close(ensemble.logits(inputs), by_hand(network, ensemble, inputs), atol=1e-6, rtol=1e-5)


def test_its_mean_over_many_subnetworks_is_the_exact_one() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), DropConnectLinear(2, 3, 0.4)).eval()
    layer = network[2]
    assert isinstance(layer, DropConnectLinear)
    inputs = 10 * torch.randn(4, 3)
    exact = torch.zeros(4, 3)
    with torch.no_grad():
        hidden = network[1](network[0](inputs))
        for bits in itertools.product((0.0, 1.0), repeat=6):
            mask = torch.tensor(bits).view(3, 2)
            weight = float((0.6**mask * 0.4 ** (1 - mask)).prod())
            logits = nn.functional.linear(hidden, layer.linear.weight * mask / 0.6, layer.linear.bias)
            exact += weight * logits.softmax(-1)
    found = strategies.build("mc_dropout", network, (3,), samples=4096)(inputs)
    torch.testing.assert_close(found.mean, exact, atol=0.01, rtol=0)
    assert not torch.allclose(network(inputs).softmax(-1), exact, atol=0.01)


def test_an_mlp_of_the_project() -> None:
    network = networks.build(
        "YourDropoutModel", {"dropout_kind": "dropconnect", "hidden_widths": [8, 8]}, seed=0
    ).eval()
    assert strategies.applicable(network, (28, 28)) == ("weight_scaling", "mc_dropout", "geometric_mean", "last_layer")
    found = strategies.build("mc_dropout", network, (28, 28), samples=8)(torch.randn(3, 28, 28))
    assert bool((found.mutual_information > 0).all())


def test_moments_are_refused_with_the_layer() -> None:
    with pytest.raises(UnsupportedNetworkError, match=r"'2' \(DropConnectLinear\)"):
        strategies.build("moment_propagation", example(), SHAPE)


def test_the_network_and_the_generator_are_left_as_they_were() -> None:
    network = example()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.random.get_rng_state()
    SubnetworkEnsemble(network, SHAPE, samples=4, seed=0).logits(torch.ones(2, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
