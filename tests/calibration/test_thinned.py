from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from calibration import thinned
from calibration.masks import MaskBank
from calibration.subnetworks import SubnetworkEnsemble, dropout_layers
from calibration.thinned import DenseChain, ThinnedChain, find_chain
from calibration.tracing import cut
from models import networks
from models.noise import Dropout
from tests.calibration.reference import masked_forward

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.Identity]


def chain_of(
    widths: list[int], rates: list[float], activation: type[nn.Module], *, bias: bool, norm: bool = False
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, rate in enumerate(rates):
        layers += [Dropout(rate), nn.Linear(widths[index], widths[index + 1], bias=bias), activation()]
        if norm:
            layers.insert(-1, some_statistics(nn.BatchNorm1d(widths[index + 1], affine=bias)))
    return nn.Sequential(*layers, nn.Linear(widths[-1], 3)).eval()


def some_statistics(norm: nn.BatchNorm1d) -> nn.BatchNorm1d:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def compiled(
    network: nn.Module, input_shape: tuple[int, ...], samples: int, seed: int
) -> tuple[DenseChain, ThinnedChain, MaskBank]:
    layers = dropout_layers(network, input_shape)
    bank = MaskBank.draw(layers, samples, seed)
    here = cut(network, layers)
    assert here is not None
    chain = find_chain(here, layers)
    assert chain is not None
    return DenseChain(chain, bank), ThinnedChain(chain, bank), bank


@given(
    widths=st.lists(st.integers(1, 15), min_size=2, max_size=5),
    rates=st.lists(st.one_of(st.just(0.0), st.floats(0.05, 0.95)), min_size=4, max_size=4),
    first=st.floats(0.05, 0.95),
    activation=st.sampled_from(ACTIVATIONS),
    bias=st.booleans(),
    norm=st.booleans(),
    batch=st.integers(1, 12),
    samples=st.integers(1, 20),
    seed=st.integers(0, 1000),
    block_bytes=st.integers(1, 4000),
    rows_packed=st.integers(1, 30),
    packed_bytes=st.sampled_from([0, 1 << 20]),
)
@settings(deadline=None, max_examples=200)
def test_it_is_the_plain_masked_forward(
    *, widths: list[int], rates: list[float], first: float, activation: type[nn.Module], bias: bool, norm: bool,
    batch: int, samples: int, seed: int, block_bytes: int, rows_packed: int, packed_bytes: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    rates = [first, *rates[1 : len(widths) - 1]]
    network = chain_of(widths, rates, activation, bias=bias, norm=norm)
    names = {index: str(index) for index, layer in enumerate(network) if isinstance(layer, nn.Dropout) and layer.p > 0}
    inputs = torch.randn(batch, widths[0])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(thinned, "BLOCK_BYTES", block_bytes)
        patched.setattr(thinned, "ROWS_PACKED", rows_packed)
        patched.setattr(thinned, "PACKED_BYTES", packed_bytes)
        dense, packed, bank = compiled(network, (widths[0],), samples, seed)
        with torch.inference_mode():
            expected = masked_forward(network, bank, names, inputs)
        # A rate near 1 makes what is kept large, and rounding with it.
        tolerance = 1e-5 * max(1.0, float(expected.abs().max()))
        rows = slice(samples // 3, samples // 3 + (samples + 1) // 2)
        for executor in (dense, packed):
            found = executor.logits(inputs, slice(0, samples))
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
            torch.testing.assert_close(executor.logits(inputs, rows), expected[rows], atol=tolerance, rtol=0)


@pytest.mark.parametrize("batch", [1, 5, 129])
def test_the_notebooks_network(batch: int) -> None:
    network = networks.build("RandomDropoutModel", seed=0).eval()
    dense, packed, bank = compiled(network, (28, 28), 64, 0)
    inputs = torch.randn(batch, 28, 28)
    layers = network.get_submodule("layers")
    assert isinstance(layers, nn.Sequential)
    names = {index: f"layers.{index}" for index, layer in enumerate(layers) if isinstance(layer, nn.Dropout)}
    with torch.inference_mode():
        expected = masked_forward(layers, bank, names, inputs)
    for executor in (dense, packed):
        torch.testing.assert_close(executor.logits(inputs, slice(0, 64)), expected, atol=1e-5, rtol=0)


class TrunkAndHead(nn.Module):
    """A convolutional trunk without dropout, and a head with it, joined in Python rather than in a Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4 * 36, 10)
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.convolution(images)).flatten(1)
        logits: Tensor = self.head(self.drop(features))
        return logits


def test_a_trunk_without_dropout_is_run_once_an_image() -> None:
    torch.manual_seed(0)
    network = TrunkAndHead().eval()
    _, packed, bank = compiled(network, (1, 8, 8), 50, 0)
    images: list[int] = []
    network.convolution.register_forward_hook(lambda module, args, output: images.append(len(output)))
    inputs = torch.randn(20, 1, 8, 8)
    found = packed.logits(inputs, slice(0, 50))
    assert sum(images) == 20
    with torch.inference_mode():
        features = torch.relu(network.convolution(inputs)).flatten(1)
        for row in range(50):
            expected = network.head(features * bank.rows["drop"][row] / 0.5)
            torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=0)


class Branching(nn.Module):
    """Depends on its input's values, so that it can't be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.drop(inputs) if inputs.sum() > -1e9 else inputs)
        return logits


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.drop(inputs)
        logits: Tensor = hidden + self.linear(hidden)
        return logits


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 3)),
        nn.Sequential(nn.AlphaDropout(0.5), nn.Linear(4, 4), nn.Linear(4, 3)),
        nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Dropout(0.5), nn.Linear(2, 2), nn.Flatten()),
        nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 3)),
        nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5), nn.Linear(4, 3)),
        nn.Sequential(nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 3)),
        nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)),
        Branching(),
        Residual(),
    ],
    ids=[
        "batch norm late",
        "alpha",
        "of more than features",
        "softmax between",
        "twice",
        "activation after dropout",
        "at the end",
        "branching",
        "residual",
    ],
)
def test_what_is_no_chain_is_left_to_the_generic_executor(network: nn.Module) -> None:
    network.eval()
    layers = dropout_layers(network, (4,))
    here = cut(network, layers)
    assert here is None or find_chain(here, layers) is None
    assert SubnetworkEnsemble(network, (4,), samples=8, seed=0).logits(torch.randn(5, 4)).shape[:2] == (8, 5)


def test_threads_share_it() -> None:
    network = networks.build("RandomDropoutModel", seed=0).eval()
    _, packed, _ = compiled(network, (28, 28), 32, 0)
    batches = [torch.randn(1 + index % 9, 28, 28) for index in range(40)]
    expected = [packed.logits(batch, slice(0, 32)) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for got, wanted in zip(
            pool.map(lambda batch: packed.logits(batch, slice(0, 32)), batches), expected, strict=True
        ):
            torch.testing.assert_close(got, wanted)
