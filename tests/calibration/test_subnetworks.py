from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from calibration import copies, subnetworks
from calibration.masks import DESIGNS
from calibration.sites import DROPOUT
from calibration.subnetworks import SubnetworkEnsemble, UnsupportedNetworkError
from models import networks
from models.noise import Dropout, GaussianDropout
from models.records import MaskDesign
from tests.calibration.reference import dropped, masked_forward

KINDS: list[type[nn.Module]] = [nn.Dropout, Dropout, GaussianDropout, nn.AlphaDropout]
CHANNEL_KINDS: list[type[nn.Module]] = [*KINDS, nn.Dropout2d, nn.FeatureAlphaDropout]


def places(network: nn.Sequential) -> dict[int, str]:
    return {index: str(index) for index, layer in enumerate(network) if isinstance(layer, DROPOUT)}


def small_network(widths: list[int], rates: list[float], seed: int, kind: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for index, rate in enumerate(rates):
        layers += [
            kind(rate),
            nn.Linear(widths[index], widths[index + 1]),
            nn.BatchNorm1d(widths[index + 1]),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 3)).eval()


@given(
    widths=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    rate=st.floats(0.01, 0.9),
    kind=st.sampled_from(KINDS),
    batch=st.integers(1, 9),
    samples=st.integers(1, 20),
    design=st.sampled_from(DESIGNS),
    seed=st.integers(0, 1000),
    images_at_once=st.integers(1, 10),
    chunk_bytes=st.integers(1, 5000),
)
@settings(deadline=None, max_examples=100)
def test_it_is_the_plain_masked_forward(
    *, widths: list[int], rate: float, kind: type[nn.Module], batch: int, samples: int, design: MaskDesign, seed: int,
    images_at_once: int, chunk_bytes: int,
) -> None:  # fmt: skip
    network = small_network(widths, [rate / (1 + index) for index in range(len(widths) - 1)], seed, kind)
    inputs = torch.randn(batch, widths[0])
    ensemble = SubnetworkEnsemble(network, (widths[0],), samples=samples, seed=seed, design=design)
    with torch.inference_mode():
        expected = masked_forward(network, ensemble.bank, places(network), inputs)
    tolerance = 1e-5 * max(1.0, float(expected.abs().max()))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(subnetworks, "IMAGES_AT_ONCE", images_at_once)
        patched.setattr(copies, "CHUNK_BYTES", chunk_bytes)
        torch.testing.assert_close(ensemble.logits(inputs), expected, atol=tolerance, rtol=0)
        rows = slice(samples // 3, samples // 3 + (samples + 1) // 2)
        torch.testing.assert_close(ensemble.logits(inputs, rows), expected[rows], atol=tolerance, rtol=0)


@given(
    kind=st.sampled_from(CHANNEL_KINDS),
    head=st.sampled_from(KINDS),
    rate=st.floats(0.05, 0.8),
    batch=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=60)
def test_it_is_the_plain_masked_forward_of_images(
    kind: type[nn.Module], head: type[nn.Module], rate: float, batch: int, seed: int
) -> None:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.SELU(), kind(rate), nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), head(rate / 2),
        nn.Linear(64, 3),
    ).eval()  # fmt: skip
    inputs = torch.randn(batch, 1, 8, 8)
    ensemble = SubnetworkEnsemble(network, (1, 8, 8), samples=9, seed=seed)
    with torch.inference_mode():
        expected = masked_forward(network, ensemble.bank, places(network), inputs)
    torch.testing.assert_close(ensemble.logits(inputs), expected, atol=1e-5, rtol=1e-5)


class Residual(nn.Module):
    """A block that adds what came before its dropout, with the batch's size and a parameter from before it too."""

    def __init__(self, *, viewed: bool) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(6, 6), nn.Linear(6, 3)
        self.bias = nn.Parameter(torch.randn(6))
        self.drop = nn.Dropout(0.5)
        self.viewed, self.images = viewed, 0

    def forward(self, inputs: Tensor) -> Tensor:
        size = inputs.shape[0]
        hidden = torch.tanh(self.before(inputs))
        mixed = self.drop(hidden) + hidden + self.bias.exp()
        logits: Tensor = self.after(mixed.view(size, -1) if self.viewed else mixed)
        return logits


