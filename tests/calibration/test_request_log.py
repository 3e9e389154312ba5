"""Reading back what BentoML's monitor wrote: whole and broken logs, their summary, the command."""

from __future__ import annotations

import base64
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from pyarrow import csv, parquet

from calibration import request_log
from calibration.log_command import log_command
from calibration.request_log import LoggedPrediction, Reader, RequestLogError, compare, summarise
from models import bundle
from models.command_line import run
from tests.conftest import write_bundle

VERSION = "26deb87a0870"
BOOT: dict[str, Any] = {
    "model": "mlp", "version": VERSION, "strategy": "mc_dropout", "samples": 64, "label": "Ankle boot",
    "class_index": 9, "confidence": 0.917253, "total": 0.344282, "aleatoric": 0.268728, "epistemic": 0.075554,
    "novelty_distance": 6.714, "novelty_p_value": 0.112577, "standard_error": 0.003347,
    "prediction_set": ["Ankle boot", "Sneaker"], "abstain": False, "reason": None,
    "coverage": 0.9, "target_error": 0.05,
}  # fmt: skip
SHIRT = BOOT | {
    "label": "Shirt", "class_index": 6, "confidence": 0.4, "total": 1.5, "aleatoric": 1.0, "epistemic": 0.5,
    "prediction_set": [], "abstain": True, "reason": "low_confidence",
}  # fmt: skip
PLAIN = BOOT | {
    "model": "plain", "version": "0123456789ab", "strategy": "weight_scaling", "samples": 1,
    **dict.fromkeys(["aleatoric", "epistemic", "novelty_distance", "novelty_p_value", "standard_error",
                     "prediction_set", "abstain", "coverage", "target_error"]),
}  # fmt: skip


