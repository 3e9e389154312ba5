from __future__ import annotations

import gzip
import hashlib
import math
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor

from models.records import InputRecord
from training import __main__ as command_line
from training import data, outliers, torchvision_compat
from training.data import DataError
from training.outliers import MNIST_FILE, fetch_mnist, load_outliers, noise_sets, selection_sets


@pytest.fixture(scope="session")
def real_mnist() -> Path:
    path = outliers._find_mnist()
    if path is None:
        pytest.skip(f"MNIST is neither in ${outliers.ENVIRONMENT_VARIABLE} nor in the project's data folder")
    return path


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every place MNIST is looked for made empty, and the network refused."""

    def refused(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.delenv(outliers.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(data, "PROJECT_FOLDER", tmp_path / "project")
    monkeypatch.setattr(torchvision_compat, "MNIST", refused)
    return tmp_path


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Three images that are taken for MNIST's."""
    drawn = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (3, 28, 28), dtype=np.uint8))
    monkeypatch.setattr(outliers, "MNIST_SHA256", hashlib.sha256(idx(drawn)).hexdigest())
    return drawn


def idx(drawn: Tensor) -> bytes:
    header = b"".join(number.to_bytes(4, "big") for number in (0x803, *drawn.shape))
    return header + drawn.numpy().tobytes()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def downloads(content: bytes) -> Callable[..., None]:
    """A network that answers, in the place of torchvision's class."""

    def download(root: str, *, download: bool) -> None:
        assert download
        assert socket.getdefaulttimeout() == outliers.DOWNLOAD_TIMEOUT, "it could hang"
        put(Path(root) / "MNIST" / "raw" / MNIST_FILE, content)

    return download


def test_all_sets_are_small_grey_images(nowhere: Path, images: Tensor) -> None:
    put(nowhere / "named" / MNIST_FILE, idx(images))
    found = load_outliers(nowhere / "named")
    assert found.missing == {}
    assert {name: tuple(pixels.shape) for name, pixels in found.sets.items()} == {
        "mnist": (3, 28, 28), "digits": (1797, 28, 28), "uniform_noise": (2000, 28, 28),
        "gaussian_noise": (2000, 28, 28), "constant": (256, 28, 28),
    }  # fmt: skip
    assert all(pixels.dtype == torch.uint8 and pixels.is_contiguous() for pixels in found.sets.values())


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("layout", ["MNIST/raw", "."])
@pytest.mark.parametrize("named_by", ["argument", "environment"])
def test_mnist_is_read_from_the_named_folder(
    *, nowhere: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch, named_by: str, layout: str, suffix: str
) -> None:
    put(nowhere / "named" / layout / f"{MNIST_FILE}{suffix}", idx(images))
    if named_by == "environment":
        monkeypatch.setenv("MNIST_DIR", str(nowhere / "named"))
    found = load_outliers(nowhere / "named" if named_by == "argument" else None)
    assert torch.equal(found.sets["mnist"], images)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_is_read_from_the_projects_folder_unless_the_named_one_has_it(
    nowhere: Path, images: Tensor, suffix: str
) -> None:
    put(nowhere / "project" / "MNIST" / "raw" / f"{MNIST_FILE}{suffix}", idx(images))
    assert torch.equal(load_outliers(nowhere / "empty").sets["mnist"], images)
    put(nowhere / "named" / MNIST_FILE, b"damaged")
    with pytest.raises(DataError):
        load_outliers(nowhere / "named")


def test_fashion_mnists_file_in_the_projects_folder_is_not_taken_for_mnists(nowhere: Path) -> None:
    put(nowhere / "project" / MNIST_FILE, b"Fashion-MNIST's")
    assert "mnist" in load_outliers().missing


def test_missing_mnist_is_named_with_a_remedy(nowhere: Path) -> None:
    found = load_outliers(nowhere / "named")
    assert "mnist" not in found.sets
    assert len(found.sets) == 4
    for part in (MNIST_FILE, str(nowhere / "named"), str(nowhere / "project" / "MNIST" / "raw"), "$MNIST_DIR",
                 "`python -m training data`"):  # fmt: skip
        assert part in found.missing["mnist"]


