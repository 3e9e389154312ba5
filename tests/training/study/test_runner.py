"""The study as its user runs it: real processes, real images, killed and gone on with."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import ROOT
from tests.training.study.plans import FAILING, tiny
from training.study.measure import key_of
from training.study.schema import Configuration, Study


def command(plan: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "training", "study", str(plan), "--out", str(out), *options]


def run(plan: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(plan, out, *options), cwd=ROOT, capture_output=True, text=True, check=False)


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_seconds(each) for key, each in value.items() if key != "seconds"}
    return [without_seconds(each) for each in value] if isinstance(value, list) else value


def gone(group: int) -> bool:
    """Whether all processes of a group end within ten seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def results(out: Path) -> Any:
    return without_seconds(json.loads((out / "study.json").read_text()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that nothing interrupted, beside its plan."""
    plan = tiny(tmp_path_factory.mktemp("whole"))
    done = run(plan, plan.parent / "out")
    assert done.returncode == 0, done.stderr
    return plan.parent / "out"


def test_what_a_study_writes(whole: Path) -> None:
    study = Study.model_validate_json((whole / "study.json").read_text())
    assert [len(result.runs) for result in study.results] == [2, 2, 2]
    none, dropout, normalised = study.results
    assert not none.differences
    assert none.runs[0].sampled is None
    assert dropout.runs[0].sampled is not None
    assert dropout.runs[0].sampled.mutual_information > 0
    assert not dropout.runs[0].variance_shift
    assert len(normalised.runs[0].variance_shift) == 2
    assert (none.parameters, dropout.parameters) == (102_070, 102_070)
    rows = list(csv.DictReader((whole / "study.csv").read_text().splitlines()))
    assert [row["name"] for row in rows[:3]] == ["none", "none", "dropout"]
    assert rows[0]["mc_nll"] == ""
    assert float(rows[2]["test_accuracy"]) == dropout.runs[0].test.accuracy
    assert "Tiny" in (whole / "report.html").read_text()
    assert (whole / "study.md").read_text().startswith("| configuration | test accuracy, % | difference |")


def test_a_killed_study_goes_on_to_the_identical_result(whole: Path, tmp_path: Path) -> None:
    out, plan = tmp_path / "out", whole.parent / "tiny.toml"
    process = subprocess.Popen(
        command(plan, out, "--workers", "1"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    runs = out / "runs"
    while not any(runs.glob("*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = {path.name: path.read_bytes() for path in runs.glob("*.json")}
    assert 1 <= len(kept) < 6
    again = run(plan, out)
    assert again.returncode == 0, again.stderr
    assert f"{len(kept)} of 6 runs are finished already" in again.stderr
    assert all((runs / name).read_bytes() == content for name, content in kept.items())
    assert results(out) == results(whole)


def test_an_interrupted_study_says_so_and_leaves_no_process_behind(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(tiny(tmp_path), out, "--epochs", "400"), cwd=ROOT, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    time.sleep(8)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "Error: interrupted; nothing was left half-written"
    assert "Traceback" not in errors
    assert gone(process.pid)


def test_a_failed_run_is_told_and_stops_no_other(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(tiny(tmp_path, FAILING), out)
    assert done.returncode == 1
    reason = "the training loss became"
    assert f"diverges, seed 0 failed: DivergedError: {reason}" in " ".join(done.stderr.split())
    found, plain = results(out), results(whole)
    assert [failure["seed"] for failure in found["failures"]] == [0, 1]
    assert found["results"][:3] == plain["results"]
    assert found["results"][3]["runs"] == []
    assert reason in (out / "report.html").read_text()


def test_what_is_finished_is_kept_and_a_damaged_run_is_made_again(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    damaged, *others = (out / "runs").iterdir()
    damaged.write_text(damaged.read_text()[:100])
    before = {path: path.stat().st_mtime_ns for path in others}
    done = run(whole.parent / "tiny.toml", out)
    assert done.returncode == 0
    told = " ".join(done.stderr.split())
    assert f"{damaged} is damaged or of another version: it is run again" in told
    assert "5 of 6 runs are finished already" in told
    assert {path: path.stat().st_mtime_ns for path in others} == before
    assert results(out) == results(whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-preset"], "'no-such-preset' is neither a preset (cnn, combinations, "),
        (["notebook", "--epochs", "0"], "Invalid value for '--epochs'"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training", "study", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_key_is_of_what_the_result_depends_on() -> None:
    one = Configuration(name="one", network="ReLUNet")
    same = one.model_copy(update={"name": "two", "group": "g", "baseline": "b"})
    assert key_of(one, 0) == key_of(same, 0)
    others = [
        key_of(one, 1),
        key_of(one.model_copy(update={"network": "WideMLP"}), 0),
        key_of(one.model_copy(update={"train_images": 100}), 0),
        key_of(one.model_copy(update={"recipe": one.recipe.model_copy(update={"epochs": 6})}), 0),
        key_of(one, 0, split_seed=1),
    ]
    assert len({key_of(one, 0), *others}) == 6
