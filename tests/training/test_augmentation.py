from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.records import Augmentation
from training.augmentation import ERASED_AREA, augmented, erased, flipped, shifted


def images(count: int, side: int = 28) -> Tensor:
    """Of pixels in 1..255: background would be seen."""
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, (count, side, side), dtype=np.uint8))


def test_half_of_the_images_are_mirrored() -> None:
    torch.manual_seed(0)
    before = images(1000)
    after = flipped(before)
    mirrored = (after == before.flip(-1)).all(-1).all(-1)
    assert torch.all(mirrored | (after == before).all(-1).all(-1))
    assert abs(int(mirrored.sum()) - 500) < 4.5 * 250**0.5


def test_every_shift_occurs_and_nothing_else() -> None:
    torch.manual_seed(0)
    (image,) = images(1)
    found = {each.numpy().tobytes() for each in shifted(image.expand(500, -1, -1), 2)}
    expected = set()
    for down, right in itertools.product(range(-2, 3), repeat=2):
        moved = np.zeros((28, 28), np.uint8)
        source = image.numpy()[max(0, -down) : 28 - max(0, down), max(0, -right) : 28 - max(0, right)]
        moved[max(0, down) : 28 + min(0, down), max(0, right) : 28 + min(0, right)] = source
        expected.add(moved.tobytes())
    assert found == expected


def test_a_rectangle_of_noise_is_erased_in_some() -> None:
    torch.manual_seed(0)
    before = torch.zeros(4000, 28, 28, dtype=torch.uint8)
    changed = erased(before, 0.4) != before
    some = changed.any(-1).any(-1)
    assert abs(int(some.sum()) - 1600) < 4.5 * (4000 * 0.4 * 0.6) ** 0.5
    rows, columns = changed[some].any(2).sum(1), changed[some].any(1).sum(1)
    # A pixel of noise is 0 once in 256: a small rectangle may then look smaller than it is.
    filled = changed[some].sum((1, 2)) / (rows * columns)
    assert filled.mean() == pytest.approx(255 / 256, abs=0.002)
    areas = rows * columns / 784
    assert areas.min() > ERASED_AREA[0] / 2
    assert areas.max() < ERASED_AREA[1] * 1.1
    assert areas.mean() == pytest.approx(sum(ERASED_AREA) / 2, abs=0.01)


@given(
    flip=st.booleans(), shift=st.integers(0, 27), erase=st.sampled_from([0.0, 0.5, 1.0]), count=st.integers(1, 4),
    side=st.integers(5, 30),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_what_comes_out_are_images_and_the_seed_decides(
    flip: bool, shift: int, erase: float, count: int, side: int
) -> None:
    wanted, before = Augmentation(flip=flip, shift=shift, erase=erase), images(count, side)
    kept = before.clone()

    def drawn() -> Tensor:
        torch.manual_seed(3)
        return augmented(before, wanted)

    after = drawn()
    assert (after.dtype, after.shape) == (torch.uint8, before.shape)
    assert torch.equal(after, drawn())
    assert torch.equal(before, kept)
    if wanted == Augmentation():
        assert torch.equal(after, before)
