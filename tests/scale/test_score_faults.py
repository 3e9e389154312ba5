"""Many images scored whatever dies on the way, none lost or doubled, in bounded memory."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from pyarrow import parquet

from tests.command_line import ROOT, run
from tests.scale.cluster import NODE, cluster_of, content, ray
from training.data import FashionMNISTSplits

LIMIT = 2 * 2**30
"""Of memory, in bytes."""


@contextmanager
def started(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """``python -m calibration score`` under way."""
    command = [sys.executable, "-m", "calibration", "score", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def wait_for_parts(out: Path, number: int, process: subprocess.Popen[str]) -> None:
    while len(list(out.glob("part*"))) < number:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def many(fashion: FashionMNISTSplits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 60 parts, shards that are smaller than a part."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(60):
        chosen = slice(number * 100, number * 100 + 100)
        pixels, labels = fashion.test.pixels[chosen].numpy(), fashion.test.labels[chosen].numpy()
        np.savez(folder / f"{number:02}.npz", images=pixels, labels=labels)
    return folder


@pytest.fixture(scope="module")
def expected(many: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "scores"
    assert run("calibration", "score", "mlp", many, "--out", out, "--samples", "1024").returncode == 0
    return content(out)


def test_a_node_that_dies_half_way_loses_and_doubles_nothing(
    many: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "scores"
    with cluster_of(1) as cluster:
        options = ["--samples", "1024", *ray(cluster)]
        with started("mlp", many, "--out", out, *options) as process:
            wait_for_parts(out, 3, process)
            # It joins late for the command not to be connected to it.
            node = cluster.add_node(**NODE)
            wait_for_parts(out, 30, process)
            assert len(content(out)) < 60
            cluster.remove_node(node, allow_graceful=False)
            output = process.communicate(timeout=200)[0]
            assert process.returncode == 0, output
    assert content(out) == expected
    assert "Images scored: 6,000" in output
    rows = parquet.read_table(out)["image"].to_pylist()
    assert len(set(rows)) == len(rows) == 6000


def test_a_command_that_is_killed_goes_on_where_it_was(many: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "scores"
    with started("mlp", many, "--out", out, "--samples", "1024", "--workers", "2") as process:
        wait_for_parts(out, 10, process)
        process.kill()
    time.sleep(1)  # For its workers to notice.
    kept = {file.name: file.stat().st_mtime_ns for file in out.glob("part*")}
    assert 10 <= len(kept) < 60
    done = run("calibration", "score", "mlp", many, "--out", out, "--samples", "1024", "--workers", "2")
    assert done.returncode == 0, done.stderr
    left = {name: found for name, found in content(out).items() if not name.startswith(".")}
    assert left == expected
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept


def test_a_million_images_in_bounded_memory(tmp_path: Path) -> None:
    """In one file of 3 GB, half of it holes. What is measured is the whole: the command, Ray's own processes, and a
    worker on each of two nodes."""
    path = tmp_path / "images-idx3-ubyte"
    some = np.random.default_rng(0).integers(0, 256, (1000, 28, 28)).astype(">f4").tobytes()
    with path.open("wb") as file:
        file.write(struct.pack(">HBB3I", 0, 13, 3, 1_000_000, 28, 28))
        for _ in range(500):
            file.write(some)
        file.truncate(16 + 1_000_000 * 784 * 4)
    assert path.stat().st_size > LIMIT
    out = tmp_path / "scores"
    with peak_memory() as peak, cluster_of(2) as cluster:
        options = ["--strategy", "weight_scaling", *ray(cluster)]
        done = run("calibration", "score", "mlp", path, "--out", out, *options)
    path.unlink()
    assert done.returncode == 0, done.stderr
    assert "Images scored: 1,000,000" in done.stdout
    assert sum(parquet.read_metadata(file).num_rows for file in out.glob("part*")) == 1_000_000
    assert 0.1e9 < max(peak) < LIMIT, f"{max(peak) / 2**20:.0f} MiB"


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """The bytes that the processes hold together that this one, and those, start in the block, each page counted once;
    looked at ten times a second."""
    found, over = [0], threading.Event()
    itself = psutil.Process()
    before = set(itself.children(recursive=True))

    def look() -> None:
        while not over.wait(0.1):
            total = 0
            for process in set(itself.children(recursive=True)) - before:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # It has ended.
                    continue
            found.append(total)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
