from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from training import shifts
from training.data import FashionMNISTSplits
from training.shifts import SHIFTS, shift


@pytest.fixture(scope="module")
def garments(fashion: FashionMNISTSplits) -> Tensor:
    return fashion.test.pixels[:500]


def grey(level: int, images: int = 200) -> Tensor:
    return torch.full((images, 28, 28), level, dtype=torch.uint8)


def difference(first: Tensor, second: Tensor | np.ndarray) -> float:
    """The largest, in grey levels."""
    return (first.double() - torch.as_tensor(second).double()).abs().max().item()


@pytest.mark.parametrize("name", SHIFTS)
def test_each_severity_is_further_from_the_original(garments: Tensor, name: str) -> None:
    before = garments.clone()
    shifted = [shift(garments, name, severity) for severity in range(1, 6)]
    assert all(images.shape == garments.shape and images.dtype == torch.uint8 for images in shifted)
    distances = [(images.double() - garments.double()).pow(2).mean().sqrt().item() for images in shifted]
    assert distances[0] > 5
    assert all(later > 1.1 * earlier for earlier, later in pairwise(distances))
    assert torch.equal(garments, before)


@pytest.mark.parametrize("name", SHIFTS)
def test_what_is_random_depends_on_the_seed_and_the_index_alone(
    garments: Tensor, name: str, global_state: Tensor
) -> None:
    whole = shift(garments, name, 3, seed=7)
    assert torch.equal(shift(garments, name, 3, seed=7), whole)
    assert torch.equal(shift(garments[:5], name, 3, seed=7), whole[:5])
    assert torch.equal(shift(garments, name, 3, seed=8), whole) == (name not in {"noise", "occlusion"})
    assert torch.equal(torch.get_rng_state(), global_state)


def test_an_unknown_name_or_severity(garments: Tensor) -> None:
    with pytest.raises(ValueError, match="no shift 'fog'; there are rotation, blur, noise, occlusion, contrast"):
        shift(garments, "fog", 1)
    for severity in (0, 6, -1):
        with pytest.raises(ValueError, match=f"severity must be 1 to 5, got {severity}"):
            shift(garments, "blur", severity)


def test_a_shift_is_its_function_at_the_listed_amount(garments: Tensor) -> None:
    garments = garments[:20]
    for severity in range(1, 6):
        at = severity - 1
        for name, expected in (
            ("rotation", shifts.rotate(garments, SHIFTS["rotation"][at])),
            ("blur", shifts.blur(garments, SHIFTS["blur"][at])),
            ("noise", shifts.noise(garments, SHIFTS["noise"][at], 3)),
            ("occlusion", shifts.occlude(garments, int(SHIFTS["occlusion"][at]), 3)),
            ("contrast", shifts.contrast(garments, SHIFTS["contrast"][at])),
        ):
            assert torch.equal(shift(garments, name, severity, seed=3), expected)


@pytest.mark.parametrize("quarters", [-1, 0, 1, 2, 3, 4])
def test_quarter_turns_are_exact(garments: Tensor, quarters: int) -> None:
    assert torch.equal(shifts.rotate(garments, 90 * quarters), torch.rot90(garments, quarters, (1, 2)))


@pytest.mark.parametrize("degrees", [-40, 10, 45, 137.5])
def test_rotation_is_bilinear_on_black(garments: Tensor, degrees: float) -> None:
    expected = ndimage.rotate(
        garments.numpy().astype(np.float64), degrees, axes=(2, 1), reshape=False, order=1, mode="grid-constant"
    )
    assert difference(shifts.rotate(garments, degrees), expected) < 0.51


@pytest.mark.parametrize("sd", SHIFTS["blur"])
def test_blur_is_gaussian_on_black(garments: Tensor, sd: float) -> None:
    expected = ndimage.gaussian_filter(garments.numpy().astype(np.float64), (0, sd, sd), mode="constant", truncate=8)
    assert difference(shifts.blur(garments, sd), expected) < 0.51


def test_blur_of_a_point_is_a_gaussian_and_keeps_the_mean() -> None:
    image = grey(0, 1)
    image[0, 9:15, 12:18] = 250
    blurred = shifts.blur(image, 2).double()
    assert blurred.mean().item() == pytest.approx(image.double().mean().item(), rel=0.01)
    point = torch.zeros(1, 28, 28, dtype=torch.uint8)
    point[0, 14, 10] = 255
    rows, columns = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    density = torch.exp(-((rows - 14) ** 2 + (columns - 10) ** 2) / 2) / (2 * math.pi)
    assert difference(shifts.blur(point, 1)[0], 255 * density) < 0.51


@pytest.mark.parametrize("sd", [8, 16, 32])
def test_noise_has_the_deviation_and_is_independent(sd: float) -> None:
    added = shifts.noise(grey(128), sd, 0).double() - 128
    # Rounding adds the variance of a uniform variate; 200 x 784 pixels, five standard errors.
    expected = math.sqrt(sd**2 + 1 / 12)
    assert added.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * added.numel()))
    assert abs(added.mean().item()) < 5 * expected / math.sqrt(added.numel())
    neighbours = (added[:, :, 1:] * added[:, :, :-1]).mean().item() / expected**2
    images = (added[1:] * added[:-1]).mean().item() / expected**2
    assert max(abs(neighbours), abs(images)) < 5 / math.sqrt(0.95 * added.numel())


