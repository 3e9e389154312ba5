"""The bundle: a folder that holds a trained network and all that is needed to trust and use it.

    weights.safetensors          the parameters
    card.json                    architecture, classes, normalisation, training recipe, data, metrics, checksums
    calibration.json             per test-time strategy temperature and abstention, once calibrated
    calibration-....safetensors  what the calibrated strategies said of the calibration images

Both JSON files carry a ``sha256`` of their own content, ``card.json`` that of the weights, and ``calibration.json``
those of the weights it was fitted for and of the file beside it, so that whatever was corrupted, mixed up or edited is
noticed by :func:`load`. The records are in :mod:`models.records`.
Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from models import networks, storage
from models.records import (
    CALIBRATION_FORMAT,
    CARD_FORMAT,
    CONFORMAL_METHODS,
    Calibration,
    CalibrationScores,
    Card,
    InputRecord,
    Record,
    Scaling,
    StrategyScores,
)

__all__ = [
    "FILES",
    "PRETRAINED",
    "Bundle",
    "BundleError",
    "load",
    "locate",
    "normalise",
    "save_calibration",
    "software_versions",
    "write",
]

WEIGHTS = "weights.safetensors"
CARD = "card.json"
CALIBRATION = "calibration.json"
SCORES = "calibration-{}.safetensors"
"""Named by the checksum it has, so that calibration.json changes from one such file to the next in one step."""
FILES = (WEIGHTS, CARD, CALIBRATION, SCORES.format("*"))
"""What a bundle's folder holds, as patterns of names."""
SCORE_FIELDS = ("confidence", "correct", "total", "epistemic")
PRETRAINED = Path(__file__).parent / "pretrained"


class BundleError(Exception):
    """A bundle that can't be found, read or trusted; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Bundle:
    """A loaded and verified bundle. ``network`` is in eval mode and must be left so: it may serve many threads."""

    path: Path
    network: nn.Module
    card: Card
    calibration: Calibration | None = None
    scores: CalibrationScores | None = None
    """What the calibrated strategies said of the calibration images; there is one if there is a calibration."""

    @property
    def version(self) -> str:
        """Twelve hexadecimal digits that change when the weights, the card or the calibration do."""
        parts = [_digest(self.card), _digest(self.calibration) if self.calibration else ""]
        return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]

    def prepare(self, pixels: Tensor) -> Tensor:
        """Pixels ``[B, 28, 28]`` in 0..255 (uint8 or float) as the float32 input that the network was trained on."""
        return normalise(pixels, self.card.input)

    def scaling(self, strategy: str) -> Scaling:
        """The fitted temperature of ``strategy``; that of 1, which changes nothing, for an uncalibrated bundle."""
        return self.calibration.scaling(strategy) if self.calibration else Scaling()


def normalise(pixels: Tensor, record: InputRecord) -> Tensor:
    """``(pixels / 255 - mean) / std`` as float32; any shape."""
    return pixels.float().div(255).sub_(record.mean).div_(record.std)


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
    weights = safetensors.torch.save({name: tensor.contiguous() for name, tensor in network.state_dict().items()})
    storage.write_bytes(folder / WEIGHTS, weights)
    full = Card(**card, weights_sha256=hashlib.sha256(weights).hexdigest())
    storage.write_text(folder / CARD, _sealed(full))
    return full


def save_calibration(bundle: Bundle, calibration: Calibration, scores: CalibrationScores) -> Bundle:
    """Store a calibration in the bundle's folder, in place of any before it, and return the calibrated bundle.

    The checksum of the scores in ``calibration`` is filled in.
    """
    content = safetensors.torch.save(_tensors(scores))
    digest = hashlib.sha256(content).hexdigest()
    calibration = calibration.model_copy(update={"scores_sha256": digest})
    current = bundle.path / SCORES.format(digest[:12])
    storage.write_bytes(current, content)
    storage.write_text(bundle.path / CALIBRATION, _sealed(calibration))
    for old in bundle.path.glob(SCORES.format("*")):
        if old != current:
            old.unlink()
    return replace(bundle, calibration=calibration, scores=scores)


def _tensors(scores: CalibrationScores) -> dict[str, Tensor]:
    tensors = {"labels": scores.labels}
    for name, strategy in scores.strategies.items():
        tensors |= {f"{name}.{method}": values for method, values in strategy.nonconformity.items()}
        tensors |= {f"{name}.{field}": getattr(strategy, field) for field in SCORE_FIELDS}
    # Each of its own, for safetensors refuses two names for one tensor.
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


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


def load(name_or_folder: str | Path, *, calibrated: bool = True) -> Bundle:
    """Load and verify a bundle, by the name of a shipped one or by its folder.

    Without ``calibrated`` its calibration is not looked at, whatever its state. Raises :class:`BundleError` if a file
    is missing, corrupt, altered, of another format or does not fit the others.
    """
    folder = locate(name_or_folder)
    card = _unsealed(folder / CARD, Card, CARD_FORMAT)
    bundle = Bundle(folder, _network(folder / WEIGHTS, card), card)
    if not (calibrated and (folder / CALIBRATION).exists()):
        return bundle
    remedy = f"fit it anew with `python -m calibration fit {name_or_folder}`"
    calibration = _unsealed(folder / CALIBRATION, Calibration, CALIBRATION_FORMAT, remedy)
    if calibration.weights_sha256 != card.weights_sha256:
        raise BundleError(f"{folder / CALIBRATION} was fitted for other weights than those in this bundle; {remedy}")
    return replace(bundle, calibration=calibration, scores=_scores(folder, calibration, remedy))


def _scores(folder: Path, calibration: Calibration, remedy: str) -> CalibrationScores:
    path = folder / SCORES.format(calibration.scores_sha256[:12])
    content = _read(path)
    if hashlib.sha256(content).hexdigest() != calibration.scores_sha256:
        raise BundleError(f"{path} is corrupt: its sha256 is not the one in {CALIBRATION}; {remedy}")
    try:
        tensors = safetensors.torch.load(content)
        return CalibrationScores(
            tensors["labels"],
            {
                name: StrategyScores(
                    {method: tensors[f"{name}.{method}"] for method in CONFORMAL_METHODS},
                    *(tensors[f"{name}.{field}"] for field in SCORE_FIELDS),
                )
                for name in calibration.strategies
            },
        )
    except (KeyError, safetensors.SafetensorError) as error:
        raise BundleError(
            f"{path} does not hold the scores of {CALIBRATION}'s strategies: {error}; {remedy}"
        ) from error


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


def _unsealed(path: Path, kind: type[RecordT], known: int, remedy: str = "") -> RecordT:
    try:
        fields = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BundleError(f"{path} should hold a JSON object, not {type(fields).__name__}")
    if isinstance(found := fields.get("format"), int) and found > known:
        raise BundleError(
            f"{path} has format {found}, this release reads up to {known}: it was written by a newer release; upgrade"
        )
    if isinstance(found, int) and found < known:
        raise BundleError(f"{path} has format {found}: it was written by an older release; {remedy}")
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
