"""Images that are out of distribution: what a calibrated network should be uncertain about."""

from __future__ import annotations

import http.client
import os
import string
import tempfile
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from models import storage
from models.records import InputRecord
from training import data
from training.data import DataError

__all__ = ["MNIST_FILE", "MNIST_SHA256", "Outliers", "fetch_mnist", "load_outliers", "noise_sets", "selection_sets"]

MNIST_FILE = "t10k-images-idx3-ubyte"
MNIST_SHA256 = "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
"""Of the unpacked file. Fashion-MNIST's file has the same name and another checksum."""
ENVIRONMENT_VARIABLE = "MNIST_DIR"
BY_HAND = f"put {MNIST_FILE}.gz into a folder and name it with ${ENVIRONMENT_VARIABLE}"
IDX_HEADER = 16
"""Bytes before the first pixel of an idx file of three dimensions."""
DOWNLOAD_TIMEOUT = 10.0
"""Seconds that the download may stay silent; few, since the report can do without it."""
NOISE_IMAGES = 2_000
CONSTANT_IMAGES = 256
SELECTION_IMAGES = 1_500
FASHION_MEAN, FASHION_SD = 72.94, 90.02
"""Of the pixels of Fashion-MNIST's training images, in grey levels."""


@dataclass(frozen=True)
class Outliers:
    """``sets``: uint8 ``[N, 28, 28]`` by name, see :func:`load_outliers`; ``missing``: the name of each set that can't
    be had, with why and what to do."""

    sets: dict[str, Tensor]
    missing: dict[str, str]


def load_outliers(mnist_folder: Path | None = None, *, seed: int = 0) -> Outliers:
    """The sets that are on this machine; nothing is downloaded. uint8 ``[N, 28, 28]``, white on black:

    ``mnist``           the 10,000 test images of MNIST, from ``mnist_folder`` or that in ``$MNIST_DIR``, else from the
                        project's own ``data`` folder; see :func:`fetch_mnist`
    ``digits``          the 1,797 images of scikit-learn's ``load_digits``, 8x8 in 17 grey levels, enlarged bilinearly
    ``uniform_noise``   2,000 images whose pixels are independent and uniform on 0..255
    ``gaussian_noise``  2,000 images whose pixels are independent and normal with Fashion-MNIST's mean, 72.94, and
                        standard deviation, 90.02, clipped to 0..255
    ``constant``        256 images, each of one grey level: 0, 1, ..., 255

    The noise is decided by ``seed``. Raises :class:`~training.data.DataError` if MNIST's file is damaged.
    """
    sets, missing = {}, {}
    if path := _find_mnist(mnist_folder):
        # The checksum vouches for the header.
        pixels = torch.frombuffer(bytearray(_read_mnist(path)), dtype=torch.uint8, offset=IDX_HEADER)
        sets["mnist"] = pixels.view(-1, 28, 28)
    else:
        places = " nor in ".join(str(folder) for folder in _mnist_folders(mnist_folder))
        missing["mnist"] = (
            f"{MNIST_FILE} is not in {places}, packed with .gz or not. Run `python -m training data`, which fetches "
            f"it, or {BY_HAND}"
        )
    sets["digits"] = _digits()
    return Outliers(sets | noise_sets(InputRecord(), FASHION_MEAN, FASHION_SD, seed=seed), missing)


