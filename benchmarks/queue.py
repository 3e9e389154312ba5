"""What a worker's queue, its CPU and its answers' latency say of the load on it, from little to too much.

Requests of 64 images each, 64 sub-networks, arrive at random (Poisson) at fractions of what one worker can answer one
after another; each as it comes, whatever became of those before. Rounds are interleaved and medians are given.

    python -m benchmarks.queue
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.servers import Running, running
from models import storage
from models.command_line import progress_bar, run

RESULTS = Path(__file__).parent / "results" / "queue.json"
LOADS = (0.2, 0.5, 0.7, 0.8, 0.9, 1.2)
"""Fractions of the capacity."""
IMAGES = 64
WARM_UP = 2.0
"""Seconds of each load before it is looked at."""


def body() -> bytes:
    """A request of random images."""
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 784))
    return json.dumps({"instances": pixels.tolist()}).encode()


def capacity(server: Running, content: bytes, seconds: float) -> float:
    """Requests a second, one after another."""
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        answered, end = -5, time.perf_counter() + seconds
        started = 0.0
        while time.perf_counter() < end:
            client.post("/predict", content=content, headers={"Content-Type": "application/json"}).raise_for_status()
            answered += 1
            started = time.perf_counter() if answered == 0 else started
        return answered / (time.perf_counter() - started)


async def under(server: Running, content: bytes, rate: float, seconds: float, seed: int) -> dict[str, float]:
    """What there is to see while ``rate`` requests arrive each second."""
    worker = psutil.Process(server.pid).children(recursive=True)
    statuses: Counter[int] = Counter()
    milliseconds: list[float] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=30, limits=limits) as client:

        async def ask(counted: bool) -> None:
            started = time.perf_counter()
            found = await client.post("/predict", content=content, headers={"Content-Type": "application/json"})
            if counted:
                statuses[found.status_code] += 1
                milliseconds.append(1000 * (time.perf_counter() - started))

        arrivals, begun = random.Random(seed), time.perf_counter()  # noqa: S311
        due, before = begun, None
        async with asyncio.TaskGroup() as group:
            while due < begun + WARM_UP + seconds:
                due += arrivals.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                if before is None and due > begun + WARM_UP:
                    before = await _seen(client, worker), time.perf_counter()
                group.create_task(ask(before is not None))
            after = await _seen(client, worker), time.perf_counter()
    assert before is not None  # noqa: S101
    (waited, looks, cpu), (waited_before, looks_before, cpu_before) = after[0], before[0]
    return {
        "queue_milliseconds": 1000 * (waited - waited_before) / (looks - looks_before),
        "cpu_percent": 100 * (cpu - cpu_before) / (after[1] - before[1]),
        "median_milliseconds": statistics.median(milliseconds),
        "p95_milliseconds": float(np.percentile(milliseconds, 95)),
        "turned_away_percent": 100 * statuses[429] / len(milliseconds),
    }


async def _seen(client: httpx.AsyncClient, worker: list[psutil.Process]) -> tuple[float, float, float]:
    """Seconds waited, looks, and seconds of CPU, since the server's start."""
    text = (await client.get("/metrics")).text
    values = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("dropout_uncertainty_queue_seconds_") and not sample.labels
    }
    cpu = sum(sum(process.cpu_times()[:2]) for process in worker)
    prefix = "dropout_uncertainty_queue_seconds_"
    return values[f"{prefix}sum"], values[f"{prefix}count"], cpu


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=1), default=10.0, show_default=True, help="Of each load.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=RESULTS, show_default=True)
def main(*, rounds: int, seconds: float, out: Path) -> None:
    """Measure what shows that a worker has too much to do, and write it as JSON."""
    found: dict[float, list[dict[str, float]]] = {load: [] for load in LOADS}
    content, capacities = body(), []
    with running(["service"], 1) as servers, progress_bar("measurements") as progress:
        task = progress.add_task("Measuring", total=rounds * len(LOADS))
        for number in range(rounds):
            capacities.append(capacity(servers["service"], content, seconds))
            for load in LOADS:
                rate = load * capacities[-1]
                found[load].append(asyncio.run(under(servers["service"], content, rate, seconds, number)))
                progress.advance(task)
    rows: list[dict[str, Any]] = [
        {"load": load, **{key: round(statistics.median(row[key] for row in each), 2) for key in each[0]}}
        for load, each in found.items()
    ]
    result = {
        "machine": machine.describe(), "rounds": rounds, "seconds": seconds, "images": IMAGES,
        "requests_per_second": round(statistics.median(capacities), 1), "rows": rows,
    }  # fmt: skip
    storage.write_text(out, json.dumps(result, indent=1) + "\n")
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:g}" for value in row.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    run(main, "python -m benchmarks.queue")
