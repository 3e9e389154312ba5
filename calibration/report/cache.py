"""Predictions kept between runs of the report, by what they are predictions of.

A file's name is the digest of all that its content depends on: the weights and how they are used, the images, and the
code and packages that compute. It states its own checksum, so that a damaged file is computed anew. A file is written
under another name and then renamed; a cache that can't be written is done without.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

import calibration
import models
import training
from models import storage
from models.bundle import software_versions

__all__ = ["PredictionCache", "default_folder", "digest"]

SUFFIX = ".safetensors"
MOST_BYTES = 1 << 30


def default_folder() -> Path:
    """``dropout-uncertainty`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path.home() / ".cache") / "dropout-uncertainty"


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's content, type and shape."""
    array = tensor.contiguous().numpy()
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()


class PredictionCache:
    """Tensors by key, in ``folder``; nothing is kept if that is ``None``."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def get(self, key: Mapping[str, Any], compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What ``compute`` gives, or gave before for an equal ``key``, which must be representable in JSON."""
        path = self._path(key)
        found = None if path is None else _read(path)
        if found is None:
            found = compute()
            self.put(key, found)
        return found

    def holds(self, key: Mapping[str, Any]) -> bool:
        """Whether something was kept for ``key``, damaged or not."""
        path = self._path(key)
        return path is not None and path.exists()

    def put(self, key: Mapping[str, Any], found: dict[str, Tensor]) -> None:
        """Keep ``found`` for ``key``."""
        path = self._path(key)
        if path is not None:
            try:
                storage.write_bytes(path, _sealed(path.stem, found))
            except OSError:
                self.folder = None

    def _path(self, key: Mapping[str, Any]) -> Path | None:
        if self.folder is None:
            return None
        canonical = json.dumps({**key, "code": _code()}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(canonical.encode()).hexdigest()}{SUFFIX}"

    def prune(self, most_bytes: int = MOST_BYTES) -> None:
        """Remove the files used longest ago, until no more than ``most_bytes`` are left."""
        if self.folder is None or not self.folder.is_dir():
            return
        # Those that a killed run left half-written too, whose names begin with a dot.
        found = []
        for path in [*self.folder.glob(f"*{SUFFIX}"), *self.folder.glob(f".*{SUFFIX}.*")]:
            with suppress(OSError):  # Another run may have removed it.
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
        total = 0
        for _, size, path in sorted(found, reverse=True):
            total += size
            if total > most_bytes:
                with suppress(OSError):
                    path.unlink()


def _seal(name: str, content: bytes) -> bytes:
    """Of the name too: a file that was renamed is not what its new name says."""
    return hashlib.sha256(name.encode() + content).digest()


def _sealed(name: str, tensors: dict[str, Tensor]) -> bytes:
    content = safetensors.torch.save({key: tensor.clone().contiguous() for key, tensor in tensors.items()})
    return _seal(name, content) + content


def _read(path: Path) -> dict[str, Tensor] | None:
    try:
        sealed = path.read_bytes()
    except OSError:
        return None
    with suppress(OSError):  # The cache may be there to be read alone.
        os.utime(path)
    seal, content = sealed[:32], sealed[32:]
    if _seal(path.stem, content) != seal:
        return None
    found: dict[str, Tensor] = safetensors.torch.load(content)
    return found


@cache
def _code() -> str:
    """A digest of the source that predictions come from, and of the versions of what it runs on."""
    seal = hashlib.sha256(json.dumps(software_versions(), sort_keys=True).encode())
    for package in (models, training, calibration):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            seal.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return seal.hexdigest()
