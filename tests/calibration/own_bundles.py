"""Bundles of networks that were trained elsewhere, for the tests of what can be done with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from sklearn.datasets import load_digits
from torch import nn

from calibration.importing import import_network
from models import bundle
from models.records import InputRecord
from tests import own_networks

DIGITS = "tests.own_networks:digits"
INPUTS = InputRecord(shape=(8, 8), mean=0.0, std=1.0, maximum=16.0)
CLASSES = tuple("0123456789")


def saved(network: nn.Module, path: Path) -> Path:
    safetensors.torch.save_file(network.state_dict(), path)
    return path


def imported(name: str, weights: Path, out: Path, **others: Any) -> bundle.Bundle:
    given: dict[str, Any] = {
        "arguments": {}, "classes": CLASSES, "inputs": INPUTS, "outputs": "logits", "bundle_name": "mine", **others
    }  # fmt: skip
    made, _ = import_network(f"tests.own_networks:{name}", weights, out, **given)
    return made


def write_digits(folder: Path, seed: int = 0) -> None:
    """The weights of a network trained on scikit-learn's digits from ``seed``, and its data in three files."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    pixels, labels = found.images[order].astype(np.float32), found.target[order]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = own_networks.digits()
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        inputs, targets = torch.from_numpy(pixels[:1000] / 16), torch.from_numpy(labels[:1000])
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs), targets).backward()
            optimizer.step()
    saved(network, folder / "weights.safetensors")
    for name, part in {"train": slice(1000), "calibration": slice(1000, 1400), "test": slice(1400, None)}.items():
        np.savez(folder / f"{name}.npz", images=pixels[part], labels=labels[part])
