"""Fashion-MNIST in memory: found or fetched, verified by checksum, split by seed.

Xiao, Rasul & Vollgraf (2017), "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms".
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models import storage

__all__ = [
    "CHECKSUMS",
    "CLASSES",
    "DEFAULT_SPLIT_SEED",
    "DataError",
    "FashionMNISTSplits",
    "LabelledImages",
    "bounded_silence",
    "fetch",
    "last_line",
    "load",
    "load_test",
    "read_verified",
]

NAME = "Fashion-MNIST"
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DEFAULT_SPLIT_SEED = 0
ENVIRONMENT_VARIABLE = "FASHION_MNIST_DIR"
PROJECT_FOLDER = Path(__file__).resolve().parent.parent / "data"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DOWNLOAD_TIMEOUT = 60.0
"""Seconds that torchvision's download may stay silent."""
PACKAGE_TIMEOUT = 90.0
"""Seconds that each step of fetching Debian's package may take."""

CHECKSUMS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
"""SHA-256 of the unpacked files. The packed ones differ from one distributor to another."""


class DataError(Exception):
    """The data can't be found, fetched or trusted; the message says which file, why, and what to do."""


@dataclass(frozen=True)
class LabelledImages:
    """``pixels`` uint8 ``[N, 28, 28]``, white on black, and ``labels`` int64 ``[N]``, indices into :data:`CLASSES`; of
    one's own data ``[N, *shape]``, uint8 or float32, and indices into the classes of a card."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> LabelledImages:
        return LabelledImages(self.pixels[index], self.labels[index])


@dataclass(frozen=True)
class FashionMNISTSplits:
    """The 60,000 training images in three disjoint parts, and the 10,000 test images, for reports alone."""

    train: LabelledImages
    validation: LabelledImages
    calibration: LabelledImages
    test: LabelledImages
    split_seed: int


def load(folder: Path | None = None, *, split_seed: int = DEFAULT_SPLIT_SEED) -> FashionMNISTSplits:
    """Fashion-MNIST, fetched first if it must be: 50,000 train, 5,000 validation, 5,000 calibration, 10,000 test.

    ``folder`` is used and nothing else if given; see :func:`fetch` for the order otherwise. The same ``split_seed``
    gives the same split on every machine.
    """
    root = fetch(folder)
    everything = _read(root, train=True)
    order = torch.from_numpy(np.random.default_rng(split_seed).permutation(len(everything)))
    train, validation, calibration = (everything[part] for part in order.split([50_000, 5_000, 5_000]))
    return FashionMNISTSplits(train, validation, calibration, _read(root, train=False), split_seed)


def load_test(folder: Path | None = None) -> LabelledImages:
    """The 10,000 test images alone."""
    return _read(fetch(folder), train=False)


def fetch(folder: Path | None = None) -> Path:
    """Find or fetch the four files, verify them, and return the root that torchvision reads them from.

    In this order: ``folder``, or that in ``$FASHION_MNIST_DIR``; the project's own ``data`` folder; the folder of
    Debian's package; torchvision's download; that Debian package, downloaded and unpacked without root rights. A
    folder may hold the files packed or unpacked, directly or in torchvision's ``FashionMNIST/raw``. Files that are
    packed are unpacked into the project's ``data`` folder.

    Raises :class:`DataError` that names the file, or every source that was tried.
    """
    if folder is None and (named := os.environ.get(ENVIRONMENT_VARIABLE)):
        folder = Path(named)
    if folder is not None:
        raw = _raw_folder(folder)
        if raw is None:
            raise DataError(
                f"{folder} does not hold {NAME}: expected {', '.join(CHECKSUMS)} there or in FashionMNIST/raw, "
                f"packed with .gz or not, but {_first_missing(folder)} is missing. Without that folder named, the "
                "files are found or fetched by `python -m training data`"
            )
        return _install(raw)
    for place in (PROJECT_FOLDER, DEBIAN_FOLDER):
        if raw := _raw_folder(place):
            return _install(raw)
    failures = []
    for name, source in (
        ("torchvision's download", _torchvision_download),
        ("Debian's package", _debian_download),
    ):
        try:
            with source() as raw:
                return _install(raw)
        except (DataError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            failures.append(f"{name}: {last_line(error)}")
    raise DataError(
        f"{NAME} is neither in {PROJECT_FOLDER} nor in {DEBIAN_FOLDER}, and could not be fetched. "
        + "; ".join(failures)
        + f". Put {', '.join(f'{file}.gz' for file in CHECKSUMS)} into a folder and name it with --data "
        f"or ${ENVIRONMENT_VARIABLE}"
    )


def _raw_folder(folder: Path) -> Path | None:
    """Where in ``folder`` the four files lie, packed or not, if they all do."""
    for raw in (folder / "FashionMNIST" / "raw", folder):
        if all((raw / file).exists() or (raw / f"{file}.gz").exists() for file in CHECKSUMS):
            return raw
    return None


def _first_missing(folder: Path) -> str:
    raw = folder / "FashionMNIST" / "raw"
    raw = raw if raw.is_dir() else folder
    return str(next(raw / file for file in CHECKSUMS if not ((raw / file).exists() or (raw / f"{file}.gz").exists())))


def _install(raw: Path) -> Path:
    """Verify the files in ``raw``; unless torchvision can read them there, unpack them into the project's folder."""
    if raw.parent.name == "FashionMNIST" and raw.name == "raw" and all((raw / file).exists() for file in CHECKSUMS):
        for file, checksum in CHECKSUMS.items():
            read_verified(raw / file, checksum, _remedy(raw / file))
        return raw.parent.parent
    destination = PROJECT_FOLDER / "FashionMNIST" / "raw"
    for file, checksum in CHECKSUMS.items():
        source = raw / file if (raw / file).exists() else raw / f"{file}.gz"
        content = read_verified(source, checksum, _remedy(source))
        if not _has_checksum(destination / file, file):
            storage.write_bytes(destination / file, content)
    return PROJECT_FOLDER


