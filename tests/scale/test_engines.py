"""Engines: every task done once, wherever, whatever dies on the way; on processes, and on a cluster of two nodes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.scale.cluster import NODE, cluster_of
from training import engines
from training.engines import ENGINES, Engine, EngineError, TaskError


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "local":
        return engines.build("local", workers=2)
    return engines.build("ray", workers=2, address=request.getfixturevalue("cluster").address)


# Given to other processes by name.
def power(exponent: int, value: int) -> int:
    return int(value**exponent)


class OddError(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, message: str, value: int) -> None:
        super().__init__(message)
        self.value = value


def fail_at_three(_: None, value: int) -> int:
    if value == 3:
        raise OddError("three", value)
    return value


def die_at_two(_: None, value: int) -> int:
    if value == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return value


def total(shared: Tensor, row: int) -> float:
    return float(shared[row].sum())


def note(folder: Path, value: int) -> int:
    """Leaves a file for each time that it is done, on which node."""
    import ray

    time.sleep(0.2)
    (folder / f"{value}-{ray.get_runtime_context().get_node_id()}-{time.monotonic_ns()}").touch()
    return value


def test_every_task_has_its_result(engine: Engine) -> None:
    assert sorted(engine.map(power, range(6), 2)) == [(value, value * value) for value in range(6)]
    assert list(engine.map(power, [], 2)) == []


def test_from_outside_the_cluster(cluster: Any) -> None:
    engine = engines.build("ray", workers=2, address=cluster.client_address)
    assert sorted(engine.map(power, range(6), 2)) == [(value, value * value) for value in range(6)]
    found = dict(engine.map(die_at_two, range(4), None))
    assert isinstance(found.pop(2), TaskError)
    assert found == {0: 0, 1: 1, 3: 3}


def test_tensors_are_shared(engine: Engine) -> None:
    shared = torch.arange(3_000_000, dtype=torch.float64).view(3, -1)
    assert dict(engine.map(total, [0, 2], shared)) == {row: float(shared[row].sum()) for row in (0, 2)}


def test_what_a_task_raises_is_its_result(engine: Engine) -> None:
    found = dict(engine.map(fail_at_three, [1, 3, 5], None))
    assert isinstance(found[3], TaskError)
    assert str(found[3]) == "OddError: three"
    assert (found[1], found[5]) == (1, 5)


def test_a_task_that_kills_its_process_takes_no_other_with_it(engine: Engine) -> None:
    found = dict(engine.map(die_at_two, range(5), None))
    assert isinstance(found.pop(2), TaskError)
    assert found == {0: 0, 1: 1, 3: 3, 4: 4}


def test_tasks_are_taken_as_there_is_room(engine: Engine) -> None:
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for value in range(40):
            taken += 1
            yield value

    found = engine.map(power, tasks(), 1)
    next(found)
    assert 1 <= taken <= 8
    assert sum(1 for _ in found) == 39


def test_a_node_that_joins_and_dies_half_way_loses_nothing(tmp_path: Path) -> None:
    """It joins late for this process to be connected to the other."""
    with cluster_of(1) as cluster:
        engine = engines.build("ray", workers=1, address=cluster.address)
        found: list[int] = []
        second: Any = None
        for task, result in engine.map(note, range(60), tmp_path):
            assert task == result
            found.append(task)
            nodes = {path.name.split("-")[1] for path in tmp_path.iterdir()}
            if len(found) == 2:
                second = cluster.add_node(**NODE)
            elif len(nodes) == 2 and second is not None:
                cluster.remove_node(second, allow_graceful=False)
                second = None
    assert sorted(found) == list(range(60)), "none lost, none given twice"
    assert len(nodes) == 2, "both took part"
    assert {int(path.name.split("-")[0]) for path in tmp_path.iterdir()} == set(range(60))


def test_without_ray_or_a_cluster_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"no Ray cluster can be used at localhost:1: .*ray start --head"):
        list(engines.build("ray", workers=1, address="localhost:1").map(power, [1], 2))
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(EngineError, match=r"Ray is not installed: pip install 'dropout-uncertainty\[scale\]'"):
        engines.build("ray", workers=1)
    with pytest.raises(ValueError, match="unknown engine 'spark'; known are local, ray"):
        engines.build("spark", workers=1)
