"""The service's log of its predictions, read back and summed up.

BentoML's monitor writes it: a line of JSON for each prediction, in a file for each worker that is put aside every day.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NaiveDatetime, ValidationError
from rich.table import Table
from rich.text import Text

from calibration import drift
from calibration.answers import DECIMALS
from calibration.drift import Drift
from models.bundle import Bundle

__all__ = [
    "SCHEMA",
    "Group",
    "LoggedDrift",
    "LoggedPrediction",
    "Reader",
    "RequestLogError",
    "Summary",
    "compare",
    "drift_table",
    "summarise",
    "summary_tables",
]

MONITOR = "predictions"
DATA_FILE = re.compile(r"data\.\w+\.log(\.[\d_-]+)?")
"""The current file of a worker, and those put aside, whose names end in a date."""
LINE_BYTES = 1 << 20
"""What is longer is no record: one with its pixels takes some 2,000."""
ROWS_AT_ONCE = 8192

Uncertainty = Literal["total", "epistemic", "1 - confidence"]
UNCERTAINTIES: tuple[Uncertainty, ...] = ("total", "epistemic", "1 - confidence")

NUMBER = pa.float64()
SCHEMA = pa.schema(
    [
        ("timestamp", pa.timestamp("us")),
        ("id", pa.string()),
        ("index", pa.int64()),
        ("model", pa.string()),
        ("version", pa.string()),
        ("strategy", pa.string()),
        ("samples", pa.int64()),
        ("label", pa.string()),
        ("class_index", pa.int64()),
        ("confidence", NUMBER),
        ("total", NUMBER),
        ("aleatoric", NUMBER),
        ("epistemic", NUMBER),
        ("novelty_distance", NUMBER),
        ("novelty_p_value", NUMBER),
        ("standard_error", NUMBER),
        ("prediction_set", pa.list_(pa.string())),
        ("abstain", pa.bool_()),
        ("reason", pa.string()),
        ("coverage", NUMBER),
        ("target_error", NUMBER),
        ("pixels", pa.string()),
    ]
)
"""A row for each prediction; the fields are those of :class:`LoggedPrediction`."""


class RequestLogError(Exception):
    """A folder that holds no log; the message names it."""


class LoggedPrediction(BaseModel):
    """One image's answer. Fields that others add, BentoML among them, are passed over.

    ``timestamp`` is in the server's local time; ``id`` the request's X-Request-ID, and ``index`` the image's place in
    it; ``samples`` the sub-networks asked; uncertainties are in nats; an older log has no novelty; ``pixels`` are the
    base64 of 784 bytes, if the service was told to log them.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    timestamp: NaiveDatetime
    id: str
    index: int
    model: str
    version: str
    strategy: str
    samples: int
    label: str
    class_index: int
    confidence: float
    total: float
    aleatoric: float | None
    epistemic: float | None
    novelty_distance: float | None = None
    novelty_p_value: float | None = None
    standard_error: float | None
    prediction_set: list[str] | None
    abstain: bool | None
    reason: str | None
    coverage: float | None
    target_error: float | None
    pixels: str | None = None


