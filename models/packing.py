"""Bundles as they are sent to other machines."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from models import bundle as bundles
from models.bundle import Bundle
from models.networks import own
from models.sealed import CALIBRATION, CARD, SCORES, WEIGHTS

__all__ = ["PackedBundle"]


@dataclass(frozen=True)
class PackedBundle:
    """The files of a bundle that was loaded, with their content, but for its report, and its calibration if it was
    loaded without; and the networks of the user's own that this
    process trusts."""

    files: tuple[tuple[str, bytes], ...]
    trusted: frozenset[str]

    @classmethod
    def of(cls, bundle: Bundle) -> PackedBundle:
        """What is in the bundle's folder now."""
        wanted = [WEIGHTS, CARD] if bundle.calibration is None else [WEIGHTS, CARD, CALIBRATION, SCORES.format("*")]
        files = sorted(
            file for file in bundle.path.iterdir() if any(fnmatchcase(file.name, pattern) for pattern in wanted)
        )
        return cls(tuple((file.name, file.read_bytes()) for file in files), own.trusted())

    def load(self) -> Bundle:
        """The bundle, in another process: verified, as :func:`models.bundle.load` does, and from then on trusting the
        same networks. Its path is one that is there no more."""
        for name in self.trusted:
            own.trust(name)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self.files:
                (Path(folder) / name).write_bytes(content)
            return bundles.load(folder)
