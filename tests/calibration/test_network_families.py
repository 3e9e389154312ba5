"""The networks that are no perceptrons, under each test-time strategy."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calibration import strategies
from calibration.masks import DESIGNS, MaskBank
from calibration.sites import UnsupportedNetworkError, dropout_modules, site_name
from calibration.subnetworks import SubnetworkEnsemble, dropout_layers
from models import networks
from models.records import MaskDesign
from tests.calibration.reference import dropped

CNN = {"channels": [4, 6], "hidden_width": 16, "trunk_dropout": 0.3}
RECURRENT = {"width": 16, "input_dropout": 0.3}
TRANSFORMER = {"width": 16, "heads": 2, "attention_dropout": 0.2, "dropout": 0.3, "path_dropout": 0.25}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "CNN": ("CNN", CNN),
    "CNN, batch norm": ("CNN", CNN | {"batch_norm": True}),
    "CNN, elements": ("CNN", CNN | {"trunk_kind": "element"}),
    "RowRecurrent": ("RowRecurrent", RECURRENT),
    "RowRecurrent, naive": ("RowRecurrent", RECURRENT | {"mask": "naive"}),
    "VisionTransformer": ("VisionTransformer", TRANSFORMER),
    "VisionTransformer, paths": ("VisionTransformer", TRANSFORMER | {"attention_dropout": 0, "dropout": 0}),
    "VisionTransformer, attention": ("VisionTransformer", TRANSFORMER | {"dropout": 0, "path_dropout": 0}),
}


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 28, 28, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=list(FAMILIES))
def network(request: pytest.FixtureRequest) -> nn.Module:
    """With batch norm's statistics as after some training, and weights large enough for sub-networks to differ."""
    name, arguments = FAMILIES[request.param]
    made = networks.build(name, arguments, seed=0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        made.train()(2 * images(50) + 1)
        for parameter in made.parameters():
            parameter.mul_(1.5)
    return made.eval()


class Fixed(nn.Module):
    """In the place of a dropout layer: the masks of one sub-network, one for each call in a forward pass."""

    def __init__(self, name: str, bank: MaskBank, row: int) -> None:
        super().__init__()
        self.name, self.bank, self.row, self.calls = name, bank, row, 0

    def forward(self, values: Tensor) -> Tensor:
        site = site_name(self.name, self.calls)
        self.calls += 1
        return dropped(self.bank, site, self.row, values)


def masked_forward(network: nn.Module, bank: MaskBank, inputs: Tensor) -> Tensor:
    """Logits ``[T, B, C]``, one sub-network after another."""
    outputs = []
    for row in range(bank.samples):
        masked = copy.deepcopy(network)
        for name, _, alias in list(dropout_modules(masked)):
            masked.set_submodule(alias, Fixed(name, bank, row))
        outputs.append(masked(inputs))
    return torch.stack(outputs)


@pytest.mark.parametrize("design", DESIGNS)
def test_sub_networks_are_the_plain_masked_forward(network: nn.Module, design: MaskDesign) -> None:
    inputs = images(6)
    ensemble = SubnetworkEnsemble(network, (28, 28), samples=8, seed=0, design=design)
    with torch.inference_mode():
        expected = masked_forward(network, ensemble.bank, inputs)
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    torch.testing.assert_close(ensemble.logits(inputs), expected, atol=1e-5, rtol=1e-5)


def test_an_image_is_answered_the_same_whatever_is_beside_it(network: nn.Module) -> None:
    inputs = images(140)
    ensemble = SubnetworkEnsemble(network, (28, 28), samples=4, seed=0)
    together = ensemble.logits(inputs)
    for index in (0, 127, 128, 139):
        torch.testing.assert_close(ensemble.logits(inputs[index : index + 1])[:, 0], together[:, index])


def test_every_strategy_answers_or_refuses(network: nn.Module) -> None:
    """Moments can be carried through convolutions alone."""
    inputs, applicable = images(3), strategies.applicable(network, (28, 28))
    assert set(strategies.STRATEGIES) - set(applicable) <= {"moment_propagation"}
    assert ("moment_propagation" in applicable) is (type(network).__name__ == "CNN")
    for name in applicable:
        answer = strategies.build(name, network, (28, 28), samples=16)(inputs)
        torch.testing.assert_close(answer.mean.sum(1), torch.ones(3))
        if name in ("mc_dropout", "last_layer", "moment_propagation"):
            assert (answer.mutual_information > 0).all()
    for name in set(strategies.STRATEGIES) - set(applicable):
        with pytest.raises(UnsupportedNetworkError, match="moments can't be carried through"):
            strategies.build(name, network, (28, 28))


def test_sampling_is_what_train_mode_does(network: nn.Module) -> None:
    """The mean over many sub-networks is that over many passes with torch's own masks."""
    for module in network.modules():
        module.train(not isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)))
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        expected = network(images(1).expand(4000, 28, 28)).softmax(-1)
    found = strategies.build("mc_dropout", network.eval(), (28, 28), samples=1024, seed=0)(images(1))
    torch.testing.assert_close(found.mean[0], expected.mean(0), atol=0.015, rtol=0)
    spread = found.members.std(0)[0]
    torch.testing.assert_close(spread, expected.std(0), atol=0.012, rtol=0.1)


