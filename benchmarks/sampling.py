"""Milliseconds, and memory, for T = 64 sub-networks: this project's engine beside other libraries.

``deterministic``   one pass with dropout off, to compare with
``engine``          this project's; also with the number of its sub-networks, by the default mask design, that gives the
                    error of 64 independent ones (measured by ``python -m benchmarks.variance``, which must run first)
the others          see :mod:`benchmarks.peers`

Two networks: 784-120-60-10 with dropout 0.2/0.5/0.5, and a small convolutional one with channel dropout.

    python -m benchmarks.sampling
"""

from __future__ import annotations

import ctypes
import json
import re
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

from benchmarks import figures, machine
from benchmarks.peers import PEERS, peers
from benchmarks.variance import RESULTS as VARIANCE
from calibration.masks import DEFAULT_DESIGN, MaskBank
from calibration.strategies import mc_dropout
from calibration.subnetworks import SubnetworkEnsemble
from models import networks, storage
from models.command_line import progress_bar, run

SAMPLES = 64
ROUND_SECONDS = 0.02
THREADS = (1, 2)
MLP, CNN = "784-120-60-10", "small CNN"
BATCHES = {MLP: (1, 8, 32, 128, 1024), CNN: (1, 8, 32, 128)}
"""More images of the CNN, each repeated 64 times in one batch, would take over 20 GiB."""
SHAPES = {MLP: (28, 28), CNN: (1, 28, 28)}
RESULTS = Path(__file__).parent / "results" / "sampling.json"
FIGURE = Path(__file__).parents[1] / "docs" / "speed.png"
Row = dict[str, Any]


def small_cnn() -> nn.Module:
    """Two convolutions and a head, 421,642 parameters; channel dropout 0.2 twice, element dropout 0.5 in the head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.2),
        nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10),
    ).eval()  # fmt: skip


def samples_of_equal_error() -> int:
    """The least number of sub-networks measured whose error, by the default design, is at most that of 64
    independent ones."""
    try:
        rows = json.loads(VARIANCE.read_text())["rows"]
    except FileNotFoundError as error:
        raise click.ClickException("run python -m benchmarks.variance first") from error
    errors = {(row["design"], row["samples"]): row["squared_error"] for row in rows if not row["one_block"]}
    bound = errors["independent", SAMPLES]
    counts: list[int] = [
        count for (design, count), value in errors.items() if design == DEFAULT_DESIGN and value <= bound
    ]
    return min(counts)


def measure(functions: dict[str, Callable[[Tensor], object]], images: Tensor, rounds: int) -> dict[str, Row]:
    """Median time of a call over ``rounds`` rounds, interleaved; and most memory taken, in a call that isn't timed.

    In each round a function is called until 20 ms have passed: one call alone would measure how cold the others have
    left the processor's caches for it.
    """
    memory = {name: _peak_mib(function, images) for name, function in functions.items()}
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            started, calls = time.perf_counter(), 0
            while calls == 0 or time.perf_counter() - started < ROUND_SECONDS:
                function(images)
                calls += 1
            times[name].append(1000 * (time.perf_counter() - started) / calls)
    return {
        name: {"milliseconds": statistics.median(values), "peak_mib": round(memory[name], 1)}
        for name, values in times.items()
    }


def memory_of_many_images() -> dict[str, float]:
    """MiB for 10,000 images and T = 1,024: with all logits as the result, 390 MiB of it, and without the members."""
    network = networks.build("RandomDropoutModel", seed=0).eval()
    strategy = mc_dropout(SubnetworkEnsemble(network, SHAPES[MLP], samples=1024, seed=0))
    images = torch.randn(10_000, *SHAPES[MLP], generator=torch.Generator().manual_seed(0))
    strategy.summarise(images[:200])
    return {
        "logits_peak_mib": _peak_mib(strategy.logits, images),
        "summarise_peak_mib": _peak_mib(strategy.summarise, images),
    }


def profile(function: Callable[[Tensor], object], images: Tensor, calls: int = 20) -> dict[str, float]:
    """Share of the time that each operator takes, those of 1 % and more."""
    function(images)
    with torch.profiler.profile() as profiler:
        for _ in range(calls):
            function(images)
    times = {
        event.key: event.self_cpu_time_total for event in profiler.key_averages() if event.key.startswith("aten::")
    }
    total = sum(times.values())
    shares = {name.removeprefix("aten::"): round(value / total, 3) for name, value in times.items()}
    return dict(sorted(((name, share) for name, share in shares.items() if share >= 0.01), key=lambda item: -item[1]))


def gemm_gigaflops(size: int = 2048, rounds: int = 9) -> float:
    """What a large matrix product reaches on this machine, with the threads that are set."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - started)
    return 2e-9 * size**3 / statistics.median(times[1:])