def read_verified(path: Path, sha256: str, remedy: str) -> bytes:
    """The content of ``path``, unpacked if its name ends in .gz.

    Raises :class:`DataError`, which names ``path`` and ends with ``remedy``, unless the unpacked content has the
    checksum ``sha256``.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path} is truncated or not a gzip file ({error}). {remedy}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path} is truncated or altered: its {len(content):,} bytes have SHA-256 {found}, "
            f"expected {sha256}. {remedy}"
        )
    return content


def _has_checksum(path: Path, file: str) -> bool:
    return path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == CHECKSUMS[file]


def _remedy(path: Path) -> str:
    return f"Delete {path} and run `python -m training data`, which finds or fetches {NAME}"


@contextmanager
def _torchvision_download() -> Iterator[Path]:
    from training.torchvision_compat import FashionMNIST  # noqa: PLC0415  (takes seconds to import)

    with tempfile.TemporaryDirectory() as folder:
        with bounded_silence(DOWNLOAD_TIMEOUT):
            FashionMNIST(folder, download=True)
        yield Path(folder) / "FashionMNIST" / "raw"


@contextmanager
def bounded_silence(seconds: float) -> Iterator[None]:
    """Within it, a new socket that stays silent for ``seconds`` raises ``TimeoutError``."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _debian_download() -> Iterator[Path]:
    """``apt-get download`` with package lists of its own, which needs no root rights and no earlier update."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise RuntimeError("apt-get and dpkg-deb are not on this machine")
    with tempfile.TemporaryDirectory() as folder:
        lists = Path(folder) / "lists"
        lists.mkdir()
        options = [
            "-o",
            f"Dir::State::Lists={lists}",
            "-o",
            f"Dir::Cache={folder}",
            "-o",
            "APT::Sandbox::User=",
        ]
        for command in (
            ["apt-get", *options, "-qq", "update"],
            ["apt-get", *options, "-qq", "download", DEBIAN_PACKAGE],
        ):
            _run(command, folder)
        package = next(Path(folder).glob(f"{DEBIAN_PACKAGE}_*.deb"))
        _run(["dpkg-deb", "-x", str(package), "unpacked"], folder)
        yield Path(folder) / "unpacked" / DEBIAN_FOLDER.relative_to("/")


def _run(command: list[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PACKAGE_TIMEOUT, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"`{command[0]}` ended with {done.returncode}: {done.stderr.strip()}")


def last_line(error: Exception) -> str:
    """The last line of the message, or the exception's name if it has none: the cause, in torchvision's and apt's."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _read(root: Path, *, train: bool) -> LabelledImages:
    from training.torchvision_compat import FashionMNIST  # noqa: PLC0415  (takes seconds to import)

    dataset = FashionMNIST(root, train=train, download=False)
    return LabelledImages(dataset.data, dataset.targets)