def noise_sets(
    inputs: InputRecord, mean: float, sd: float, *, dtype: torch.dtype = torch.uint8, images: int = NOISE_IMAGES,
    seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """``uniform_noise``, ``gaussian_noise`` and ``constant`` of :func:`load_outliers` for the images of another
    network: ``[N, *shape]`` of ``dtype``, uint8 or float32, in 0..its maximum, or as far as the type reaches. ``mean``
    and ``sd`` are those of the pixels of its own images; ``images`` the number in the first two sets."""
    random = np.random.default_rng(seed)
    whole = dtype == torch.uint8
    shape, maximum = (images, *inputs.shape), min(inputs.maximum, 255) if whole else inputs.maximum
    if whole:
        uniform = torch.from_numpy(random.integers(0, int(maximum) + 1, shape, dtype=np.uint8))
    else:
        uniform = torch.from_numpy(random.random(shape, dtype=np.float32)) * maximum
    normal = torch.from_numpy(random.normal(mean, sd, shape))
    levels = torch.arange(int(maximum) + 1) if whole else torch.linspace(0, maximum, CONSTANT_IMAGES)
    constant = levels.view(-1, *[1] * len(inputs.shape)).expand(-1, *inputs.shape)
    return {
        "uniform_noise": uniform,
        "gaussian_noise": (normal.round() if whole else normal).clamp(0, maximum).to(dtype),
        "constant": constant.to(dtype).contiguous(),
    }


def selection_sets(*, seed: int = 0) -> dict[str, Tensor]:
    """Sets to choose networks and recipes by, none of which is reported on; uint8 ``[N, 28, 28]``, white on black:

    ``letters``         1,500 letters in the fonts that come with matplotlib, of several sizes, slightly turned
    ``photographs``     1,500 squares out of scikit-learn's two sample photographs, made grey and reduced

    Decided by ``seed``, and by the versions of the packages named, and of Pillow.
    """
    random = np.random.default_rng(seed)
    return {"letters": _letters(random), "photographs": _photographs(random)}


def _letters(random: np.random.Generator) -> Tensor:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = sorted(path for path in folder.glob("DejaVuS*.ttf") if "Display" not in path.name)
    drawn = []
    for _ in range(SELECTION_IMAGES):
        font = ImageFont.truetype(fonts[random.integers(len(fonts))], int(random.integers(16, 27)))
        letter = string.ascii_letters[random.integers(len(string.ascii_letters))]
        picture = Image.new("L", (28, 28))
        ImageDraw.Draw(picture).text((14, 14), letter, int(random.integers(180, 256)), font, anchor="mm")
        drawn.append(np.array(picture.rotate(float(random.normal(0, 12)), Image.Resampling.BILINEAR)))
    return torch.from_numpy(np.stack(drawn))


def _photographs(random: np.random.Generator) -> Tensor:
    cut = []
    for photograph in load_sample_images().images:
        grey = torch.tensor(photograph).float().mean(2)
        for _ in range(SELECTION_IMAGES // 2):
            side = int(random.integers(28, 200))
            top, left = (int(random.integers(length - side)) for length in grey.shape)
            square = grey[top : top + side, left : left + side]
            cut.append(F.interpolate(square[None, None], (28, 28), mode="area")[0, 0])
    return torch.stack(cut).round().to(torch.uint8)


def fetch_mnist() -> Path:
    """The verified file of MNIST's test images: from ``$MNIST_DIR`` or the project's own ``data`` folder, else
    downloaded by torchvision into the latter, where a damaged file is replaced.

    Raises :class:`~training.data.DataError` if the file in ``$MNIST_DIR`` is damaged, or if there is none and none
    can be fetched.
    """
    raw = data.PROJECT_FOLDER / "MNIST" / "raw"
    if path := _find_mnist():
        try:
            _read_mnist(path)
        except DataError:
            if path.parent != raw:
                raise
        else:
            return path
    try:
        storage.write_bytes(raw / MNIST_FILE, _download_mnist())
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise DataError(f"MNIST can't be fetched into {raw} ({data.last_line(error)}). Instead, {BY_HAND}") from error
    return raw / MNIST_FILE


def _mnist_folders(folder: Path | None) -> list[Path]:
    """Where to look, in order. Not directly in the project's folder: Fashion-MNIST's file there has the same name."""
    if folder is None and (named := os.environ.get(ENVIRONMENT_VARIABLE)):
        folder = Path(named)
    own = data.PROJECT_FOLDER / "MNIST" / "raw"
    return [own] if folder is None else [folder / "MNIST" / "raw", folder, own]


def _find_mnist(folder: Path | None = None) -> Path | None:
    places = [place / name for place in _mnist_folders(folder) for name in (MNIST_FILE, f"{MNIST_FILE}.gz")]
    return next((path for path in places if path.exists()), None)


def _read_mnist(path: Path) -> bytes:
    remedy = (
        f"Put MNIST's own {MNIST_FILE} there (Fashion-MNIST's file has the same name), or delete {path} and run "
        "`python -m training data`, which fetches it"
    )
    return data.read_verified(path, MNIST_SHA256, remedy)


def _download_mnist() -> bytes:
    from training.torchvision_compat import MNIST  # noqa: PLC0415  (takes seconds to import)

    with tempfile.TemporaryDirectory() as folder:
        with data.bounded_silence(DOWNLOAD_TIMEOUT):
            MNIST(folder, download=True)
        return _read_mnist(Path(folder) / "MNIST" / "raw" / MNIST_FILE)


def _digits() -> Tensor:
    grey = torch.from_numpy(load_digits().images).float().mul(255 / 16)
    enlarged = F.interpolate(grey[:, None], size=(28, 28), mode="bilinear", align_corners=False)
    return enlarged[:, 0].round().to(torch.uint8)