@pytest.mark.parametrize("damage", ["altered", "truncated", "empty"])
def test_a_damaged_file_is_refused(nowhere: Path, images: Tensor, damage: str) -> None:
    content = bytearray(idx(images))
    content[500] ^= 1
    path = put(
        nowhere / "named" / MNIST_FILE,
        {"altered": bytes(content), "truncated": idx(images)[:-1], "empty": b""}[damage],
    )
    with pytest.raises(DataError) as caught:
        load_outliers(nowhere / "named")
    for part in (f"{path} is truncated or altered", outliers.MNIST_SHA256, f"delete {path} and run `python -m "):
        assert part in str(caught.value)


def test_a_damaged_archive_is_refused(nowhere: Path, images: Tensor) -> None:
    path = put(nowhere / "named" / f"{MNIST_FILE}.gz", idx(images))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz is truncated or not a gzip file"):
        load_outliers(nowhere / "named")


def test_digits_are_interpolated_bilinearly() -> None:
    places = (np.arange(28) + 0.5) * 8 / 28 - 0.5
    line = np.stack([np.interp(places, np.arange(8), row) for row in np.eye(8)])
    expected = np.einsum("nij,ik,jl->nkl", load_digits().images, line, line) * 255 / 16
    digits = load_outliers().sets["digits"].double()
    assert (digits - torch.from_numpy(expected)).abs().max() <= 0.501
    assert digits.max() == 255


def test_noise_has_the_stated_distribution() -> None:
    sets = load_outliers().sets
    counts = sets["uniform_noise"].flatten().long().bincount(minlength=256)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    gaussian = sets["gaussian_noise"].double()
    normal = stats.norm(72.94, 90.02)
    # Five standard errors of the share of 1.6 million pixels.
    for share, expected in (
        ((gaussian == 0).double().mean().item(), normal.cdf(0.5)),
        ((gaussian == 255).double().mean().item(), normal.sf(254.5)),
        ((gaussian <= 100).double().mean().item(), normal.cdf(100.5)),
    ):
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / gaussian.numel())


def test_the_gaussian_noise_has_fashion_mnists_mean_and_deviation(fashion: data.FashionMNISTSplits) -> None:
    pixels = torch.cat([part.pixels for part in (fashion.train, fashion.validation, fashion.calibration)])
    counts = pixels.flatten().long().bincount(minlength=256).double()
    levels = torch.arange(256, dtype=torch.float64)
    mean = (counts @ levels / counts.sum()).item()
    variance = (counts @ (levels - mean) ** 2 / counts.sum()).item()
    assert mean == pytest.approx(outliers.FASHION_MEAN, abs=0.005)
    assert math.sqrt(variance) == pytest.approx(outliers.FASHION_SD, abs=0.005)


