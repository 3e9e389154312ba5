"""The log of predictions: what is in it, and a disk that is full."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from calibration.request_log import Reader
from tests.faults.clients import Running, running, wait_until
from tests.service.asking import IMAGE, JSON, predict, with_instances
from tests.serving import serving
from training.data import FashionMNISTSplits

COLUMNS = ("label", "class_index", "confidence", "standard_error", "samples", "prediction_set", "abstain", "reason")
PARTS = ("total", "aleatoric", "epistemic")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here, so that none can be filled: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def rows(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The records in order, and how many lines are none."""
    reader = Reader(folder)
    return [record for table in reader for record in table.to_pylist()], reader.broken


def lost(client: httpx.Client) -> float:
    name = "dropout_uncertainty_request_log_lost_total"
    families = text_string_to_metric_families(client.get("/metrics").text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def ask(client: httpx.Client, number: int, **options: object) -> dict[str, Any]:
    body = with_instances(IMAGE, [number % 256] * 784, **options)
    answer = client.post("/predict", content=body, headers={**JSON, "X-Request-ID": f"request-{number}"})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


OPTIONS: list[dict[str, object]] = [
    {}, {"strategy": "weight_scaling"}, {"samples": "auto", "coverage": 0.8}, {"target_error": 0.001},
    {"strategy": "last_layer", "samples": 16, "members": "votes"},
]  # fmt: skip


def test_records_are_what_was_answered_by_either_worker(tmp_path: Path, fashion: FashionMNISTSplits) -> None:
    pixels = fashion.test.pixels[:3]
    answers: dict[str, Any] = {}
    with running(tmp_path / "server", workers=2, request_log=tmp_path / "log", request_log_pixels=True) as server:
        for number in range(60):
            identifier = f"request-{number}"
            server.client.headers.update({"X-Request-ID": identifier, "Connection": "close"})
            answers[identifier] = predict(server.client, pixels, **OPTIONS[number % len(OPTIONS)])
        assert server.client.post("/predict", content=b"{}", headers=JSON).status_code == 400
        assert lost(server.client) == 0
    files = sorted(path.name for path in (tmp_path / "log" / "predictions" / "data").iterdir())
    assert files == ["data.1.log", "data.2.log"]
    records, broken = rows(tmp_path / "log")
    assert (len(records), broken) == (3 * 60, 0)
    found = {(record["id"], record["index"]): record for record in records}
    for identifier, answer in answers.items():
        for index, prediction in enumerate(answer["predictions"]):
            record = found[identifier, index]
            assert {name: record[name] for name in COLUMNS} == {name: prediction[name] for name in COLUMNS}
            assert {part: record[part] for part in PARTS} == prediction["uncertainty"]
            assert {"name": record["model"], "version": record["version"]} == answer["model"]
            assert record["strategy"] == answer["strategy"]
            assert {name: record[name] for name in ("coverage", "target_error")}.items() <= answer["decision"].items()
            assert base64.b64decode(record["pixels"]) == pixels[index].numpy().tobytes()
    assert "Traceback" not in (tmp_path / "server").read_text()


def test_by_default_nothing_is_logged(impatient: Running) -> None:
    ask(impatient.client, 0)
    assert lost(impatient.client) == 0
    held = [file.path for worker in impatient.workers() for file in worker.open_files()]
    assert held
    assert not any("predictions" in path or "monitor" in path for path in held)


def test_what_cant_be_written_is_lost_and_nothing_else(tmp_path: Path, small_disk: Path) -> None:
    """First the folder can't be made, as a file is in its way, which stops root too; then the disk is full."""
    log, folder = tmp_path / "server", small_disk / "log"
    folder.write_text("in the way")
    with serving(log, workers=1, request_log=folder) as client, ThreadPoolExecutor(8) as pool:
        first = [ask(client, number) for number in range(20)]
        assert [len(answer["predictions"]) for answer in first] == [2] * 20
        wait_until(lambda: lost(client) == 40, 5)

        folder.unlink()
        answers = list(pool.map(lambda number: ask(client, number), range(150)))
        assert answers[:20] == first
        wait_until(lambda: lost(client) > 40, 5)
        time.sleep(0.5)
        written, broken = rows(folder)
        assert broken <= 1
        assert 10 < len(written) < 200
        assert lost(client) == 40 + 300 - len(written)
        assert {record["pixels"] for record in written} == {None}

        # Whoever makes room has the log go on, and a line that was cut off spoils no other.
        told = lost(client)
        with (folder / "predictions" / "data" / "data.1.log").open("r+b") as data:
            data.truncate(30_000)
        ask(client, 400)
        assert lost(client) == told
        after, broken = rows(folder)
        assert [record["id"] for record in after[-2:]] == ["request-400"] * 2
        assert broken == 1
    text = log.read_text()
    assert "Traceback" not in text
    assert all(json.loads(line) for line in text.splitlines() if line.startswith("{"))
    said = [line for line in text.splitlines() if "could not be logged" in line]
    assert len(said) == 1, "once a minute"
    assert "FileExistsError" in said[0] or "NotADirectoryError" in said[0]
