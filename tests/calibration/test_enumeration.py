from __future__ import annotations

import pytest
import torch
from torch import nn

from calibration.enumeration import enumerate_subnetworks
from calibration.predictive import entropy
from calibration.sites import NoActiveDropoutError, UnsupportedNetworkError
from calibration.strategies import build
from models.noise import GaussianDropout
from tests.calibration.reference import every_subnetwork


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Dropout(0.2), nn.Linear(4, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3)
    ).double().eval()  # fmt: skip


def test_against_the_plain_sum(network: nn.Sequential) -> None:
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.inference_mode():
        logits, weights = every_subnetwork(network, inputs, {0: (4, 0.2), 3: (5, 0.5)})
    weights, every = weights[:, None, None], logits.softmax(-1)
    exact = enumerate_subnetworks(network, (4,), inputs)
    assert exact.subnetworks == 512
    mean = (weights * every).sum(0)
    torch.testing.assert_close(exact.mean, mean)
    torch.testing.assert_close(exact.variance, (weights * (every - mean) ** 2).sum(0))
    torch.testing.assert_close(exact.geometric_mean, (weights * every.log()).sum(0).softmax(-1))
    torch.testing.assert_close(exact.expected_entropy, (weights[:, :, 0] * entropy(every)).sum(0))
    torch.testing.assert_close(exact.predictive_entropy, entropy(mean))
    torch.testing.assert_close(exact.mutual_information, exact.predictive_entropy - exact.expected_entropy)


def test_sampling_approaches_it(network: nn.Sequential) -> None:
    inputs = torch.randn(6, 4, dtype=torch.float64)
    exact = enumerate_subnetworks(network, (4,), inputs)
    found = build("mc_dropout", network, (4,), samples=65_536)(inputs)
    torch.testing.assert_close(found.mean, exact.mean, atol=0.003, rtol=0)
    torch.testing.assert_close(found.mutual_information, exact.mutual_information, atol=0.003, rtol=0)


def test_weight_scaling_is_the_geometric_mean_for_one_layer_and_near_it_for_more(network: nn.Sequential) -> None:
    """Exactly for one softmax layer (Goodfellow et al. 2013); not for a deeper network with rectified units."""
    torch.manual_seed(0)
    one = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 4)).double().eval()
    inputs = torch.randn(5, 8, dtype=torch.float64)
    exact = enumerate_subnetworks(one, (8,), inputs)
    torch.testing.assert_close(exact.geometric_mean, build("weight_scaling", one, (8,))(inputs).mean)

    deeper = torch.randn(200, 4, dtype=torch.float64)
    exact = enumerate_subnetworks(network, (4,), deeper)
    scaled = build("weight_scaling", network, (4,))(deeper).mean
    from_geometric, from_arithmetic = (scaled - exact.geometric_mean).abs(), (scaled - exact.mean).abs()
    assert 1e-3 < from_geometric.max() < 0.2
    assert from_geometric.mean() < from_arithmetic.mean()


def test_a_million_subnetworks_of_several_layers_and_channels() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 6, 2), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(6, 4, 2), nn.ReLU(), nn.AlphaDropout(0.1),
        nn.Flatten(), nn.Linear(4, 10), nn.Dropout(0.4), nn.Linear(10, 3),
    ).eval()  # fmt: skip
    inputs = torch.randn(1, 1, 3, 3)
    exact = enumerate_subnetworks(network, (1, 3, 3), inputs)
    assert exact.subnetworks == 1 << 20
    assert float(exact.mean.sum()) == pytest.approx(1)
    found = build("mc_dropout", network, (1, 3, 3), samples=20_000)(inputs)
    torch.testing.assert_close(found.mean.double(), exact.mean, atol=0.01, rtol=0)
    torch.testing.assert_close(found.members.double().var(0), exact.variance, atol=0.005, rtol=0)


def test_what_is_refused(network: nn.Sequential) -> None:
    wide = nn.Sequential(nn.Dropout(0.5), nn.Linear(21, 3)).eval()
    with pytest.raises(ValueError, match=r"21 units under dropout have 2\^21 sub-networks; at most 20"):
        enumerate_subnetworks(wide, (21,), torch.zeros(1, 21))
    with pytest.raises(UnsupportedNetworkError, match="infinitely many"):
        enumerate_subnetworks(nn.Sequential(GaussianDropout(0.5), nn.Linear(4, 3)).eval(), (4,), torch.zeros(1, 4))
    with pytest.raises(NoActiveDropoutError):
        enumerate_subnetworks(nn.Sequential(nn.Linear(4, 3)).eval(), (4,), torch.zeros(1, 4))