def thinned_gigaflops(bank: MaskBank, images: int, *, padded: bool) -> float:
    """Arithmetic of the MLP's thinned sub-networks: the shared product, and of each what it keeps; ``padded`` to what
    the largest of all keeps, as a batched product needs."""
    first, second, third = (rows.double() for rows in bank.rows.values())
    counts = [(1 - first).sum(1), second.sum(1), third.sum(1)]
    dropped, one, two = (count.max().expand_as(count) if padded else count for count in counts)
    each = dropped * one + one * two + two * 10
    return 2e-9 * images * (float(each.sum()) + 784 * 120)


def _peak_mib(function: Callable[[Tensor], object], images: Tensor) -> float:
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    # Sets the kernel's record of the most memory held to what is held now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mib("VmRSS")
    result = function(images)
    peak = _status_mib("VmHWM")
    del result
    return max(peak - before, 0.0)


def _status_mib(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found  # noqa: S101
    return int(found[1]) / 1024


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(min=1), default=9, show_default=True, help="For up to 32 images.")
@torch.inference_mode()
def main(*, rounds: int) -> None:
    """Time this project's sampling beside other libraries'."""
    fewer = samples_of_equal_error()
    memory = memory_of_many_images()
    generator = torch.Generator().manual_seed(0)
    rows: list[Row] = []
    peaks: list[Row] = []
    profiles: list[Row] = []
    with progress_bar("measurements") as progress:
        task = progress.add_task("Measuring", total=len(THREADS) * sum(map(len, BATCHES.values())))
        for label, network in ((MLP, networks.build("RandomDropoutModel", seed=0).eval()), (CNN, small_cnn())):
            full, less = (
                SubnetworkEnsemble(network, SHAPES[label], samples=count, seed=0) for count in (SAMPLES, fewer)
            )
            functions: dict[str, Callable[[Tensor], object]] = {
                "deterministic": network,
                **peers(network, SAMPLES),
                "engine": full.logits,
                f"engine, {fewer}": less.logits,
            }
            for threads in THREADS:
                torch.set_num_threads(threads)
                peak = gemm_gigaflops()
                for batch in BATCHES[label]:
                    images = torch.randn(batch, *SHAPES[label], generator=generator)
                    found = measure(functions, images, rounds if batch <= 32 else max(3, rounds // 3))
                    for name, values in found.items():
                        engine, _, count = name.partition(", ") if name.startswith("engine") else (name, "", "")
                        rows.append({
                            "engine": engine, "network": label, "batch": batch, "samples": int(count or SAMPLES),
                            "threads": threads, **values,
                        })  # fmt: skip
                    if label == MLP:
                        profiles.append({
                            "threads": threads, "batch": batch, "shares": profile(full.logits, images)
                        })  # fmt: skip
                        needed, done = (
                            1000 * thinned_gigaflops(full.bank, batch, padded=padded) / found["engine"]["milliseconds"]
                            for padded in (False, True)
                        )
                        peaks.append({
                            "threads": threads, "batch": batch, "gemm_gigaflops": peak, "engine_gigaflops": needed,
                            "fraction": needed / peak, "fraction_with_padding": done / peak,
                        })  # fmt: skip
                    progress.advance(task)
    result = {
        "machine": machine.describe(peers=True),
        "images_10000_samples_1024": memory,
        "samples_of_equal_error": fewer,
        "rows": rows,
        "gemm": peaks,
        "profiles": profiles,
    }
    storage.write_text(RESULTS, json.dumps(result, indent=1) + "\n")
    storage.write_bytes(FIGURE, figures.time_by_batch([row for row in rows if row["samples"] == SAMPLES]))
    for label in BATCHES:
        _print(label, rows, fewer)
    for peak_row in peaks:
        Console().print(peak_row)


def _print(label: str, rows: list[Row], fewer: int) -> None:
    table = Table(title=f"{label}, {SAMPLES} sub-networks: milliseconds (MiB)")
    names = ("deterministic", *PEERS, "engine")
    for column in ("threads", "batch", *names, "speed-up", "at equal error"):
        table.add_column(column, justify="right")
    for threads in THREADS:
        for batch in BATCHES[label]:
            here = [row for row in rows if (row["network"], row["threads"], row["batch"]) == (label, threads, batch)]
            found = {(row["engine"], row["samples"]): row for row in here}
            fastest = min(found[name, SAMPLES]["milliseconds"] for name in PEERS)
            speedups = (fastest / found["engine", count]["milliseconds"] for count in (SAMPLES, fewer))
            cells = (found[name, SAMPLES] for name in names)
            table.add_row(
                str(threads),
                str(batch),
                *(f"{cell['milliseconds']:.2f} ({cell['peak_mib']:.0f})" for cell in cells),
                *(f"{speedup:.1f}x" for speedup in speedups),
            )
    Console(width=170).print(table)


if __name__ == "__main__":
    run(main, "python -m benchmarks.sampling")
