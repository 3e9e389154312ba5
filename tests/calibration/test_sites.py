"""What a network may hold: where it drops units, and what is refused because it could not be sampled faithfully."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from calibration.sites import NoActiveDropoutError, UnsupportedNetworkError
from calibration.subnetworks import SubnetworkEnsemble, dropout_layers
from models import networks
from models.noise import GaussianDropout


@pytest.mark.parametrize(
    ("layer", "shape", "mask"),
    [
        (nn.Dropout(0.5), (4, 6), (4, 6)),
        (nn.Dropout1d(0.5), (4, 6), (4, 1)),
        (nn.Dropout2d(0.5), (4, 6, 5), (4, 1, 1)),
        (nn.Dropout3d(0.5), (4, 6, 5, 2), (4, 1, 1, 1)),
        (nn.FeatureAlphaDropout(0.5), (4, 6, 5), (4, 1, 1)),
        (nn.AlphaDropout(0.5), (4, 6), (4, 6)),
        (GaussianDropout(0.5), (4, 6), (4, 6)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_each_kind_drops(layer: nn.Module, shape: tuple[int, ...], mask: tuple[int, ...]) -> None:
    network = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3)).eval()
    network(torch.zeros(1, *shape))
    assert dropout_layers(network, shape)["0"].shape == mask
    outputs = SubnetworkEnsemble(network, shape, samples=5, seed=0).logits(torch.randn(2, *shape))
    assert outputs.shape == (5, 2, 3)


@pytest.mark.parametrize(
    "without",
    [
        networks.build("ReLUNet", seed=0),
        networks.build("YourDropoutModel", {"dropout": [0.0, 0.0, 0.0]}, seed=0),
        nn.Sequential(nn.Flatten(), nn.Dropout(0.0), nn.Linear(784, 10)),
    ],
    ids=["none", "all rates 0", "a layer at rate 0"],
)
def test_a_network_without_active_dropout_is_refused(without: nn.Module) -> None:
    with pytest.raises(NoActiveDropoutError, match=r"no active dropout layer.*weight_scaling"):
        SubnetworkEnsemble(without.eval(), (28, 28), samples=4, seed=0)


class NeverCalled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 10)
        self.forgotten = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


def test_a_dropout_layer_that_is_never_reached_does_not_count() -> None:
    with pytest.raises(NoActiveDropoutError):
        SubnetworkEnsemble(NeverCalled().eval(), (28, 28), samples=4, seed=0)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(F.dropout(images.flatten(1), 0.5, self.training))
        return logits


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(28, 2, dropout=0.1, batch_first=True)
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(28, 10)

    def forward(self, images: Tensor) -> Tensor:
        mixed, _ = self.attention(images, images, images)
        logits: Tensor = self.linear(self.drop(mixed.mean(1)))
        return logits


class Recurrent(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.cells = nn.LSTM(28, 8, num_layers=2, dropout=dropout, batch_first=True)
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.drop(self.cells(images)[0][:, -1]))
        return logits


class Hidden(nn.Module):
    """Keeps a dropout layer where torch doesn't see it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.unseen = nn.Linear(784, 10), [nn.Dropout(0.5)]

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.unseen[0](images.flatten(1)))
        return logits


@pytest.mark.parametrize(
    ("other", "place"),
    [
        (Functional(), r"Functional\.forward draws"),
        (nn.Sequential(nn.Dropout(0.2), Functional()), r"module '1' \(Functional\) draws"),
        (Attention(), r"module 'attention' \(MultiheadAttention\) draws"),
        (Recurrent(0.3), r"module 'cells' \(LSTM\) draws"),
        (Hidden(), r"Hidden\.forward draws"),
        (nn.Sequential(nn.Flatten(), nn.RReLU(), nn.Linear(784, 10)), r"module '1' \(RReLU\) draws"),
    ],
    ids=["functional", "functional inside", "attention", "recurrent", "unregistered", "RReLU"],
)
def test_other_randomness_is_refused_by_its_place(other: nn.Module, place: str, global_state: Tensor) -> None:
    with pytest.raises(UnsupportedNetworkError, match=place):
        SubnetworkEnsemble(other.eval(), (28, 28), samples=4, seed=0)
    assert torch.equal(torch.get_rng_state(), global_state)


