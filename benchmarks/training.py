"""Seconds per epoch of 784-120-60-10 with dropout 0.2/0.5/0.5 at batch 64: this project's loop beside the notebook's.

The notebook's way: a DataLoader that turns each image into a tensor and normalises it, torch's own dropout and Adam.
Both train on the same 50,000 images. Rounds are interleaved and medians are given. An epoch is the pass over the
training images alone; ``fit`` is the whole call for one epoch, with the preparation of the inputs and the validation.

    python -m benchmarks.training
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader, Subset

from benchmarks import machine
from models import bundle, networks, records, storage
from models.command_line import progress_bar, run
from training import data
from training.fit import Recipe, fit
from training.options import data_option
from training.torchvision_compat import FashionMNIST, transforms

NETWORK, BATCH_SIZE = "RandomDropoutModel", 64
RESULTS = Path(__file__).parent / "results" / "training.json"


def notebook_epoch(loader: DataLoader[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Seconds of one epoch as the notebook trains it."""
    network = networks.build(NETWORK, seed=0)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Dropout):
            network.set_submodule(name, nn.Dropout(module.p))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    criterion = nn.CrossEntropyLoss()
    network.train()
    running_loss = 0.0
    started = time.perf_counter()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = criterion(network(images), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
    return time.perf_counter() - started


def project_epoch(splits: data.FashionMNISTSplits) -> tuple[float, float]:
    """Seconds of one epoch, and of the whole call for it."""
    network = networks.build(NETWORK, seed=0)
    record = records.InputRecord()
    started = time.perf_counter()
    fitted = fit(
        network,
        splits.train,
        splits.validation,
        Recipe(epochs=1, batch_size=BATCH_SIZE),
        prepare=lambda pixels: bundle.normalise(pixels, record),
    )
    return fitted.history[0].seconds, time.perf_counter() - started


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@data_option
def main(*, rounds: int, data_folder: Path | None) -> None:
    """Time an epoch of this project's training loop beside the notebook's."""
    splits = data.load(data_folder)
    to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    images = FashionMNIST(data.fetch(data_folder), train=True, transform=to_tensor)
    loader = DataLoader(Subset(images, range(len(splits.train))), batch_size=BATCH_SIZE, shuffle=True)
    times: dict[str, list[float]] = {"notebook": [], "project": [], "project, whole fit": []}
    with progress_bar("rounds") as progress:
        for _ in progress.track(range(rounds), description="Measuring"):
            times["notebook"].append(notebook_epoch(loader))
            epoch, whole = project_epoch(splits)
            times["project"].append(epoch)
            times["project, whole fit"].append(whole)

    medians = {way: statistics.median(values) for way, values in times.items()}
    rows = [
        {
            "way": way,
            "network": NETWORK,
            "batch_size": BATCH_SIZE,
            "images": len(splits.train),
            "epoch_seconds": seconds,
            "all_seconds": times[way],
            "speedup": medians["notebook"] / seconds,
        }
        for way, seconds in medians.items()
    ]
    storage.write_text(RESULTS, json.dumps({"machine": machine.describe(), "rows": rows}, indent=1) + "\n")
    table = Table(title=f"{NETWORK}, batch {BATCH_SIZE}, {len(splits.train):,} images, median of {rounds}")
    for column in ("way", "seconds an epoch", "images/s", "speed-up"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, seconds in medians.items():
        table.add_row(
            way, f"{seconds:.2f}", f"{len(splits.train) / seconds:,.0f}", f"{medians['notebook'] / seconds:.1f}x"
        )
    Console().print(table)


if __name__ == "__main__":
    run(main, "python -m benchmarks.training", data.DataError)