def test_the_seed_decides_the_noise(global_state: Tensor) -> None:
    first, again, other = load_outliers(seed=1).sets, load_outliers(seed=1).sets, load_outliers(seed=2).sets
    for name in ("uniform_noise", "gaussian_noise"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    assert torch.equal(torch.get_rng_state(), global_state)


def test_every_grey_level_is_one_constant_image() -> None:
    constant = load_outliers().sets["constant"]
    assert torch.equal(constant.flatten(1).min(1).values, torch.arange(256))
    assert torch.equal(constant.flatten(1).max(1).values, torch.arange(256))


def test_noise_for_images_of_another_shape_and_range() -> None:
    inputs = InputRecord(shape=(3, 8, 6), maximum=16.0)
    sets = noise_sets(inputs, 5.0, 2.0, dtype=torch.float32, images=200)
    assert {name: images.shape for name, images in sets.items()} == {
        "uniform_noise": (200, 3, 8, 6), "gaussian_noise": (200, 3, 8, 6), "constant": (256, 3, 8, 6),
    }  # fmt: skip
    assert stats.kstest(sets["uniform_noise"].flatten().numpy() / 16, "uniform").pvalue > 1e-3
    # Half a percent would be below 0.
    normal = sets["gaussian_noise"].flatten().double()
    assert normal.mean().item() == pytest.approx(5, abs=0.05)
    assert normal.std().item() == pytest.approx(2, abs=0.05)
    assert sets["constant"][:, 1, 2, 3].tolist() == pytest.approx(np.linspace(0, 16, 256).tolist())
    assert (sets["constant"] == sets["constant"][:, :1, :1, :1]).all()
    whole = noise_sets(inputs, 5.0, 2.0, images=200)
    assert all(
        images.dtype == torch.uint8 and images.max() == 16 for images in (whole["uniform_noise"], whole["constant"])
    )
    assert whole["constant"][:, 0, 0, 0].tolist() == list(range(17))
    assert (noise_sets(inputs, 15.0, 9.0)["gaussian_noise"] <= 16).all()
    # No more than the type can hold.
    wide = noise_sets(InputRecord(shape=(4,), maximum=1023.0), 500.0, 300.0)
    assert [int(images.max()) for images in wide.values()] == [255, 255, 255]


def test_mnist_is_downloaded_once_into_the_projects_folder(
    nowhere: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = torchvision_compat.MNIST
    monkeypatch.setattr(torchvision_compat, "MNIST", downloads(idx(images)))
    path = fetch_mnist()
    assert socket.getdefaulttimeout() is None
    assert path == nowhere / "project" / "MNIST" / "raw" / MNIST_FILE
    assert torch.equal(load_outliers().sets["mnist"], images)
    monkeypatch.setattr(torchvision_compat, "MNIST", refused)
    assert fetch_mnist() == path


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_damaged_file_in_the_projects_folder_is_replaced(
    nowhere: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    put(nowhere / "project" / "MNIST" / "raw" / f"{MNIST_FILE}{suffix}", b"damaged")
    with pytest.raises(DataError):
        load_outliers()
    monkeypatch.setattr(torchvision_compat, "MNIST", downloads(idx(images)))
    fetch_mnist()
    assert torch.equal(load_outliers().sets["mnist"], images)


def test_a_damaged_file_in_the_named_folder_is_left_alone(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(nowhere / "named" / MNIST_FILE, b"damaged")
    monkeypatch.setenv("MNIST_DIR", str(nowhere / "named"))
    with pytest.raises(DataError, match="is truncated or altered"):
        fetch_mnist()
    assert path.read_bytes() == b"damaged"


def test_a_wrong_download_is_not_kept(nowhere: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_compat, "MNIST", downloads(b"<html>404</html>"))
    with pytest.raises(DataError):
        fetch_mnist()
    assert not (nowhere / "project").exists()


def test_without_mnist_the_command_warns_in_one_line_and_succeeds(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "fetch", lambda _: nowhere)
    command_line.main.main(["data"], standalone_mode=False)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"Fashion-MNIST: 60,000 training and 10,000 test images, checksums verified, in {nowhere}"
    ]
    warnings = [line for line in printed.err.splitlines() if line.startswith("Warning: ")]
    assert len(warnings) == 1
    for part in ("calibration report", "MNIST", "no network in this test", f"put {MNIST_FILE}.gz", "$MNIST_DIR"):
        assert part in warnings[0]


def test_the_command_tells_where_mnist_is(
    nowhere: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(nowhere / "named" / f"{MNIST_FILE}.gz", idx(images))
    monkeypatch.setenv("MNIST_DIR", str(nowhere / "named"))
    monkeypatch.setattr(data, "fetch", lambda _: nowhere)
    command_line.main.main(["data"], standalone_mode=False)
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1] == f"MNIST: 10,000 test images, checksum verified, in {path}"
    assert "Warning" not in printed.err


def test_the_real_mnist(real_mnist: Path) -> None:
    mnist = load_outliers(real_mnist.parent).sets["mnist"]
    assert mnist.shape == (10_000, 28, 28)
    # LeCun et al.: digits of 20x20 pixels, centred, so that four pixels along every edge are nearly always black.
    assert (mnist[:, :4] > 0).double().mean() < 0.01
    assert mnist[:, 4:24, 4:24].double().mean() == pytest.approx(66, abs=2)


def test_the_selection_sets_are_other_images_always_the_same(nowhere: Path, global_state: Tensor) -> None:
    found, again = selection_sets(), selection_sets()
    assert set(found) == {"letters", "photographs"}
    assert not set(found) & set(load_outliers().sets)
    for name, pixels in found.items():
        assert pixels.shape == (1500, 28, 28)
        assert pixels.dtype == torch.uint8
        assert torch.equal(pixels, again[name])
    letters = found["letters"]
    assert (letters.flatten(1).max(1).values > 120).all(), "each is seen"
    assert (letters == 0).float().mean() > 0.6
    assert float(found["photographs"].float().std()) > 30
    assert torch.equal(torch.get_rng_state(), global_state)
