"""The bundle: a folder that holds a trained network and all that is needed to trust and use it.

    weights.safetensors          the parameters
    card.json                    architecture, classes, normalisation, training recipe, data, metrics, checksums
    calibration.json             per test-time strategy temperature and abstention, once calibrated
    calibration-....safetensors  what the calibrated strategies said of the calibration images
    report-....html.gz           the calibration report of the version that its name holds, if it was attached

Both JSON files carry a ``sha256`` of their own content, ``card.json`` that of the weights, and ``calibration.json``
those of the weights it was fitted for and of the file beside it, so that whatever was corrupted, mixed up or edited is
noticed by :func:`load`. The records are in :mod:`models.records`.
Nothing is ever unpickled.
"""

from __future__ import annotations

import gzip
import hashlib
import platform
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from models import networks, sealed, storage
from models.records import CONFORMAL_METHODS, Calibration, Card, ConformalMethod, InputRecord, Scaling
from models.sealed import (
    CALIBRATION,
    CARD,
    FILES,
    PRETRAINED,
    REPORT,
    SCORES,
    WEIGHTS,
    BundleError,
    BundleFiles,
    locate,
    version_of,
)

__all__ = [
    "CARD",
    "FILES",
    "PRETRAINED",
    "Bundle",
    "BundleError",
    "CalibrationScores",
    "FeatureDensity",
    "StrategyScores",
    "attach_report",
    "attached_report",
    "load",
    "locate",
    "normalise",
    "save_calibration",
    "save_card",
    "software_versions",
    "write",
]

SCORE_FIELDS = ("confidence", "correct", "total", "epistemic")
DENSITY = "density."
"""Before the names of a density's tensors."""


@dataclass(frozen=True)
class StrategyScores:
    """What one calibrated strategy said of the n calibration images, ``[n]``.

    ``nonconformity`` of the true label by each conformal method (float64: rounded, ties would be lost), from which a
    prediction set of any coverage follows;
    ``confidence`` and whether it was ``correct`` (bool), from which any threshold for abstention; ``total`` and
    ``epistemic`` uncertainty in nats, to compare with that of what is met later.
    """

    nonconformity: Mapping[ConformalMethod, Tensor]
    confidence: Tensor
    correct: Tensor
    total: Tensor
    epistemic: Tensor


@dataclass(frozen=True)
class FeatureDensity:
    """What :mod:`calibration.novelty` compares an image with: the training images in K discriminant directions of the
    network's D features, scaled to a variance of 1 within each of the C classes. All float64.

    ``centre`` ``[D]`` is the features' mean, ``directions`` ``[D, K]`` what projects them after it is taken away;
    ``means`` ``[C, K]`` are the classes', ``background`` ``[K]`` the variances of all classes together, and
    ``calibration`` ``[n]`` the relative distances of the calibration images, ascending.
    """

    centre: Tensor
    directions: Tensor
    means: Tensor
    background: Tensor
    calibration: Tensor


@dataclass(frozen=True)
class CalibrationScores:
    """The ``labels`` of the calibration images that thresholds come from (int64 ``[n]``), each strategy's scores of
    them, and the ``density`` of the training images' features, if one was fitted."""

    labels: Tensor
    strategies: Mapping[str, StrategyScores]
    density: FeatureDensity | None = None


@dataclass(frozen=True)
class Bundle:
    """A loaded and verified bundle. ``network`` is in eval mode and must be left so: it may serve many threads."""

    path: Path
    network: nn.Module
    card: Card
    calibration: Calibration | None = None
    scores: CalibrationScores | None = None
    """What the calibrated strategies said of the calibration images; there is one if there is a calibration."""

    @cached_property
    def version(self) -> str:
        """Twelve hexadecimal digits that change when the weights, the card or the calibration do."""
        return version_of(self.card, self.calibration)

    def prepare(self, pixels: Tensor) -> Tensor:
        """Pixels ``[B, *shape]`` in the card's range (uint8 or float) as the float32 input that the network was trained
        on."""
        return normalise(pixels, self.card.input)

    def scaling(self, strategy: str) -> Scaling:
        """The fitted temperature of ``strategy``; that of 1, which changes nothing, for an uncalibrated bundle."""
        return self.calibration.scaling(strategy) if self.calibration else Scaling()


def normalise(pixels: Tensor, record: InputRecord) -> Tensor:
    """``(pixels / maximum - mean) / std`` as float32, of ``[B, *shape]``."""
    scaled = pixels.float().div(record.maximum)
    return scaled.sub_(_by_channel(record.mean)).div_(_by_channel(record.std))


def _by_channel(values: float | tuple[float, ...]) -> float | Tensor:
    return values if isinstance(values, float) else torch.tensor(values).view(-1, 1, 1)


def software_versions() -> dict[str, str]:
    """Versions of Python, of this project and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("dropout-uncertainty", "torch", "torchvision", "numpy", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write(folder: Path, network: nn.Module, card: Mapping[str, Any]) -> Card:
    """Write ``network`` and its card into ``folder``, which should come from :func:`models.storage.new_folder`.

    ``card`` has the fields of :class:`Card` but for the format and the weights' checksum, which are filled in.
    """
    weights = safetensors.torch.save(
        # Each of its own, for safetensors refuses two names for one tensor, as tied weights have.
        {name: tensor.clone().contiguous() for name, tensor in network.state_dict().items()}
    )
    storage.write_bytes(folder / WEIGHTS, weights)
    full = Card(**card, weights_sha256=hashlib.sha256(weights).hexdigest())
    storage.write_text(folder / CARD, sealed.sealed(full))
    return full


def save_card(bundle: Bundle, card: Card) -> Bundle:
    """Store another card for the same weights in the bundle's folder, and return the bundle with it."""
    storage.write_text(bundle.path / CARD, sealed.sealed(card))
    return replace(bundle, card=card)


