"""Members of a deep ensemble, trained on an engine."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from models import storage
from models.records import Card
from training import bundling
from training.data import FashionMNISTSplits
from training.engines import Engine, TaskError

__all__ = ["train_members"]


def train_members(
    card: Card, seeds: Sequence[int], out: Path, engine: Engine, splits: FashionMNISTSplits
) -> Iterator[tuple[int, Card | TaskError]]:
    """Train a network as that of ``card`` from each of ``seeds``, write its bundle where
    :func:`training.bundling.load_ensemble` finds it in ``out``, and yield its card, or why there is none, in the order
    in which they end. Workers need no storage that they share with this process."""
    for seed, found in engine.map(_trained, seeds, (card, splits)):
        if isinstance(found, TaskError):
            yield seed, found
            continue
        with storage.new_folder(bundling.member_folder(out, seed)) as folder:
            for name, content in found.items():
                storage.write_bytes(folder / name, content)
        yield seed, bundling.load_member(bundling.member_folder(out, seed), card).card


def _trained(shared: tuple[Card, FashionMNISTSplits], seed: int) -> dict[str, bytes]:
    """On a worker: the files of the bundle, by name."""
    card, splits = shared
    with tempfile.TemporaryDirectory() as folder:
        bundling.train(
            Path(folder), name=f"{card.name}-seed-{seed}", network_name=card.network.name,
            arguments=card.network.arguments, recipe=bundling.recipe_of(card, seed), splits=splits,
        )  # fmt: skip
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