def test_layers_with_inner_dropout_at_rate_0_are_fine() -> None:
    ensemble = SubnetworkEnsemble(Recurrent(0.0).eval(), (28, 28), samples=4, seed=0)
    assert ensemble.logits(torch.ones(2, 28, 28)).shape == (4, 2, 10)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Flatten(0), nn.Dropout(0.5)], r"'1' \(Dropout\) gets a tensor of shape \[2352\]"),
        ([nn.Flatten(), nn.Dropout1d(0.5), nn.Linear(784, 10)], r"'1' \(Dropout1d\) gets 2 axes"),
        ([nn.Unflatten(1, (4, 7)), nn.Dropout3d(0.5), nn.Flatten()], r"'1' \(Dropout3d\) gets 4 axes"),
        ([nn.Flatten(), nn.Dropout(1.0), nn.Linear(784, 10)], r"'1' has rate 1\.0"),
        (
            [nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 4), nn.BatchNorm1d(4, track_running_stats=False)],
            r"'3' \(BatchNorm1d\) takes its statistics from the batch",
        ),
    ],
    ids=["batch mixed", "Dropout1d of features", "Dropout3d of images", "rate 1", "norm by the batch"],
)
def test_dropout_that_makes_no_sense_is_refused(layers: list[nn.Module], message: str) -> None:
    with pytest.raises(UnsupportedNetworkError, match=message):
        SubnetworkEnsemble(nn.Sequential(*layers).eval(), (28, 28), samples=4, seed=0)


class Doubling(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input).mul(2)


class WordDropout(nn.Dropout):
    """Drops whole examples, whatever its base class does."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return input * (torch.rand(len(input), 1) > self.p) if self.training else input


def test_a_subclass_with_a_forward_of_its_own_is_not_taken_for_its_base() -> None:
    network = nn.Sequential(nn.Dropout(0.5), Doubling(4, 3)).eval()
    inputs = torch.randn(6, 4)
    ensemble = SubnetworkEnsemble(network, (4,), samples=8, seed=0)
    expected = network[1](inputs * ensemble.bank.rows["0"].unsqueeze(1) / 0.5)
    torch.testing.assert_close(ensemble.logits(inputs), expected)
    with pytest.raises(UnsupportedNetworkError, match=r"module '0' \(WordDropout\) draws random numbers"):
        dropout_layers(nn.Sequential(WordDropout(0.5), nn.Linear(4, 3)), (4,))


def test_hooks_are_run() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).eval()
    network[1].register_forward_hook(lambda module, args, output: -output)
    inputs = torch.randn(6, 4)
    ensemble = SubnetworkEnsemble(network, (4,), samples=8, seed=0)
    expected = network[1](inputs * ensemble.bank.rows["0"].unsqueeze(1) / 0.5)
    torch.testing.assert_close(ensemble.logits(inputs), expected)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"logits": self.linear(self.drop(inputs))}


@pytest.mark.parametrize(
    ("network", "found"),
    [(Named(), "gave dict"), (nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1), nn.Flatten(0)), r"gave \[3\]")],
)
def test_another_output_than_logits_is_refused(network: nn.Module, found: str) -> None:
    with pytest.raises(UnsupportedNetworkError, match=rf"must return logits \[B, C\].*{found}"):
        dropout_layers(network.eval(), (4,))


class Steps(nn.Module):
    """One of the ways to leave dropout out of an eval pass, or to hide what is done in place."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 3)
        self.drop, self.other, self.acting = nn.Dropout(0.5), nn.Dropout(0.5), nn.Dropout(0.5, inplace=True)
        self.relu, self.weight = nn.ReLU(inplace=True), nn.Parameter(torch.ones(6))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        if self.kind == "ignored method":
            hidden.relu_()
        elif self.kind == "ignored module":
            self.relu(hidden)
        elif self.kind == "ignored function":
            F.relu(hidden, inplace=True)
        elif self.kind == "constant":
            constant = self.weight * 2
            constant.add_(1)
            hidden = hidden * constant
        elif self.kind == "acts in place":
            self.acting(hidden)
            return cast("Tensor", self.second(hidden))
        elif self.kind == "late view":
            view = hidden.view(-1, 6)
            mixed = self.drop(hidden)
            view.mul_(5)
            return cast("Tensor", self.second(mixed + hidden))
        elif (self.kind == "training alone" and self.training) or (self.kind == "by value" and inputs.sum() > 100):
            hidden = self.other(hidden)
        logits: Tensor = self.second(self.drop(hidden))
        return logits


