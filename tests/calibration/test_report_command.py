"""What the commands of the report promise besides its figures: its page, its files, its errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from PIL import Image
from sklearn.metrics import (
    accuracy_score,
    log_loss,
)

from calibration import conformal
from calibration.report import FILES
from calibration.report.interpretation import SUBNETWORKS
from calibration.report.schema import Report
from calibration.strategies import STRATEGIES
from models import bundle
from tests.calibration.conftest import IMAGES, predicted, tempered, write_ensemble
from tests.command_line import ROOT, refused, run
from tests.conftest import write_bundle
from training.bundling import load_ensemble
from training.data import FashionMNISTSplits


def test_it_has_the_documented_schema(report: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "docs" / "report.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    assert schema == Report.model_json_schema(by_alias=True)
    assert not list(Draft202012Validator(schema).iter_errors(report))
    changed = {**report, "models": [{**report["models"][0], "surprise": 1}]}
    assert list(Draft202012Validator(schema).iter_errors(changed))


def test_the_page_needs_nothing_else(report_folder: Path, model: dict[str, Any]) -> None:
    page = (report_folder / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page
    assert page.count('alt="Test image') == 36
    figures = re.findall(r'<div role="img" aria-label="([^"]+)">\s*<svg', page)
    assert len(figures) == page.count("<svg") == len(list(report_folder.glob("figure-*.png"))) > 30
    assert len(list(report_folder.glob("figure-*.svg"))) == len(figures)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert anchor in ids
    assert "currentColor" in page
    assert f"{100 * model['strategies']['mc_dropout']['calibrated']['accuracy']['value']:.2f}" in page
    for path in report_folder.glob("figure-*.png"):
        with Image.open(path) as figure:
            assert figure.width > 500


def test_a_second_run_reuses_predictions_and_says_the_same(report_folder: Path, report: dict[str, Any]) -> None:
    """And an earlier report is replaced, but nothing else."""
    place = report_folder.parent
    again = place / "again"
    shutil.copytree(report_folder, again)
    (again / "notes.txt").write_text("mine")
    arguments: list[str | Path] = [
        "report", "mlp", "--out", again, "--images", str(IMAGES), "--ensembles", place / "ensembles", "--cache",
        place / "cache",
    ]  # fmt: skip
    environment = {"MNIST_DIR": str(place)}
    done = run("calibration", *arguments, environment=environment)
    assert done.returncode == 1
    assert "holds notes.txt" in done.stderr.strip().splitlines()[-1]
    (again / "notes.txt").unlink()
    (again / "report.html").write_text("old")
    kept = {path: path.stat().st_ino for path in (place / "cache").iterdir()}
    damaged = min(kept)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (place / "cache" / "notes.txt").write_text("not the cache's")
    assert run("calibration", *arguments, environment=environment).returncode == 0
    found = {path: path.stat().st_ino for path in (place / "cache").glob("*.safetensors")}
    assert found.keys() == kept.keys()
    assert [path for path in kept if found[path] != kept[path]] == [damaged], "no other was computed again"
    assert len((again / "report.html").read_text()) > 10_000
    assert without_costs(json.loads((again / "report.json").read_text())) == without_costs(report)


def without_costs(report: Mapping[str, Any]) -> dict[str, Any]:
    """All but what a clock said."""
    found: dict[str, Any] = json.loads(json.dumps(report))
    for model in found["models"]:
        for section in model["strategies"].values():
            section["cost"] = None
    return found


def test_several_models(tmp_path: Path) -> None:
    """One of them without dropout and without calibration, neither of which is changed."""
    write_bundle(tmp_path / "plain", "ReLUNet")
    write_bundle(tmp_path / "odd name", "YourDropoutModel", {"dropout": [0.0, 0.5], "hidden_widths": [8]})
    done = run(
        "calibration", "report", tmp_path / "plain", tmp_path / "odd name", "--out", tmp_path / "out", "--images",
        "100", "--no-cache", "--ensembles", tmp_path / "none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    plain, odd = report["models"]
    assert list(plain["strategies"]) == ["weight_scaling"]
    assert plain["calibration"] == odd["calibration"] == "fitted for this report"
    assert plain["interpretation"] is None
    assert plain["gallery"]["most uncertain"][0]["epistemic"] is None
    assert odd["interpretation"]["subnetworks"] == SUBNETWORKS
    assert [row["model"] for row in report["model_differences"]] == ["odd name"] * 5
    assert "training ensemble" in report["missing"]["deep ensemble of plain"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "no active dropout" in page
    assert "Between the models" in page
    assert 'id="model-odd-name"' in page
    for name in ("plain", "odd name"):
        assert not (tmp_path / name / "calibration.json").exists()


def test_bundles_that_do_not_fit_together(tmp_path: Path) -> None:
    assert "the same name" in refused("calibration", "report", "mlp", "mlp", "--out", tmp_path / "out", code=2)
    write_bundle(tmp_path / "other", "ReLUNet")
    other = bundle.load(tmp_path / "other")
    fields = other.card.model_dump(exclude={"weights_sha256", "format"})
    bundle.write(tmp_path / "other", other.network, {**fields, "data": {**fields["data"], "split_seed": 5}})
    message = refused("calibration", "report", "mlp", tmp_path / "other", "--out", tmp_path / "out", code=1)
    assert "different splits" in message
    assert not (tmp_path / "out").exists()


def test_another_networks_ensemble_is_refused(tmp_path: Path, shipped: bundle.Bundle) -> None:
    write_ensemble(tmp_path / "ensembles" / "mlp", shipped, 1)
    write_bundle(tmp_path / "ensembles" / "mlp" / "seed-7", "ReLUNet")
    done = run("calibration", "report", "mlp", "--out", tmp_path / "out", "--ensembles", tmp_path / "ensembles")
    assert done.returncode == 1
    assert "seed-7 was not trained as mlp was" in done.stderr
    shutil.rmtree(tmp_path / "ensembles" / "mlp" / "seed-7")
    shutil.copytree(tmp_path / "ensembles" / "mlp" / "seed-1", tmp_path / "ensembles" / "mlp" / "seed-2")
    with pytest.raises(bundle.BundleError, match="the same network twice"):
        load_ensemble(tmp_path / "ensembles" / "mlp", shipped.card)


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "calibration", "report", "mlp", "--out", str(tmp_path / "out"), "--no-cache"]
    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "FORCE_COLOR": "1"}
    ) as process:  # fmt: skip
        assert process.stderr is not None
        seen = ""
        while "Measuring" not in seen:
            seen += process.stderr.read(1)
            assert process.poll() is None, seen
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted; nothing was left half-written" in rest
    assert list(tmp_path.iterdir()) == []


def test_no_dropout_and_yet_an_ensemble_and_no_cache_to_write(tmp_path: Path) -> None:
    write_bundle(tmp_path / "plain", "ReLUNet")
    write_ensemble(tmp_path / "ensembles" / "plain", bundle.load(tmp_path / "plain"), 2)
    (tmp_path / "cache").write_text("in the way")
    done = run(
        "calibration", "report", tmp_path / "plain", "--out", tmp_path / "out", "--images", "100", "--ensembles",
        tmp_path / "ensembles", "--cache", tmp_path / "cache" / "below",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (model,) = json.loads((tmp_path / "out" / "report.json").read_text())["models"]
    assert list(model["strategies"]) == ["weight_scaling", "deep_ensemble"]
    assert model["interpretation"] is None
    assert "no active dropout" in (tmp_path / "out" / "report.html").read_text()
    assert {path.name.split("-")[0] for path in (tmp_path / "out").iterdir()} == {
        "report.json", "report.html", "figure",
    }  # fmt: skip
    assert all(any(fnmatchcase(path.name, name) for name in FILES) for path in (tmp_path / "out").iterdir())


def test_compare_prints_a_table(shipped: bundle.Bundle, fashion: FashionMNISTSplits) -> None:
    done = run(
        "calibration", "compare", "mlp", "--images", "500", "--strategies", "weight_scaling,mc_dropout", "--samples",
        "8,64",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in done.stdout.splitlines()[2:]}
    assert list(rows) == [("weight_scaling", "-"), ("mc_dropout", "8"), ("mc_dropout", "64")]
    p = predicted(shipped, fashion.test.pixels[:500])["mc_dropout"]
    truth = fashion.test.labels[:500].numpy()
    accuracy, loss, _, temperature, calibrated_loss = (float(value) for value in rows["mc_dropout", "64"][:5])
    assert accuracy == pytest.approx(100 * accuracy_score(truth, p.argmax(1)), abs=0.21)
    assert loss == pytest.approx(log_loss(truth, p), abs=2e-4)
    assert temperature == pytest.approx(shipped.scaling("mc_dropout").temperature, abs=2e-3)
    assert calibrated_loss == pytest.approx(log_loss(truth, tempered(p, temperature)), abs=2e-4)
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_fit_stores_the_calibration(tmp_path: Path) -> None:
    write_bundle(tmp_path / "mine", "YourDropoutModel", {"dropout": [0.1, 0.1], "hidden_widths": [16]})
    (tmp_path / "mine" / "calibration.json").write_text("damaged")
    done = run("calibration", "fit", tmp_path / "mine", "--samples", "8")
    assert done.returncode == 0, done.stderr
    assert re.search(r"mc_dropout +temperature \d", done.stdout)
    found = bundle.load(tmp_path / "mine")
    assert found.calibration is not None
    assert found.scores is not None
    assert (found.calibration.samples, found.calibration.images) == (8, 5_000)
    assert set(found.calibration.strategies) == set(found.scores.strategies) == set(STRATEGIES)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["report", "mlp"], 2, "Missing option '--out'"),
        (["report", "nowhere", "--out", "x"], 1, "no bundle 'nowhere'"),
        (["report", "mlp", "--out", "x", "--images", "5"], 2, "'--images': 5 is not in the range"),
        (["fit", "mlp", "--samples", "1"], 2, "'--samples': 1 is not in the range"),
        (["fit"], 2, "Missing argument 'BUNDLE'"),
        (["report", "--out", "x"], 2, "Missing argument 'BUNDLE...'"),
        (["compare", "mlp", "--strategies", "guessing"], 2, "'guessing' is not one of weight_scaling, mc_dropout"),
        (["compare", "mlp", "--samples", "1"], 2, "--samples must lie between 2 and 1024"),
        (["calibrate"], 2, "No such command 'calibrate'"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(arguments: list[str], code: int, message: str) -> None:
    assert message in refused("calibration", *arguments, code=code)


def test_the_uniforms_of_the_report_are_those_of_the_pixels(fashion: FashionMNISTSplits) -> None:
    """As the service hashes them, so that its sets are the report's."""
    pixels = fashion.test.pixels[:5]
    assert torch.equal(conformal.image_uniforms(pixels), conformal.image_uniforms(pixels.float()))
