"""A user's own images scored offline: the answers that the service would give, as a table in Parquet or CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from calibration import strategies
from calibration.answers import DECIMALS, answers
from calibration.masks import DEFAULT_DESIGN
from calibration.strategies import Strategy
from models import storage
from models.bundle import Bundle
from training.own_images import OwnImages

__all__ = ["DEFAULT_STRATEGIES", "SUFFIXES", "Scores", "build_strategy", "score"]

SCHEMA = 1
SUFFIXES = (".parquet", ".csv")
DEFAULT_STRATEGIES = ("mc_dropout", "weight_scaling")
"""The first that the network allows is taken."""
IMAGES_AT_ONCE = 8192
"""Rows that are held as Python objects, and written, at a time."""


@dataclass(frozen=True)
class Scores:
    """What a table comes to. ``accuracy``, a fraction, is ``None`` for images without labels."""

    images: int
    mean_confidence: float
    accuracy: float | None


def build_strategy(bundle: Bundle, name: str | None = None, samples: int | None = None) -> Strategy:
    """The strategy that the service would use: with the sub-networks that ``bundle`` was calibrated with.

    ``name`` is by default the first of :data:`DEFAULT_STRATEGIES` that the network allows, ``samples`` as many as the
    calibration was fitted with. Raises what :func:`calibration.strategies.build` raises.
    """
    shape = bundle.card.input.shape
    if name is None:
        allowed = strategies.applicable(bundle.network, shape)
        name = next(default for default in DEFAULT_STRATEGIES if default in allowed)
    calibration = bundle.calibration
    fitted_samples = calibration.samples if calibration else strategies.DEFAULT_SAMPLES
    return strategies.build(
        name,
        bundle.network,
        shape,
        samples=fitted_samples if samples is None else samples,
        seed=calibration.seed if calibration else strategies.DEFAULT_SEED,
        design=calibration.design if calibration else DEFAULT_DESIGN,
    )


def score(
    bundle: Bundle,
    strategy: Strategy,
    images: OwnImages,
    out: Path,
    *,
    on_images: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Write the answers for ``images``, one a row, into ``out``, in place of any such file before it.

    A Parquet file says in its metadata which bundle, version, strategy, samples, temperature and schema it is of; a
    CSV file has a column for each field of what is nested. An answer is that of the service but for the sixth decimal,
    which may depend on how many images are computed at once. Beyond the images, memory grows with neither members nor
    rows. ``on_images`` is told the number of images of each step done.

    Raises ``ValueError`` unless the name of ``out`` ends in one of :data:`SUFFIXES`, and ``OSError`` if it can't be
    written; then, as when interrupted, an earlier file is left as it was.
    """
    scaling = bundle.scaling(strategy.name)
    metadata = {
        "bundle": bundle.card.name,
        "version": bundle.version,
        "strategy": strategy.name,
        "samples": str(strategy.samples),
        "temperature": str(round(scaling.temperature, DECIMALS)),
        "schema": str(SCHEMA),
    }
    classes, labels = bundle.card.classes, images.labels
    schema = _schema(classes, labelled=labels is not None).with_metadata(metadata)
    confidence, correct = 0.0, 0
    with _new_table(out, schema) as write:
        for start in range(0, len(images), IMAGES_AT_ONCE):
            chunk = slice(start, start + IMAGES_AT_ONCE)
            summary = strategy.summarise(bundle.prepare(images.pixels[chunk]), scaling, on_images=on_images)
            found = answers(summary, classes, strategy.members)
            rows: list[dict[str, Any]] = [
                {"image": name, **answer} for name, answer in zip(images.names[chunk], found, strict=True)
            ]
            if labels is not None:
                for row, label in zip(rows, labels[chunk].tolist(), strict=True):
                    row["true_label"] = classes[label]
                    correct += row["class_index"] == label
            confidence += sum(answer["confidence"] for answer in found)
            write(pa.Table.from_pylist(rows, schema))
    return Scores(len(images), confidence / len(images), None if labels is None else correct / len(images))


def _schema(classes: Sequence[str], *, labelled: bool) -> pa.Schema:
    number = pa.float64()
    return pa.schema(
        [
            ("image", pa.string()),
            *([("true_label", pa.string())] if labelled else []),
            ("label", pa.string()),
            ("class_index", pa.int64()),
            ("confidence", number),
            ("probabilities", pa.struct([(name, number) for name in classes])),
            ("uncertainty", pa.struct([(part, number) for part in ("total", "aleatoric", "epistemic")])),
            ("standard_error", number),
        ]
    )


@contextmanager
def _new_table(out: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Yield what appends rows to the table that becomes ``out`` when the block ends without an exception."""
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{out} should end in {' or '.join(SUFFIXES)}")
    with storage.new_file(out) as file:
        if out.suffix.lower() == ".parquet":
            with parquet.ParquetWriter(file, schema) as writer:
                yield writer.write_table
        else:
            with csv.CSVWriter(file, schema.empty_table().flatten().schema) as writer:
                yield lambda table: writer.write_table(table.flatten())
