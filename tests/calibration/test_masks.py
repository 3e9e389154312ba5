from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from calibration.masks import DESIGNS, LayerMask, MaskBank
from models.records import MaskDesign
from tests.calibration.reference import every_subnetwork, masked_forward

LAYERS = {"input": LayerMask(0.2, (784,)), "hidden": LayerMask(0.5, (30, 4))}
BALANCED: tuple[MaskDesign, ...] = ("latin_hypercube", "orthogonal")


@pytest.mark.parametrize("design", DESIGNS)
def test_each_row_is_distributed_as_dropout(design: MaskDesign, global_state: Tensor) -> None:
    """Not unit by unit alone: for 20,000 blocks, how often each row is each of all the masks of five units."""
    layers = {"a": LayerMask(0.3, (2,)), "b": LayerMask(0.5, (2,)), "c": LayerMask(0.5, (1,))}
    blocks, size = 20_000, 8
    bank = MaskBank.draw(layers, blocks * size, seed=1, design=design, replicates=blocks)
    rows = torch.cat([bank.rows[name] for name in layers], dim=1).view(blocks, size, 5)
    rates = torch.tensor([0.3, 0.3, 0.5, 0.5, 0.5], dtype=torch.float64)
    for mask in itertools.product((False, True), repeat=5):
        kept = torch.tensor(mask)
        probability = float(torch.where(kept, 1 - rates, rates).prod())
        frequency = (rows == kept).all(2).double().mean(0)
        assert (frequency - probability).abs().max() < 5 * (probability * (1 - probability) / blocks) ** 0.5
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize("design", DESIGNS)
def test_blocks_are_independent(design: MaskDesign) -> None:
    """Units, and pairs of them, at each row of one block are uncorrelated with those at each row of the next."""
    kept = MaskBank.draw({"a": LayerMask(0.5, (3,))}, 40_000 * 4, 0, design, replicates=40_000).rows["a"]
    signs = 2.0 * kept.double() - 1
    blocks = torch.cat([signs, signs[:, [0, 0, 1]] * signs[:, [1, 2, 2]]], dim=1).view(20_000, 2, 24)
    correlation = torch.corrcoef(blocks.flatten(1).T)[:24, 24:]
    assert correlation.abs().max() < 5.5 / 20_000**0.5


def test_shapes() -> None:
    bank = MaskBank.draw(LAYERS, 64, seed=0)
    assert (bank.samples, bank.replicates) == (64, 4)
    assert bank.rows["input"].shape == (64, 784)
    assert bank.rows["hidden"].shape == (64, 30, 4)
    assert bank.rows["hidden"].dtype == torch.bool


@given(
    rate=st.floats(0.01, 0.99), block=st.integers(1, 70), replicates=st.integers(1, 3), seed=st.integers(0, 99),
    design=st.sampled_from(BALANCED),
)  # fmt: skip
@settings(deadline=None, max_examples=150)
def test_each_unit_is_dropped_as_often_as_whole_numbers_allow(
    rate: float, block: int, replicates: int, seed: int, design: MaskDesign
) -> None:
    bank = MaskBank.draw({"a": LayerMask(rate, (9,))}, block * replicates, seed, design, replicates)
    dropped = (~bank.rows["a"]).view(replicates, block, 9).sum(1)
    assert (dropped >= math.floor(rate * block)).all()
    assert (dropped <= math.ceil(rate * block)).all()


@pytest.mark.parametrize("design", BALANCED)
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_the_first_rows_are_balanced_at_powers_of_two(design: MaskDesign, rate: float) -> None:
    bank = MaskBank.draw({"a": LayerMask(rate, (30,))}, 64, 3, design, replicates=1)
    for size in (2, 4, 8, 16, 32):
        dropped = (~bank.rows["a"][:size]).sum(0)
        assert (dropped >= math.floor(rate * size)).all()
        assert (dropped <= math.ceil(rate * size)).all()


def test_pairs_of_units_are_balanced_across_layers() -> None:
    layers = {"a": LayerMask(0.5, (40,)), "other": LayerMask(0.3, (5,)), "b": LayerMask(0.5, (23,))}
    bank = MaskBank.draw(layers, 128, seed=0, design="orthogonal", replicates=2)
    signs = 2.0 * torch.cat([bank.rows["a"], bank.rows["b"]], dim=1) - 1
    for block in signs.view(2, 64, 63):
        assert torch.equal(block.T @ block, 64 * torch.eye(63))


def test_with_more_units_than_columns_most_pairs_are_balanced() -> None:
    def unbalanced(design: MaskDesign) -> float:
        signs = 2.0 * MaskBank.draw({"a": LayerMask(0.5, (120,))}, 64, 0, design, replicates=1).rows["a"] - 1
        product = signs.T @ signs
        assert (signs.sum(0) == 0).all()
        return float((product.abs() > 0).double().mean())

    assert unbalanced("orthogonal") < 0.5
    assert unbalanced("latin_hypercube") > 0.8


def test_rows_of_a_pair_are_opposite() -> None:
    bank = MaskBank.draw({"half": LayerMask(0.5, (50,)), "fifth": LayerMask(0.2, (50,))}, 10, 0, "antithetic")
    assert bank.replicates == 5
    half, fifth = (bank.rows[name].view(5, 2, 50) for name in ("half", "fifth"))
    assert (half[:, 0] ^ half[:, 1]).all()
    assert not (~fifth[:, 0] & ~fifth[:, 1]).any()


