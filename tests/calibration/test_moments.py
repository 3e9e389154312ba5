from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from calibration import strategies
from calibration.moments import LogitMoments, propagate_moments
from calibration.sites import NoActiveDropoutError, UnsupportedNetworkError
from calibration.subnetworks import SubnetworkEnsemble
from models import networks
from models.bundle import Bundle
from models.noise import GaussianDropout
from tests.calibration.reference import every_subnetwork
from training.data import FashionMNISTSplits


def correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first.flatten().double(), second.flatten().double()]))[0, 1])


def test_one_linear_layer_is_exact() -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Dropout(0.3), nn.Linear(6, 4)).double().eval()
    inputs = torch.randn(5, 6, dtype=torch.float64)
    moments = propagate_moments(layer, (6,))(inputs)
    with torch.inference_mode():
        logits, weights = every_subnetwork(layer, inputs, {0: (6, 0.3)})
        mean = torch.einsum("m,mbc->bc", weights, logits)
        covariance = torch.einsum("m,mbi,mbj->bij", weights, logits - mean, logits - mean)
    torch.testing.assert_close(moments.mean, mean)
    torch.testing.assert_close(moments.covariance, covariance)


def test_dropout_after_a_linear_layer_is_exact_too() -> None:
    """Covariances go through linear layers and independent dropout without approximation."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)).double().eval()
    inputs = torch.randn(5, 4, dtype=torch.float64)
    moments = propagate_moments(network, (4,))(inputs)
    with torch.inference_mode():
        logits, weights = every_subnetwork(network, inputs, {0: (4, 0.3), 2: (5, 0.5)})
        mean = torch.einsum("m,mbc->bc", weights, logits)
        covariance = torch.einsum("m,mbi,mbj->bij", weights, logits - mean, logits - mean)
    torch.testing.assert_close(moments.mean, mean)
    torch.testing.assert_close(moments.covariance, covariance)


def test_rectified_normals() -> None:
    """A unit with normal input, by Gaussian dropout: against 400,000 draws."""
    torch.manual_seed(0)
    network = nn.Sequential(GaussianDropout(0.5), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval()
    inputs = torch.randn(4, 3, dtype=torch.float64)
    moments = propagate_moments(network, (3,))(inputs)
    with torch.inference_mode():
        logits = SubnetworkEnsemble(network, (3,), samples=400_000, seed=0).logits(inputs)
    torch.testing.assert_close(moments.mean, logits.mean(0), atol=5e-3, rtol=0)
    # Covariances of rectified units are to first order in their correlation; variances are exact.
    spread = moments.covariance.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(spread, logits.var(0), atol=0.02, rtol=0.15)


def test_the_shipped_network_against_20000_subnetworks(shipped: Bundle, fashion: FashionMNISTSplits) -> None:
    """The logits' moments are all but right. The probabilities' variance is not: logits are far from normal."""
    inputs = shipped.prepare(fashion.test.pixels[:100])
    banks = (SubnetworkEnsemble(shipped.network, (28, 28), samples=1000, seed=seed) for seed in range(20))
    logits = torch.cat([bank.logits(inputs) for bank in banks]).double()
    moments = propagate_moments(shipped.network, (28, 28))(inputs)
    variance = moments.covariance.diagonal(dim1=1, dim2=2)
    assert correlation(moments.mean, logits.mean(0)) > 0.999
    assert correlation(variance, logits.var(0)) > 0.99
    assert float((variance / logits.var(0)).median()) == pytest.approx(1, abs=0.05)
    probabilities = strategies.moment_propagation(shipped.network, (28, 28))(inputs).members
    assert 0.7 < correlation(probabilities.var(0), logits.softmax(-1).var(0)) < 0.95


def test_a_convolutional_network() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 12), nn.BatchNorm1d(12), nn.ReLU(),
        nn.Dropout(0.3), nn.Linear(12, 4),
    )  # fmt: skip
    for _ in range(20):
        network(torch.randn(64, 1, 12, 12))
    network.eval()
    inputs = torch.randn(50, 1, 12, 12)
    logits = SubnetworkEnsemble(network, (1, 12, 12), samples=5000, seed=0).logits(inputs)
    moments = propagate_moments(network, (1, 12, 12))(inputs)
    assert correlation(moments.mean, logits.mean(0)) > 0.98
    assert correlation(moments.covariance.diagonal(dim1=1, dim2=2), logits.var(0)) > 0.9


def test_the_points_have_the_moments() -> None:
    torch.manual_seed(0)
    root = torch.randn(3, 4, 4, dtype=torch.float64)
    moments = LogitMoments(torch.randn(3, 4, dtype=torch.float64), root @ root.mT)
    points = moments.points()
    deviations = points - points.mean(0)
    covariance = torch.einsum("sbi,sbj->bij", deviations, deviations) / len(points)
    torch.testing.assert_close(points.mean(0), moments.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(covariance, moments.covariance, atol=0.3, rtol=0.05)


def test_a_covariance_that_rounding_has_left_indefinite() -> None:
    """Of low rank, with an eigenvalue slightly below 0: the points have it without that; other images are untouched."""
    torch.manual_seed(0)
    root = torch.randn(2, 4, 2, dtype=torch.float64)
    sound = root @ root.mT
    vectors = torch.linalg.eigh(sound[1])[1]
    indefinite = sound[1] - 1e-3 * torch.outer(vectors[:, 0], vectors[:, 0])
    mean = torch.randn(2, 4, dtype=torch.float64)
    points = LogitMoments(mean, torch.stack([sound[0], indefinite])).points()
    deviations = points[:, 1] - points[:, 1].mean(0)
    torch.testing.assert_close(deviations.T @ deviations / len(points), sound[1], atol=0.1, rtol=0.05)
    assert float((deviations @ vectors[:, 0]).abs().max()) < 1e-6
    assert torch.equal(points[:, 0], LogitMoments(mean[:1], sound[:1]).points()[:, 0])


def test_the_rate_can_be_another_at_test_time() -> None:
    network = networks.build("RandomDropoutModel", seed=0).eval()
    again = networks.build("YourDropoutModel", {"dropout": [0.1, 0.1, 0.1]}, seed=1).eval()
    again.load_state_dict(network.state_dict())
    inputs = torch.randn(3, 28, 28)
    found, expected = (
        propagate_moments(network, (28, 28), rate=0.1)(inputs),
        propagate_moments(again, (28, 28))(inputs),
    )
    torch.testing.assert_close(found.covariance, expected.covariance)


class TwoPaths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.drop(inputs)
        logits: Tensor = hidden + self.linear(hidden)
        return logits


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (TwoPaths(), "TwoPaths: what follows its first dropout layer is not a single path"),
        (nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)), r"carried through '2' \(Tanh\)"),
        (nn.Sequential(nn.AlphaDropout(0.5), nn.Linear(4, 2)), r"carried through '0' \(AlphaDropout\)"),
        (nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5)), "need a linear layer after"),
    ],
    ids=["two paths", "tanh", "alpha", "no linear layer"],
)
def test_what_is_refused(network: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedNetworkError, match=message):
        propagate_moments(network.eval(), (4,))
    assert "moment_propagation" not in strategies.applicable(network, (4,))


def test_a_network_without_dropout_is_refused() -> None:
    with pytest.raises(NoActiveDropoutError):
        propagate_moments(networks.build("ReLUNet", seed=0).eval(), (28, 28))
