"""Runs a plan: side by side on an engine, each finished run a file, so that nothing is trained twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError

from models import storage
from training import data
from training.engines import Engine
from training.study.measure import key_of, train_and_measure
from training.study.schema import Configuration, Failure, Plan, RunResult

__all__ = ["RUNS", "Run", "finished", "run_all", "runs_of"]

RUNS = "runs"
"""The folder, in a study's own, of the finished runs."""


@dataclass(frozen=True)
class Run:
    configuration: Configuration
    seed: int

    @property
    def key(self) -> str:
        return key_of(self.configuration, self.seed)


def runs_of(plan: Plan) -> list[Run]:
    """Every configuration from the first seed, then from the next: an interrupted study has something of all."""
    return [Run(configuration, seed) for seed in range(plan.seeds) for configuration in plan.configurations]


def finished(run: Run, folder: Path) -> RunResult | None:
    """The result of ``run`` in a study's ``folder``, under the name that the run has now; ``None`` if there is none.

    Raises ``ValueError``, with the file, if it can't be read.
    """
    path = _file(run, folder)
    if not path.exists():
        return None
    try:
        found = RunResult.model_validate_json(path.read_text())
    except ValidationError as error:
        raise ValueError(f"{path} is damaged or of another version") from error
    return found.model_copy(update={"name": run.configuration.name})


def run_all(
    runs: Sequence[Run], folder: Path, *, engine: Engine, splits: data.FashionMNISTSplits
) -> Iterator[RunResult | Failure]:
    """Train ``runs``, and yield each when it has ended; a result is in its file by then.

    What a run raises, and the death of its process, become a :class:`~training.study.schema.Failure`.
    """
    unlike = {run.key: run for run in runs}
    for run, found in engine.map(_work, unlike.values(), splits):
        if isinstance(found, RunResult):
            storage.write_text(_file(run, folder), found.model_dump_json(indent=1) + "\n")
        for same in runs:
            if same.key == run.key:
                name = same.configuration.name
                if isinstance(found, RunResult):
                    yield found.model_copy(update={"name": name})
                else:
                    yield Failure(name=name, seed=run.seed, error=str(found))


def _work(splits: data.FashionMNISTSplits, run: Run) -> RunResult:
    torch.set_num_threads(1)
    return train_and_measure(run.configuration, run.seed, splits)


def _file(run: Run, folder: Path) -> Path:
    return folder / RUNS / f"{run.key}.json"