@pytest.mark.parametrize("design", DESIGNS)
def test_means_are_unbiased_and_designs_lower_their_variance(design: MaskDesign) -> None:
    """Against the exact mean over all 512 sub-networks, over 3,000 blocks of 16 rows."""
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Dropout(0.25), nn.Linear(4, 5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3)
    ).double().eval()  # fmt: skip
    inputs = torch.randn(1, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.inference_mode():
        logits, weights = every_subnetwork(network, inputs, {0: (4, 0.25), 3: (5, 0.5)})
        every = logits.softmax(-1)[:, 0]
        exact = (weights[:, None] * every).sum(0)
        variance = (weights[:, None] * (every - exact) ** 2).sum(0) / 16
        layers = {"0": LayerMask(0.25, (4,)), "3": LayerMask(0.5, (5,))}
        bank = MaskBank.draw(layers, 16 * 3000, 5, design, replicates=3000)
        means = masked_forward(network, bank, {0: "0", 3: "3"}, inputs).softmax(-1).view(3000, 16, 3).mean(1)
    assert ((means.mean(0) - exact).abs() < 5 * (means.var(0) / 3000).sqrt()).all()
    gain = float((variance / means.var(0)).mean())
    at_least = {"independent": 0.9, "antithetic": 1.3, "latin_hypercube": 2.0, "orthogonal": 2.0}
    assert gain > at_least[design]
    assert gain < 1.1 or design != "independent"


def test_the_seed_decides() -> None:
    for design in DESIGNS:
        first, again, other = (MaskBank.draw(LAYERS, 8, seed, design) for seed in (1, 1, 2))
        for name in LAYERS:
            assert torch.equal(first.rows[name], again.rows[name])
            assert not torch.equal(first.rows[name], other.rows[name])


@pytest.mark.parametrize("design", DESIGNS)
def test_layers_of_one_shape_have_masks_of_their_own(design: MaskDesign) -> None:
    bank = MaskBank.draw({"a": LayerMask(0.5, (64,)), "b": LayerMask(0.5, (64,))}, 8, 0, design)
    assert not torch.equal(bank.rows["a"], bank.rows["b"])


@pytest.mark.parametrize("samples", [1, 2, 17, 64])
def test_a_smaller_independent_bank_is_the_beginning_of_a_larger_one(samples: int) -> None:
    small, large = (MaskBank.draw(LAYERS, count, 5, "independent") for count in (samples, 100))
    for name in LAYERS:
        assert torch.equal(small.rows[name], large.rows[name][:samples])


@pytest.mark.parametrize(
    ("design", "samples", "replicates"),
    [
        ("independent", 64, 64), ("antithetic", 64, 32), ("antithetic", 7, 7), ("orthogonal", 64, 4),
        ("latin_hypercube", 100, 4), ("latin_hypercube", 30, 5), ("orthogonal", 17, 17), ("orthogonal", 2, 2),
        ("orthogonal", 1, 1),
    ],
)  # fmt: skip
def test_how_many_blocks_there_are(design: MaskDesign, samples: int, replicates: int) -> None:
    bank = MaskBank.draw(LAYERS, samples, 0, design)
    assert (bank.samples, bank.replicates) == (samples, replicates)
    assert all(len(rows) == samples for rows in bank.rows.values())


@pytest.mark.parametrize("design", DESIGNS)
def test_gaussian_noise(design: MaskDesign) -> None:
    bank = MaskBank.draw({"a": LayerMask(0.2, (50,), "gaussian")}, 4096, 0, design)
    scale, shift = bank.layers["a"].affine(bank.rows["a"], torch.zeros((), dtype=torch.float64))
    assert shift is None
    assert float(scale.mean()) == pytest.approx(1, abs=0.005)
    assert float(scale.var()) == pytest.approx(0.25, rel=0.02)
    assert float(((scale - 1) ** 4).mean()) == pytest.approx(3 * 0.25**2, rel=0.05)
    if design in BALANCED:
        strata = torch.special.ndtr(bank.rows["a"].double()).mul(1024).floor().view(4, 1024, 50)
        assert torch.equal(strata.sort(1).values, torch.arange(1024.0).double().view(1, -1, 1).expand_as(strata))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_alpha_dropout_is_torchs(rate: float) -> None:
    inputs = torch.linspace(-2, 2, 9, dtype=torch.float64)
    layer = LayerMask(rate, (9,), "alpha")
    scale, shift = layer.affine(torch.tensor([[True] * 9, [False] * 9]), inputs)
    assert shift is not None
    kept, dropped = inputs * scale + shift
    torch.manual_seed(0)
    for _ in range(50):
        found = F.alpha_dropout(inputs, rate, training=True)
        near = torch.minimum((found - kept).abs(), (found - dropped).abs())
        assert near.max() < 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "samples must be"), ((4, -1), "seed must not"),
        ((4, 1 << 32), "below 2\\*\\*32"), ((4, 0, "sobol"), "unknown design 'sobol'; known are"),
        ((4, 0, "orthogonal", 3), "replicates must divide the 4 samples, got 3"),
        ((4, 0, "orthogonal", 0), "replicates must divide the 4 samples, got 0"),
    ],
)  # fmt: skip
def test_what_is_refused(arguments: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskBank.draw(LAYERS, *arguments)
