"""The window that several worker processes fill, and its comparison with the calibration."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, generate_latest

from calibration import answers
from calibration.drift import compare
from service import drift
from service.drift import DriftCollector, DriftMonitor, DriftResponse, Reference

Sample = NDArray[np.float32]

WORKERS = 4
WINDOW = 1_000
KEY = ("mlp", "26deb87a0870", "mc_dropout")
SINGLE = ("mlp", "26deb87a0870", "weight_scaling")


def gamma(seed: int, size: int, scale: float = 1.0) -> Sample:
    return (scale * np.random.default_rng(seed).gamma(0.5, size=size)).astype(np.float32)


REFERENCES: dict[tuple[str, str, str], Reference] = {
    KEY: (gamma(0, 2_500), gamma(1, 2_500, 0.1)),
    SINGLE: (gamma(2, 2_500), None),
}


def monitor(
    folder: Path, worker: int = 1, *, workers: int = WORKERS, window: int = WINDOW, version: str = KEY[1]
) -> DriftMonitor:
    references = {(model, version, strategy): value for (model, _, strategy), value in REFERENCES.items()}
    return DriftMonitor(folder, references, window=window, worker=worker, workers=workers)


@pytest.fixture
def single(tmp_path: Path) -> Iterator[DriftMonitor]:
    """The monitor of a server with one worker, of 300 places."""
    found = monitor(tmp_path, workers=1, window=300)
    yield found
    found.close()


def held(watched: DriftMonitor) -> list[float]:
    """The values of :data:`KEY` that ``watched`` compares, in order."""
    values = [watched._values(KEY, worker)[:, 0] for worker in range(1, watched._workers + 1)]
    found = np.sort(np.concatenate(values))
    return [round(float(value), 6) for value in found[np.isfinite(found)]]


def write(folder: Path, worker: int, values: int, *, forever: bool = False) -> None:
    """In a process of its own: observe ``worker * 1e6 + i`` for i from 0, in requests of different sizes."""
    watched, done = monitor(folder, worker), 0
    while forever or done < values:
        size = min(done % 7 + 1, 10**9 if forever else values - done)
        batch = worker * 1_000_000 + np.arange(done, done + size, dtype=np.float64)
        watched.observe("mlp", "mc_dropout", batch, batch / 10)
        done += size
    watched.close()


def spawn(*arguments: Any, forever: bool = False) -> Any:
    process = multiprocessing.get_context("spawn").Process(
        target=write, args=arguments, kwargs={"forever": forever}, daemon=True
    )
    process.start()
    return process


def test_the_measures_are_those_of_what_was_observed(single: DriftMonitor) -> None:
    assert single.measure() == DriftResponse(window=300, drift=[])
    total, epistemic = gamma(3, 250, 2.0), gamma(4, 250, 0.3)
    for part in np.split(np.arange(250), 5):
        single.observe("mlp", "mc_dropout", total[part], epistemic[part])
    single.observe("mlp", "weight_scaling", total[:3], epistemic[:3])
    first, second = single.measure().drift
    assert (first.model, first.version, first.strategy) == KEY
    reference = REFERENCES[KEY]
    assert reference[1] is not None
    assert first.epistemic is not None
    for found, expected in (
        (first.total, compare(reference[0].round(6), total.round(6))),
        (first.epistemic, compare(reference[1].round(6), epistemic.round(6))),
    ):
        assert found.verdict == expected.verdict
        assert found.model_dump(exclude={"verdict"}) == pytest.approx(
            {name: value for name, value in vars(expected).items() if name != "verdict"}, rel=1e-5
        )
        assert found.direction > 0
    assert (second.strategy, second.epistemic) == ("weight_scaling", None)
    assert (second.total.window, second.total.verdict) == (3, "too_few")


def test_an_answer_is_json_that_its_schema_allows(single: DriftMonitor) -> None:
    single.observe("mlp", "mc_dropout", gamma(3, 250, 9.0), gamma(4, 250, 9.0))
    answer = json.loads(single.measure().model_dump_json())
    assert answer["drift"][0]["total"]["p_value"] < 1e-20
    assert DriftResponse.model_validate(answer, strict=True) == single.measure()
    assert set(DriftResponse.model_json_schema()["$defs"]) == {"DriftMeasures", "StrategyDrift"}


def test_the_last_values_stay(single: DriftMonitor) -> None:
    values = np.arange(1_000, dtype=np.float32)
    for start, stop in ((0, 290), (290, 295), (295, 310)):
        single.observe("mlp", "mc_dropout", values[start:stop], values[start:stop])
    assert held(single) == list(range(10, 310))
    single.observe("mlp", "mc_dropout", values, values)
    assert held(single) == list(range(700, 1_000))
    single.observe("mlp", "mc_dropout", values[:1], values[:1])
    assert held(single) == [0, *range(701, 1_000)]


def test_a_strategy_without_an_epistemic_part(single: DriftMonitor) -> None:
    single.observe("mlp", "weight_scaling", gamma(3, 250), None)
    single.observe("mlp", "mc_dropout", gamma(3, 250), None)
    assert [(one.total.window, one.epistemic) for one in single.measure().drift] == [(250, None)] * 2


def test_what_has_no_reference_is_passed_over(single: DriftMonitor, tmp_path: Path) -> None:
    single.observe("mlp", "last_layer", gamma(3, 5), gamma(3, 5))
    single.observe("another", "mc_dropout", gamma(3, 5), gamma(3, 5))
    assert single.measure().drift == []
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_no_numbers_are_left_out(single: DriftMonitor) -> None:
    values = np.array([1.0, np.nan, np.inf, 2.0])
    single.observe("mlp", "mc_dropout", values, values[::-1])
    (found,) = single.measure().drift
    assert found.epistemic is not None
    assert (found.total.window, found.epistemic.window) == (2, 2)


def test_workers_that_write_at_once(tmp_path: Path) -> None:
    """While they do, whoever reads finds whole values of theirs; afterwards the last of each."""
    processes = [spawn(tmp_path, worker, 3_000 + worker) for worker in range(1, WORKERS + 1)]
    reader = monitor(tmp_path)
    readings = 0
    while any(process.is_alive() for process in processes):
        for value in held(reader):
            worker, number = divmod(value, 1_000_000)
            assert worker in range(1, WORKERS + 1)
            assert number in range(3_000 + int(worker))
        reader.measure()
        readings += 1
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert readings > 1
    places = WINDOW // WORKERS
    assert held(reader) == [
        worker * 1_000_000 + number
        for worker in range(1, WORKERS + 1)
        for number in range(3_000 + worker - places, 3_000 + worker)
    ]
    (found,) = reader.measure().drift
    assert found.total.window == reader.window == WINDOW


def test_a_killed_worker_and_its_successor(tmp_path: Path) -> None:
    writer = spawn(tmp_path, 2, 0, forever=True)
    reader = monitor(tmp_path)
    deadline = time.monotonic() + 30
    while len(held(reader)) < WINDOW // WORKERS:
        assert time.monotonic() < deadline
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    left = held(reader)
    assert len(left) == WINDOW // WORKERS
    successor = monitor(tmp_path, 2)
    successor.observe("mlp", "mc_dropout", np.array([1.0, 2.0, 3.0]), None)
    successor.close()
    assert held(reader)[:3] == [1, 2, 3]
    assert len(set(left) - set(held(reader)[3:])) == 3, "it writes on in the same file"


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    for start in range(0, 700, 70):
        watched = monitor(tmp_path, workers=1, window=300)
        watched.observe("mlp", "mc_dropout", np.arange(start, start + 70, dtype=np.float32), None)
        watched.close()
    assert held(watched) == list(range(400, 700))


def test_another_version_begins_anew(tmp_path: Path) -> None:
    old = monitor(tmp_path, 1)
    others = monitor(tmp_path, 2)
    for watched in (old, others):
        watched.observe("mlp", "mc_dropout", gamma(3, 20), None)
    new = monitor(tmp_path, 1, version="0123456789ab")
    assert len(list(tmp_path.iterdir())) == 1, "its own file of the former version is gone, that of another is not"
    new.observe("mlp", "mc_dropout", gamma(3, 5), None)
    old.observe("mlp", "mc_dropout", gamma(3, 5), None)  # A request that was under way
    (found,) = new.measure().drift
    assert (found.version, found.total.window) == ("0123456789ab", 5)
    assert others.measure().drift[0].total.window == 20
    for watched in (old, others, new):
        watched.close()


def test_another_size_begins_anew(tmp_path: Path) -> None:
    for window, expected in ((300, 250), (500, 250), (500, 500)):
        watched = monitor(tmp_path, workers=1, window=window)
        watched.observe("mlp", "mc_dropout", gamma(3, 250), None)
        assert len(held(watched)) == expected
        watched.close()


@pytest.mark.parametrize("damage", ["empty", "half", "longer", "noise", "other format"])
def test_a_file_that_is_not_sound_is_replaced(tmp_path: Path, damage: str) -> None:
    watched = monitor(tmp_path, 1)
    watched.observe("mlp", "mc_dropout", gamma(3, 250), None)
    watched.close()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes({
        "empty": b"",
        "half": content[: len(content) // 2],
        "longer": content + bytes(8),
        "noise": np.random.default_rng(0).bytes(len(content)),
        "other format": b"drift-00" + content[8:],
    }[damage])  # fmt: skip
    other = monitor(tmp_path, 2)
    other.observe("mlp", "mc_dropout", gamma(3, 7), None)
    assert other.measure().drift[0].total.window == 7, "others leave it out"
    watched = monitor(tmp_path, 1)
    watched.observe("mlp", "mc_dropout", gamma(3, 3), None)
    assert other.measure().drift[0].total.window == 10
    for one in (watched, other):
        one.close()


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    mine, anothers = tmp_path / ".worker-1-0123.ring.abcd", tmp_path / ".worker-11-0123.ring.abcd"
    for path in (mine, anothers):
        path.touch()
    monitor(tmp_path, 1)
    assert list(tmp_path.iterdir()) == [anothers]


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, and tried again a minute later; meanwhile other workers' values are compared."""
    folder = tmp_path / "shared"
    folder.write_text("in the way")
    watched = monitor(folder, 1)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            watched.observe("mlp", "mc_dropout", gamma(3, 5), None)
    assert [record.message.split(":")[0] for record in caplog.records] == [
        f"uncertainties for /drift can't be written to {folder}"
    ]
    assert watched.measure().drift == []
    folder.unlink()
    other = monitor(folder, 2)
    other.observe("mlp", "mc_dropout", gamma(3, 7), None)
    watched.observe("mlp", "mc_dropout", gamma(3, 5), None)
    assert watched.measure().drift[0].total.window == 7
    monkeypatch.setattr(drift, "RETRY_SECONDS", 0)
    watched._retry_at = 0
    watched.observe("mlp", "mc_dropout", gamma(3, 5), None)
    assert watched.measure().drift[0].total.window == 12
    for one in (watched, other):
        one.close()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system of 64 KiB")