class Reader:
    """Reads the log in ``folder``, which is the one that the service was told to log to.

    Iterating gives its records as tables of :data:`SCHEMA` of bounded size, each worker's in the order of time, so that
    a log may be larger than memory. Lines that are no whole record, as a crash or a full disk leaves them behind, are
    left out: ``broken`` counts those met so far, and ``first_broken`` says where the first one is.

    Raises :class:`RequestLogError` if there is no log in ``folder``.
    """

    def __init__(self, folder: Path) -> None:
        data = folder / MONITOR / "data"
        found = [path for path in data.glob("data.*") if DATA_FILE.fullmatch(path.name)]
        if not found:
            raise RequestLogError(f"there is no log of predictions in {folder}: no file {data / 'data.*.log'}")
        # A worker's current file, whose name has no date, comes after those put aside.
        self.files = sorted(found, key=lambda path: (path.suffix == ".log", path.suffix, path.name))
        self.broken = 0
        self.first_broken: str | None = None

    def __iter__(self) -> Iterator[pa.Table]:
        self.broken, self.first_broken = 0, None
        rows: list[dict[str, Any]] = []
        for record in self._records():
            rows.append(record)
            if len(rows) == ROWS_AT_ONCE:
                yield pa.Table.from_pylist(rows, SCHEMA)
                rows = []
        if rows:
            yield pa.Table.from_pylist(rows, SCHEMA)

    def _records(self) -> Iterator[dict[str, Any]]:
        for path in self.files:
            with path.open("rb") as file:
                for number, line in enumerate(_lines(file), start=1):
                    try:
                        if line.strip():
                            yield LoggedPrediction.model_validate_json(line).model_dump()
                    except ValidationError:
                        self.broken += 1
                        self.first_broken = self.first_broken or f"{path}, line {number}"


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of ``file``; of one longer than :data:`LINE_BYTES` the beginning, which is no record."""
    while line := file.readline(LINE_BYTES):
        yield line
        while line and not line.endswith(b"\n"):
            line = file.readline(LINE_BYTES)


@dataclass(frozen=True)
class Group:
    """What one model, in one version, answered by one strategy.

    Means and shares are fractions of the images that they are known of, and ``None`` where they are of none.
    ``reasons`` are counts; abstentions and prediction sets are those of the promises that each request asked for.
    ``labels`` are the shares of the classes that were answered, in their order. Uncertainties are in nats.
    """

    model: str
    version: str
    strategy: str
    images: int
    mean_confidence: float
    mean_total: float
    mean_epistemic: float | None
    abstention_rate: float | None
    reasons: dict[str, int]
    mean_set_size: float | None
    labels: dict[str, float]


@dataclass(frozen=True)
class Summary:
    """What a log comes to: the times of the first and the last prediction, and the answers by group."""

    images: int
    first: datetime
    last: datetime
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class LoggedDrift:
    """How far an uncertainty has moved from that of the calibration images."""

    strategy: str
    uncertainty: Uncertainty
    drift: Drift


def summarise(table: pa.Table) -> Summary:
    """Sum up ``table``, which has the columns of :data:`SCHEMA`, but for id and pixels.

    Raises ``ValueError`` if it has no rows.
    """
    if not len(table):
        raise ValueError("there are no predictions to sum up")
    span = pc.min_max(table["timestamp"]).as_py()
    names = ["model", "version", "strategy"]
    keys = table.group_by(names).aggregate([]).sort_by([(name, "ascending") for name in names]).to_pylist()
    return Summary(len(table), span["min"], span["max"], tuple(_group(table, **key) for key in keys))


def _group(table: pa.Table, model: str, version: str, strategy: str) -> Group:
    part = table.filter(
        (pc.field("model") == model) & (pc.field("version") == version) & (pc.field("strategy") == strategy)
    )
    labels = part.group_by(["class_index", "label"]).aggregate([([], "count_all")]).sort_by("class_index").to_pylist()
    reasons = part["reason"].drop_null().value_counts().to_pylist()
    return Group(
        model=model,
        version=version,
        strategy=strategy,
        images=len(part),
        mean_confidence=pc.mean(part["confidence"]).as_py(),
        mean_total=pc.mean(part["total"]).as_py(),
        mean_epistemic=pc.mean(part["epistemic"]).as_py(),
        abstention_rate=pc.mean(part["abstain"]).as_py(),
        reasons={reason["values"]: reason["counts"] for reason in sorted(reasons, key=lambda one: one["values"])},
        mean_set_size=pc.mean(pc.list_value_length(part["prediction_set"])).as_py(),
        labels={row["label"]: row["count_all"] / len(part) for row in labels},
    )


def compare(table: pa.Table, bundle: Bundle) -> list[LoggedDrift]:
    """Compare the predictions of ``bundle`` in ``table``, over its whole time, with those of the calibration images.

    Only those of its version count, and with as many sub-networks as it was calibrated with, as their number moves
    uncertainty too. There are none of an uncalibrated bundle.
    """
    if bundle.calibration is None or bundle.scores is None:
        return []
    found = []
    same = table.filter(
        (pc.field("version") == bundle.version) & pc.field("samples").isin([1, bundle.calibration.samples])
    )
    for strategy, scores in bundle.scores.strategies.items():
        part = same.filter(pc.field("strategy") == strategy)
        for uncertainty in UNCERTAINTIES:
            name = "confidence" if uncertainty == "1 - confidence" else uncertainty
            reference, live = getattr(scores, name).double().numpy(), part[name].drop_null().to_numpy()
            if len(live):
                if name == "confidence":
                    reference, live = 1 - reference, 1 - live
                found.append(LoggedDrift(strategy, uncertainty, _compare(reference, live)))
    return found


def _compare(reference: NDArray[Any], live: NDArray[Any]) -> Drift:
    """Both as they are rounded in answers: else all that is logged as 0 would differ from its reference."""
    return drift.compare(np.round(reference, DECIMALS), np.round(live, DECIMALS))


def summary_tables(summary: Summary) -> list[Table]:
    """For the terminal: for each model and version its answers by strategy, and the shares of reasons and labels."""
    versions = dict.fromkeys((group.model, group.version) for group in summary.groups)
    tables = []
    for model, version in versions:
        groups = [group for group in summary.groups if (group.model, group.version) == (model, version)]
        reasons = [{name: count / group.images for name, count in group.reasons.items()} for group in groups]
        tables.append(_answers_table(f"{model} {version}: answers", groups))
        if any(reasons):
            tables.append(_shares_table(f"{model} {version}: abstained", "reason", groups, reasons))
        tables.append(_shares_table(f"{model} {version}: labels", "label", groups, [group.labels for group in groups]))
    return tables


def _answers_table(title: str, groups: list[Group]) -> Table:
    table = _table(title, ["strategy"], ["images", "confidence", "total", "epistemic", "set size", "abstained %"])
    for group in groups:
        table.add_row(
            group.strategy, f"{group.images:,}", f"{group.mean_confidence:.4f}", f"{group.mean_total:.4f}",
            _shown(group.mean_epistemic, ".4f"), _shown(group.mean_set_size, ".2f"),
            _shown(group.abstention_rate, ".2f", 100),
        )  # fmt: skip
    return table


def _shares_table(title: str, heading: str, groups: list[Group], shares: list[dict[str, float]]) -> Table:
    table = _table(f"{title}, % of the images", [heading], [group.strategy for group in groups])
    for name in dict.fromkeys(name for share in shares for name in share):
        table.add_row(name, *(f"{100 * share.get(name, 0):.2f}" for share in shares))
    return table


def drift_table(name: str, found: list[LoggedDrift]) -> Table:
    """For the terminal: how far the uncertainties of the bundle called ``name`` are from those at calibration."""
    title = f"{name}: uncertainty beside that of the calibration images"
    headings = ["images", "PSI", "expected", "KS", "p", "direction", "verdict"]
    table = _table(title, ["strategy", "uncertainty"], headings)
    for one in found:
        measures = one.drift
        table.add_row(
            one.strategy, one.uncertainty, f"{measures.window:,}", f"{measures.psi:.3f}",
            f"{measures.psi_expected:.3f}", f"{measures.ks:.3f}", f"{measures.p_value:.1g}",
            f"{measures.direction:+.3f}", measures.verdict,
        )  # fmt: skip
    return table


def _table(title: str, names: list[str], numbers: list[str]) -> Table:
    # A title that is longer than its table is wide is not to be broken.
    shown = Text(title, style="table.title", no_wrap=True, overflow="ignore")
    table = Table(title=shown, title_justify="left", box=None, padding=(0, 0, 0, 1))
    for heading in names:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _shown(value: float | None, form: str, factor: float = 1) -> str:
    return "-" if value is None else f"{factor * value:{form}}"
