"""What scoring in parts costs: time per image by stage, from one worker to two, and for each part, here and on Ray.

Images are random, which costs no less than real ones; the files are those that a user would write. Rounds are
interleaved and medians are given. Rates are those of a job under way: from the end of each worker's first part to the
end of the last. Ray's cluster is one node of this machine with as many CPUs as there are workers.

    python -m benchmarks.scale
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import pyarrow as pa
import ray
import torch
from pyarrow import parquet
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from calibration.answers import answers
from calibration.decisions import DecisionRule
from calibration.novelty import NoveltyDetector
from calibration.prediction import build_strategy
from calibration.score import IMAGES_AT_ONCE, Scorer
from calibration.score_parts import Job, score_parts
from models import bundle as bundles
from models import storage
from models.command_line import progress_bar, run
from models.packing import PackedBundle
from models.records import DEFAULT_COVERAGE, DEFAULT_TARGET_ERROR
from training import engines, pieces

RESULTS = Path(__file__).parent / "results" / "scale.json"
CASES = {"mlp": ("weight_scaling", "mc_dropout"), "cnn": ("weight_scaling", "mc_dropout")}
SAMPLES = 64
PARTS = {"mlp": 24, "cnn": 6}
"""Scored for a rate by mc_dropout."""
NOTHINGS = 200
SHARDS = 100
ENGINES = ("local", "ray")


def write_images(folder: Path, parts: int) -> None:
    """Random images in files of one part each; all are the same file."""
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES_AT_ONCE, 28, 28), dtype=np.uint8)
    np.savez(folder / "00000.npz", pixels)
    for number in range(1, parts):
        (folder / f"{number:05}.npz").hardlink_to(folder / "00000.npz")


def stages(name: str, strategy_name: str, folder: Path) -> dict[str, float]:
    """Microseconds per image of each stage of one part, on one thread."""
    bundle = bundles.load(name)
    strategy = build_strategy(bundle, strategy_name, SAMPLES)
    card, scaling = bundle.card, bundle.scaling(strategy_name)
    (piece,) = pieces.split(folder / "00000.npz", card.classes, card.input)
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[stage] = time.perf_counter() - started

    with timed("read"):
        images = pieces.read(piece, card.classes, card.input)
    with timed("predict"):
        inputs = bundle.prepare(images.pixels)
        summary = strategy.summarise(inputs, scaling)
    detector = NoveltyDetector.of(bundle)
    assert detector is not None  # noqa: S101  (those that ship have one)
    with timed("novelty"):
        novelty = detector(inputs)
    rule = DecisionRule.fitted(bundle, strategy_name, DEFAULT_COVERAGE, DEFAULT_TARGET_ERROR)
    with timed("answer"):
        found = answers(
            summary, card.classes, members=strategy.members, samples=[strategy.samples] * len(images), rule=rule,
            novelty=novelty,
        )  # fmt: skip
    with timed("write"):
        rows = [{"image": name, **each} for name, each in zip(images.names, found, strict=True)]
        table = pa.Table.from_pylist(rows, Scorer(bundle, strategy).schema(labelled=False))
        with storage.new_file(folder / "written") as file:
            parquet.write_table(table, file)
    size = (folder / "written").stat().st_size
    (folder / "written").unlink()
    return {stage: 1e6 * value / len(images) for stage, value in seconds.items()} | {"bytes": size / len(images)}


@contextmanager
def engine_of(name: str, workers: int) -> Iterator[engines.Engine]:
    """The engine; for Ray on a cluster that is there."""
    if name == "local":
        yield engines.build(name, workers=workers)
        return
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield engines.build(name, workers=workers)
    finally:
        ray.shutdown()


def rate(engine_name: str, workers: int, name: str, folder: Path) -> dict[str, float]:
    """Of a job of :data:`PARTS`: images per second under way, and seconds until the first part is there."""
    bundle = bundles.load(name)
    job = Job(PackedBundle.of(bundle), "mc_dropout", SAMPLES, DEFAULT_COVERAGE, DEFAULT_TARGET_ERROR)
    found = pieces.split(folder, bundle.card.classes, bundle.card.input, size=IMAGES_AT_ONCE)[: PARTS[name]]
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as out, engine_of(engine_name, workers) as engine:
        started = time.perf_counter()
        outcome = score_parts(job, found, Path(out), engine, on_images=lambda _: ends.append(time.perf_counter()))
        assert not outcome.failures, outcome.failures  # noqa: S101
    images = (len(found) - workers) * IMAGES_AT_ONCE
    return {"images_per_second": images / (ends[-1] - ends[workers - 1]), "first_part": ends[0] - started}


def nothing(_: object, task: int) -> int:
    """A task that costs nothing."""
    return task


def per_task(engine_name: str, workers: int) -> float:
    """Milliseconds of an engine's own for each task, all workers together."""
    with engine_of(engine_name, workers) as engine:
        ends = [time.perf_counter() for _ in engine.map(nothing, range(NOTHINGS), PackedBundle.of(bundles.load("cnn")))]
    skipped = NOTHINGS // 4  # While workers start.
    return 1000 * (ends[-1] - ends[skipped - 1]) / (NOTHINGS - skipped)


