"""The bundle: a folder that holds a trained network and all that is needed to trust and use it.

    weights.safetensors   the parameters
    card.json             architecture, classes, normalisation, training recipe, data, metrics, versions, checksums
    calibration.json      temperatures per test-time strategy, once calibrated

Both JSON files carry a ``sha256`` of their own content, ``card.json`` that of the weights, and ``calibration.json``
that of the weights it was fitted for, so that whatever was corrupted, mixed up or edited is noticed by :func:`load`.
Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor, nn

from models import networks, storage

__all__ = [
    "PRETRAINED",
    "Bundle",
    "BundleError",
    "Calibration",
    "Card",
    "DataRecord",
    "InputRecord",
    "MaskDesign",
    "NetworkRecord",
    "TemperatureRecord",
    "TrainingRecord",
    "load",
    "locate",
    "save_calibration",
    "software_versions",
    "write",
]

FORMAT = 1
WEIGHTS = "weights.safetensors"
CARD = "card.json"
CALIBRATION = "calibration.json"
PRETRAINED = Path(__file__).parent / "pretrained"


class BundleError(Exception):
    """A bundle that can't be found, read or trusted; the message names the file and what is wrong with it."""


MaskDesign = Literal["independent", "antithetic", "latin_hypercube", "orthogonal"]
"""How the sub-networks of an ensemble depend on each other; see :mod:`calibration.masks`."""


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class NetworkRecord(Record):
    """What :func:`models.networks.build` needs."""

    name: str
    arguments: dict[str, Any]
    parameters: int = Field(description="number of trainable parameters")


class InputRecord(Record):
    """Pixels 0..255 become ``(pixel / 255 - mean) / std``."""

    shape: tuple[int, int] = (28, 28)
    mean: float = 0.5
    std: float = Field(default=0.5, gt=0)

    @field_validator("shape", mode="before")
    @classmethod
    def _tuple(cls, shape: object) -> object:
        return tuple(shape) if isinstance(shape, list) else shape


class TrainingRecord(Record):
    """The recipe, and how the run ended. ``seed`` draws initial weights, the order of examples and dropout."""

    optimizer: Literal["adam"]
    learning_rate: float
    batch_size: int
    epochs: int = Field(description="epochs asked for")
    seed: int
    early_stopping: bool
    patience: int
    epochs_run: int
    best_epoch: int = Field(description="the epoch whose weights these are, from 1")
    stopped: Literal["completed", "early", "diverged"]


class DataRecord(Record):
    """``sha256`` are those of the unpacked idx files."""

    name: str
    sha256: dict[str, str]
    split_seed: int
    train: int
    validation: int
    calibration: int


class Card(Record):
    """All that is known about the weights, except their calibration."""

    format: int = FORMAT
    name: str
    network: NetworkRecord
    classes: tuple[str, ...]
    input: InputRecord
    training: TrainingRecord
    data: DataRecord
    metrics: dict[str, float]
    versions: dict[str, str]
    weights_sha256: str

    @field_validator("classes", mode="before")
    @classmethod
    def _tuple(cls, classes: object) -> object:
        return tuple(classes) if isinstance(classes, list) else classes


class TemperatureRecord(Record):
    """One strategy's temperature: its probabilities are raised to the power 1 / temperature and normalised.

    ``nll_before`` and ``nll_after`` are mean negative log-likelihoods, in nats, on the images it was fitted on.
    """

    temperature: float = Field(gt=0)
    nll_before: float
    nll_after: float


class Calibration(Record):
    """How far to trust the network: what was fitted, on which images, with which sub-networks."""

    format: int = FORMAT
    weights_sha256: str
    images: int
    samples: int
    seed: int
    design: MaskDesign
    strategies: dict[str, TemperatureRecord]
    versions: dict[str, str]

    def temperature(self, strategy: str) -> float:
        """The fitted temperature of ``strategy``; 1.0, which changes nothing, if none was fitted."""
        return self.strategies[strategy].temperature if strategy in self.strategies else 1.0


@dataclass(frozen=True)
class Bundle:
    """A loaded and verified bundle. ``network`` is in eval mode and must be left so: it may serve many threads."""

    path: Path
    network: nn.Module
    card: Card
    calibration: Calibration | None

    @property
    def version(self) -> str:
        """Twelve hexadecimal digits that change when the weights, the card or the calibration do."""
        parts = [_digest(self.card), _digest(self.calibration) if self.calibration else ""]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]

    def prepare(self, pixels: Tensor) -> Tensor:
        """Pixels ``[B, 28, 28]`` in 0..255 (uint8 or float) as the float32 input that the network was trained on."""
        return normalise(pixels, self.card.input)

    def temperature(self, strategy: str) -> float:
        """The fitted temperature of ``strategy``; 1.0 for an uncalibrated bundle."""
        return self.calibration.temperature(strategy) if self.calibration else 1.0


