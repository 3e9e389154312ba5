"""docs/scale.md and docs/deploy.md say of scale what the benchmarks have written, and what follows from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.command_line import ROOT

SCALE = (ROOT / "docs" / "scale.md").read_text()
DEPLOY = (ROOT / "docs" / "deploy.md").read_text()
FOUND: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "scale.json").read_text())
QUEUE: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / "queue.json").read_text())
MEASURED: dict[str, Any] = FOUND["measured"]
CORES: int = FOUND["cores"]
BILLION = 1_000_000_000
STAGES = ("read", "predict", "novelty", "answer", "write")


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def stage_rows() -> Iterator[str]:
    for plan, found in MEASURED.items():
        if plan.startswith("stages"):
            _, network, strategy = plan.split()
            times = [found[stage] for stage in STAGES]
            yield row(
                f"{network}, {strategy}",
                *(f"{each:.1f}" for each in times),
                f"{sum(times):.0f}",
                f"{found['bytes']:.0f}",
            )


def rate_rows() -> Iterator[str]:
    for network in FOUND["parts"]:
        for engine in ("local", "ray"):
            one, all_of_them = (MEASURED[f"rate {engine} {workers} {network}"] for workers in (1, CORES))
            alone, together = one["images_per_second"], all_of_them["images_per_second"]
            yield row(
                f"{network}, {engine}", f"{alone:,.0f}", f"{together:,.0f}", f"{together / alone:.2f}",
                f"{one['first_part'] - FOUND['images_per_part'] / alone:.1f}",
            )  # fmt: skip


def overhead_rows() -> Iterator[str]:
    for engine in ("local", "ray"):
        yield row(f"a part on {engine}", *(f"{MEASURED[f'per_task {engine} {workers}']:.2f}" for workers in (1, CORES)))
    for name, what in (
        ("file", "a file, before it begins"),
        ("finished_part", "a part that is there, before it begins"),
    ):
        value = f"{MEASURED['bookkeeping'][name]:.2f}"
        yield row(what, value, value)


def driver_milliseconds() -> float:
    """For each part: to hand it over, and to look at what came of it."""
    return float(MEASURED[f"per_task ray {CORES}"] + MEASURED["bookkeeping"]["finished_part"])


def billion_rows() -> Iterator[str]:
    parts = math.ceil(BILLION / FOUND["images_per_part"])
    rates = {network: MEASURED[f"rate ray 1 {network}"]["images_per_second"] for network in FOUND["parts"]}

    def each(what: str, *values: str) -> str:
        return row(what, *values)

    yield each("images a second and core", *(f"{rate:,.0f}" for rate in rates.values()))
    yield each("core-hours", *(f"{BILLION / rate / 3600:,.0f}" for rate in rates.values()))
    yield each("hours on 100 cores", *(f"{BILLION / rate / 360_000:.1f}" for rate in rates.values()))
    yield each("parts", *(f"{parts:,.0f}" for _ in rates))
    yield each("read, GB", *(f"{BILLION * 784 / 1e9:,.0f}" for _ in rates))
    yield each("read by 100 cores, MB/s", *(f"{784 * rate * 100 / 1e6:,.0f}" for rate in rates.values()))
    written = [MEASURED[f"stages {network} mc_dropout"]["bytes"] for network in rates]
    yield each("written, GB", *(f"{size:,.0f}" for size in written))
    yield each("the driver's work, minutes", *(f"{parts * driver_milliseconds() / 60_000:.1f}" for _ in rates))
    busy = [FOUND["images_per_part"] / rate / (driver_milliseconds() / 1000) for rate in rates.values()]
    yield each("cores that keep one driver busy", *(f"{cores:,.0f}" for cores in busy))


def queue_rows() -> Iterator[str]:
    for found in QUEUE["rows"]:
        yield row(
            f"{100 * found['load']:.0f} %", f"{found['cpu_percent']:.0f} %", f"{found['queue_milliseconds']:.0f} ms",
            f"{found['median_milliseconds']:,.0f} ms", f"{found['p95_milliseconds']:,.0f} ms",
        )  # fmt: skip


@pytest.mark.parametrize("rows", [stage_rows, rate_rows, overhead_rows, billion_rows], ids=lambda rows: rows.__name__)
def test_scale(rows: Any) -> None:
    assert "\n".join(rows()) in SCALE


def test_autoscaling() -> None:
    assert "\n".join(queue_rows()) in DEPLOY
    assert f"{QUEUE['requests_per_second']:.0f} requests a second" in DEPLOY
    assert f"{QUEUE['images']} images" in DEPLOY