def bookkeeping() -> dict[str, float]:
    """Milliseconds of the command's own before any part is scored: for each file that it looks into, and for each part
    that is there already."""
    bundle = bundles.load("mlp")
    job = Job(PackedBundle.of(bundle), "weight_scaling", 1, DEFAULT_COVERAGE, DEFAULT_TARGET_ERROR)
    with tempfile.TemporaryDirectory() as name:
        shards, out = Path(name) / "shards", Path(name) / "out"
        shards.mkdir()
        np.savez(shards / "00000.npz", np.zeros((16, 28, 28), dtype=np.uint8))
        for number in range(1, SHARDS):
            (shards / f"{number:05}.npz").hardlink_to(shards / "00000.npz")
        started = time.perf_counter()
        found = pieces.split(shards, bundle.card.classes, bundle.card.input, size=IMAGES_AT_ONCE)
        looked = time.perf_counter() - started
        engine = engines.build("local", workers=2)
        score_parts(job, found, out, engine)
        started = time.perf_counter()
        score_parts(job, found, out, engine)
        return {"file": 1000 * looked / SHARDS, "finished_part": 1000 * (time.perf_counter() - started) / SHARDS}


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=RESULTS, show_default=True)
def main(*, rounds: int, out: Path) -> None:
    """Measure what scoring in parts costs, and write it as JSON."""
    cores = psutil.cpu_count() or 1
    plans: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as name, progress_bar("measurements") as progress:
        folder = Path(name)
        write_images(folder, max(PARTS.values()))
        torch.set_num_threads(1)
        for network, ways in CASES.items():
            for way in ways:
                plans[f"stages {network} {way}"] = partial(stages, network, way, folder)
        for engine in ENGINES:
            for workers in (1, cores):
                plans[f"per_task {engine} {workers}"] = partial(per_task, engine, workers)
                for network in PARTS:
                    plans[f"rate {engine} {workers} {network}"] = partial(rate, engine, workers, network, folder)
        plans["bookkeeping"] = bookkeeping
        task = progress.add_task("Measuring", total=rounds * len(plans))
        found: dict[str, list[Any]] = {plan: [] for plan in plans}
        for _ in range(rounds):
            for plan, measure in plans.items():
                found[plan].append(measure())
                progress.advance(task)
    measured = {plan: _median(values) for plan, values in found.items()}
    content = {
        "machine": machine.describe(), "rounds": rounds, "images_per_part": IMAGES_AT_ONCE, "samples": SAMPLES,
        "cores": cores, "parts": PARTS, "measured": measured,
    }  # fmt: skip
    storage.write_text(out, json.dumps(content, indent=1) + "\n")
    table = Table("measured", "median")
    for plan, value in measured.items():
        table.add_row(plan, str(value))
    Console().print(table)


def _median(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: _median([value[key] for value in values]) for key in values[0]}
    return round(statistics.median(values), 4)


if __name__ == "__main__":
    run(main, "python -m benchmarks.scale")
