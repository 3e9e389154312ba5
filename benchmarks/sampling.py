"""Milliseconds for T = 64 sub-networks of 784-120-60-10 with dropout 0.2/0.5/0.5, by several ways.

``deterministic``   one pass with dropout off, to compare with
``loop``            T passes in train mode, as most code and libraries do it
``repeated batch``  one pass in train mode over every image T times: the others' fastest way
``generic``         this project's executor for any network: fixed masks, every image T times
``engine``          this project's choice: thinned sub-networks in batched products

    python -m benchmarks.sampling
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks import machine
from calibration.subnetworks import MaskedCopies, SubnetworkEnsemble
from models import networks, storage
from models.command_line import progress_bar, run

NETWORK, SAMPLES = "RandomDropoutModel", 64
BATCHES, THREADS = (1, 8, 32, 128, 1024), (1, 2)
RESULTS = Path(__file__).parent / "results" / "sampling.json"


def ways() -> dict[str, Callable[[Tensor], Tensor]]:
    """The functions that are compared, by name; each takes ``[B, 28, 28]``."""
    network = networks.build(NETWORK, seed=0).eval()
    sampled = networks.build(NETWORK, seed=0)
    for name, module in list(sampled.named_modules()):
        if isinstance(module, nn.Dropout):
            sampled.set_submodule(name, nn.Dropout(module.p))  # torch's own, as the others use it
    sampled.train()
    ensemble = SubnetworkEnsemble(network, (28, 28), samples=SAMPLES, seed=0)
    generic = MaskedCopies(network, ensemble.bank, widest=28 * 28)
    return {
        "deterministic": network,
        "loop": lambda images: torch.stack([sampled(images) for _ in range(SAMPLES)]),
        "repeated batch": lambda images: sampled(images.repeat(SAMPLES, 1, 1)),
        "generic": generic.logits,
        "engine": ensemble.logits,
    }


def milliseconds(functions: dict[str, Callable[[Tensor], Tensor]], images: Tensor, rounds: int) -> dict[str, float]:
    """Median time of each function over ``rounds`` rounds, interleaved, after one round that isn't counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function(images)
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True)
@torch.inference_mode()
def main(*, rounds: int) -> None:
    """Time this project's sampling beside the usual ways."""
    functions = ways()
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, Any]] = []
    with progress_bar("measurements") as progress:
        task = progress.add_task("Measuring", total=len(BATCHES) * len(THREADS))
        for threads in THREADS:
            torch.set_num_threads(threads)
            for batch in BATCHES:
                images = torch.randn(batch, 28, 28, generator=generator)
                for name, value in milliseconds(functions, images, rounds).items():
                    rows.append({
                        "engine": name, "network": NETWORK, "batch": batch, "samples": SAMPLES, "threads": threads,
                        "milliseconds": value,
                    })  # fmt: skip
                progress.advance(task)
    storage.write_text(RESULTS, json.dumps({"machine": machine.describe(), "rows": rows}, indent=1) + "\n")
    table = Table(title=f"{NETWORK}, {SAMPLES} sub-networks, milliseconds, median of {rounds}")
    for column in ("threads", "batch", *functions, "speed-up"):
        table.add_column(column, justify="right")
    for threads in THREADS:
        for batch in BATCHES:
            found = {
                row["engine"]: row["milliseconds"] for row in rows if (row["threads"], row["batch"]) == (threads, batch)
            }
            speedup = min(found["loop"], found["repeated batch"]) / found["engine"]
            table.add_row(str(threads), str(batch), *(f"{value:.2f}" for value in found.values()), f"{speedup:.1f}x")
    Console().print(table)


if __name__ == "__main__":
    run(main, "python -m benchmarks.sampling")
