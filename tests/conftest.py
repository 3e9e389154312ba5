"""Fixtures that several floors' tests share: the real data, the shipped bundle, running servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from torch import nn

from models import bundle, networks, records, storage
from tests.serving import serving
from training import data


@pytest.fixture(scope="session")
def fashion() -> data.FashionMNISTSplits:
    return data.load()


@pytest.fixture(scope="session")
def shipped() -> bundle.Bundle:
    return bundle.load("mlp")


def write_bundle(
    folder: Path, network_name: str = "RandomDropoutModel", arguments: dict[str, object] | None = None, seed: int = 0
) -> nn.Module:
    """Write a bundle with random weights into ``folder``, and return its network."""
    network = networks.build(network_name, arguments, seed=seed).eval()
    card = {
        "name": folder.name,
        "network": records.NetworkRecord(
            name=network_name, arguments=arguments or {}, parameters=sum(p.numel() for p in network.parameters())
        ),
        "classes": data.CLASSES,
        "input": records.InputRecord(),
        "training": records.TrainingRecord(
            optimizer="adam", learning_rate=0.001, batch_size=64, epochs=1, seed=seed, early_stopping=False,
            patience=3, epochs_run=1, best_epoch=1, stopped="completed",
        ),
        "data": records.DataRecord(
            name=data.NAME, sha256=data.CHECKSUMS, split_seed=0, train=50_000, validation=5_000, calibration=5_000
        ),
        "metrics": {"test_accuracy": 0.1},
        "versions": bundle.software_versions(),
    }  # fmt: skip
    with storage.new_folder(folder) as temporary:
        bundle.write(temporary, network, card)
    return network


@pytest.fixture(scope="session")
def server_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "log"


@pytest.fixture(scope="session")
def server(server_log: Path) -> Iterator[httpx.Client]:
    """Serves the shipped bundle."""
    with serving(server_log) as client:
        yield client


@pytest.fixture(scope="session")
def plain_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Serves a bundle without dropout and without calibration."""
    folder = tmp_path_factory.mktemp("plain")
    write_bundle(folder / "plain", "ReLUNet")
    with serving(folder / "log", str(folder / "plain")) as client:
        yield client


@pytest.fixture
def global_state() -> torch.Tensor:
    """torch's global generator as it was before the test did anything."""
    return torch.get_rng_state()
