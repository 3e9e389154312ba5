from __future__ import annotations

import pytest
import torch
from torch import Tensor

from calibration.masks import LayerMask, MaskBank

LAYERS = {"input": LayerMask(0.2, (784,)), "hidden": LayerMask(0.5, (30, 4))}


def test_shapes_and_marginals(global_state: Tensor) -> None:
    bank = MaskBank.independent(LAYERS, 1000, seed=0)
    assert bank.samples == 1000
    for name, layer in LAYERS.items():
        kept = bank.kept[name]
        assert kept.shape == (1000, *layer.shape)
        assert kept.dtype == torch.bool
        keep = 1 - layer.rate
        assert abs(float(kept.double().mean()) - keep) < 5 * (keep * (1 - keep) / kept.numel()) ** 0.5
        per_unit = kept.double().mean(0)
        assert (per_unit - keep).abs().max() < 6 * (keep * (1 - keep) / 1000) ** 0.5
    assert torch.equal(torch.get_rng_state(), global_state)


def test_units_are_independent() -> None:
    kept = MaskBank.independent({"layer": LayerMask(0.3, (40,))}, 20_000, seed=3).kept["layer"].double()
    assert (torch.corrcoef(kept.T) - torch.eye(40)).abs().max() < 6 / 20_000**0.5


def test_the_seed_decides() -> None:
    first, again, other = (MaskBank.independent(LAYERS, 8, seed).kept["input"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_layers_of_one_shape_have_masks_of_their_own() -> None:
    bank = MaskBank.independent({"a": LayerMask(0.5, (64,)), "b": LayerMask(0.5, (64,))}, 8, seed=0)
    assert not torch.equal(bank.kept["a"], bank.kept["b"])


@pytest.mark.parametrize("samples", [1, 2, 17, 64])
def test_a_smaller_bank_is_the_beginning_of_a_larger_one(samples: int) -> None:
    small, large = (MaskBank.independent(LAYERS, count, seed=5) for count in (samples, 100))
    for name in LAYERS:
        assert torch.equal(small.kept[name], large.kept[name][:samples])


@pytest.mark.parametrize(("samples", "seed", "message"), [(0, 0, "samples must be"), (4, -1, "seed must not")])
def test_what_is_refused(samples: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskBank.independent(LAYERS, samples, seed)