@pytest.mark.parametrize("viewed", [False, True])
def test_what_comes_before_the_first_dropout_is_run_once(*, viewed: bool) -> None:
    """Also where later layers need it again; but not where they need the number of images, which is another then."""
    network = Residual(viewed=viewed).eval()
    seen: list[int] = []
    network.before.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    ensemble = SubnetworkEnsemble(network, (6,), samples=50, seed=0)
    seen.clear()
    inputs = torch.randn(20, 6)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(copies, "CHUNK_BYTES", 20 * 6 * 4 * 7)
        found = ensemble.logits(inputs)
    assert sum(seen) == (20 * 50 if viewed else 20)
    with torch.inference_mode():
        hidden = torch.tanh(network.before(inputs))
        for row in range(50):
            mixed = hidden * ensemble.bank.rows["drop"][row] / 0.5 + hidden + network.bias.exp()
            torch.testing.assert_close(found[row], network.after(mixed), atol=1e-5, rtol=0)


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
    model = small_network([6, 5], [0.5], 0, nn.Dropout)
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


def test_threads_may_build_while_others_ask_and_draw(network: nn.Module) -> None:
    ensemble = SubnetworkEnsemble(network, (28, 28), samples=8, seed=0)
    inputs = torch.randn(3, 28, 28)
    expected = ensemble.logits(inputs)

    def work(number: int) -> None:
        for _ in range(15):
            if number % 3 == 0:
                found = SubnetworkEnsemble(network, (28, 28), samples=8, seed=0).logits(inputs)
                torch.testing.assert_close(found, expected)
            elif number % 3 == 1:
                torch.testing.assert_close(ensemble.logits(inputs), expected)
            else:
                torch.rand(100)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))


def test_the_same_seed_is_the_same_ensemble(network: nn.Module) -> None:
    inputs = torch.randn(3, 28, 28)
    first, again, other = (
        SubnetworkEnsemble(network, (28, 28), samples=8, seed=seed).logits(inputs) for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_rows_are_refused(network: nn.Module) -> None:
    ensemble = SubnetworkEnsemble(network, (28, 28), samples=8, seed=0)
    with pytest.raises(ValueError, match="selects none of the 8 sub-networks"):
        ensemble.logits(torch.zeros(1, 28, 28), slice(8, 16))


def test_no_images_are_no_answers(network: nn.Module) -> None:
    ensemble = SubnetworkEnsemble(network, (28, 28), samples=8, seed=0)
    assert ensemble.logits(torch.zeros(0, 28, 28)).shape == (8, 0, 10)


class CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(784, 784), nn.Linear(784, 10)
        self.drop = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.second(self.drop(self.first(self.drop(images.flatten(1)))))
        return logits


def test_each_call_of_a_layer_has_masks_of_its_own() -> None:
    network = CalledTwice().eval()
    ensemble = SubnetworkEnsemble(network, (28, 28), samples=6, seed=0)
    assert list(ensemble.bank.layers) == ["drop", "drop#2"]
    assert not torch.equal(ensemble.bank.rows["drop"], ensemble.bank.rows["drop#2"])
    inputs = torch.randn(7, 28, 28)
    found = ensemble.logits(inputs)
    with torch.inference_mode():
        for row in range(6):
            hidden = network.first(inputs.flatten(1) * ensemble.bank.rows["drop"][row] / 0.5)
            expected = network.second(hidden * ensemble.bank.rows["drop#2"][row] / 0.5)
            torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


def test_modules_that_are_shared_or_deep_inside() -> None:
    torch.manual_seed(0)
    drop = nn.Dropout(0.4)
    block = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), drop)
    network = nn.Sequential(block, nn.ModuleDict({"inner": block})["inner"], drop, nn.Linear(5, 3)).eval()
    ensemble = SubnetworkEnsemble(network, (5,), samples=6, seed=0)
    assert list(ensemble.bank.layers) == ["0.2", "0.2#2", "0.2#3"]
    inputs = torch.randn(4, 5)
    found = ensemble.logits(inputs)
    with torch.inference_mode():
        for row in range(6):
            values = inputs
            for call in ("0.2", "0.2#2"):
                values = dropped(ensemble.bank, call, row, block[:2](values))
            expected = network[3](dropped(ensemble.bank, "0.2#3", row, values))
            torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)


