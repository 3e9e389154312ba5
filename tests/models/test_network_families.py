"""The convolutional network, the recurrent one and the transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import bundle, networks
from models.networks import CNN, RowRecurrent, VisionTransformer
from models.networks.transformer import Attention, Branch
from models.noise import Dropout
from tests.conftest import write_bundle

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "CNN": ("CNN", {"channels": [4, 6], "hidden_width": 16}),
    "CNN, elements": ("CNN", {"channels": [4], "hidden_width": 16, "trunk_kind": "element", "batch_norm": True}),
    "CNN, deep": (
        "CNN",
        {"channels": [4, 6], "hidden_width": 16, "convolutions": 2, "trunk_dropout": [0, 0.2], "batch_norm": True},
    ),
    "RowRecurrent": ("RowRecurrent", {"width": 16}),
    "RowRecurrent, naive": ("RowRecurrent", {"width": 16, "mask": "naive"}),
    "VisionTransformer": ("VisionTransformer", {"width": 16, "heads": 2}),
}
NO_DROPOUT: dict[str, dict[str, Any]] = {
    "CNN": {"trunk_dropout": 0, "head_dropout": 0},
    "RowRecurrent": {"input_dropout": 0, "recurrent_dropout": 0, "output_dropout": 0},
    "VisionTransformer": {"attention_dropout": 0, "dropout": 0, "path_dropout": 0},
}


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 28, 28, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return FAMILIES[request.param]


@pytest.fixture
def network(family: tuple[str, dict[str, Any]]) -> nn.Module:
    name, arguments = family
    return networks.build(name, arguments, seed=0).eval()


def calls_of(module: nn.Module, network: nn.Module, inputs: Tensor) -> list[tuple[tuple[Any, ...], Any]]:
    """What ``module`` was given and gave in a forward pass in train mode."""
    calls: list[tuple[tuple[Any, ...], Any]] = []
    with module.register_forward_hook(lambda _, given, gave: calls.append((given, gave))), torch.random.fork_rng():
        torch.manual_seed(1)
        network.train()(inputs)
    return calls


class TestEveryFamily:
    def test_images_with_and_without_a_channel_axis(self, network: nn.Module) -> None:
        batch = images(3)
        logits = network(batch)
        assert logits.shape == (3, 10)
        torch.testing.assert_close(network(batch.unsqueeze(1)), logits)

    def test_images_of_another_size_are_refused(self, network: nn.Module) -> None:
        """Also where two of them have as many pixels as one of the right size."""
        with pytest.raises(RuntimeError):
            network(torch.zeros(2, 14, 28))

    def test_eval_mode_draws_nothing_and_train_mode_does(self, network: nn.Module, global_state: Tensor) -> None:
        batch = images(8)
        torch.set_rng_state(global_state)
        assert torch.equal(network(batch), network(batch))
        assert torch.equal(torch.get_rng_state(), global_state)
        network.train()
        assert not torch.equal(network(batch), network(batch))

    def test_rates_of_0_add_no_layer(self, family: tuple[str, dict[str, Any]], global_state: Tensor) -> None:
        name, arguments = family
        plain = networks.build(name, arguments | NO_DROPOUT[name], seed=0)
        assert not any(isinstance(module, nn.modules.dropout._DropoutNd) for module in plain.modules())
        torch.set_rng_state(global_state)
        plain.train()(images(4))
        assert torch.equal(torch.get_rng_state(), global_state)

    def test_a_few_steps_of_training_reduce_the_loss(self, network: nn.Module) -> None:
        batch, labels = images(16), torch.arange(16) % 10
        optimizer = torch.optim.Adam(network.parameters(), lr=0.003)
        before = F.cross_entropy(network(batch), labels).item()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network.train()
            for _ in range(10):
                optimizer.zero_grad()
                F.cross_entropy(network(batch), labels).backward()
                optimizer.step()
        assert all(parameter.grad is not None for parameter in network.parameters())
        assert F.cross_entropy(network.eval()(batch), labels).item() < before - 0.02

    def test_a_bundle_gives_the_same_logits(self, family: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
        name, arguments = family
        network = write_bundle(tmp_path / "bundle", name, arguments)
        assert torch.equal(bundle.load(tmp_path / "bundle").network(images(5)), network(images(5)))


@pytest.mark.parametrize("name", ["RowRecurrent", "VisionTransformer"])
def test_the_weights_have_the_same_names_at_all_rates(name: str) -> None:
    with_dropout, without = (networks.build(name, arguments) for arguments in ({}, NO_DROPOUT[name]))
    assert with_dropout.state_dict().keys() == without.state_dict().keys()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("CNN", {"channels": []}, r"channels must be a list of the widths of 1 to 4 stages, got \[\]"),
        ("CNN", {"channels": [1] * 5}, "1 to 4 stages"),
        ("CNN", {"channels": 32}, "1 to 4 stages, got 32"),
        ("CNN", {"channels": [8, 0]}, r"channels\[1\] must be a whole number from 1 to 65,536, got 0"),
        ("CNN", {"channels": [8, "8"]}, r"channels\[1\] must be a whole number .* got '8'"),
        ("CNN", {"hidden_width": 1.5}, "hidden_width must be a whole number"),
        ("CNN", {"trunk_dropout": 1}, r"trunk_dropout must be a dropout rate in \[0, 1\), got 1"),
        ("CNN", {"trunk_dropout": [0.1]}, r"one rate, or one for each of the 2 stages, got \[0.1\]"),
        ("CNN", {"trunk_dropout": [0.1, -1]}, r"trunk_dropout\[1\] must be a dropout rate .* got -1"),
        ("CNN", {"convolutions": 0}, "convolutions must be a whole number from 1 to 65,536, got 0"),
        ("CNN", {"head_dropout": float("nan")}, "head_dropout must be .* got nan"),
        ("CNN", {"trunk_kind": "pixel"}, "trunk_kind must be one of channel, element, got 'pixel'"),
        ("CNN", {"batch_norm": "no"}, "batch_norm must be one of False, True, got 'no'"),
        ("CNN", {"dropout": 0.5}, "CNN takes .*, not dropout"),
        ("RowRecurrent", {"width": 65_537}, "width must be .* got 65537"),
        ("RowRecurrent", {"width": True}, "width must be .* got True"),
        ("RowRecurrent", {"input_dropout": -0.1}, "input_dropout must be .* got -0.1"),
        ("RowRecurrent", {"recurrent_dropout": "0.1"}, "recurrent_dropout must be .* got '0.1'"),
        ("RowRecurrent", {"output_dropout": False}, "output_dropout must be .* got False"),
        ("RowRecurrent", {"mask": "bayesian"}, "mask must be one of variational, naive, got 'bayesian'"),
        ("VisionTransformer", {"patch": 5}, "patch must divide 28, got 5"),
        ("VisionTransformer", {"patch": 0}, "patch must be a whole number"),
        ("VisionTransformer", {"depth": 0}, "depth must be a whole number"),
        ("VisionTransformer", {"heads": 3}, "heads must divide width 64, got 3"),
        ("VisionTransformer", {"attention_dropout": 1.0}, "attention_dropout must be .* got 1.0"),
        ("VisionTransformer", {"dropout": [0.1]}, r"dropout must be .* got \[0.1\]"),
        ("VisionTransformer", {"path_dropout": None}, "path_dropout must be .* got None"),
    ],
)
def test_what_is_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        networks.build(name, arguments)


class TestCNN:
    @pytest.mark.parametrize(("channels", "hidden"), [([3], 5), ([4, 6, 2], 8), ([2, 3, 4, 5], 6)])
    def test_parameters(self, channels: list[int], hidden: int) -> None:
        convolutions = sum((9 * i + 1) * o for i, o in zip([1, *channels], channels, strict=False))
        side = 28 // 2 ** len(channels)
        expected = convolutions + (channels[-1] * side**2 + 1) * hidden + (hidden + 1) * 10
        network = CNN(channels, hidden)
        assert sum(parameter.numel() for parameter in network.parameters()) == expected
        assert network(images(2)).shape == (2, 10)

    def test_several_convolutions_and_a_rate_for_each_stage(self) -> None:
        network = CNN([3, 4, 5], 6, convolutions=2, trunk_dropout=[0, 0.1, 0.2], batch_norm=True)
        layers = [(each.in_channels, each.out_channels) for each in network.modules() if isinstance(each, nn.Conv2d)]
        assert layers == [(1, 3), (3, 3), (3, 4), (4, 4), (4, 5), (5, 5)]
        assert sum(isinstance(each, nn.BatchNorm2d) for each in network.modules()) == 6
        rates = {calls_of(each, network, images(2))[0][0][0].shape[1:]: each.p for each in network.modules()
                 if isinstance(each, nn.Dropout2d)}  # fmt: skip
        assert rates == {(4, 7, 7): 0.1, (5, 3, 3): 0.2}
        assert network(images(2)).shape == (2, 10)

    @pytest.mark.parametrize("kind", ["channel", "element"])
    def test_what_the_trunk_drops(self, kind: str) -> None:
        network = networks.build("CNN", {"trunk_kind": kind, "trunk_dropout": 0.25}, seed=0)
        layer: type[nn.Module] = nn.Dropout2d if kind == "channel" else Dropout
        dropouts = [module for module in network.modules() if isinstance(module, layer)][:2]
        for dropout, (channels, side) in zip(dropouts, [(16, 14), (32, 7)], strict=True):
            (((values,), dropped),) = calls_of(dropout, network, images(16))
            assert values.shape == (16, channels, side, side)
            kept = dropped != 0
            torch.testing.assert_close(dropped[kept], values[kept] / 0.75, rtol=1e-4, atol=0)
            positive = values > 0
            assert float(kept[positive].double().mean()) == pytest.approx(0.75, abs=0.1)
            share = (kept & positive).sum((2, 3)) / positive.sum((2, 3))
            share = share[positive.sum((2, 3)) > 30]
            assert bool(((share == 0) | (share == 1)).all()) is (kind == "channel")

    def test_batch_norm_before_each_relu(self) -> None:
        network = networks.build("CNN", {"channels": [4, 6], "hidden_width": 16, "batch_norm": True}, seed=0)
        relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
        assert len(relus) == 3
        for relu in relus:
            (((values,), _),) = calls_of(relu, network, images(64))
            by_unit = values.transpose(0, 1).flatten(1)
            torch.testing.assert_close(by_unit.mean(1), torch.zeros(len(by_unit)), atol=1e-4, rtol=0)
            torch.testing.assert_close(by_unit.var(1, correction=0), torch.ones(len(by_unit)), atol=0.01, rtol=0)


class TestRowRecurrent:
    @staticmethod
    def given(mask: str) -> tuple[Tensor, Tensor]:
        """Rows ``[28, B, 28]`` and states ``[28, B, width]`` that the cell was given, for images of ones."""
        network = networks.build(
            "RowRecurrent", {"width": 32, "mask": mask, "input_dropout": 0.3, "recurrent_dropout": 0.25}, seed=0
        )
        assert isinstance(network, RowRecurrent)
        steps = [given for given, _ in calls_of(network.cell, network, torch.ones(50, 28, 28))]
        assert len(steps) == 28
        return torch.stack([row for row, _ in steps]), torch.stack([state for _, (state, _) in steps])

    def test_a_variational_mask_drops_the_same_at_each_step(self) -> None:
        rows, states = self.given("variational")
        assert all(torch.equal(row, rows[0]) for row in rows)
        assert all(torch.equal(state == 0, states[1] == 0) for state in states[2:])

    def test_a_naive_mask_drops_others_at_each_step(self) -> None:
        rows, states = self.given("naive")
        for values in (rows, states[1:]):
            both = (values[1:] == 0) & (values[:-1] == 0)
            rate = (values == 0).double().mean()
            assert float(both.double().mean()) == pytest.approx(float(rate**2), abs=0.01)

    @pytest.mark.parametrize("mask", ["variational", "naive"])
    def test_rates_and_examples(self, mask: str) -> None:
        rows, states = self.given(mask)
        torch.testing.assert_close(rows.unique(), torch.tensor([0, 1 / 0.7]), atol=1e-4, rtol=0)
        assert float((rows == 0).double().mean()) == pytest.approx(0.3, abs=0.05)
        assert float((states[1:] == 0).double().mean()) == pytest.approx(0.25, abs=0.05)
        assert not torch.equal(rows[0, 0], rows[0, 1])
        assert not torch.equal(states[1, 0] == 0, states[1, 1] == 0)

    def test_without_dropout_it_is_torchs(self) -> None:
        network = networks.build("RowRecurrent", {"width": 16} | NO_DROPOUT["RowRecurrent"], seed=0)
        assert isinstance(network, RowRecurrent)
        torch.testing.assert_close(network.train()(images(4)), self.fused(network, images(4)))

    def test_a_variational_mask_is_dropout_of_the_weights_columns(self) -> None:
        """As Gal & Ghahramani derive it: for each example, a network without dropout that has other weights."""
        network = networks.build("RowRecurrent", {"width": 16, "output_dropout": 0}, seed=0)
        assert isinstance(network, RowRecurrent)
        batch = images(6)
        rows, states, logits = [], [], []
        with network.input_dropout.register_forward_hook(lambda *call: rows.append(call[2])), \
             network.recurrent_dropout.register_forward_hook(lambda *call: states.append(call[2])), \
             network.register_forward_hook(lambda *call: logits.append(call[2])), torch.random.fork_rng():  # fmt: skip
            torch.manual_seed(0)
            network.train()(batch)
        for index in range(len(batch)):
            columns, units = rows[0][index].flatten(), states[0][index]
            assert (units == 0).any()
            expected = self.fused(network, batch[index : index + 1], columns, units)
            torch.testing.assert_close(logits[0][index], expected[0], atol=1e-5, rtol=0)

    @staticmethod
    def fused(network: RowRecurrent, batch: Tensor, columns: Tensor | float = 1, units: Tensor | float = 1) -> Tensor:
        """The logits by torch's own loop over the steps, with the columns of the weights multiplied."""
        weights = {f"{name}_l0": value.detach() for name, value in network.cell.state_dict().items()}
        weights["weight_ih_l0"] = weights["weight_ih_l0"] * columns
        weights["weight_hh_l0"] = weights["weight_hh_l0"] * units
        layer = nn.LSTM(28, network.width, batch_first=True)
        layer.load_state_dict(weights)
        logits: Tensor = network.output(layer(batch)[0][:, -1])
        return logits


