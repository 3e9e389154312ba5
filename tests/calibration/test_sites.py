"""What a network may hold: where it drops units, and what is refused because it could not be sampled faithfully."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        ([nn.Flatten(), nn.Dropout1d(0.5), nn.Linear(784, 10)], r"'1' \(Dropout1d\) gets two axes"),
        ([nn.Flatten(), nn.Dropout(1.0), nn.Linear(784, 10)], r"'1' has rate 1\.0"),
        (
            [nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 4), nn.BatchNorm1d(4, track_running_stats=False)],
            r"'3' \(BatchNorm1d\) takes its statistics from the batch",
        ),
    ],
    ids=["batch mixed", "Dropout1d of features", "rate 1", "norm by the batch"],
)
def test_dropout_that_makes_no_sense_is_refused(layers: list[nn.Module], message: str) -> None:
    with pytest.raises(UnsupportedNetworkError, match=message):
        SubnetworkEnsemble(nn.Sequential(*layers).eval(), (28, 28), samples=4, seed=0)


class Doubling(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return 2 * super().forward(input)


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
