from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from calibration import subnetworks
from calibration.subnetworks import NoActiveDropoutError, SubnetworkEnsemble, UnsupportedNetworkError, dropout_layers
from models import networks
from tests.calibration.reference import masked_forward


def small_network(widths: list[int], rates: list[float], seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for index, rate in enumerate(rates):
        layers += [
            nn.Dropout(rate),
            nn.Linear(widths[index], widths[index + 1]),
            nn.BatchNorm1d(widths[index + 1]),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 3)).eval()


@given(
    widths=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    rate=st.floats(0.01, 0.9),
    batch=st.integers(1, 9),
    samples=st.integers(1, 20),
    seed=st.integers(0, 1000),
    images_per_chunk=st.integers(1, 10),
    chunk_bytes=st.integers(1, 5000),
)
@settings(deadline=None, max_examples=100)
def test_it_is_the_plain_masked_forward(
    *, widths: list[int], rate: float, batch: int, samples: int, seed: int, images_per_chunk: int, chunk_bytes: int
) -> None:
    network = small_network(widths, [rate / (1 + index) for index in range(len(widths) - 1)], seed)
    inputs = torch.randn(batch, widths[0])
    ensemble = SubnetworkEnsemble(network, (widths[0],), samples=samples, seed=seed)
    names = {index: str(index) for index, layer in enumerate(network) if isinstance(layer, nn.Dropout)}
    with torch.inference_mode():
        expected = masked_forward(network, ensemble.bank, names, inputs)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(subnetworks, "IMAGES_PER_CHUNK", images_per_chunk)
        patched.setattr(subnetworks, "CHUNK_BYTES", chunk_bytes)
        torch.testing.assert_close(ensemble.logits(inputs), expected, atol=1e-5, rtol=1e-5)


def test_spatial_inputs_and_nested_modules() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.4)), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 3)
    ).eval()
    assert {name: layer.shape for name, layer in dropout_layers(network, (1, 8, 8)).items()} == {
        "0.2": (4, 6, 6),
        "2": (144,),
    }
    ensemble = SubnetworkEnsemble(network, (1, 8, 8), samples=9, seed=1)
    inputs = torch.randn(5, 1, 8, 8)
    bank = ensemble.bank
    for row in range(9):
        hidden = network[0][:2](inputs) * bank.kept["0.2"][row] / 0.6  # type: ignore[index]
        expected = network[3](hidden.flatten(1) * bank.kept["2"][row] / 0.5)
        torch.testing.assert_close(ensemble.logits(inputs)[row], expected)


@pytest.fixture
def network() -> nn.Module:
    return networks.build("RandomDropoutModel", seed=0).eval()


def test_an_image_is_answered_the_same_whatever_is_beside_it(network: nn.Module) -> None:
    inputs = torch.randn(300, 28, 28)
    ensemble = SubnetworkEnsemble(network, (28, 28), samples=16, seed=0)
    together = ensemble.logits(inputs)
    for index in (0, 255, 256, 299):
        torch.testing.assert_close(ensemble.logits(inputs[index : index + 1])[:, 0], together[:, index])


def test_the_network_and_the_global_generator_are_untouched(network: nn.Module, global_state: Tensor) -> None:
    network.train()
    before, modules = copy.deepcopy(network.state_dict()), list(network.modules())
    ensemble = SubnetworkEnsemble(network, (28, 28), samples=4, seed=0)
    torch.set_rng_state(global_state)
    ensemble.logits(torch.zeros(2, 28, 28))
    assert network.training
    assert all(first is second for first, second in zip(modules, network.modules(), strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), global_state)


def test_batch_norm_statistics_stay(network: nn.Module) -> None:
    model = small_network([6, 5], [0.5], seed=0)
    norm = model[2]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    SubnetworkEnsemble(model, (6,), samples=8, seed=0).logits(torch.randn(50, 6) + 10)
    assert torch.equal(norm.running_mean, before)


def test_threads_do_not_disturb_each_other(network: nn.Module) -> None:
    ensemble = SubnetworkEnsemble(network, (28, 28), samples=64, seed=0)
    batches = [torch.randn(1 + index % 7, 28, 28) for index in range(64)]
    expected = [ensemble.logits(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for got, wanted in zip(pool.map(ensemble.logits, batches), expected, strict=True):
            torch.testing.assert_close(got, wanted)


def test_the_same_seed_is_the_same_ensemble(network: nn.Module) -> None:
    inputs = torch.randn(3, 28, 28)
    first, again, other = (
        SubnetworkEnsemble(network, (28, 28), samples=8, seed=seed).logits(inputs) for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_images_are_no_answers(network: nn.Module) -> None:
    ensemble = SubnetworkEnsemble(network, (28, 28), samples=8, seed=0)
    assert ensemble.logits(torch.zeros(0, 28, 28)).shape == (8, 0, 10)


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


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(784, 784), nn.Linear(784, 10)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.second(self.drop(self.first(self.drop(images.flatten(1)))))
        return logits


def test_a_dropout_layer_that_is_never_reached_does_not_count() -> None:
    with pytest.raises(NoActiveDropoutError):
        SubnetworkEnsemble(NeverCalled().eval(), (28, 28), samples=4, seed=0)


def test_a_layer_used_twice_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedNetworkError, match="'drop' is used more than once"):
        SubnetworkEnsemble(CalledTwice().eval(), (28, 28), samples=4, seed=0)


def test_another_kind_of_dropout_is_refused_by_name() -> None:
    other = nn.Sequential(nn.Flatten(), nn.AlphaDropout(0.5), nn.Linear(784, 10)).eval()
    with pytest.raises(UnsupportedNetworkError, match="'1' is AlphaDropout"):
        SubnetworkEnsemble(other, (28, 28), samples=4, seed=0)
