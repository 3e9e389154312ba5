"""Throughput and latency of the HTTP service, side by side with a bare handler and with a plain BentoML service.

    python -m benchmarks.http [--seconds 3] [--rounds 3] [--requests 100000]

All answer the same images with the shipped model and 64 sub-networks, over the loopback, on the machine's cores shared
with the client. They are asked in turns, round after round, and each figure is the median of the rounds, so that other
load on the machine falls on all alike. Writes ``benchmarks/results/http.json`` and the tables to standard output.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.load import Load, Request, drive
from benchmarks.machine import describe
from benchmarks.servers import SERVERS, Running, running
from models import storage
from training import data

RESULTS = Path(__file__).parent / "results" / "http.json"
CLIENTS = (1, 8, 32)
WORKERS = (1, 2)
BATCHES = (1, 64)
WARM_UP_SECONDS = 0.5


def bodies(images: int) -> dict[str, Request]:
    """Requests for as many test images, as JSON and as bytes."""
    pixels = data.load(None).test.pixels[:images].flatten(1)
    content = json.dumps({"instances": pixels.tolist()}).encode()
    return {
        "json": Request("/predict", "application/json", content),
        "raw": Request("/predict_raw", "application/octet-stream", pixels.numpy().tobytes()),
    }


def measure(servers: dict[str, Running], workers: int, *, seconds: float, rounds: int) -> Iterator[dict[str, Any]]:
    """Rows for all servers, forms of a request, images a request and numbers of clients."""
    for images in BATCHES:
        for form, request in bodies(images).items():
            asked = {name: server for name, server in servers.items() if form in server.forms}
            for clients in CLIENTS if images == 1 else (8,):
                found: dict[str, list[Load]] = {name: [] for name in asked}
                for _ in range(rounds):
                    for name, server in asked.items():
                        drive(server.port, request, clients=clients, seconds=WARM_UP_SECONDS)
                        found[name].append(drive(server.port, request, clients=clients, seconds=seconds))
                for name, loads in found.items():
                    yield {
                        "server": name, "workers": workers, "form": form, "images": images, "clients": clients,
                        "requests_per_second": statistics.median(load.throughput for load in loads),
                        "p50_milliseconds": statistics.median(load.percentile(50) for load in loads),
                        "p99_milliseconds": statistics.median(load.percentile(99) for load in loads),
                        "failures": sum(load.failures for load in loads),
                        "relative": statistics.median(
                            ours.throughput / bare.throughput for ours, bare in zip(loads, found["bare"], strict=True)
                        ),
                    }  # fmt: skip
                    print(form, images, clients, name, f"{statistics.median(x.throughput for x in loads):.0f}/s")


def after_a_burst(server: Running) -> dict[str, float]:
    """Median milliseconds of lone requests before and right after 5 s of 64 clients."""
    request = bodies(1)["json"]
    before = drive(server.port, request, clients=1, seconds=2)
    drive(server.port, request, clients=64, seconds=5)
    after = drive(server.port, request, clients=1, seconds=2)
    return {"before": before.percentile(50), "after": after.percentile(50)}


def memory_over(server: Running, requests: int) -> dict[str, Any]:
    """Resident MiB of all the server's processes as so many requests are answered: at each tenth of them."""
    request = bodies(1)["raw"]
    process = psutil.Process(server.pid)
    mebibytes: list[float] = []
    asked: list[int] = []
    done = 0
    while done < requests:
        while done < requests * (len(mebibytes) + 1) / 10:
            load = drive(server.port, request, clients=8, seconds=2)
            done += len(load.milliseconds)
            if load.failures:
                raise RuntimeError(f"{load.failures} requests failed")
        family = [process, *process.children(recursive=True)]
        mebibytes.append(round(sum(member.memory_info().rss for member in family) / 2**20, 1))
        asked.append(done)
        print(f"{done:,} requests: {mebibytes[-1]} MiB")
    return {"requests": asked, "resident_mebibytes": mebibytes}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the HTTP service beside others.")
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of all measurements")
    parser.add_argument("--requests", type=int, default=100_000, help="over which memory is watched")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for workers in WORKERS:
        with running(SERVERS, workers) as servers:
            rows += measure(servers, workers, seconds=arguments.seconds, rounds=arguments.rounds)
    with running(["service"], 2) as servers:
        server = servers["service"]
        burst = after_a_burst(server)
        memory = memory_over(server, arguments.requests)
        lost = httpx.get(f"http://127.0.0.1:{server.port}/readyz").status_code != 200
    if lost:
        raise RuntimeError("the service is not ready any more")
    result = {"machine": describe(), "rows": rows, "lone_request_milliseconds": burst, "memory": memory}
    storage.write_text(RESULTS, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