def test_a_disk_that_is_full_indeed(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        first = monitor(tmp_path, 1, window=20_000)
        second = monitor(tmp_path, 2, window=20_000)
        for watched in (first, second):
            for _ in range(3):
                watched.observe("mlp", "mc_dropout", gamma(3, 5_000), None)
        (found,) = second.measure().drift
        assert found.total.window == 5_000, "there is room for one of two"
        assert len(list(tmp_path.iterdir())) == 1
        for watched in (first, second):
            watched.close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_file_that_can_no_longer_be_written(
    single: DriftMonitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    single.observe("mlp", "mc_dropout", gamma(3, 5), None)

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(drift._Ring, "_write", fails)
    for _ in range(5):
        single.observe("mlp", "mc_dropout", gamma(3, 5), None)
    monkeypatch.undo()
    assert len(caplog.records) == 1
    assert single.measure().drift[0].total.window == 5
    single._retry_at = 0
    single.observe("mlp", "mc_dropout", gamma(3, 5), None)
    assert single.measure().drift[0].total.window == 10


def test_threads_of_a_worker(single: DriftMonitor) -> None:
    """No value is lost to another thread's."""

    def observe(first: int) -> None:
        for number in range(first, first + 70):
            single.observe("mlp", "mc_dropout", np.array([float(number)]), None)

    threads = [threading.Thread(target=observe, args=(100 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held(single) == [100 * index + number for index in range(4) for number in range(70)]


def test_it_costs_little(single: DriftMonitor) -> None:
    one = gamma(3, 1)
    single.observe("mlp", "mc_dropout", one, one)
    seconds = []
    for _ in range(2_000):
        started = time.perf_counter()
        single.observe("mlp", "mc_dropout", one, one)
        seconds.append(time.perf_counter() - started)
    assert np.median(seconds) < 20e-6


def test_gauges(single: DriftMonitor) -> None:
    registry = CollectorRegistry()
    registry.register(DriftCollector(single))

    def samples() -> dict[tuple[str, ...], float]:
        return {
            (sample.name.removeprefix("dropout_uncertainty_drift_"), *sample.labels.values()): sample.value
            for family in registry.collect()
            for sample in family.samples
        }

    assert samples() == {}
    single.observe("mlp", "mc_dropout", gamma(3, 250, 2.0), gamma(4, 250, 0.1))
    single.observe("mlp", "weight_scaling", gamma(3, 7), None)
    found, (measures, _) = samples(), single.measure().drift
    assert len(found) == 9
    for uncertainty, expected in (("total", measures.total), ("epistemic", measures.epistemic)):
        for name in ("psi", "ks", "direction", "window"):
            assert found[name, "mlp", "mc_dropout", uncertainty] == getattr(expected, name)
    assert found["window", "mlp", "weight_scaling", "total"] == 7
    text = generate_latest(registry).decode()
    assert 'dropout_uncertainty_drift_window{model="mlp",strategy="weight_scaling",uncertainty="total"} 7.0' in text


def test_answers_are_rounded_and_their_reference_is_not(tmp_path: Path) -> None:
    """A third is so certain that its uncertainty rounds to 0."""
    exact = np.concatenate([gamma(0, 1_000, 1e-8), gamma(1, 2_000)])
    rounded = np.array([round(value, answers.DECIMALS) for value in exact.tolist()])
    assert (rounded == 0).mean() > 0.3
    for live in (exact, rounded):
        watched = DriftMonitor(tmp_path, {KEY: (exact, exact)}, window=3_000, worker=1, workers=1)
        watched.observe("mlp", "mc_dropout", live, live)
        (found,) = watched.measure().drift
        assert found.epistemic is not None
        assert found.total.ks == found.total.psi == found.epistemic.ks == 0
        watched.close()
    assert drift.DECIMALS == answers.DECIMALS


def test_what_a_monitor_cannot_be_made_of(tmp_path: Path) -> None:
    for worker in (0, 5):
        with pytest.raises(ValueError, match=f"worker {worker} is not one of 1 to 4"):
            monitor(tmp_path, worker)
    twice = REFERENCES | {("mlp", "another", "mc_dropout"): REFERENCES[KEY]}
    with pytest.raises(ValueError, match="references of two versions"):
        DriftMonitor(tmp_path, twice, window=300, worker=1, workers=1)
    with pytest.raises(ValueError, match="one or more finite numbers"):
        DriftMonitor(tmp_path, {KEY: (np.array([np.nan]), None)}, window=300, worker=1, workers=1)
