from __future__ import annotations

import gzip
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from training import data
from training.data import DataError, FashionMNISTSplits
from training.torchvision_compat import FashionMNIST


@pytest.fixture(scope="session")
def raw(fashion: FashionMNISTSplits) -> Path:
    """The folder of the real, unpacked files; that ``fashion`` could be loaded says that they are there."""
    return data.fetch() / "FashionMNIST" / "raw"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every place the data is looked for made empty, and the network refused."""

    @contextmanager
    def refused() -> Iterator[Path]:
        if tmp_path:
            raise RuntimeError("no network in this test")
        yield tmp_path

    monkeypatch.delenv(data.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(data, "PROJECT_FOLDER", tmp_path / "project")
    monkeypatch.setattr(data, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(data, "_torchvision_download", refused)
    monkeypatch.setattr(data, "_debian_download", refused)
    return tmp_path


def packed(raw: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file in data.CHECKSUMS:
        with (raw / file).open("rb") as source, gzip.open(folder / f"{file}.gz", "wb", compresslevel=1) as target:
            shutil.copyfileobj(source, target)
    return folder


def linked(raw: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file in data.CHECKSUMS:
        (folder / file).symlink_to(raw / file)
    return folder


def source_of(root: Path) -> set[Path]:
    """Where the files below ``root`` really lie."""
    return {(root / "FashionMNIST" / "raw" / file).resolve().parent for file in data.CHECKSUMS}


@pytest.fixture
def whole(nowhere: Path, raw: Path) -> Path:
    """The project's folder, with all files."""
    linked(raw, nowhere / "project" / "FashionMNIST" / "raw")
    return nowhere / "project"


def test_the_parts_are_disjoint_and_complete(whole: Path, fashion: FashionMNISTSplits) -> None:
    parts = [fashion.train, fashion.validation, fashion.calibration]
    assert [len(part) for part in parts] == [50_000, 5_000, 5_000]
    assert len(fashion.test) == 10_000
    labels = torch.cat([part.labels for part in parts])
    assert labels.bincount().tolist() == [6_000] * 10
    position = torch.arange(784, dtype=torch.float64)
    pixels = torch.cat([part.pixels for part in parts]).flatten(1).double()
    original = FashionMNIST(whole, train=True).data.flatten(1).double()
    # A number per image that tells images apart: the same numbers in another order are the same images.
    assert torch.equal((pixels @ position).sort().values, (original @ position).sort().values)


def test_the_seed_decides_the_split(whole: Path, fashion: FashionMNISTSplits) -> None:
    again, other = data.load(split_seed=fashion.split_seed), data.load(split_seed=fashion.split_seed + 1)
    assert torch.equal(again.calibration.pixels, fashion.calibration.pixels)
    assert not torch.equal(other.calibration.labels, fashion.calibration.labels)
    assert torch.equal(other.test.labels, fashion.test.labels)


def test_the_named_folder_comes_first(nowhere: Path, raw: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = linked(raw, nowhere / "named" / "FashionMNIST" / "raw").parent.parent
    by_environment = linked(raw, nowhere / "environment" / "FashionMNIST" / "raw").parent.parent
    assert data.fetch() == whole
    monkeypatch.setenv(data.ENVIRONMENT_VARIABLE, str(by_environment))
    assert data.fetch() == by_environment
    assert data.fetch(named) == named


def test_debians_packed_files_are_unpacked_into_the_project(nowhere: Path, raw: Path) -> None:
    packed(raw, nowhere / "debian")
    root = data.fetch()
    assert root == nowhere / "project"
    assert source_of(root) == {nowhere / "project" / "FashionMNIST" / "raw"}
    assert len(data.load_test()) == 10_000


def test_files_lying_directly_in_the_named_folder(nowhere: Path, raw: Path) -> None:
    assert data.fetch(linked(raw, nowhere / "flat")) == nowhere / "project"


def test_downloads_come_last_and_in_order(nowhere: Path, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def source(name: str, works: bool):  # type: ignore[no-untyped-def]
        @contextmanager
        def opened() -> Iterator[Path]:
            tried.append(name)
            if not works:
                raise OSError("mirror is down")
            yield raw

        return opened

    monkeypatch.setattr(data, "_torchvision_download", source("torchvision", works=False))
    monkeypatch.setattr(data, "_debian_download", source("debian", works=True))
    assert len(data.load_test()) == 10_000
    assert tried == ["torchvision", "debian"]


def test_when_nothing_works_every_source_is_named(nowhere: Path) -> None:
    with pytest.raises(DataError) as caught:
        data.fetch()
    message = str(caught.value)
    for part in (str(nowhere / "project"), str(nowhere / "debian"), "torchvision's download: no network in this test",
                 "Debian's package: no network", "--data", "train-images-idx3-ubyte.gz"):  # fmt: skip
        assert part in message


def test_a_missing_file_in_the_named_folder(nowhere: Path, raw: Path) -> None:
    folder = linked(raw, nowhere / "named")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte is missing.*python -m training data"):
        data.fetch(folder)


@pytest.mark.parametrize("damage", ["altered", "truncated", "empty"])
def test_a_damaged_file_is_named_with_what_was_expected(nowhere: Path, raw: Path, whole: Path, damage: str) -> None:
    victim = whole / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    content = bytearray(victim.read_bytes())
    victim.unlink()
    content[5000] ^= 1
    victim.write_bytes({"altered": bytes(content), "truncated": bytes(content[:-1]), "empty": b""}[damage])
    with pytest.raises(DataError) as caught:
        data.fetch()
    message = str(caught.value)
    assert str(victim) in message
    assert data.CHECKSUMS["t10k-labels-idx1-ubyte"] in message
    assert f"Delete {victim} and run `python -m training data`" in message


@pytest.mark.parametrize("damage", ["truncated", "not gzip"])
def test_a_damaged_archive_is_named(nowhere: Path, raw: Path, damage: str) -> None:
    folder = packed(raw, nowhere / "named")
    victim = folder / "train-labels-idx1-ubyte.gz"
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"<html>404</html>")
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz is truncated or not a gzip file"):
        data.fetch(folder)
    assert not (nowhere / "project" / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte").exists()


@pytest.mark.skipif(not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="needs Debian's package tools")
def test_debians_package_is_fetched_and_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    try:
        with data._debian_download() as folder:
            assert data._raw_folder(folder) == folder
    except RuntimeError as error:
        if "apt-get" in str(error):
            pytest.skip(f"no Debian mirror here that has the package: {error}")
        raise
    except subprocess.TimeoutExpired:
        pytest.skip("the Debian mirror did not answer")
