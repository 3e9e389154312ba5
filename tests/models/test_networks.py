from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from models import networks
from models.noise import DropConnectLinear, GaussianDropout


def layers(network: nn.Module) -> list[str]:
    described = []
    for module in network.modules():
        match module:
            case nn.Linear():
                described.append(f"{module.in_features}-{module.out_features}")
            case nn.Dropout():
                described.append(f"p={module.p}")
            case nn.ReLU():
                described.append("relu")
            case nn.SELU() | nn.BatchNorm1d():
                described.append(type(module).__name__)
            case nn.AlphaDropout() | GaussianDropout() | DropConnectLinear():
                described.append(f"{type(module).__name__} {module.p}")
    return described


@pytest.mark.parametrize(
    ("name", "parameters", "structure"),
    [
        ("ReLUNet", 102_070, ["784-120", "relu", "120-60", "relu", "60-10"]),
        ("ModelWithSingleDropout", 95_410, ["784-120", "relu", "p=0.5", "120-10"]),
        (
            "RandomDropoutModel",
            102_070,
            ["p=0.2", "784-120", "relu", "p=0.5", "120-60", "relu", "p=0.5", "60-10"],
        ),
        (
            "YourDropoutModel",
            102_070,
            ["p=0.2", "784-120", "relu", "p=0.5", "120-60", "relu", "p=0.5", "60-10"],
        ),
    ],
)
def test_the_notebooks_networks(name: str, parameters: int, structure: list[str]) -> None:
    network = networks.build(name, seed=0)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert layers(network) == structure
    assert network(torch.zeros(3, 28, 28)).shape == (3, 10)


def test_rates_and_widths_of_the_users_choice() -> None:
    network = networks.build(
        "YourDropoutModel", {"dropout": [0.1, 0.0, 0.3, 0.4], "hidden_widths": [30, 20, 15]}, seed=0
    )
    assert layers(network) == [
        "p=0.1", "784-30", "relu", "30-20", "relu", "p=0.3", "20-15", "relu", "p=0.4", "15-10",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Perceptron", {}, "unknown network 'Perceptron'; known are ReLUNet, "),
        ("ReLUNet", {"dropout": [0.1]}, "ReLUNet takes no arguments, not dropout"),
        (
            "YourDropoutModel",
            {"depth": 3},
            "takes activation, batch_norm, dropout, dropout_kind, hidden_widths, not depth",
        ),
        ("YourDropoutModel", {"dropout": [0.1, 0.2]}, r"need 3 dropout rates .* got 2"),
        ("YourDropoutModel", {"dropout": [0.1, 0.2, 1.0]}, r"must lie in \[0, 1\), got 1.0"),
        ("YourDropoutModel", {"dropout": [0.1, 0.2, float("nan")]}, r"must lie in \[0, 1\), got nan"),
        ("YourDropoutModel", {"dropout": [0.1, -0.2, 0.1]}, r"must lie in \[0, 1\), got -0.2"),
        ("YourDropoutModel", {"hidden_widths": [120, 0]}, "sizes from 1 to 65,536"),
    ],
)
def test_what_is_refused(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        networks.build(name, arguments, seed=0)


def test_the_seed_alone_decides_the_weights(global_state: Tensor) -> None:
    first, again, other = (networks.build("ReLUNet", seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.1.weight"], other["layers.1.weight"])
    assert torch.equal(torch.get_rng_state(), global_state)


def test_without_a_seed_there_are_no_weights_yet() -> None:
    assert all(parameter.is_meta for parameter in networks.build("ReLUNet").parameters())


@pytest.mark.parametrize(
    ("arguments", "structure"),
    [
        ({"dropout_kind": "gaussian"}, ["GaussianDropout 0.2", "784-8", "relu", "GaussianDropout 0.5", "8-10"]),
        (
            {"dropout_kind": "alpha", "activation": "selu"},
            ["AlphaDropout 0.2", "784-8", "SELU", "AlphaDropout 0.5", "8-10"],
        ),
        (
            {"dropout_kind": "dropconnect"},
            ["DropConnectLinear 0.2", "784-8", "relu", "DropConnectLinear 0.5", "8-10"],
        ),
        ({"batch_norm": "before_dropout"}, ["p=0.2", "784-8", "BatchNorm1d", "relu", "p=0.5", "8-10"]),
        ({"batch_norm": "after_dropout"}, ["p=0.2", "784-8", "relu", "p=0.5", "BatchNorm1d", "8-10"]),
    ],
)
@pytest.mark.parametrize("name", ["YourDropoutModel", "WideMLP"])
def test_the_mlps_options(name: str, arguments: dict[str, object], structure: list[str]) -> None:
    network = networks.build(name, {"dropout": [0.2, 0.5], "hidden_widths": [8], **arguments}, seed=0)
    assert layers(network) == structure
    assert network(torch.zeros(3, 28, 28)).shape == (3, 10)


def test_the_wide_network() -> None:
    network = networks.build("WideMLP", seed=0)
    assert layers(network) == ["p=0.2", "784-1024", "relu", "p=0.5", "1024-1024", "relu", "p=0.5", "1024-10"]
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_863_690


def test_selus_units_start_normalised() -> None:
    """With LeCun's weights units keep mean 0 and variance 1 (Klambauer et al. 2017); with torch's they would shrink."""
    arguments = {"dropout": [0.0] * 5, "hidden_widths": [500] * 4, "activation": "selu"}
    network = networks.build("YourDropoutModel", arguments, seed=0)
    torch.manual_seed(0)
    values = torch.randn(1_000, 784)
    *before, _ = network.get_submodule("layers").children()
    for layer in before:
        values = layer(values)
    assert float(values.detach().mean()) == pytest.approx(0, abs=0.05)
    assert float(values.detach().var()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropout_kind": "bernoulli"}, "dropout_kind must be one of element, gaussian, alpha, dropconnect, got"),
        ({"batch_norm": True}, "batch_norm must be one of none, before_dropout, after_dropout, got True"),
        ({"activation": "tanh"}, "activation must be one of relu, selu, got 'tanh'"),
        ({"dropout_kind": "alpha"}, "it needs activation selu, not relu"),
        ({"dropout": 0.5}, "dropout must be a list of rates, got 0.5"),
        ({"hidden_widths": 64}, "hidden_widths must be a list of sizes, got 64"),
    ],
)
def test_options_that_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        networks.build("WideMLP", arguments)