def save_calibration(bundle: Bundle, calibration: Calibration, scores: CalibrationScores) -> Bundle:
    """Store a calibration in the bundle's folder, in place of any before it, and return the calibrated bundle.

    The checksum of the scores in ``calibration`` is filled in.
    """
    content = safetensors.torch.save(_tensors(scores))
    digest = hashlib.sha256(content).hexdigest()
    calibration = calibration.model_copy(update={"scores_sha256": digest})
    current = bundle.path / SCORES.format(digest[:12])
    storage.write_bytes(current, content)
    storage.write_text(bundle.path / CALIBRATION, sealed.sealed(calibration))
    for old in bundle.path.glob(SCORES.format("*")):
        if old != current:
            old.unlink()
    return replace(bundle, calibration=calibration, scores=scores)


def attach_report(bundle: Bundle, page: str) -> None:
    """Store the calibration report of this version, an HTML ``page``, in the bundle's folder, in place of any other."""
    current = bundle.path / REPORT.format(bundle.version)
    storage.write_bytes(current, gzip.compress(page.encode(), mtime=0))
    for old in bundle.path.glob(REPORT.format("*")):
        if old != current:
            old.unlink()


def attached_report(bundle: Bundle) -> str | None:
    """The report of this version, if there is one. Raises :class:`BundleError` if it can't be read."""
    path = bundle.path / REPORT.format(bundle.version)
    if not path.exists():
        return None
    try:
        return gzip.decompress(path.read_bytes()).decode()
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise BundleError(f"{path} can't be read: {error}") from error


def _tensors(scores: CalibrationScores) -> dict[str, Tensor]:
    tensors = {"labels": scores.labels}
    for name, strategy in scores.strategies.items():
        tensors |= {f"{name}.{method}": values for method, values in strategy.nonconformity.items()}
        tensors |= {f"{name}.{field}": getattr(strategy, field) for field in SCORE_FIELDS}
    if scores.density is not None:
        tensors |= {DENSITY + part.name: getattr(scores.density, part.name) for part in fields(scores.density)}
    # Each of its own, for safetensors refuses two names for one tensor.
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def load(name_or_folder: str | Path, *, calibrated: bool = True) -> Bundle:
    """Load and verify a bundle, by the name of a shipped one or by its folder.

    Without ``calibrated`` its calibration is not looked at, whatever its state. Raises :class:`BundleError` if a file
    is missing, corrupt, altered, of another format or does not fit the others.
    """
    files = sealed.read(name_or_folder, calibrated=calibrated)
    return Bundle(files.folder, _network(files), files.card, files.calibration, _scores(files))


def _scores(files: BundleFiles) -> CalibrationScores | None:
    if files.calibration is None or files.scores is None:
        return None
    try:
        tensors = safetensors.torch.load(files.scores)
        return CalibrationScores(
            tensors["labels"],
            {
                name: StrategyScores(
                    {method: tensors[f"{name}.{method}"] for method in CONFORMAL_METHODS},
                    *(tensors[f"{name}.{field}"] for field in SCORE_FIELDS),
                )
                for name in files.calibration.strategies
            },
            FeatureDensity(*(tensors[DENSITY + part.name] for part in fields(FeatureDensity)))
            if any(name.startswith(DENSITY) for name in tensors)
            else None,
        )
    except (KeyError, safetensors.SafetensorError) as error:
        path = files.folder / SCORES.format(files.calibration.scores_sha256[:12])
        raise BundleError(
            f"{path} does not hold the scores of {CALIBRATION}'s strategies: {error}; {files.remedy}"
        ) from error


def _network(files: BundleFiles) -> nn.Module:
    card, path = files.card, files.folder / WEIGHTS
    try:
        network = networks.build(card.network.name, card.network.arguments)
    except (ValueError, TypeError) as error:
        raise BundleError(f"{path.parent / CARD} describes a network that can't be built: {error}") from error
    try:
        state = safetensors.torch.load(files.weights)
        network.load_state_dict(state, assign=True)
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise BundleError(f"{path} does not hold the weights of {card.network.name}: {error}") from error
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise BundleError(f"{path} holds values that are not finite in {name}")
    network.eval().requires_grad_(False)
    _check_card(path.parent / CARD, card, network)
    return network


def _check_card(path: Path, card: Card, network: nn.Module) -> None:
    """What the card says of the network must be so: its parameters, the shape of its input, its classes."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if parameters != card.network.parameters:
        raise BundleError(f"{path} says {card.network.parameters:,} parameters, the weights have {parameters:,}")
    try:
        with torch.inference_mode():
            outputs = network(torch.zeros(1, *card.input.shape))
    except Exception as error:  # It may be the user's own code.
        raise BundleError(f"{path}: {card.network.name} does not take images of {card.input.shape}: {error}") from error
    found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if found != (1, len(card.classes)):
        raise BundleError(f"{path} names {len(card.classes)} classes, the network's output is {found}")