def normalise(pixels: Tensor, record: InputRecord) -> Tensor:
    """``(pixels / 255 - mean) / std`` as float32; any shape."""
    return pixels.float().div(255).sub_(record.mean).div_(record.std)


def software_versions() -> dict[str, str]:
    """Versions of Python, of this project and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("dropout-uncertainty", "torch", "torchvision", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write(folder: Path, network: nn.Module, card: Mapping[str, Any]) -> Card:
    """Write ``network`` and its card into ``folder``, which should come from :func:`models.storage.new_folder`.

    ``card`` has the fields of :class:`Card` but for the format and the weights' checksum, which are filled in.
    """
    weights = safetensors.torch.save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    storage.write_bytes(folder / WEIGHTS, weights)
    full = Card(**card, weights_sha256=hashlib.sha256(weights).hexdigest())
    storage.write_text(folder / CARD, _sealed(full))
    return full


def save_calibration(bundle: Bundle, calibration: Calibration) -> Bundle:
    """Store ``calibration`` in the bundle's folder, in place of any before it, and return the calibrated bundle."""
    storage.write_text(bundle.path / CALIBRATION, _sealed(calibration))
    return Bundle(bundle.path, bundle.network, bundle.card, calibration)


def locate(name_or_folder: str | Path) -> Path:
    """The folder of a shipped bundle by its name, or the folder itself.

    Raises :class:`BundleError` that lists the shipped names if there is neither.
    """
    shipped = sorted(path.parent.name for path in PRETRAINED.glob(f"*/{CARD}"))
    if str(name_or_folder) in shipped:
        return PRETRAINED / name_or_folder
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder
    raise BundleError(
        f"no bundle {str(name_or_folder)!r}: it is neither a folder nor one of those that ship "
        f"({', '.join(shipped) or 'none'})"
    )


def load(name_or_folder: str | Path) -> Bundle:
    """Load and verify a bundle, by the name of a shipped one or by its folder.

    Raises :class:`BundleError` if a file is missing, corrupt, altered, of a newer format or does not fit the others.
    """
    folder = locate(name_or_folder)
    card = _unsealed(folder / CARD, Card)
    network = _network(folder / WEIGHTS, card)
    calibration = None
    if (folder / CALIBRATION).exists():
        calibration = _unsealed(folder / CALIBRATION, Calibration)
        if calibration.weights_sha256 != card.weights_sha256:
            raise BundleError(
                f"{folder / CALIBRATION} was fitted for other weights than those in this bundle; "
                f"fit it anew with `python -m calibration fit {folder}`"
            )
    return Bundle(folder, network, card, calibration)


def _network(path: Path, card: Card) -> nn.Module:
    content = _read(path)
    found = hashlib.sha256(content).hexdigest()
    if found != card.weights_sha256:
        raise BundleError(
            f"{path} is corrupt or belongs to another bundle: sha256 {found}, {CARD} says {card.weights_sha256}"
        )
    try:
        network = networks.build(card.network.name, card.network.arguments)
    except (ValueError, TypeError) as error:
        raise BundleError(f"{path.parent / CARD} describes a network that can't be built: {error}") from error
    try:
        state = safetensors.torch.load(content)
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
        outputs = network(torch.zeros(1, *card.input.shape)).shape
    except RuntimeError as error:
        raise BundleError(f"{path}: {card.network.name} does not take images of {card.input.shape}: {error}") from error
    if outputs != (1, len(card.classes)):
        raise BundleError(f"{path} names {len(card.classes)} classes, the network's output is {tuple(outputs)}")


RecordT = TypeVar("RecordT", Card, Calibration)


def _digest(record: Record) -> str:
    canonical = json.dumps(record.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _sealed(record: Record) -> str:
    return json.dumps(record.model_dump(mode="json") | {"sha256": _digest(record)}, indent=2) + "\n"


def _unsealed(path: Path, kind: type[RecordT]) -> RecordT:
    try:
        fields = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BundleError(f"{path} should hold a JSON object, not {type(fields).__name__}")
    if isinstance(found := fields.get("format"), int) and found > FORMAT:
        raise BundleError(
            f"{path} has format {found}, this release reads up to {FORMAT}: it was written by a newer release; upgrade"
        )
    seal = fields.pop("sha256", None)
    try:
        record = kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path} is not a valid {kind.__name__.lower()}: {where}: {first['msg']}") from error
    if seal != _digest(record):
        raise BundleError(f"{path} was altered after it was written: its content no longer has the sha256 it states")
    return record


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing: this folder is not a whole bundle") from error
    except OSError as error:
        raise BundleError(f"{path} can't be read: {error.strerror}") from error