class MoreCallsForLight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.drop(inputs)
        if inputs.sum() > 100:
            hidden = self.drop(hidden)
        logits: Tensor = self.linear(hidden)
        return logits


def test_a_layer_called_more_often_than_expected_is_an_error() -> None:
    ensemble = SubnetworkEnsemble(MoreCallsForLight().eval(), (4,), samples=4, seed=0)
    assert ensemble.logits(-torch.ones(2, 4)).shape == (4, 2, 3)
    with pytest.raises(UnsupportedNetworkError, match="'drop' is used more often on these images"):
        ensemble.logits(100 * torch.ones(2, 4))


def test_a_transformer_encoder() -> None:
    """Dropout layers inside a module of torch's own, which tracing takes whole."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    layer.self_attn.dropout = 0.0
    network = nn.Sequential(nn.Linear(4, 8), layer, nn.Flatten(), nn.Linear(24, 3)).eval()
    ensemble = SubnetworkEnsemble(network, (3, 4), samples=5, seed=0)
    assert list(ensemble.bank.layers) == ["1.dropout1", "1.dropout", "1.dropout2"]
    inputs = torch.randn(2, 3, 4)
    found = ensemble.logits(inputs)
    bank = ensemble.bank
    with torch.inference_mode():
        for row in range(5):
            values = network[0](inputs)
            attended = layer.self_attn(values, values, values, need_weights=False)[0]
            values = layer.norm1(values + dropped(bank, "1.dropout1", row, attended))
            inner = dropped(bank, "1.dropout", row, torch.relu(layer.linear1(values)))
            values = layer.norm2(values + dropped(bank, "1.dropout2", row, layer.linear2(inner)))
            torch.testing.assert_close(found[row], network[3](values.flatten(1)), atol=1e-5, rtol=1e-5)


def test_in_place_layers_leave_the_images_alone() -> None:
    network = nn.Sequential(
        nn.Dropout2d(0.3), nn.LeakyReLU(inplace=True), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2)
    )
    inputs = torch.randn(6, 2, 4, 4)
    before = inputs.clone()
    for samples in (1, 5):
        SubnetworkEnsemble(network.eval(), (2, 4, 4), samples=samples, seed=0).logits(inputs)
        assert torch.equal(inputs, before)


def test_the_rate_can_be_another_at_test_time(network: nn.Module) -> None:
    ensemble = SubnetworkEnsemble(network, (28, 28), samples=20, seed=0, rate=0.1)
    assert {layer.rate for layer in ensemble.bank.layers.values()} == {0.1}
    again = networks.build("YourDropoutModel", {"dropout": [0.1, 0.1, 0.1]}, seed=1).eval()
    again.load_state_dict(network.state_dict())
    inputs = torch.randn(6, 28, 28)
    expected = SubnetworkEnsemble(again, (28, 28), samples=20, seed=0).logits(inputs)
    torch.testing.assert_close(ensemble.logits(inputs), expected)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\), got 1"):
        SubnetworkEnsemble(network, (28, 28), samples=20, seed=0, rate=1)


def test_the_last_layer_alone(network: nn.Module) -> None:
    ensemble = SubnetworkEnsemble(network, (28, 28), samples=8, seed=0, last_layer_only=True)
    layers = network.get_submodule("layers")
    assert isinstance(layers, nn.Sequential)
    (site,) = ensemble.bank.layers
    assert site == f"layers.{max(places(layers))}"
    for batch in (2, 9):
        inputs = torch.randn(batch, 28, 28)
        with torch.inference_mode():
            expected = masked_forward(layers, ensemble.bank, {int(site.split(".")[1]): site}, inputs)
        torch.testing.assert_close(ensemble.logits(inputs), expected, atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_same(network: nn.Module) -> None:
    on_gpu = copy.deepcopy(network).cuda()
    for batch in (2, 200):
        inputs = torch.randn(batch, 28, 28)
        found, expected = (
            SubnetworkEnsemble(one, (28, 28), samples=64, seed=0).logits(images).cpu()
            for one, images in ((on_gpu, inputs.cuda()), (network, inputs))
        )
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
