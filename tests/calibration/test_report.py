"""The report, made by the command from the shipped bundle and the real test images, against a recomputation."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, log_loss

from calibration.moments import propagate_moments
from calibration.report import FILES, measure, write
from calibration.report.page import conclusions
from calibration.scaling import calibrate
from calibration.strategies import STRATEGIES
from calibration.subnetworks import SubnetworkEnsemble
from models import bundle
from tests.command_line import refused, run
from tests.conftest import write_bundle
from training.data import FashionMNISTSplits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "mlp"
    done = run("calibration", "report", "mlp", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    assert "images/s" in done.stderr
    return out


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


@pytest.fixture(scope="module")
def predictions(shipped: bundle.Bundle, fashion: FashionMNISTSplits) -> dict[str, np.ndarray[Any, Any]]:
    """Each strategy's probabilities on the test images, in float64 and by other formulas than the project's."""
    inputs = shipped.prepare(fashion.test.pixels)
    logits, last = (
        SubnetworkEnsemble(shipped.network, (28, 28), samples=64, seed=0, last_layer_only=only).logits(inputs).double()
        for only in (False, True)
    )
    moments = propagate_moments(shipped.network, (28, 28))(inputs)
    with torch.inference_mode():
        scaled = shipped.network(inputs).double()
    return {
        "weight_scaling": scaled.softmax(-1).numpy(),
        "mc_dropout": logits.softmax(-1).mean(0).numpy(),
        "geometric_mean": logits.mean(0).softmax(-1).numpy(),
        "last_layer": last.softmax(-1).mean(0).numpy(),
        "moment_propagation": moments.points().double().softmax(-1).mean(0).numpy(),
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stage", ["raw", "calibrated"])
def test_every_figure_is_recomputed(
    *, report: dict[str, Any], predictions: dict[str, np.ndarray[Any, Any]], fashion: FashionMNISTSplits, strategy: str,
    stage: str, shipped: bundle.Bundle,
) -> None:  # fmt: skip
    labels = fashion.test.labels.numpy()
    p = predictions[strategy]
    if stage == "calibrated":
        p = p ** (1 / shipped.temperature(strategy))
        p /= p.sum(1, keepdims=True)
    section = report["strategies"][strategy][stage]
    assert section["accuracy"] == pytest.approx(accuracy_score(labels, p.argmax(1)), abs=2e-4)
    assert section["nll"] == pytest.approx(log_loss(labels, p), abs=1e-5)
    assert section["brier"] == pytest.approx(((p - np.eye(10)[labels]) ** 2).sum(1).mean(), abs=1e-5)
    correct, confidence = p.argmax(1) == labels, p.max(1)
    fraction, mean = calibration_curve(correct, confidence, n_bins=15)
    counts = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    assert section["ece"] == pytest.approx((abs(fraction - mean) * counts[counts > 0]).sum() / 10_000, abs=3e-4)
    assert sum(section["reliability"]["count"]) == 10_000


def test_it_says_what_it_measured(report: dict[str, Any], shipped: bundle.Bundle) -> None:
    assert report["schema"] == 1
    assert report["model"]["version"] == shipped.version
    assert report["model"]["calibration"] == "stored"
    assert report["data"]["images"] == 10_000
    assert tuple(report["strategies"]) == STRATEGIES
    assert report["strategies"]["mc_dropout"]["samples"] == 64


def test_the_paired_difference(
    report: dict[str, Any], predictions: dict[str, np.ndarray[Any, Any]], fashion: FashionMNISTSplits,
    shipped: bundle.Bundle,
) -> None:  # fmt: skip
    labels = fashion.test.labels.numpy()
    losses = {}
    for strategy in ("mc_dropout", "weight_scaling"):
        p = predictions[strategy] ** (1 / shipped.temperature(strategy))
        losses[strategy] = -np.log((p / p.sum(1, keepdims=True))[np.arange(10_000), labels])
    difference = losses["mc_dropout"] - losses["weight_scaling"]
    resampled = np.random.default_rng(0).choice(difference, (2000, 10_000)).mean(1)
    found = report["comparison"]["mc_dropout"]["nll"]
    assert found["difference"] == pytest.approx(difference.mean(), abs=1e-5)
    assert found["interval"] == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=5e-4)


def test_the_gallery_is_the_extremes(
    report: dict[str, Any], shipped: bundle.Bundle, fashion: FashionMNISTSplits
) -> None:
    uncertain, certain = report["gallery"]["most_uncertain"], report["gallery"]["most_certain"]
    totals = [item["total"] for item in uncertain]
    assert totals == sorted(totals, reverse=True)
    assert certain[-1]["total"] < 0.1 < totals[-1]
    for item in uncertain + certain:
        assert item["total"] == pytest.approx(item["aleatoric"] + item["epistemic"], abs=1e-4)
        assert item["label"] == shipped.card.classes[int(fashion.test.labels[item["index"]])]


def test_the_page_needs_nothing_else(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page
    assert page.count('alt="Test image') == 24
    assert "currentColor" in page
    assert "mc_dropout, calibrated" in page
    with Image.open(folder / "reliability.png") as figure:
        assert figure.width > 1000


def test_a_report_is_replaced_and_anything_else_is_not(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out"
    shutil.copytree(folder, mine)
    (mine / "notes.txt").write_text("mine")
    assert "holds notes.txt" in refused_last_line(run("calibration", "report", "mlp", "--out", mine))
    (mine / "notes.txt").unlink()
    (mine / "report.html").write_text("old")
    assert run("calibration", "report", "mlp", "--out", mine).returncode == 0
    assert len((mine / "report.html").read_text()) > 10_000
    assert (mine / "report.json").read_bytes() == (folder / "report.json").read_bytes(), "a report is reproducible"


def refused_last_line(done: Any) -> str:
    assert done.returncode == 1, done.stderr
    line: str = done.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


def test_an_uncalibrated_bundle_without_dropout(tmp_path: Path) -> None:
    write_bundle(tmp_path / "plain", "ReLUNet")
    done = run("calibration", "report", tmp_path / "plain", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["strategies"]) == ["weight_scaling"]
    assert report["model"]["calibration"] == "fitted for this report"
    assert report["gallery"]["most_uncertain"][0]["epistemic"] is None
    assert "no active dropout" in (tmp_path / "out" / "report.html").read_text()
    assert not (tmp_path / "plain" / "calibration.json").exists()


def test_a_network_that_is_certain_and_wrong_is_reported(tmp_path: Path, fashion: FashionMNISTSplits) -> None:
    """Its softmax underflows to 0 in float32; a loss of infinity would be no valid JSON."""
    network = write_bundle(tmp_path / "wild")
    for parameter in network.parameters():
        parameter.requires_grad_(False).mul_(100)
    card = bundle.load(tmp_path / "wild").card.model_dump(exclude={"weights_sha256", "format"})
    bundle.write(tmp_path / "wild", network, card)
    wild, test = bundle.load(tmp_path / "wild"), fashion.test[slice(0, 200)]
    measured = measure(wild, calibrate(wild, test, samples=4), test)
    assert measured["strategies"]["weight_scaling"]["raw"]["nll"] > 5
    (tmp_path / "out").mkdir()
    write(measured, test.pixels, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(FILES)


def test_a_calibration_with_other_strategies(shipped: bundle.Bundle, fashion: FashionMNISTSplits) -> None:
    """As another release may write it: one strategy unknown here, others missing."""
    assert shipped.calibration is not None
    other = {"unheard_of": shipped.calibration.strategies["mc_dropout"]}
    calibration = shipped.calibration.model_copy(update={"strategies": other, "samples": 4})
    report = measure(shipped, calibration, fashion.test[slice(0, 200)])
    assert tuple(report["strategies"]) == STRATEGIES
    assert report["strategies"]["mc_dropout"]["temperature"] == 1


def test_fit_stores_the_calibration(tmp_path: Path) -> None:
    write_bundle(tmp_path / "mine", "YourDropoutModel", {"dropout": [0.1, 0.1], "hidden_widths": [16]})
    done = run("calibration", "fit", tmp_path / "mine", "--samples", "8")
    assert done.returncode == 0, done.stderr
    assert re.search(r"mc_dropout +temperature \d", done.stdout)
    calibration = bundle.load(tmp_path / "mine").calibration
    assert calibration is not None
    assert (calibration.samples, calibration.images) == (8, 5_000)
    assert set(calibration.strategies) == set(STRATEGIES)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["report", "mlp"], 2, "Missing option '--out'"),
        (["report", "nowhere", "--out", "x"], 1, "no bundle 'nowhere'"),
        (["fit", "mlp", "--samples", "1"], 2, "'--samples': 1 is not in the range"),
        (["fit"], 2, "Missing argument 'BUNDLE'"),
        (["calibrate"], 2, "No such command 'calibrate'"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(arguments: list[str], code: int, message: str) -> None:
    assert message in refused("calibration", *arguments, code=code)


def comparison(low: float, high: float) -> dict[str, Any]:
    return {"difference": (low + high) / 2, "interval": [low, high]}


@pytest.mark.parametrize(
    ("accuracy", "nll", "expected"),
    [
        ((0.01, 0.02), (-0.2, -0.1), ["of accuracy (95 % interval +1.000 to +2.000), better", "better."]),
        ((-0.02, -0.01), (0.1, 0.2), ["of accuracy (95 % interval −2.000 to −1.000), worse", "worse."]),
        ((-0.01, 0.01), (-0.1, 0.1), ["to +1.000), not distinguishable", "not distinguishable."]),
    ],
)
def test_conclusions_follow_the_figures(
    report: dict[str, Any], accuracy: tuple[float, float], nll: tuple[float, float], expected: list[str]
) -> None:
    changed = {
        **report,
        "comparison": {"mc_dropout": {"accuracy": comparison(*accuracy), "nll": comparison(*nll)}},
    }
    first = conclusions(changed)[0]
    assert expected[0] in first
    assert first.endswith(expected[1])
