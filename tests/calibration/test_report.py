"""The report, made by the command from the shipped bundle and real test images, against a recomputation."""

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

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)
from torch import Tensor

from calibration import conformal, strategies
from calibration.moments import propagate_moments
from calibration.report import FILES
from calibration.report.interpretation import SEED, SUBNETWORKS
from calibration.strategies import STRATEGIES
from calibration.subnetworks import SubnetworkEnsemble
from models import bundle, networks, storage
from tests.command_line import ROOT, refused, run
from tests.conftest import write_bundle
from training import outliers, shifts
from training.bundling import load_ensemble, member_folder
from training.data import FashionMNISTSplits

IMAGES = 400
Arrays = dict[str, np.ndarray[Any, Any]]


def write_ensemble(folder: Path, of: bundle.Bundle, members: int) -> None:
    """Networks as that of the bundle, untrained: the report does not care how good they are."""
    fields = of.card.model_dump(exclude={"weights_sha256", "format"})
    for seed in range(1, members + 1):
        network = networks.build(of.card.network.name, of.card.network.arguments, seed=seed).eval()
        with storage.new_folder(member_folder(folder, seed)) as temporary:
            training = {**fields["training"], "seed": seed}
            bundle.write(temporary, network, {**fields, "name": f"seed-{seed}", "training": training})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shipped: bundle.Bundle) -> Path:
    place = tmp_path_factory.mktemp("report")
    write_ensemble(place / "ensembles" / "mlp", shipped, 2)
    done = run(
        "calibration", "report", "mlp", "--out", place / "mlp", "--images", str(IMAGES), "--ensembles",
        place / "ensembles", "--cache", place / "cache", environment={"MNIST_DIR": str(place)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    assert "images/s" in done.stderr
    assert "Missing from the report: mnist" in done.stderr
    return place / "mlp"


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


@pytest.fixture(scope="module")
def model(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = report["models"][0]
    return found


def predicted(shipped: bundle.Bundle, pixels: Tensor) -> Arrays:
    """Each strategy's probabilities, in float64 and by other formulas than the project's."""
    inputs = shipped.prepare(pixels)
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


def tempered(p: np.ndarray[Any, Any], temperature: float) -> np.ndarray[Any, Any]:
    powered: np.ndarray[Any, Any] = p ** (1 / temperature)
    powered /= powered.sum(1, keepdims=True)
    return powered


@pytest.fixture(scope="module")
def raw(shipped: bundle.Bundle, fashion: FashionMNISTSplits) -> Arrays:
    return predicted(shipped, fashion.test.pixels[:IMAGES])


@pytest.fixture(scope="module")
def calibrated(shipped: bundle.Bundle, raw: Arrays) -> Arrays:
    return {name: tempered(p, shipped.scaling(name).temperature) for name, p in raw.items()}


@pytest.fixture(scope="module")
def labels(fashion: FashionMNISTSplits) -> np.ndarray[Any, Any]:
    return fashion.test.labels[:IMAGES].numpy()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stage", ["raw", "calibrated"])
def test_every_measure_is_recomputed(
    *, model: dict[str, Any], raw: Arrays, calibrated: Arrays, labels: np.ndarray[Any, Any], strategy: str, stage: str
) -> None:
    p = (raw if stage == "raw" else calibrated)[strategy]
    section = model["strategies"][strategy][stage]
    assert section["accuracy"]["value"] == pytest.approx(accuracy_score(labels, p.argmax(1)), abs=1e-9)
    assert section["nll"]["value"] == pytest.approx(log_loss(labels, p), abs=1e-5)
    brier = ((p - np.eye(10)[labels]) ** 2).sum(1).mean()
    assert section["brier"]["value"] == pytest.approx(brier, abs=1e-5)
    assert section["brier_calibration"] + section["brier_refinement"] == pytest.approx(brier, abs=1e-5)
    correct, confidence = p.argmax(1) == labels, p.max(1)
    fraction, mean = calibration_curve(correct, confidence, n_bins=15)
    counts = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    ece = (abs(fraction - mean) * counts[counts > 0]).sum() / IMAGES
    assert section["ece"]["value"] == pytest.approx(ece, abs=2e-3)
    assert section["overconfidence"]["value"] == pytest.approx(confidence.mean() - correct.mean(), abs=1e-5)
    assert sum(section["reliability"]["count"]) == IMAGES
    for name in ("accuracy", "nll", "brier"):
        assert section[name]["low"] < section[name]["value"] < section[name]["high"], name
    assert 0 <= section["ece"]["low"] < section["ece"]["high"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_ranking_is_recomputed(
    model: dict[str, Any], calibrated: Arrays, labels: np.ndarray[Any, Any], strategy: str
) -> None:
    p = calibrated[strategy]
    errors = p.argmax(1) != labels
    entropy = -(p * np.log(p)).sum(1)
    for score, values in (("confidence", 1 - p.max(1)), ("total", entropy)):
        found = model["strategies"][strategy]["ranking"][score]
        assert found["auroc"]["value"] == pytest.approx(roc_auc_score(errors, values), abs=1e-4)
        risk = errors[values.argsort(kind="stable")].cumsum() / np.arange(1, IMAGES + 1)
        assert found["aurc"]["value"] == pytest.approx(risk.mean(), abs=1e-4)
        assert found["accuracy_at_coverage"]["0.9"]["value"] == pytest.approx(1 - risk[IMAGES * 9 // 10 - 1], abs=3e-3)
        assert found["risk"][-1] == pytest.approx(errors.mean())


def test_an_interval_is_that_of_resampled_images(
    model: dict[str, Any], calibrated: Arrays, labels: np.ndarray[Any, Any]
) -> None:
    """Other resamples, the mean's own law: the difference of losses is paired."""
    losses = {name: -np.log(p[np.arange(IMAGES), labels]) for name, p in calibrated.items()}
    for row in model["differences"]:
        if row["measure"] == "nll" and row["strategy"] != "deep_ensemble":
            difference = losses[row["strategy"]] - losses["weight_scaling"]
            found, margin = row["difference"], 1.96 * difference.std() / IMAGES**0.5
            assert found["value"] == pytest.approx(difference.mean(), abs=1e-5)
            assert found["low"] == pytest.approx(difference.mean() - margin, abs=0.25 * margin)
            assert found["high"] == pytest.approx(difference.mean() + margin, abs=0.25 * margin)
            assert row["better"] == (None if found["low"] <= 0 <= found["high"] else found["high"] < 0)


def test_prediction_sets_are_recomputed(
    model: dict[str, Any], shipped: bundle.Bundle, calibrated: Arrays, fashion: FashionMNISTSplits
) -> None:
    """LAC from its definition, on the second half of the calibration images."""
    half = fashion.calibration[slice(2500, None)]
    strategy = strategies.build("mc_dropout", shipped.network, (28, 28))
    held_out = strategy.summarise(shipped.prepare(half.pixels), shipped.scaling("mc_dropout")).mean
    scores = np.sort(1 - held_out.double().numpy()[np.arange(2500), half.labels.numpy()])
    p, labels = calibrated["mc_dropout"], fashion.test.labels[:IMAGES].numpy()
    rows = {row["nominal"]: row for row in model["strategies"]["mc_dropout"]["conformal"]
            if row["method"] == "lac" and not row["class_conditional"]}  # fmt: skip
    assert list(rows) == [0.8, 0.9, 0.95, 0.99]
    for nominal, rank in ((0.8, 2001), (0.9, 2251), (0.95, 2376), (0.99, 2476)):
        sets = 1 - p <= scores[rank - 1] + 1e-7
        assert rows[nominal]["coverage"] == pytest.approx(sets[np.arange(IMAGES), labels].mean(), abs=3e-3)
        assert rows[nominal]["size"] == pytest.approx(sets.sum(1).mean(), abs=5e-3)
        assert rows[nominal]["probability"] > 1e-3


def test_abstention_is_recomputed(
    model: dict[str, Any], shipped: bundle.Bundle, calibrated: Arrays, labels: np.ndarray[Any, Any]
) -> None:
    assert shipped.calibration is not None
    p = calibrated["mc_dropout"]
    for row, stored in zip(
        model["strategies"]["mc_dropout"]["abstention"], shipped.calibration.strategies["mc_dropout"].abstention,
        strict=True,
    ):  # fmt: skip
        assert row["promised"] == stored.model_dump()
        answered = 1 - p.max(1) <= (stored.threshold or 0) + 1e-7
        assert row["coverage"] == pytest.approx(answered.mean(), abs=3e-3)
        wrong = (p.argmax(1) != labels)[answered]
        assert row["selective_error"] == pytest.approx(wrong.mean(), abs=5e-3)


def test_outliers_are_recomputed(model: dict[str, Any], shipped: bundle.Bundle, calibrated: Arrays) -> None:
    found = outliers.load_outliers().sets
    assert set(model["outliers"]) == {"digits", "uniform_noise", "gaussian_noise", "constant"}, "MNIST was hidden"
    for name in ("digits", "constant"):
        foreign = predicted(shipped, found[name][:IMAGES])
        for strategy in ("weight_scaling", "mc_dropout"):
            own = calibrated[strategy]
            other = tempered(foreign[strategy], shipped.scaling(strategy).temperature)
            scores = np.concatenate([-(p * np.log(p)).sum(1) for p in (own, other)])
            truth = np.r_[np.zeros(len(own)), np.ones(len(other))]
            section = model["outliers"][name]["detection"][strategy]["total"]
            assert section["auroc"]["value"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-4)
            assert section["aupr"]["value"] == pytest.approx(average_precision_score(truth, scores), abs=1e-3)
            assert section["auroc"]["low"] < section["auroc"]["value"] < section["auroc"]["high"]
        assert sum(model["outliers"][name]["histogram"]["mc_dropout"]["epistemic"]) == len(found[name][:IMAGES])


def test_shifts_are_recomputed(
    model: dict[str, Any], shipped: bundle.Bundle, fashion: FashionMNISTSplits, labels: np.ndarray[Any, Any]
) -> None:
    rows = {(row["shift"], row["severity"], row["amount"], row["strategy"]): row for row in model["shifts"]}
    assert len(rows) == 6 * (13 + 5 * 5)
    pixels = fashion.test.pixels[:IMAGES]
    for key, images in {
        ("blur", 3, 1.5): shifts.shift(pixels, "blur", 3),
        ("turned", 0, 30.0): shifts.rotate(pixels, 30),
    }.items():
        p = tempered(predicted(shipped, images)["mc_dropout"], shipped.scaling("mc_dropout").temperature)
        row = rows[(*key, "mc_dropout")]
        assert row["accuracy"] == pytest.approx((p.argmax(1) == labels).mean(), abs=3e-3)
        assert row["total"] == pytest.approx(-(p * np.log(p)).sum(1).mean(), abs=1e-4)
        assert row["total"] == pytest.approx(row["aleatoric"] + row["epistemic"], abs=1e-4)
    assert rows["turned", 0, 0.0, "weight_scaling"]["epistemic"] is None


def test_the_ensemble_interpretation_is_recomputed(
    model: dict[str, Any], shipped: bundle.Bundle, fashion: FashionMNISTSplits, raw: Arrays,
    labels: np.ndarray[Any, Any],
) -> None:  # fmt: skip
    chapter = model["interpretation"]
    ensemble = SubnetworkEnsemble(shipped.network, (28, 28), samples=SUBNETWORKS, seed=SEED, design="independent")
    logits = ensemble.logits(shipped.prepare(fashion.test.pixels[:IMAGES])).double()
    members = logits.softmax(-1).numpy()
    votes = members.argmax(-1)
    sizes = {row["samples"]: row for row in chapter["sizes"]}
    assert list(sizes) == [2**level for level in range(10)]
    for size in (1, 8, 512):
        blocks = members.reshape(-1, size, IMAGES, 10).mean(1)
        assert sizes[size]["accuracy"] == pytest.approx((blocks.argmax(-1) == labels).mean(), abs=1e-4)
        losses = -np.log(np.maximum(blocks[:, np.arange(IMAGES), labels], 1e-38))
        assert sizes[size]["raw_nll"] == pytest.approx(losses.mean(), abs=1e-4)
        geometric = logits.numpy().reshape(-1, size, IMAGES, 10).mean(1).argmax(-1)
        assert sizes[size]["geometric_accuracy"] == pytest.approx((geometric == labels).mean(), abs=1e-4)
    assert sizes[512]["nll"] < sizes[512]["raw_nll"]
    single = (votes == labels).mean(1)
    assert chapter["member_accuracies"] == pytest.approx(sorted(single), abs=1e-9)
    assert chapter["member_accuracy"] == pytest.approx(np.quantile(single, [0, 0.25, 0.5, 0.75, 1]), abs=1e-9)
    some = np.random.default_rng(0).choice(SUBNETWORKS, (300, 2))
    disagreement = np.mean([(votes[a] != votes[b]).mean() for a, b in some if a != b])
    assert chapter["disagreement"] == pytest.approx(disagreement, abs=0.01)
    plain = raw["weight_scaling"]
    for name, mean in (("geometric", logits.mean(0).softmax(-1).numpy()), ("arithmetic", members.mean(0))):
        divergence = (mean * np.log(mean / plain)).sum(1)
        assert chapter[f"kl_{name}"]["mean"] == pytest.approx(divergence.mean(), rel=1e-3, abs=1e-6)
        assert chapter[f"kl_{name}"]["maximum"] == pytest.approx(divergence.max(), rel=1e-3)
        assert sum(chapter["kl_histogram"][name]) == IMAGES
    accuracies = [sizes[size]["accuracy"] >= chapter["weight_scaling_accuracy"] for size in sizes]
    crossing = next((size for k, size in enumerate(sizes) if all(accuracies[k:])), None)
    assert chapter["crossing_accuracy"] == crossing


def test_the_small_network_was_enumerated(report: dict[str, Any]) -> None:
    section = report["enumeration"]
    assert section["subnetworks"] == 2**14
    assert section["accuracy"]["weight_scaling"] > 0.5, "it was trained"
    assert 0 < section["kl_geometric"] < section["kl_arithmetic"]
    errors = {(row["design"], row["samples"]): row["error"] for row in section["errors"]}
    for design in ("independent", "orthogonal"):
        assert errors[design, 256] < errors[design, 64] < errors[design, 16] < errors[design, 4] < 0.1
    assert errors["orthogonal", 256] < errors["independent", 256]


def test_classes_are_recomputed(
    model: dict[str, Any], calibrated: Arrays, labels: np.ndarray[Any, Any], shipped: bundle.Bundle
) -> None:
    predictions = calibrated["mc_dropout"].argmax(1)
    rows = model["classes"]
    assert [row["label"] for row in rows] == list(shipped.card.classes)
    assert [row["recall"] for row in rows] == pytest.approx(recall_score(labels, predictions, average=None))
    assert [row["precision"] for row in rows] == pytest.approx(precision_score(labels, predictions, average=None))
    assert sum(row["images"] for row in rows) == IMAGES
    shirt = rows[6]
    wrong = predictions[(labels == 6) & (predictions != 6)]
    assert shirt["confused_with"] == shipped.card.classes[np.bincount(wrong).argmax()]


def test_the_galleries_are_the_extremes(
    model: dict[str, Any], calibrated: Arrays, labels: np.ndarray[Any, Any], shipped: bundle.Bundle
) -> None:
    p = calibrated["mc_dropout"]
    gallery = model["gallery"]
    entropy = -(p * np.log(p)).sum(1)
    assert [item["index"] for item in gallery["most uncertain"]] == list(entropy.argsort()[::-1][:12])
    wrong = np.where(p.argmax(1) != labels, p.max(1), 0)
    assert [item["index"] for item in gallery["most confidently wrong"]] == list(wrong.argsort()[::-1][:12])
    epistemic = [item["epistemic"] for item in gallery["highest epistemic uncertainty"]]
    assert epistemic == sorted(epistemic, reverse=True)
    for item in [item for items in gallery.values() for item in items]:
        assert item["total"] == pytest.approx(item["aleatoric"] + item["epistemic"], abs=1e-4)
        assert item["label"] == shipped.card.classes[labels[item["index"]]]


def test_it_says_what_it_measured(report: dict[str, Any], model: dict[str, Any], shipped: bundle.Bundle) -> None:
    assert (report["schema"], report["images"], report["shift_images"]) == (2, IMAGES, IMAGES)
    assert "MNIST_DIR" in report["missing"]["mnist"]
    assert model["version"] == shipped.version
    assert model["calibration"] == "stored"
    assert tuple(model["strategies"]) == (*STRATEGIES, "deep_ensemble")
    assert model["strategies"]["deep_ensemble"]["samples"] == 2
    assert model["strategies"]["mc_dropout"]["samples"] == 64
    assert model["strategies"]["mc_dropout"]["spread"]["seeds"] == 5
    cost = {name: section["cost"]["among_many"] for name, section in model["strategies"].items()}
    assert cost["weight_scaling"] < cost["mc_dropout"] < cost["moment_propagation"]
    assert {(row["samples"], row["design"]) for row in model["sampling"] if row["strategy"] == "mc_dropout"} == {
        (4, "orthogonal"), (16, "orthogonal"), (64, "orthogonal"), (256, "orthogonal"), (64, "independent"),
        (64, "antithetic"), (64, "latin_hypercube"),
    }  # fmt: skip


def test_it_has_the_documented_schema(report: dict[str, Any]) -> None:
    schema = json.loads((ROOT / "docs" / "report.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    assert not list(Draft202012Validator(schema).iter_errors(report))
    changed = {**report, "models": [{**report["models"][0], "surprise": 1}]}
    assert list(Draft202012Validator(schema).iter_errors(changed))


def test_the_page_needs_nothing_else(folder: Path, model: dict[str, Any]) -> None:
    page = (folder / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "<script" not in page
    assert page.count('alt="Test image') == 36
    figures = re.findall(r'<div role="img" aria-label="([^"]+)">\s*<svg', page)
    assert len(figures) == page.count("<svg") == len(list(folder.glob("figure-*.png"))) > 30
    assert len(list(folder.glob("figure-*.svg"))) == len(figures)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert anchor in ids
    assert "currentColor" in page
    assert f"{100 * model['strategies']['mc_dropout']['calibrated']['accuracy']['value']:.2f}" in page
    for path in folder.glob("figure-*.png"):
        with Image.open(path) as figure:
            assert figure.width > 500


def test_a_second_run_reuses_predictions_and_says_the_same(folder: Path, report: dict[str, Any]) -> None:
    """And an earlier report is replaced, but nothing else."""
    place = folder.parent
    again = place / "again"
    shutil.copytree(folder, again)
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
