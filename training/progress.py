"""Training as the command lines show it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.command_line import progress_bar
from training import bundling, data
from training.fit import EpochRecord, Recipe

__all__ = ["train_with_progress"]


def train_with_progress(
    folder: Path, *, name: str, network_name: str, arguments: Mapping[str, Any], recipe: Recipe,
    splits: data.FashionMNISTSplits,
) -> bundling.Trained:  # fmt: skip
    """:func:`training.bundling.train` with a progress bar, and a line for each epoch."""
    with progress_bar("images") as progress:
        task = progress.add_task(network_name, total=recipe.epochs * len(splits.train))

        def report(epoch: EpochRecord) -> None:
            progress.console.print(
                f"epoch {epoch.epoch:3d}/{recipe.epochs}  train loss {epoch.train_loss:.4f} accuracy "
                f"{epoch.train_accuracy:.4f}  validation loss {epoch.validation_loss:.4f} accuracy "
                f"{epoch.validation_accuracy:.4f}  {epoch.seconds:.2f} s",
            )

        return bundling.train(
            folder, name=name, network_name=network_name, arguments=arguments, recipe=recipe, splits=splits,
            on_batch=lambda images: progress.advance(task, images), on_epoch=report,
        )  # fmt: skip