@pytest.mark.parametrize(
    "kind", ["ignored method", "ignored module", "ignored function", "constant", "acts in place", "late view"]
)
def test_what_is_done_in_place_is_not_lost(kind: str) -> None:
    torch.manual_seed(0)
    network = Steps(kind).eval()
    inputs = torch.randn(7, 6)
    ensemble = SubnetworkEnsemble(network, (6,), samples=5, seed=0)
    (site,) = ensemble.bank.layers
    mask = ensemble.bank.rows[site].unsqueeze(1) / 0.5
    with torch.inference_mode():
        hidden = network.first(inputs)
        if kind.startswith("ignored"):
            hidden = hidden.relu()
        elif kind == "constant":
            hidden = hidden * 3
        expected = network.second(hidden * mask + (5 * hidden if kind == "late view" else 0))
    torch.testing.assert_close(ensemble.logits(inputs), expected, atol=1e-5, rtol=0)


def test_dropout_in_training_alone_is_refused() -> None:
    with pytest.raises(UnsupportedNetworkError, match="'other' is used in train mode more often than in eval mode"):
        dropout_layers(Steps("training alone").eval(), (6,))


def test_dropout_that_the_images_call_for_is_an_error() -> None:
    ensemble = SubnetworkEnsemble(Steps("by value").eval(), (6,), samples=4, seed=0)
    assert ensemble.logits(-torch.ones(6, 6)).shape == (4, 6, 3)
    with pytest.raises(UnsupportedNetworkError, match="'other' is used more often on these images"):
        ensemble.logits(100 * torch.ones(6, 6))


class Routing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.Dropout(0.5), nn.Dropout(0.5)
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        chosen = hidden[:, 0] > -1
        result = torch.zeros_like(hidden)
        result[chosen] = self.drop(hidden[chosen])
        logits: Tensor = self.linear(result)
        return logits


def test_a_part_of_the_batch_is_an_error() -> None:
    with pytest.raises(UnsupportedNetworkError):
        SubnetworkEnsemble(Routing().eval(), (4,), samples=2, seed=0).logits(3 * torch.randn(50, 4))


def test_networks_that_read_tokens_are_refused_in_words() -> None:
    network = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3)).eval()
    with pytest.raises(UnsupportedNetworkError, match=r"can't be run .* on images of shape \[3\]"):
        dropout_layers(network, (3,))


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_parametrized_layers(wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Dropout(0.5), wrap(nn.Linear(4, 5)), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
    ).eval()
    inputs = torch.randn(6, 4)
    ensemble = SubnetworkEnsemble(network, (4,), samples=5, seed=0)
    with torch.inference_mode():
        for row in range(5):
            expected = network[1:](inputs * ensemble.bank.rows["0"][row] / 0.5)
            torch.testing.assert_close(ensemble.logits(inputs)[row], expected, atol=1e-5, rtol=0)


def test_pruned_layers() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).eval()
    prune.random_unstructured(network[1], "weight", amount=0.5)
    inputs = torch.randn(6, 4)
    ensemble = SubnetworkEnsemble(network, (4,), samples=5, seed=0)
    expected = network[1](inputs * ensemble.bank.rows["0"].unsqueeze(1) / 0.5)
    torch.testing.assert_close(ensemble.logits(inputs), expected)


def test_pooling_over_channels_is_not_taken_for_pooling_over_pixels() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Dropout1d(0.5), nn.AvgPool2d(3, 1, 1), nn.Conv1d(4, 3, 3), nn.Flatten(), nn.Linear(18, 3)
    ).eval()  # fmt: skip
    inputs = torch.randn(6, 4, 8)
    ensemble = SubnetworkEnsemble(network, (4, 8), samples=5, seed=0)
    with torch.inference_mode():
        for row in range(5):
            expected = network[1:](inputs * ensemble.bank.rows["0"][row] / 0.5)
            torch.testing.assert_close(ensemble.logits(inputs)[row], expected, atol=1e-5, rtol=0)


def test_hooks_of_the_network_itself_are_run() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)).eval()
    network.register_forward_hook(lambda module, args, output: output / 3)
    inputs = torch.randn(6, 4)
    ensemble = SubnetworkEnsemble(network, (4,), samples=8, seed=0)
    expected = network[1](inputs * ensemble.bank.rows["0"].unsqueeze(1) / 0.5) / 3
    torch.testing.assert_close(ensemble.logits(inputs), expected)
