"""Networks·epochs per second of 784-120-60-10 with dropout 0.2/0.5/0.5 at batch 64: this project beside the notebook.

The notebook's way: a DataLoader that turns each image into a tensor and normalises it, torch's own dropout and Adam.
All ways train on the same 50,000 images. Beside one network at a time: as many processes as there are cores, with one
thread each, which is how a study trains; and several networks as one by ``torch.vmap`` over their stacked weights.
Rounds are interleaved and medians are given. An epoch is the pass over the training images alone; with validation it is
a fifth of the whole call for the notebook's five epochs, validation images and the preparation of the inputs included.

    python -m benchmarks.training
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import psutil
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.utils.data import DataLoader, Subset

from benchmarks import machine
from models import bundle, networks, records, storage
from models.command_line import progress_bar, run
from training import data
from training.fit import Recipe, fit
from training.options import data_option
from training.torchvision_compat import FashionMNIST, transforms

NETWORK, BATCH_SIZE, LEARNING_RATE, EPOCHS = "RandomDropoutModel", 64, 0.001, 5
STACKED = 8
RESULTS = Path(__file__).parent / "results" / "training.json"

_splits: data.FashionMNISTSplits
"""A worker's own."""


def notebook_epoch(
    loader: DataLoader[tuple[Tensor, Tensor]], validation: DataLoader[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """Seconds of one epoch as the notebook trains it, and with the validation that its curves show."""
    network = _with_torchs_dropout(seed=0)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
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
    trained = time.perf_counter()
    network.eval()
    with torch.no_grad():
        for images, labels in validation:
            running_loss += criterion(network(images), labels).item()
    return trained - started, time.perf_counter() - started


def project_epochs(splits: data.FashionMNISTSplits) -> tuple[float, float]:
    """Seconds of one epoch, and of an epoch's share in the whole call."""
    network = networks.build(NETWORK, seed=0)
    started = time.perf_counter()
    fitted = fit(
        network, splits.train, splits.validation,
        Recipe(epochs=EPOCHS, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE), prepare=_prepare,
    )  # fmt: skip
    whole = time.perf_counter() - started
    return statistics.fmean(record.seconds for record in fitted.history), whole / EPOCHS


def stacked_epoch(splits: data.FashionMNISTSplits) -> float:
    """Seconds of one epoch of several networks, each with its own order of examples and masks, as one by vmap."""
    stack = [_with_torchs_dropout(seed).train() for seed in range(STACKED)]
    weights, buffers = stack_module_state(stack)
    structure = stack[0].to("meta")
    optimizer = torch.optim.Adam(weights.values(), lr=LEARNING_RATE, fused=True)
    inputs, labels = _prepare(splits.train.pixels), splits.train.labels

    def logits(weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        return functional_call(structure, (weights, buffers), (images,))  # type: ignore[no-any-return]

    every = torch.vmap(logits, randomness="different")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        orders = torch.stack([torch.randperm(len(labels)) for _ in stack])
        started = time.perf_counter()
        for batch in orders.split(BATCH_SIZE, dim=1):
            found = every(weights, buffers, inputs[batch])
            loss = F.cross_entropy(found.flatten(0, 1), labels[batch].flatten(), reduction="sum") / batch.shape[1]
            loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.perf_counter() - started


def _with_torchs_dropout(seed: int) -> nn.Module:
    network = networks.build(NETWORK, seed=seed)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Dropout):
            network.set_submodule(name, nn.Dropout(module.p))
    return network


def _prepare(pixels: Tensor) -> Tensor:
    return bundle.normalise(pixels, records.InputRecord())


def _begin(data_folder: Path | None) -> None:
    global _splits  # noqa: PLW0603  (one process, one data set)
    torch.set_num_threads(1)
    _splits = data.load(data_folder)


def _one_fit(_: int) -> float:
    return project_epochs(_splits)[0]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@data_option
def main(*, rounds: int, data_folder: Path | None) -> None:
    """Time epochs of this project's training loop beside the notebook's."""
    splits = data.load(data_folder)
    to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    images = FashionMNIST(data.fetch(data_folder), train=True, transform=to_tensor)
    train, validation = len(splits.train), len(splits.validation)
    loader = DataLoader(Subset(images, range(train)), batch_size=BATCH_SIZE, shuffle=True)
    others = DataLoader(Subset(images, range(train, train + validation)), batch_size=BATCH_SIZE)
    cores = psutil.cpu_count(logical=False) or 1
    together = 2 * cores
    beside, stacked = f"{cores} side by side, with validation", f"{STACKED} stacked by vmap"
    times: dict[str, list[float]] = {}
    """Seconds of an epoch of one network."""

    def record(way: str, seconds: float) -> None:
        times.setdefault(way, []).append(seconds)

    with (
        ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"), _begin, (data_folder,)) as pool,
        progress_bar("rounds") as progress,
    ):
        list(pool.map(_one_fit, range(together)))
        for _ in progress.track(range(rounds), description="Measuring"):
            for way, (epoch, whole) in (
                ("notebook", notebook_epoch(loader, others)), ("project", project_epochs(splits))
            ):  # fmt: skip
                record(way, epoch)
                record(f"{way}, with validation", whole)
            started = time.perf_counter()
            list(pool.map(_one_fit, range(together)))
            record(beside, (time.perf_counter() - started) / (together * EPOCHS))
            record(stacked, stacked_epoch(splits) / STACKED)

    medians = {way: statistics.median(values) for way, values in times.items()}
    speedups = {
        way: medians["notebook, with validation" if "validation" in way else "notebook"] / seconds
        for way, seconds in medians.items()
    }
    rows = [
        {
            "way": way,
            "network": NETWORK,
            "batch_size": BATCH_SIZE,
            "images": len(splits.train),
            "epoch_seconds": seconds,
            "all_seconds": times[way],
            "networks_epochs_per_second": 1 / seconds,
            "speedup": speedups[way],
        }
        for way, seconds in medians.items()
    ]
    storage.write_text(RESULTS, json.dumps({"machine": machine.describe(), "rows": rows}, indent=1) + "\n")
    table = Table(title=f"{NETWORK}, batch {BATCH_SIZE}, {len(splits.train):,} images, median of {rounds}")
    for column in ("way", "seconds an epoch", "networks·epochs/s", "images/s", "speed-up"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for way, seconds in medians.items():
        table.add_row(
            way, f"{seconds:.2f}", f"{1 / seconds:.2f}", f"{len(splits.train) / seconds:,.0f}",
            f"{speedups[way]:.1f}x",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    run(main, "python -m benchmarks.training", data.DataError)