class TestVisionTransformer:
    @pytest.mark.parametrize("patch", [4, 7, 14])
    def test_tokens_are_patches_in_reading_order(self, patch: int) -> None:
        network = VisionTransformer(patch, width=8, heads=2)
        (((patches,), _),) = calls_of(network.embedding, network, images(3))
        torch.testing.assert_close(patches, F.unfold(images(3).unsqueeze(1), patch, stride=patch).transpose(1, 2))

    def test_positions_tell_patches_apart(self) -> None:
        network = networks.build("VisionTransformer", {"width": 16, "heads": 2}, seed=0).eval()
        assert isinstance(network, VisionTransformer)
        batch = images(2)
        moved = batch.roll(7, dims=2)
        assert not torch.allclose(network(moved), network(batch), atol=1e-5)
        with torch.no_grad():
            network.positions.zero_()
        torch.testing.assert_close(network(moved), network(batch))

    @pytest.mark.parametrize("heads", [1, 4])
    def test_attention_is_torchs(self, heads: int) -> None:
        torch.manual_seed(0)
        attention = Attention(16, heads, 0.0)
        reference = nn.MultiheadAttention(16, heads, batch_first=True)
        reference.load_state_dict({
            "in_proj_weight": attention.projections.weight, "in_proj_bias": attention.projections.bias,
            "out_proj.weight": attention.output.weight, "out_proj.bias": attention.output.bias,
        })  # fmt: skip
        tokens = torch.randn(5, 9, 16)
        torch.testing.assert_close(attention(tokens), reference(tokens, tokens, tokens)[0], atol=1e-5, rtol=0)

    def test_attention_dropout_acts_on_attention_weights(self) -> None:
        network = networks.build(
            "VisionTransformer", {"width": 16, "heads": 2, "attention_dropout": 0.4, "dropout": 0, "path_dropout": 0},
            seed=0,
        )  # fmt: skip
        dropouts = [module for module in network.modules() if isinstance(module, Dropout)]
        assert len(dropouts) == 2, "one in each block"
        for dropout in dropouts:
            (((weights,), dropped),) = calls_of(dropout, network, images(10))
            assert weights.shape == (10, 2, 16, 16)
            torch.testing.assert_close(weights.sum(3), torch.ones(10, 2, 16))
            assert float((dropped == 0).double().mean()) == pytest.approx(0.4, abs=0.05)

    def test_path_dropout_makes_a_branch_the_identity_for_an_example(self) -> None:
        network = networks.build(
            "VisionTransformer", {"width": 16, "attention_dropout": 0, "dropout": 0, "path_dropout": 0.5}, seed=0
        )
        branches = [module for module in network.modules() if isinstance(module, Branch)]
        assert len(branches) == 4, "two in each of two blocks"
        seen = []
        for branch in branches:
            (((tokens,), result),) = calls_of(branch, network, images(40))
            added = branch.eval()(tokens) - tokens
            skipped = (result == tokens).all(2).all(1)
            assert 8 <= int(skipped.sum()) <= 32
            torch.testing.assert_close(result[~skipped], (tokens + 2 * added)[~skipped], atol=1e-5, rtol=0)
            seen.append(skipped)
        assert not torch.equal(seen[0], seen[1]), "each branch is dropped for itself"

    @pytest.mark.parametrize("depth", [1, 3])
    def test_parameters(self, depth: int) -> None:
        width, patch = 12, 7
        block = 2 * 2 * width + (width + 1) * 4 * width + (width + 1) * 2 * width + (2 * width + 1) * width
        expected = (patch**2 + 1) * width + 16 * width + depth * block + 2 * width + (width + 1) * 10
        network = VisionTransformer(patch, width, depth, heads=3)
        assert sum(parameter.numel() for parameter in network.parameters()) == expected
