"""A user's own images scored offline: the answers that the service would give, as a table in Parquet or CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from calibration.answers import DECIMALS, answers
from calibration.decisions import DecisionRule
from calibration.novelty import NoveltyDetector
from calibration.strategies import Strategy
from models import storage
from models.bundle import Bundle
from models.records import DEFAULT_COVERAGE, DEFAULT_TARGET_ERROR
from training.own_images import OwnImages

__all__ = ["SUFFIXES", "Scores", "new_table", "score"]

SCHEMA = 3
SUFFIXES = (".parquet", ".csv")
IMAGES_AT_ONCE = 8192
"""Rows that are held as Python objects, and written, at a time."""


@dataclass(frozen=True)
class Scores:
    """What a table comes to. ``accuracy``, a fraction, is ``None`` for images without labels."""

    images: int
    mean_confidence: float
    accuracy: float | None


def score(
    bundle: Bundle,
    strategy: Strategy,
    images: OwnImages,
    out: Path,
    *,
    coverage: float = DEFAULT_COVERAGE,
    target_error: float = DEFAULT_TARGET_ERROR,
    on_images: Callable[[int], None] = lambda _: None,
) -> Scores:
    """Write the answers for ``images``, one a row, into ``out``, in place of any such file before it.

    A Parquet file says in its metadata which bundle, version, strategy, samples, temperature and schema it is of, and
    which coverage and target error the decisions promise; a CSV file has a column for each field of what is nested,
    and names the classes of a prediction set in one, separated by semicolons. ``coverage`` and ``target_error`` are
    those of the :class:`~calibration.decisions.DecisionRule`; an uncalibrated bundle has none. An
    answer is that of the service but for the sixth decimal, which may depend on how many images are computed at once.
    Beyond the images, memory grows with neither members nor rows. ``on_images`` is told the number of images of each
    step done.

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
    rule = DecisionRule.fitted(bundle, strategy.name, coverage, target_error)
    if rule is not None:
        metadata |= {"coverage": str(coverage), "target_error": str(target_error)}
    detector = NoveltyDetector.of(bundle)
    classes, labels = bundle.card.classes, images.labels
    schema = _schema(classes, labelled=labels is not None).with_metadata(metadata)
    confidence, correct = 0.0, 0
    with new_table(out, schema) as write:
        for start in range(0, len(images), IMAGES_AT_ONCE):
            chunk = slice(start, start + IMAGES_AT_ONCE)
            inputs = bundle.prepare(images.pixels[chunk])
            summary = strategy.summarise(inputs, scaling, on_images=on_images)
            asked = [strategy.samples] * len(summary.mean)
            found = answers(
                summary, classes, members=strategy.members, samples=asked, rule=rule,
                novelty=None if detector is None else detector(inputs),
            )  # fmt: skip
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
            ("novelty", pa.struct([(part, number) for part in ("distance", "p_value")])),
            ("standard_error", number),
            ("samples", pa.int64()),
            ("prediction_set", pa.list_(pa.string())),
            ("abstain", pa.bool_()),
            ("reason", pa.string()),
        ]
    )


@contextmanager
def new_table(out: Path, schema: pa.Schema) -> Iterator[Callable[[pa.Table], None]]:
    """Yield what appends rows to the table that becomes ``out`` when the block ends without an exception."""
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{out} should end in {' or '.join(SUFFIXES)}")
    with storage.new_file(out) as file:
        if out.suffix.lower() == ".parquet":
            with parquet.ParquetWriter(file, schema) as writer:
                yield writer.write_table
        else:
            with csv.CSVWriter(file, _flat(schema.empty_table()).schema) as writer:
                yield lambda table: writer.write_table(_flat(table))


def _flat(table: pa.Table) -> pa.Table:
    """Without structures and lists, which CSV doesn't know."""
    column = table.schema.get_field_index("prediction_set")
    return table.set_column(column, "prediction_set", pc.binary_join(table.column(column), ";")).flatten()
