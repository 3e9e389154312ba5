"""What the tests of the report share: one made by the command, and predictions to recompute it from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calibration.moments import propagate_moments
from calibration.subnetworks import SubnetworkEnsemble
from models import bundle, networks, storage
from models.networks import own
from tests.calibration.own_bundles import write_digits
from tests.command_line import run
from training.bundling import member_folder
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


@pytest.fixture(scope="session")
def report_folder(tmp_path_factory: pytest.TempPathFactory, shipped: bundle.Bundle) -> Path:
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


@pytest.fixture(scope="session")
def report(report_folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((report_folder / "report.json").read_text())
    return content


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def raw(shipped: bundle.Bundle, fashion: FashionMNISTSplits) -> Arrays:
    return predicted(shipped, fashion.test.pixels[:IMAGES])


@pytest.fixture(scope="session")
def calibrated(shipped: bundle.Bundle, raw: Arrays) -> Arrays:
    return {name: tempered(p, shipped.scaling(name).temperature) for name, p in raw.items()}


@pytest.fixture(scope="session")
def labels(fashion: FashionMNISTSplits) -> np.ndarray[Any, Any]:
    return fashion.test.labels[:IMAGES].numpy()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as :func:`write_digits` writes it."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return folder


@pytest.fixture
def nothing_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test trusts is forgotten after it."""
    monkeypatch.setenv(own.ENVIRONMENT_VARIABLE, "")
