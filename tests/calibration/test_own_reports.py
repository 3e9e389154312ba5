"""The report and ``compare`` on images of one's own, of networks that were trained elsewhere."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from torch import nn

from calibration import predict
from calibration.novelty import NoveltyDetector
from models import bundle
from models.records import InputRecord
from tests import own_networks
from tests.calibration.own_bundles import DIGITS, imported, saved, write_digits
from tests.command_line import ROOT, refused, run
from tests.conftest import write_bundle
from training import own_images, shifts
from training.bundling import member_folder

pytestmark = pytest.mark.usefixtures("nothing_trusted")


def reported(place: Path, *arguments: str | Path) -> dict[str, Any]:
    """The report that the command writes into the folder ``out`` in ``place``."""
    done = run(
        "calibration", "report", *arguments, "--out", place / "out", "--no-cache", "--ensembles", place / "ensembles"
    )
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads((place / "out" / "report.json").read_text())
    return content


@pytest.fixture(scope="module")
def place(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundle ``mine`` of the digits' network, calibrated, and two fellows of other seeds."""
    place = tmp_path_factory.mktemp("own")
    imported("digits", trained / "weights.safetensors", place / "mine")
    for seed in (1, 2):
        (place / f"trained-{seed}").mkdir()
        write_digits(place / f"trained-{seed}", seed)
        member = member_folder(place / "ensembles" / "mine", seed)
        imported("digits", place / f"trained-{seed}" / "weights.safetensors", member)
    done = run(
        "calibration", "fit", place / "mine", "--network", DIGITS, "--data", trained / "calibration.npz",
        "--train-data", trained / "train.npz",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    upside_down = np.load(trained / "test.npz")["images"][:150, ::-1]
    # Labels that no class has: of images out of distribution they are not looked at.
    np.savez(place / "upside down.npz", images=upside_down, labels=np.full(150, 77))
    return place


@pytest.fixture(scope="module")
def report(place: Path, trained: Path) -> dict[str, Any]:
    return reported(
        place, place / "mine", "--network", DIGITS, "--data", trained / "test.npz", "--calibration-data",
        trained / "calibration.npz", "--outliers", place / "upside down.npz", "--attach",
    )  # fmt: skip


@pytest.fixture
def mine(place: Path, monkeypatch: pytest.MonkeyPatch) -> bundle.Bundle:
    monkeypatch.setenv("DROPOUT_NETWORKS", DIGITS)
    return bundle.load(place / "mine")


def test_its_figures_are_recomputed(report: dict[str, Any], mine: bundle.Bundle, trained: Path) -> None:
    (model,) = report["models"]
    test = np.load(trained / "test.npz")
    assert (report["data"], report["images"], report["shift_images"]) == ("images of test.npz", 397, 397)
    assert (model["calibration"], model["calibration_images"]) == ("stored", 400)
    assert model["training"] is None
    assert report["enumeration"] is None
    for strategy in ("weight_scaling", "mc_dropout"):
        p = predict(mine, test["images"], strategy=strategy).mean.double().numpy()
        section = model["strategies"][strategy]["calibrated"]
        assert section["accuracy"]["value"] == pytest.approx(accuracy_score(test["labels"], p.argmax(1)), abs=1e-9)
        assert section["nll"]["value"] == pytest.approx(log_loss(test["labels"], p / p.sum(1, keepdims=True)), abs=1e-5)
    assert model["interpretation"]["subnetworks"] == 512
    assert model["strategies"]["deep_ensemble"]["samples"] == 2
    assert report["missing"] == {}


def test_its_shifts_are_to_scale(report: dict[str, Any], mine: bundle.Bundle, trained: Path) -> None:
    # In another order what is random would fall on other images.
    found, _ = own_images.read_labelled(trained / "test.npz", mine.card)
    pixels, labels = found.pixels, found.labels
    rows = {
        (row["shift"], row["severity"], row["amount"]): row
        for row in report["models"][0]["shifts"]
        if row["strategy"] == "weight_scaling"
    }
    assert len(rows) == 13 + 25
    for key, shifted in (
        (("noise", 3, 64.0), shifts.noise(pixels, 64, 0, maximum=16)),
        (("occlusion", 2, 10.0), shifts.occlude(pixels, 10, 0)),
        (("turned", 0, 30.0), shifts.rotate(pixels, 30)),
    ):
        mean = predict(mine, shifted, strategy="weight_scaling").mean
        assert rows[key]["accuracy"] == pytest.approx(float((mean.argmax(1) == labels).double().mean()), abs=3e-3)


def test_its_outliers_are_noise_of_its_own_range_and_the_users(
    report: dict[str, Any], mine: bundle.Bundle, place: Path, trained: Path
) -> None:
    found = report["models"][0]["outliers"]
    assert {name: section["images"] for name, section in found.items()} == {
        "upside-down": 150, "uniform_noise": 397, "gaussian_noise": 397, "constant": 256,
    }  # fmt: skip
    detector = NoveltyDetector.of(mine)
    assert detector is not None
    own, foreign = (
        detector(mine.prepare(torch.from_numpy(np.load(path)["images"]))).distance.numpy()
        for path in (trained / "test.npz", place / "upside down.npz")
    )
    truth = np.r_[np.zeros(397), np.ones(150)]
    expected = roc_auc_score(truth, np.r_[own, foreign])
    assert found["upside-down"]["novelty"]["auroc"]["value"] == pytest.approx(expected, abs=1e-4)
    assert expected > 0.6


def test_its_page_shows_the_images_by_their_place(report: dict[str, Any], place: Path, trained: Path) -> None:
    test = np.load(trained / "test.npz")
    page = (place / "out" / "report.html").read_text()
    shown = re.findall(
        r'<img src="data:image/png;base64,([^"]+)" width="8" height="8" alt="Test image (\d+): (\d)">', page
    )
    gallery = report["models"][0]["gallery"]
    assert [name for _, name, _ in shown] == [entry["name"] for entries in gallery.values() for entry in entries]
    for content, name, label in shown:
        assert test["labels"][int(name)] == int(label)
        levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        assert np.array_equal(levels, (test["images"][int(name)] * (255 / 16)).round())
    assert "397 images of test.npz" in page
    assert "All sub-networks of a small network" not in page
    assert (place / "out" / "figure-mine-outliers-upside-down.png").exists()
    assert list((place / "mine").glob("report-*.html.gz")), "it was to be attached"


def test_compare_takes_them_too(report: dict[str, Any], place: Path, trained: Path) -> None:
    done = run(
        "calibration", "compare", place / "mine", "--network", DIGITS, "--data", trained / "test.npz",
        "--calibration-data", trained / "calibration.npz", "--strategies", "weight_scaling",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = next(line.split() for line in done.stdout.splitlines() if line.split()[0] == "weight_scaling")
    section = report["models"][0]["strategies"]["weight_scaling"]
    assert float(row[2]) == pytest.approx(100 * section["raw"]["accuracy"]["value"], abs=0.01)
    assert float(row[6]) == pytest.approx(section["calibrated"]["nll"]["value"], abs=1e-4)


def write_pictures(folder: Path, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    for number in range(count):
        path = folder / "abcde"[number % 5] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(path)


def test_colour_pictures_of_an_uncalibrated_network(tmp_path: Path) -> None:
    weights = saved(own_networks.mobile_net(), tmp_path / "weights.safetensors")
    inputs = InputRecord(shape=(3, 32, 48), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    imported("mobile_net", weights, tmp_path / "mine", inputs=inputs, classes=tuple("abcde"))
    for seed, name in enumerate(("test", "calibration", "others")):
        write_pictures(tmp_path / name, 100, seed)
    # Of others any folder will do.
    (tmp_path / "others" / "a").rename(tmp_path / "others" / "hedgehogs")
    report = reported(
        tmp_path, tmp_path / "mine", "--network", "tests.own_networks:mobile_net", "--data", tmp_path / "test",
        "--calibration-data", tmp_path / "calibration", "--outliers", tmp_path / "others",
    )  # fmt: skip
    (model,) = report["models"]
    assert model["calibration"] == "fitted for this report"
    assert not (tmp_path / "mine" / "calibration.json").exists()
    assert "import some that were trained as it was" in report["missing"]["deep ensemble of mine"]
    assert set(model["outliers"]) == {"others", "uniform_noise", "gaussian_noise", "constant"}
    assert model["outliers"]["others"]["images"] == 100
    assert len({(row["shift"], row["amount"]) for row in model["shifts"]}) == 13 + 25
    page = (tmp_path / "out" / "report.html").read_text()
    content, name, label = re.findall(
        r'<img src="data:image/png;base64,([^"]+)" width="48" height="32" alt="Test image ([^:]+): (\w)">', page
    )[0]
    assert name.startswith(f"{label}/")
    shown, source = Image.open(io.BytesIO(base64.b64decode(content))), Image.open(tmp_path / "test" / name)
    assert np.array_equal(np.asarray(shown), np.asarray(source))


def test_vectors_have_no_pictures_and_are_not_turned(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = saved(own_networks.digits(), tmp_path / "weights.safetensors")
    imported("digits", weights, tmp_path / "mine", inputs=InputRecord(shape=(64,), maximum=1.0))
    random = np.random.default_rng(0)
    for name in ("test", "calibration"):
        np.savez(tmp_path / f"{name}.npz", images=random.random((150, 64), np.float32), labels=np.arange(150) % 10)
    report = reported(
        tmp_path, tmp_path / "mine", "--network", DIGITS, "--data", tmp_path / "test.npz", "--calibration-data",
        tmp_path / "calibration.npz", "--images", "100",
    )  # fmt: skip
    (model,) = report["models"]
    assert {row["shift"] for row in model["shifts"]} == {"noise", "contrast"}
    assert report["missing"]["rotation, blur and occlusion"] == "vectors have no lines and columns"
    assert (report["images"], model["outliers"]["uniform_noise"]["images"]) == (100, 100)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<img" not in page
    assert "degrees" not in page


@pytest.fixture
def data(place: Path, trained: Path) -> dict[str, Path]:
    test = np.load(trained / "test.npz")
    np.savez(place / "few.npz", images=test["images"][:99], labels=test["labels"][:99])
    np.savez(place / "unlabelled.npz", images=test["images"])
    calibration = np.load(trained / "calibration.npz")
    images, labels = (np.concatenate([test[name][:200], calibration[name][:10]]) for name in ("images", "labels"))
    np.savez(place / "overlap.npz", images=images, labels=labels)
    named = {path.stem: path for path in place.glob("*.npz")}
    return {**named, "test": trained / "test.npz", "calibration": trained / "calibration.npz"}


@pytest.mark.parametrize(("test", "calibration", "more", "message"), [
    (None, None, None, "mine was trained elsewhere: name labelled images to measure on with --data"),
    ("test", None, None, "and those for its calibration with --calibration-data"),
    ("few", "calibration", None, "few.npz holds 99 images; at least 100 are needed"),
    ("unlabelled", "calibration", None, "unlabelled.npz holds images without labels"),
    ("overlap", "calibration", None, "10 of the 210 images in"),
    ("test", "overlap", None, "200 of the 397 images in .*overlap.npz too: what is learnt"),
    ("calibration", "test", None, "mine was calibrated on 400 other images than the 397 for calibration"),
    ("test", "calibration", "test", "would be a second set named 'test'"),
])  # fmt: skip
def test_data_that_does_not_fit_is_refused(
    *, place: Path, data: dict[str, Path], test: str | None, calibration: str | None, more: str | None, message: str
) -> None:
    arguments: list[str | Path] = [place / "mine", "--network", DIGITS, "--out", place / "none"]
    for option, name in (("--data", test), ("--calibration-data", calibration)):
        arguments += [option, data[name]] if name else []
    arguments += ["--outliers", data[more], "--outliers", data[more]] if more else []
    code = 2 if None in {test, calibration} else 1
    assert re.search(message, refused("calibration", "report", *arguments, code=code))
    assert not (place / "none").exists()


def test_images_are_known_again_in_another_order_and_by_more_than_their_labels(
    place: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    known = np.load(data["calibration"])
    order = np.random.default_rng(5).permutation(400)
    np.savez(tmp_path / "again.npz", images=known["images"][order], labels=known["labels"][order])
    np.savez(tmp_path / "others.npz", images=(known["images"] + 1).clip(0, 16), labels=known["labels"])
    given: list[str | Path] = [place / "mine", "--network", DIGITS, "--data", data["test"], "--calibration-data"]
    done = run("calibration", "compare", *given, tmp_path / "again.npz", "--strategies", "weight_scaling")
    assert done.returncode == 0, done.stderr
    message = refused("calibration", "compare", *given, tmp_path / "others.npz", code=1)
    assert "mine was calibrated on 400 other images than the 400 for calibration" in message


def test_the_cache_notices_that_the_code_changed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle, its weights and its card are the same."""
    monkeypatch.syspath_prepend(tmp_path)
    code = "from torch import nn\n\n\ndef build():\n    return nn.Sequential({})\n"
    layers = "nn.Flatten(), nn.Linear(64, 32), nn.{}(), nn.Dropout({}), nn.Linear(32, 10)"
    found: list[tuple[float, float, float]] = []
    for activation, rate in (("ReLU", 0.3), ("Tanh", 0.3), ("Tanh", 0.5)):
        (tmp_path / "changing.py").write_text(code.format(layers.format(activation, rate)))
        monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{tmp_path}")
        if not found:
            done = run(
                "models", "import", "changing:build", "--weights", trained / "weights.safetensors", "--out",
                tmp_path / "mine", "--shape", "8,8", "--maximum", "16", "--classes", "0,1,2,3,4,5,6,7,8,9",
                "--outputs", "logits",
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        done = run(
            "calibration", "report", tmp_path / "mine", "--network", "changing:build", "--data", trained / "test.npz",
            "--calibration-data", trained / "calibration.npz", "--images", "100", "--out", tmp_path / "out", "--cache",
            tmp_path / "cache",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (model,) = json.loads((tmp_path / "out" / "report.json").read_text())["models"]
        raw = {name: section["raw"]["nll"]["value"] for name, section in model["strategies"].items()}
        found.append((raw["weight_scaling"], raw["mc_dropout"], model["interpretation"]["member_nll"]))
    assert found[0][0] != found[1][0] == found[2][0]
    assert len({each[1] for each in found}) == len({each[2] for each in found}) == 3


def test_bundles_that_cannot_be_measured_together(place: Path, data: dict[str, Path], tmp_path: Path) -> None:
    given: list[str | Path] = ["--network", DIGITS, "--out", tmp_path / "out", "--data", data["test"]]
    given += ["--calibration-data", data["calibration"]]
    message = refused("calibration", "report", "mlp", place / "mine", *given, code=1)
    assert "mine was trained elsewhere, and others on Fashion-MNIST: measure each by itself" in message
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10))
    weights = saved(network, tmp_path / "weights.safetensors")
    imported("digits", weights, tmp_path / "other", classes=tuple("abcdefghij"), bundle_name="other")
    message = refused("calibration", "report", place / "mine", tmp_path / "other", *given, code=1)
    assert "the bundles take other images, or tell other classes" in message


def test_own_images_are_not_for_what_was_trained_here(data: dict[str, Path], tmp_path: Path) -> None:
    write_bundle(tmp_path / "plain", "ReLUNet")
    for option in ("--data", "--calibration-data"):
        message = refused("calibration", "compare", tmp_path / "plain", option, data["test"], code=2)
        assert "plain was trained on Fashion-MNIST: --data is a folder with its files" in message


def test_a_set_of_ones_own_beside_those_of_fashion_mnist(tmp_path: Path) -> None:
    np.savez(tmp_path / "stripes.npz", images=np.tile(np.array([0, 255], np.uint8), (120, 28, 14)))
    write_bundle(tmp_path / "plain", "ReLUNet")
    arguments: list[str | Path] = [tmp_path / "plain", "--images", "100", "--outliers", tmp_path / "stripes.npz"]
    (model,) = reported(tmp_path, *arguments)["models"]
    assert list(model["outliers"])[-1] == "stripes"
    assert model["outliers"]["stripes"]["images"] == 100
    (tmp_path / "digits.npz").write_bytes((tmp_path / "stripes.npz").read_bytes())
    arguments[-1] = tmp_path / "digits.npz"
    message = refused("calibration", "report", *arguments, "--out", tmp_path / "none", code=1)
    assert "would be a second set named 'digits'" in message
