"""The figures of a report that the command made from the shipped bundle, against a recomputation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from calibration import strategies
from calibration.novelty import NoveltyDetector
from calibration.report.interpretation import SEED, SUBNETWORKS
from calibration.strategies import STRATEGIES
from calibration.subnetworks import SubnetworkEnsemble
from models import bundle
from tests.calibration.conftest import IMAGES, Arrays, predicted, tempered
from training import outliers, shifts
from training.data import FashionMNISTSplits


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


def test_novelty_is_recomputed(model: dict[str, Any], shipped: bundle.Bundle, fashion: FashionMNISTSplits) -> None:
    detector = NoveltyDetector.of(shipped)
    assert detector is not None
    own = detector(shipped.prepare(fashion.test.pixels[:IMAGES])).distance
    for name, pixels in outliers.load_outliers().sets.items():
        if name in model["outliers"]:
            foreign = detector(shipped.prepare(pixels[:IMAGES])).distance
            truth = np.r_[np.zeros(len(own)), np.ones(len(foreign))]
            area = model["outliers"][name]["novelty"]["auroc"]
            assert area["value"] == pytest.approx(roc_auc_score(truth, torch.cat([own, foreign])), abs=1e-4)
            assert area["low"] <= area["value"] <= area["high"]


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