def log(folder: Path, worker: int, requests: Sequence[Sequence[dict[str, Any]]]) -> None:
    """In a process of its own, as a worker of BentoML's would be: log each of ``requests``' predictions."""
    import bentoml
    from bentoml._internal.context import server_context

    @bentoml.service(monitoring={"enabled": True, "type": "default", "options": {"log_path": str(folder)}})
    class Service:
        pass

    Service.inject_config()  # type: ignore[attr-defined]
    server_context.worker_index = worker
    for number, predictions in enumerate(requests):
        with bentoml.monitor("predictions") as monitor:
            for index, prediction in enumerate(predictions):
                for name, value in {"id": f"request-{worker}-{number}", "index": index, **prediction}.items():
                    monitor.log(value, name, "prediction", "categorical")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of two workers."""
    folder = tmp_path_factory.mktemp("log") / "with a blank"
    image = base64.b64encode(bytes(range(256)) * 3 + bytes(16)).decode()
    requests = {
        1: [[BOOT, SHIRT], [PLAIN]],
        2: [[BOOT | {"pixels": image, "more": {"than": ["known"]}}], [SHIRT | {"reason": "no_guarantee"}]],
    }
    for worker, of_worker in requests.items():
        process = multiprocessing.get_context("spawn").Process(target=log, args=(folder, worker, of_worker))
        process.start()
        process.join()
        assert process.exitcode == 0
    return folder


def record(prediction: Mapping[str, object] = BOOT, *, minute: int = 0, **changed: object) -> str:
    """A line of a log."""
    time = datetime(2026, 1, 2) + timedelta(minutes=minute)  # noqa: DTZ001 - the log has local times
    fields = {"id": "a", "index": 0, **prediction, "timestamp": time.isoformat(), "request_id": "None", "trace_id": "0"}
    return json.dumps(fields | changed) + "\n"


def data_file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / "predictions" / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def invoke(*arguments: str | Path) -> Result:
    """``log ARGUMENTS...`` in this process."""
    return CliRunner().invoke(log_command, [*map(str, arguments)])


def test_what_bentoml_wrote_is_read_back(written: Path) -> None:
    reader = Reader(written)
    assert [path.name for path in reader.files] == ["data.1.log", "data.2.log"]
    table = pa.concat_tables(reader)
    assert reader.broken == 0
    assert table.schema == request_log.SCHEMA
    rows = table.to_pylist()
    assert [(row.pop("id"), row.pop("index")) for row in rows] == [
        ("request-1-0", 0), ("request-1-0", 1), ("request-1-1", 0), ("request-2-0", 0), ("request-2-1", 0)
    ]  # fmt: skip
    assert all(abs(datetime.now() - row.pop("timestamp")) < timedelta(hours=1) for row in rows)  # noqa: DTZ005
    pixels = [row.pop("pixels") for row in rows]
    # What the first record of all has not, BentoML's schema file does not know; the data has it all the same.
    assert [value is None for value in pixels] == [True, True, True, False, True]
    assert len(base64.b64decode(pixels[3])) == 784
    assert rows == [BOOT, SHIRT, PLAIN, BOOT, SHIRT | {"reason": "no_guarantee"}]
    schema = json.loads((written / "predictions" / "schema" / "schema.1.log").read_text())
    assert {column["name"] for column in schema["columns"]} == {*BOOT, "id", "index"}


def test_the_fields_have_one_order() -> None:
    assert request_log.SCHEMA.names == list(LoggedPrediction.model_fields)


def test_files_put_aside_come_first(tmp_path: Path) -> None:
    minutes = {"data.1.log": 4, "data.2.log": 5, "data.1.log.2026-01-02": 2, "data.2.log.2026-01-02": 3,
               "data.2.log.2026-01-01": 1}  # fmt: skip
    for name, minute in minutes.items():
        data_file(tmp_path, name, record(minute=minute))
    for name in ("data.1.log.2026-01-02.gz", "data.1.log~", "data.txt"):
        data_file(tmp_path, name, "nothing of ours")
    table = pa.concat_tables(Reader(tmp_path))
    assert [time.minute for time in table["timestamp"].to_pylist()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("content", "broken", "line"),
    [
        (record() + record()[:100], 1, 2),
        (record() + record()[:-1], 0, 0),
        (record()[:100] + record() + record() + record(), 1, 1),
        (record() + bytes(5_000).decode() + "\n" + record(), 1, 2),
        (record() + "x" * 3_000_000 + "\n" + record(), 1, 2),
        (record() + "\n\n" + record(), 0, 0),
        (b"\xff\xfe\n" + record().encode() * 2, 1, 1),
        (record() + record() + "[]\n3\nnull\n{}\n", 4, 3),
        (record(confidence=None) + record() * 2, 1, 1),
        (record(total=float("nan")) + record() * 2, 1, 1),
        (record(samples="auto") + record() * 2, 1, 1),
        (record(timestamp="yesterday") + record() * 2, 1, 1),
    ],
)
def test_broken_lines_are_counted(tmp_path: Path, content: str | bytes, broken: int, line: int) -> None:
    path = data_file(tmp_path, "data.1.log", content)
    reader = Reader(tmp_path)
    for _ in range(2):  # Counted anew each time
        rows = sum(len(table) for table in reader)
        assert (rows, reader.broken) == (1 if content == record() + record()[:100] else 2, broken)
        assert reader.first_broken == (f"{path}, line {line}" if broken else None)


def test_a_long_log_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "ROWS_AT_ONCE", 4)
    data_file(tmp_path, "data.1.log", "".join(record(index=number) for number in range(8)))
    data_file(tmp_path, "data.2.log", record(index=8))
    tables = list(Reader(tmp_path))
    assert [len(table) for table in tables] == [4, 4, 1]
    assert pa.concat_tables(tables)["index"].to_pylist() == list(range(9))


@pytest.mark.parametrize("name", [None, "data.1.txt"])
def test_a_folder_without_a_log(tmp_path: Path, name: str | None) -> None:
    if name:
        data_file(tmp_path, name, record())
    with pytest.raises(RequestLogError, match=f"no log of predictions in {tmp_path}: no file"):
        Reader(tmp_path)
    done = invoke(tmp_path)
    assert done.exit_code == 1
    assert f"Error: there is no log of predictions in {tmp_path}" in done.stderr


def test_the_summary(written: Path) -> None:
    summary = summarise(pa.concat_tables(Reader(written)))
    assert summary.images == 5
    assert summary.first <= summary.last
    of_mlp, of_plain = summary.groups
    assert (of_mlp.model, of_mlp.version, of_mlp.strategy, of_mlp.images) == ("mlp", VERSION, "mc_dropout", 4)
    assert of_mlp.mean_confidence == pytest.approx((0.917253 + 0.4) / 2)
    assert of_mlp.mean_total == pytest.approx((0.344282 + 1.5) / 2)
    assert of_mlp.mean_epistemic == pytest.approx((0.075554 + 0.5) / 2)
    assert (of_mlp.abstention_rate, of_mlp.mean_set_size) == (0.5, 1)
    assert of_mlp.reasons == {"low_confidence": 1, "no_guarantee": 1}
    assert list(of_mlp.labels.items()) == [("Shirt", 0.5), ("Ankle boot", 0.5)]
    assert of_plain == request_log.Group(
        model="plain", version="0123456789ab", strategy="weight_scaling", images=1, mean_confidence=0.917253,
        mean_total=0.344282, mean_epistemic=None, abstention_rate=None, reasons={}, mean_set_size=None,
        labels={"Ankle boot": 1.0},
    )  # fmt: skip
    with pytest.raises(ValueError, match="no predictions"):
        summarise(request_log.SCHEMA.empty_table())


def as_logged(used: bundle.Bundle, **changed: object) -> list[str]:
    """The lines of a log of the calibration images themselves."""
    assert used.scores is not None
    scores = used.scores.strategies["mc_dropout"]
    return [
        record(
            {
                **BOOT,
                "version": used.version,
                "total": round(total, 6),
                "epistemic": round(epistemic, 6),
                "confidence": round(confidence, 6),
                **changed,
            }
        )
        for total, epistemic, confidence in zip(
            scores.total.tolist(), scores.epistemic.tolist(), scores.confidence.double().tolist(), strict=True
        )
    ]


def test_the_calibration_images_are_no_drift(tmp_path: Path, shipped: bundle.Bundle) -> None:
    """Logged predictions by other sub-networks, and of another version, do not count."""
    lines = as_logged(shipped)
    others = [record(version=shipped.version, samples=8)] * 500 + [record(version="0123456789ab")] * 500
    data_file(tmp_path, "data.1.log", "".join(lines + others))
    found = compare(pa.concat_tables(Reader(tmp_path)), shipped)
    assert [(one.strategy, one.uncertainty) for one in found] == [
        ("mc_dropout", name) for name in ("total", "epistemic", "1 - confidence")
    ]
    for one in found:
        assert (one.drift.window, one.drift.verdict, one.drift.ks, one.drift.direction) == (2_500, "stable", 0, 0)


def test_doubts_are_drift(tmp_path: Path, shipped: bundle.Bundle) -> None:
    lines = [*as_logged(shipped), *as_logged(shipped, confidence=0.3, total=2.0, epistemic=0.5)[:1_250]]
    data_file(tmp_path, "data.1.log", "".join(lines))
    found = compare(pa.concat_tables(Reader(tmp_path)), shipped)
    assert [one.drift.verdict for one in found] == ["major"] * 3
    assert all(0.25 < one.drift.direction < 0.4 for one in found)


def test_a_strategy_without_parts_is_compared_by_the_rest(tmp_path: Path, shipped: bundle.Bundle) -> None:
    line = record(version=shipped.version, strategy="weight_scaling", samples=1, epistemic=None)
    data_file(tmp_path, "data.1.log", line * 10)
    found = compare(pa.concat_tables(Reader(tmp_path)), shipped)
    assert [(one.uncertainty, one.drift.verdict) for one in found] == [
        ("total", "too_few"), ("1 - confidence", "too_few")
    ]  # fmt: skip


def test_the_command_sums_up_and_compares(tmp_path: Path, shipped: bundle.Bundle) -> None:
    data_file(tmp_path, "data.1.log", "".join([*as_logged(shipped), record(PLAIN, minute=10), record()[:50]]))
    done = invoke(tmp_path, "--bundle", "mlp")
    assert done.exit_code == 0, done.output
    assert "Lines left out, as they are no whole records: 1; " in done.stderr
    assert "data.1.log, line 2502" in done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[0] == "Predictions: 2,501, 2026-01-02 00:00:00 to 2026-01-02 00:10:00."
    assert f"mlp {shipped.version}: answers" in lines
    assert f"mlp {shipped.version}: labels, % of the images" in lines, "wider than its table"
    assert not any("reason" in line for line in lines)
    rows = [line.split() for line in lines]
    assert ["weight_scaling", "1", "0.9173", "0.3443", "-", "-", "-"] in rows
    assert ["Ankle", "boot", "100.00"] in rows
    for uncertainty in ("total", "epistemic", "1 - confidence"):
        measures = ["2,500", "0.000", "0.007", "0.000", "1", "+0.000", "stable"]
        assert ["mc_dropout", *uncertainty.split(), *measures] in rows


def test_the_tables_fit_with_all_strategies(tmp_path: Path) -> None:
    names = ["mc_dropout", "weight_scaling", "geometric_mean", "last_layer", "moment_propagation"]
    lines = [record(SHIRT, strategy=name, reason=reason) * 3_000
             for name in names for reason in ("low_confidence", "no_guarantee")]  # fmt: skip
    data_file(tmp_path, "data.1.log", "".join(lines))
    done = invoke(tmp_path)
    rows = [line.split() for line in done.stdout.splitlines()]
    for name in names:
        assert [name, "6,000", "0.4000", "1.5000", "0.5000", "0.00", "100.00"] in rows
    assert ["Shirt", *["100.00"] * 5] in rows
    for reason in ("low_confidence", "no_guarantee"):
        assert [reason, *["50.00"] * 5] in rows
    assert "…" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_csv_and_parquet_agree(written: Path, tmp_path: Path) -> None:
    for name in ("log.parquet", "log.CSV"):
        done = invoke(written, "--out", tmp_path / "new" / name)
        assert done.exit_code == 0, done.output
        assert done.stdout.endswith(f"Wrote {tmp_path / 'new' / name}.\n")
    table = parquet.read_table(tmp_path / "new" / "log.parquet")
    assert table.equals(pa.concat_tables(Reader(written)))
    types = {field.name: field.type for field in table.schema if field.name != "prediction_set"}
    options = csv.ConvertOptions(column_types=types | {"prediction_set": pa.string()}, strings_can_be_null=True,
                                 quoted_strings_can_be_null=False)  # fmt: skip
    rows = csv.read_csv(tmp_path / "new" / "log.CSV", convert_options=options)
    sets = rows["prediction_set"].to_pylist()
    assert sets == ["Ankle boot;Sneaker", "", None, "Ankle boot;Sneaker", ""]
    assert rows.drop_columns("prediction_set").equals(table.drop_columns("prediction_set"))


def test_a_failure_leaves_the_old_table(tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "log.parquet"
    out.write_text("old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    assert isinstance(invoke(written, "--out", out).exception, OSError)
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("content", ["", record()[:50]])
def test_a_log_without_a_prediction(tmp_path: Path, content: str) -> None:
    data_file(tmp_path, "data.1.log", content)
    done = invoke(tmp_path, "--out", tmp_path / "out" / "log.csv")
    assert done.exit_code == 1
    assert "the log holds no predictions" in done.stderr
    assert ("lines that are no whole records: 1" in done.stderr) == bool(content)
    assert not list((tmp_path / "out").glob("*"))


def test_wrong_arguments(tmp_path: Path, written: Path) -> None:
    assert "should end in .parquet or .csv" in invoke(written, "--out", tmp_path / "log.xlsx").stderr
    assert "does not exist" in invoke(tmp_path / "nowhere").stderr
    write_bundle(tmp_path / "mine")
    done = invoke(written, "--bundle", tmp_path / "mine")
    assert done.exit_code == 1
    assert "is not calibrated; calibrate it with `python -m calibration fit" in done.stderr
    assert "no bundle 'nowhere'" in str(invoke(written, "--bundle", "nowhere").exception)


def test_nothing_of_this_version(tmp_path: Path, shipped: bundle.Bundle) -> None:
    data_file(tmp_path, "data.1.log", record(version="0123456789ab"))
    done = invoke(tmp_path, "--bundle", "mlp")
    assert done.exit_code == 0
    assert f"Nothing to compare: no prediction is by mlp {shipped.version} as it was calibrated." in done.stdout


def test_an_error_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["calibration", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        run(log_command, "python -m calibration log")
    assert ended.value.code == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_one_bundle_under_two_names_is_two_groups(tmp_path: Path) -> None:
    data_file(tmp_path, "data.1.log", record() * 3 + record(model="again") + record(strategy="last_layer"))
    groups = summarise(pa.concat_tables(Reader(tmp_path))).groups
    assert [(group.model, group.strategy, group.images) for group in groups] == [
        ("again", "mc_dropout", 1), ("mlp", "last_layer", 1), ("mlp", "mc_dropout", 3)
    ]  # fmt: skip


def test_a_log_from_before_there_was_novelty_is_read(tmp_path: Path) -> None:
    old = {name: value for name, value in BOOT.items() if not name.startswith("novelty")}
    data_file(tmp_path, "data.1.log", record(old))
    (table,) = Reader(tmp_path)
    (row,) = table.to_pylist()
    assert (row["label"], row["novelty_distance"], row["novelty_p_value"]) == ("Ankle boot", None, None)