def test_noise_is_clipped_and_does_not_depend_on_the_image() -> None:
    assert (shifts.noise(grey(0), 32, 0) == 0).double().mean().item() == pytest.approx(0.5, abs=0.01)
    assert (shifts.noise(grey(255), 32, 0) == 255).double().mean().item() == pytest.approx(0.5, abs=0.01)
    assert torch.equal(shifts.noise(grey(128), 4, 0) - 128 + 100, shifts.noise(grey(100), 4, 0))


@pytest.mark.parametrize("side", [0, 1, 6, 22, 28])
def test_occlusion_is_one_black_square_inside_the_image(side: int) -> None:
    black = shifts.occlude(grey(200, 20_000), side, 0) == 0
    rows, columns = black.any(2), black.any(1)
    assert torch.equal(black, rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):
        assert set(line.sum(1).tolist()) == {side}
        assert ((line[:, 1:] & ~line[:, :-1]).sum(1) + line[:, 0] <= 1).all(), "not one run"
    if 0 < side < 28:
        # Every place is equally likely, and rows tell nothing of columns.
        first = torch.stack([rows.int().argmax(1), columns.int().argmax(1)]).double()
        assert first.min(1).values.tolist() == [0, 0]
        assert first.max(1).values.tolist() == [28 - side] * 2
        assert first.mean(1).tolist() == pytest.approx([(28 - side) / 2] * 2, abs=0.3)
        assert abs(torch.corrcoef(first)[0, 1].item()) < 5 / math.sqrt(20_000)


@pytest.mark.parametrize("factor", [0, 0.1, 0.35, 1])
def test_contrast_is_exact_to_rounding(garments: Tensor, factor: float) -> None:
    mean = garments.double().mean((1, 2), keepdim=True)
    assert difference(shifts.contrast(garments, factor), mean + factor * (garments.double() - mean)) < 0.5001
    assert torch.equal(shifts.contrast(garments, 1), garments)


@pytest.mark.parametrize("degrees", [30, -75])
def test_colour_and_other_proportions_are_turned_channel_by_channel(degrees: float) -> None:
    images = torch.from_numpy(np.random.default_rng(0).random((2, 3, 10, 30), np.float32))
    expected = ndimage.rotate(
        images.double().numpy(), degrees, axes=(3, 2), reshape=False, order=1, mode="grid-constant"
    )  # fmt: skip
    turned = shifts.rotate(images, degrees)
    assert turned.dtype == torch.float32
    assert difference(turned, expected) < 1e-4
    assert difference(shifts.rotate(images, 180), images.flip(2, 3)) < 1e-4


def test_lengths_are_those_of_28_pixels_to_scale() -> None:
    images = torch.from_numpy(np.random.default_rng(0).random((2, 3, 56, 70), np.float32))
    expected = ndimage.gaussian_filter(images.double().numpy(), (0, 0, 4, 4), mode="constant", truncate=8)
    assert difference(shifts.blur(images, 2), expected) < 1e-5
    black = shifts.occlude(torch.ones(500, 3, 56, 70), 10, 0) == 0
    assert (black.sum((1, 2, 3)) == 3 * 20 * 20).all()
    assert (black.any(1).any(1).sum(1) == 20).all()
    assert torch.equal(black[:, 0], black[:, 2])
    assert black.any(0).any(1).all(), "in every line"
    assert black.any(0).any(2).all(), "and every column"


@pytest.mark.parametrize("name", ["noise", "contrast"])
def test_grey_levels_are_those_of_255_to_scale(garments: Tensor, name: str) -> None:
    """And vectors are under these two."""
    scaled = shift(garments.float().flatten(1) * (2 / 255), name, 3, maximum=2)
    assert shifts.applicable((784,)).keys() == {"noise", "contrast"}
    assert shifts.applicable((28, 28)) == SHIFTS
    assert 0 <= scaled.min() < scaled.max() <= 2
    if name == "contrast":
        assert difference(scaled * (255 / 2), shift(garments, name, 3).flatten(1)) < 0.501
    else:
        zeros = shifts.noise(torch.zeros(100, 784), 64, 0, maximum=2)
        assert zeros[zeros > 0].square().mean().sqrt().item() == pytest.approx(2 * 64 / 255, rel=0.01)


def test_whole_levels_stay_within_a_smaller_range() -> None:
    images = torch.full((50, 8, 8), 15, dtype=torch.uint8)
    shifted = shift(images, "noise", 5, maximum=16)
    assert shifted.dtype == torch.uint8
    assert (int(shifted.min()), int(shifted.max())) == (0, 16)


@pytest.mark.parametrize("name", SHIFTS)
def test_a_range_beyond_255_is_kept(name: str) -> None:
    images = torch.from_numpy(np.random.default_rng(0).random((20, 3, 16, 16), np.float32)) * 1000
    shifted = shift(images, name, 1, maximum=1000)
    assert 700 < shifted.max() <= 1000
    assert shifted.mean().item() == pytest.approx(images.mean().item(), rel=0.25)
    # Whole levels stop at what their type can hold, and don't begin anew.
    white = torch.full((200, 8, 8), 255, dtype=torch.uint8)
    assert (shifts.noise(white, 16, 0, maximum=1000) == 255).double().mean().item() == pytest.approx(0.5, abs=0.02)