@pytest.mark.parametrize(
    ("mask", "shapes"),
    [
        ("variational", {"input_dropout": (1, 28), "recurrent_dropout": (16,), "output_dropout": (16,)}),
        (
            "naive",
            {
                "input_dropout": (28, 28),
                **{site_name("recurrent_dropout", step): (16,) for step in range(28)},
                "output_dropout": (16,),
            },
        ),
    ],
)
def test_the_masks_of_a_recurrent_network(mask: str, shapes: dict[str, tuple[int, ...]]) -> None:
    network = networks.build("RowRecurrent", RECURRENT | {"mask": mask}, seed=0).eval()
    assert {name: layer.shape for name, layer in dropout_layers(network, (28, 28)).items()} == shapes


def test_the_masks_of_a_transformer() -> None:
    network = networks.build("VisionTransformer", TRANSFORMER | {"depth": 1}, seed=0).eval()
    layers = dropout_layers(network, (28, 28))
    assert {name: (layer.shape, layer.rate) for name, layer in layers.items()} == {
        "blocks.0.path": ((1, 1), 0.25),
        "blocks.0.inner.dropout": ((2, 16, 16), 0.2),
        "blocks.0.dropout": ((16, 16), 0.3),
        "blocks.1.path": ((1, 1), 0.25),
        "blocks.1.inner.2": ((16, 32), 0.3),
        "blocks.1.dropout": ((16, 16), 0.3),
    }


@pytest.mark.parametrize("mask", ["variational", "naive"])
def test_the_last_layer_alone_is_sampled_with_the_rows_read_once(mask: str) -> None:
    network = networks.build("RowRecurrent", RECURRENT | {"mask": mask}, seed=0).eval()
    assert read_by(network.get_submodule("cell"), network, "last_layer") == 28 * 5


def test_the_last_layer_alone_is_sampled_with_attention_computed_once() -> None:
    network = networks.build("VisionTransformer", TRANSFORMER, seed=0).eval()
    assert read_by(network.get_submodule("blocks.2.inner.projections"), network, "last_layer") == 5
    assert read_by(network.get_submodule("embedding"), network, "mc_dropout") == 5


def read_by(module: nn.Module, network: nn.Module, strategy: str) -> int:
    """How many examples ``module``, one of torch's, takes over all its calls while ``strategy`` answers five images."""
    taken: list[int] = []
    with module.register_forward_hook(lambda _, given, gave: taken.append(len(given[0]))):
        built = strategies.build(strategy, network, (28, 28), samples=10)
        taken.clear()
        built(images(5))
    return sum(taken)
