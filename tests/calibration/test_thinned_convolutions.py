from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from calibration import thinned_convolutions
from calibration.masks import MaskBank
from calibration.subnetworks import SubnetworkEnsemble, dropout_layers
from calibration.thinned_convolutions import ThinnedConvolutions, find_convolutions
from calibration.tracing import cut
from tests.calibration.reference import masked_forward

POOLS = [nn.MaxPool2d(2), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3), nn.Identity()]


def compiled(
    network: nn.Module, shape: tuple[int, ...], samples: int, seed: int
) -> tuple[ThinnedConvolutions, MaskBank]:
    layers = dropout_layers(network, shape)
    bank = MaskBank.draw(layers, samples, seed)
    here = cut(network, layers)
    assert here is not None
    found = find_convolutions(here, layers)
    assert found is not None
    return ThinnedConvolutions(found, bank), bank


def names(network: nn.Sequential) -> dict[int, str]:
    kinds = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)
    return {index: str(index) for index, layer in enumerate(network) if isinstance(layer, kinds) and layer.p > 0}


@given(
    channels=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    rates=st.lists(st.floats(0.05, 0.9), min_size=3, max_size=3),
    inner=st.one_of(st.just(0.0), st.floats(0.05, 0.9)),
    between=st.sampled_from([nn.Identity(), nn.ReLU(), nn.LeakyReLU(0.2), nn.MaxPool2d(2), nn.AvgPool2d(2)]),
    pool=st.sampled_from(POOLS),
    activation=st.sampled_from([nn.ReLU(), nn.GELU(), nn.Sigmoid()]),
    norm=st.booleans(),
    flatten_first=st.booleans(),
    padding=st.sampled_from([0, 1]),
    batch=st.integers(1, 5),
    samples=st.integers(1, 12),
    seed=st.integers(0, 1000),
    packed_bytes=st.sampled_from([0, 1 << 20]),
)
@settings(deadline=None, max_examples=200)
def test_it_is_the_plain_masked_forward(
    *, channels: list[int], rates: list[float], inner: float, between: nn.Module, pool: nn.Module,
    activation: nn.Module, norm: bool, flatten_first: bool, padding: int, batch: int, samples: int, seed: int,
    packed_bytes: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    first, second, third = channels
    body = [
        nn.Conv2d(1, first, 3, padding=1), nn.ReLU(), nn.Dropout2d(rates[0]), between,
        nn.Conv2d(first, second, 3, stride=1, padding=padding), nn.BatchNorm2d(second) if norm else nn.Identity(),
        activation, pool, nn.Dropout2d(inner), nn.Conv2d(second, third, 2, bias=False), activation,
    ]  # fmt: skip
    head = [nn.Flatten(), nn.Dropout(rates[1])] if flatten_first else [nn.Dropout2d(rates[1]), nn.Flatten()]
    probe = nn.Sequential(*body, nn.Flatten()).eval()
    features = probe(torch.zeros(2, 1, 14, 14)).shape[1]
    network = nn.Sequential(
        *body, *head, nn.Linear(features, 7), nn.ReLU(), nn.Dropout(rates[2]), nn.Linear(7, 3)
    ).eval()  # fmt: skip
    inputs = torch.randn(batch, 1, 14, 14)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(thinned_convolutions, "PACKED_BYTES", packed_bytes)
        executor, bank = compiled(network, (1, 14, 14), samples, seed)
        with torch.inference_mode():
            expected = masked_forward(network, bank, names(network), inputs)
        tolerance = 1e-5 * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(executor.logits(inputs, slice(0, samples)), expected, atol=tolerance, rtol=0)
        rows = slice(samples // 2, samples // 2 + 1)
        torch.testing.assert_close(executor.logits(inputs, rows), expected[rows], atol=tolerance, rtol=0)


def test_one_axis() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv1d(2, 6, 3), nn.Dropout1d(0.3), nn.Conv1d(6, 4, 3, dilation=2), nn.ReLU(), nn.MaxPool1d(2),
        nn.Dropout1d(0.5), nn.Flatten(), nn.Linear(12, 3),
    ).eval()  # fmt: skip
    executor, bank = compiled(network, (2, 12), 9, 0)
    inputs = torch.randn(5, 2, 12)
    with torch.inference_mode():
        expected = masked_forward(network, bank, names(network), inputs)
    torch.testing.assert_close(executor.logits(inputs, slice(0, 9)), expected, atol=1e-5, rtol=0)


@pytest.fixture
def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout2d(0.2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(8 * 144, 10),
    ).eval()  # fmt: skip


def test_the_ensemble_uses_it_for_many_images_alone(cnn: nn.Sequential) -> None:
    ensemble = SubnetworkEnsemble(cnn, (1, 28, 28), samples=16, seed=0)
    inputs = torch.randn(200, 1, 28, 28)
    together = ensemble.logits(inputs)
    with torch.inference_mode():
        expected = masked_forward(cnn, ensemble.bank, names(cnn), inputs)
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(ensemble.logits(inputs[:1]), expected[:, :1], atol=1e-5, rtol=0)


def test_threads_share_it(cnn: nn.Sequential) -> None:
    executor, _ = compiled(cnn, (1, 28, 28), 16, 0)
    batches = [torch.randn(1 + index % 5, 1, 28, 28) for index in range(30)]
    expected = [executor.logits(batch, slice(0, 16)) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda batch: executor.logits(batch, slice(0, 16)), batches)
        for got, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Dropout(0.5), nn.Conv2d(2, 2, 3), nn.Flatten()],
        [nn.Dropout2d(0.5), nn.Sigmoid(), nn.Conv2d(2, 2, 3), nn.Flatten()],
        [nn.Dropout2d(0.5), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3), nn.Flatten()],
        [nn.Dropout2d(0.5), nn.Conv2d(2, 2, 3, groups=2), nn.Flatten()],
        [nn.Dropout2d(0.5), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten()],
        [nn.Dropout2d(0.5), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.BatchNorm2d(2), nn.Flatten()],
        [nn.Dropout2d(0.5), nn.Dropout2d(0.5), nn.Conv2d(2, 2, 3), nn.Flatten()],
        [nn.Dropout2d(0.5), nn.Linear(8, 3), nn.Flatten()],
        [nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Dropout(0.5)],
        [nn.FeatureAlphaDropout(0.5), nn.Conv2d(2, 2, 3), nn.Flatten()],
        [nn.Dropout2d(0.5), nn.Flatten(2), nn.Linear(64, 3), nn.Flatten()],
    ],
    ids=["single pixels", "no commuting", "norm before", "groups", "reflected", "norm late", "twice", "linear",
         "at the end", "alpha", "flattened in part"],
)  # fmt: skip
def test_what_does_not_fit_is_left_to_the_generic_executor(layers: list[nn.Module]) -> None:
    network = nn.Sequential(*layers).eval()
    sites = dropout_layers(network, (2, 8, 8))
    here = cut(network, sites)
    assert here is not None
    assert find_convolutions(here, sites) is None
    inputs = torch.randn(5, 2, 8, 8)
    ensemble = SubnetworkEnsemble(network, (2, 8, 8), samples=4, seed=0)
    bank = ensemble.bank
    places = {int(name): name for name in bank.layers}
    with torch.inference_mode():
        torch.testing.assert_close(ensemble.logits(inputs), masked_forward(network, bank, places, inputs))
