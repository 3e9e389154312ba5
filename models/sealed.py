"""The files of a bundle, read and verified; without torch, so that a bad bundle is found before that is imported."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from models.records import CALIBRATION_FORMAT, CARD_FORMAT, Calibration, Card, Record

__all__ = [
    "CALIBRATION",
    "CARD",
    "FILES",
    "PRETRAINED",
    "REPORT",
    "SCORES",
    "WEIGHTS",
    "BundleError",
    "BundleFiles",
    "digest",
    "locate",
    "read",
    "sealed",
    "version_of",
]

WEIGHTS = "weights.safetensors"
CARD = "card.json"
CALIBRATION = "calibration.json"
SCORES = "calibration-{}.safetensors"
"""Named by the checksum it has, so that calibration.json changes from one such file to the next in one step."""
REPORT = "report-{}.html.gz"
"""Named by the bundle's version that it is of."""
FILES = (WEIGHTS, CARD, CALIBRATION, SCORES.format("*"), REPORT.format("*"))
"""What a bundle's folder holds, as patterns of names."""
PRETRAINED = Path(__file__).parent / "pretrained"


class BundleError(Exception):
    """A bundle that can't be found, read or trusted; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class BundleFiles:
    """What a bundle's folder holds, verified: the ``weights`` and ``scores`` as the content of safetensors files.

    There are ``scores`` if there is a ``calibration``; ``remedy`` says how to mend what is wrong with these two.
    """

    folder: Path
    card: Card
    weights: bytes
    calibration: Calibration | None
    scores: bytes | None
    remedy: str


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


def read(name_or_folder: str | Path, *, calibrated: bool = True) -> BundleFiles:
    """Read and verify the files of a bundle, by the name of a shipped one or by its folder.

    Without ``calibrated`` its calibration is not looked at, whatever its state. Raises :class:`BundleError` if a file
    is missing, corrupt, altered, of another format or belongs to another bundle.
    """
    folder = locate(name_or_folder)
    card = _unsealed(folder / CARD, Card, CARD_FORMAT)
    weights = _read_bytes(folder / WEIGHTS)
    found = hashlib.sha256(weights).hexdigest()
    if found != card.weights_sha256:
        raise BundleError(
            f"{folder / WEIGHTS} is corrupt or belongs to another bundle: sha256 {found}, {CARD} says "
            f"{card.weights_sha256}"
        )
    remedy = f"fit it anew with `python -m calibration fit {name_or_folder}`"
    if not (calibrated and (folder / CALIBRATION).exists()):
        return BundleFiles(folder, card, weights, None, None, remedy)
    calibration = _unsealed(folder / CALIBRATION, Calibration, CALIBRATION_FORMAT, remedy)
    if calibration.weights_sha256 != card.weights_sha256:
        raise BundleError(f"{folder / CALIBRATION} was fitted for other weights than those in this bundle; {remedy}")
    path = folder / SCORES.format(calibration.scores_sha256[:12])
    scores = _read_bytes(path)
    if hashlib.sha256(scores).hexdigest() != calibration.scores_sha256:
        raise BundleError(f"{path} is corrupt: its sha256 is not the one in {CALIBRATION}; {remedy}")
    return BundleFiles(folder, card, weights, calibration, scores, remedy)


def version_of(card: Card, calibration: Calibration | None) -> str:
    """Twelve hexadecimal digits that change when the weights, the card or the calibration do."""
    parts = [digest(card), digest(calibration) if calibration else ""]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


RecordT = TypeVar("RecordT", Card, Calibration)


def digest(record: Record) -> str:
    """The SHA-256 of the record's content."""
    canonical = json.dumps(record.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def sealed(record: Record) -> str:
    """The record as JSON, with its checksum."""
    return json.dumps(record.model_dump(mode="json") | {"sha256": digest(record)}, indent=2) + "\n"


def _unsealed(path: Path, kind: type[RecordT], known: int, remedy: str = "") -> RecordT:
    try:
        fields = json.loads(_read_bytes(path))
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
    if seal != digest(record):
        raise BundleError(f"{path} was altered after it was written: its content no longer has the sha256 it states")
    return record


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing: this folder is not a whole bundle") from error
    except OSError as error:
        raise BundleError(f"{path} can't be read: {error.strerror}") from error
