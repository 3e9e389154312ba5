"""A user's own images scored offline: the answers that the service would give, as a table in Parquet or CSV."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
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
from models.records import DEFAULT_COVERAGE, DEFAULT_TARGET_ERROR, InputRecord
from training.pieces import OwnImages

__all__ = ["SUFFIXES", "Scorer", "Scores", "images_at_once", "new_table", "score"]

SCHEMA = 3
SUFFIXES = (".parquet", ".csv")
IMAGES_AT_ONCE = 8192
NUMBERS_AT_ONCE = 1 << 25


def images_at_once(inputs: InputRecord) -> int:
    """How many are read, held as Python objects, and written, at a time."""
    return max(1, min(IMAGES_AT_ONCE, NUMBERS_AT_ONCE // inputs.pixels))


@dataclass(frozen=True)
class Scores:
    """What answers come to: for how many ``images``, the sum of their ``confidence``, and how many are ``correct``,
    ``None`` for images without labels."""

    images: int
    confidence: float
    correct: int | None

    @classmethod
    def of(cls, table: pa.Table) -> Scores:
        """What the rows of a :class:`Scorer` come to."""
        labelled = "true_label" in table.column_names
        correct = pc.sum(pc.equal(table["label"], table["true_label"])).as_py() if labelled else None
        return cls(len(table), pc.sum(table["confidence"]).as_py(), correct)

    def __add__(self, other: Scores) -> Scores:
        correct = None if self.correct is None or other.correct is None else self.correct + other.correct
        return Scores(self.images + other.images, self.confidence + other.confidence, correct)

    @property
    def mean_confidence(self) -> float:
        return self.confidence / self.images

    @property
    def accuracy(self) -> float | None:
        """A fraction."""
        return None if self.correct is None else self.correct / self.images


class Scorer:
    """The answers of ``bundle`` by ``strategy``, as rows; ``coverage`` and ``target_error`` are those of the
    :class:`~calibration.decisions.DecisionRule`, of which an uncalibrated bundle has none.

    ``settings`` say which bundle, version, strategy, samples, temperature and schema they are of, and which coverage
    and target error the decisions promise. An answer is that of the service but for the sixth decimal, which may depend
    on how many images are computed at once.
    """

    def __init__(
        self,
        bundle: Bundle,
        strategy: Strategy,
        *,
        coverage: float = DEFAULT_COVERAGE,
        target_error: float = DEFAULT_TARGET_ERROR,
    ) -> None:
        self.card = bundle.card
        self._bundle, self._strategy, self._scaling = bundle, strategy, bundle.scaling(strategy.name)
        self._rule = DecisionRule.fitted(bundle, strategy.name, coverage, target_error)
        self._detector = NoveltyDetector.of(bundle)
        self.settings: dict[str, str | int | float] = {
            "bundle": bundle.card.name,
            "version": bundle.version,
            "strategy": strategy.name,
            "samples": strategy.samples,
            "temperature": round(self._scaling.temperature, DECIMALS),
            "schema": SCHEMA,
        }
        if self._rule is not None:
            self.settings |= {"coverage": coverage, "target_error": target_error}

    @property
    def metadata(self) -> dict[str, str]:
        """The ``settings``, as Parquet takes them."""
        return {name: str(value) for name, value in self.settings.items()}

    def schema(self, *, labelled: bool) -> pa.Schema:
        """Of the rows, with the :attr:`metadata`."""
        return _schema(self._bundle.card.classes, labelled=labelled).with_metadata(self.metadata)

    def __call__(self, images: OwnImages, *, on_images: Callable[[int], None] = lambda _: None) -> pa.Table:
        """A row for each of ``images``, in memory that does not grow with members. ``on_images`` is told the number of
        images of each step done."""
        inputs = self._bundle.prepare(images.pixels)
        summary = self._strategy.summarise(inputs, self._scaling, on_images=on_images)
        asked = [self._strategy.samples] * len(images)
        classes = self._bundle.card.classes
        found = answers(
            summary, classes, members=self._strategy.members, samples=asked, rule=self._rule,
            novelty=None if self._detector is None else self._detector(inputs),
        )  # fmt: skip
        rows: list[dict[str, Any]] = [{"image": name, **each} for name, each in zip(images.names, found, strict=True)]
        if images.labels is not None:
            for row, label in zip(rows, images.labels.tolist(), strict=True):
                row["true_label"] = classes[label]
        return pa.Table.from_pylist(rows, self.schema(labelled=images.labels is not None))


def score(
    scorer: Scorer, parts: Iterable[OwnImages], out: Path, *, on_images: Callable[[int], None] = lambda _: None
) -> Scores:
    """Write the answers for the images in ``parts``, of which there is one at least, into ``out``, in place of any such
    file before it; as many are held at a time as a part has. ``on_images`` is told the number of images of each step
    done.

    A Parquet file has the scorer's metadata; a CSV file has a column for each field of what is nested, and names the
    classes of a prediction set in one, separated by semicolons.

    Raises ``ValueError`` unless the name of ``out`` ends in one of :data:`SUFFIXES`, and ``OSError`` if it can't be
    written; then, as when interrupted, an earlier file is left as it was.
    """
    coming = iter(parts)
    first = next(coming)
    total = Scores(0, 0.0, None if first.labels is None else 0)
    with new_table(out, scorer.schema(labelled=first.labels is not None)) as write:
        for images in chain([first], coming):
            table = scorer(images, on_images=on_images)
            total += Scores.of(table)
            write(table)
    return total


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
