"""A plan small enough for tests."""

from __future__ import annotations

from pathlib import Path

TINY = """
title = "Tiny"
question = "Does it run?"
seeds = 2

[defaults]
train_images = 200

[defaults.recipe]
epochs = 2

[[configurations]]
name = "none"
network = "ReLUNet"

[[configurations]]
name = "dropout"
network = "RandomDropoutModel"
baseline = "none"

[[configurations]]
name = "dropout, then batch norm"
network = "YourDropoutModel"
arguments = {batch_norm = "after_dropout"}
baseline = "none"
"""
FAILING = """
[[configurations]]
name = "diverges"
network = "ReLUNet"
recipe = {learning_rate = 1e30}
baseline = "none"
"""


def tiny(folder: Path, more: str = "") -> Path:
    path = folder / "tiny.toml"
    path.write_text(TINY + more)
    return path
