"""Many images scored side by side, on this machine or a cluster: a folder of Parquet files, one for each piece."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

import torch
from pyarrow import ArrowException, parquet

from calibration.prediction import build_strategy
from calibration.score import Scorer, Scores
from models import storage
from models.packing import PackedBundle
from training import pieces
from training.engines import Engine, TaskError
from training.pieces import Piece

__all__ = ["PART", "SUMMARY", "Job", "Outcome", "score_parts"]

PART = "part-{:05}.parquet"
SUMMARY = "_summary.json"
"""Readers of folders of Parquet files pass over names that begin so."""
LEFT_BEHIND = ".part-*.parquet.*"
OLD_SECONDS = 3600
"""After which what a worker that was killed had begun to write is not still being written."""


@dataclass(frozen=True)
class Job:
    """What workers are told once: by which strategy ``bundle`` is asked, and ``coverage`` and ``target_error`` as for a
    :class:`~calibration.score.Scorer`."""

    bundle: PackedBundle
    strategy: str
    samples: int
    coverage: float
    target_error: float


@dataclass(frozen=True)
class Outcome:
    """What was scored: of finished parts and new ones together; and of which part there is none, with why."""

    scores: Scores | None
    failures: dict[str, str]


def score_parts(
    job: Job,
    found: Sequence[Piece],
    folder: Path,
    engine: Engine,
    *,
    on_finished: Callable[[int], None] = lambda _: None,
    on_images: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Write the answers for each piece into a file of ``folder``, in its place, as :func:`calibration.score.score`
    would; and when all are there, what they come to, as :data:`SUMMARY`.

    A part that is there already, of that piece as it is now, is left as it is, so that what was interrupted goes on
    where it was. Workers write the files themselves, each in one step: ``folder``, and what the pieces are of, must be
    the same for all of them. ``on_finished`` is told the number of images in parts that are there already, and
    ``on_images`` of each new one.

    Raises ``FileExistsError`` if ``folder`` holds something else: other files, or answers by other settings or for
    images that are no longer there.
    """
    folder = folder.absolute()
    names = [PART.format(number) for number in range(len(found))]
    scorer = _scorer(job)
    _refuse_unless_ours(folder, names, scorer.metadata)
    scores: dict[str, Scores] = {}
    waiting: list[tuple[str, Piece]] = []
    for name, piece in zip(names, found, strict=True):
        there = _finished(folder / name, piece)
        if there is None:
            waiting.append((name, piece))
        else:
            scores[name] = there
    on_finished(sum(each.images for each in scores.values()))
    if waiting:
        (folder / SUMMARY).unlink(missing_ok=True)
    failures = {}
    for (name, piece), result in engine.map(_score_part, waiting, (job, folder)):
        if isinstance(result, TaskError):
            failures[name] = str(result)
        elif _finished(folder / name, piece) is None:
            failures[name] = (
                f"it is not in {folder} as its worker wrote it: share the folder, and don't change the images meanwhile"
            )
        else:
            scores[name] = result
            on_images(result.images)
    if not scores:
        return Outcome(None, failures)
    # In their order, whichever was done first: sums in another end in other digits.
    first, *others = (scores[name] for name in names if name in scores)
    total = sum(others, first)
    if not failures:
        summary = scorer.settings | {
            "parts": len(names), "images": total.images, "mean_confidence": total.mean_confidence,
            "accuracy": total.accuracy,
        }  # fmt: skip
        storage.write_text(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return Outcome(total, failures)


def _score_part(shared: tuple[Job, Path], task: tuple[str, Piece]) -> Scores:
    """On a worker."""
    (job, folder), (name, piece) = shared, task
    torch.set_num_threads(1)
    scorer = _scorer(job)
    # Before they are read: if they change meanwhile, this part is not of them as they are then.
    identity = pieces.stamp(piece)
    table = scorer(pieces.read(piece, scorer.card.classes, scorer.card.input))
    scores = Scores.of(table)
    with storage.new_file(folder / name) as file:
        told = {"piece": identity, "scores": json.dumps(asdict(scores))}
        parquet.write_table(table.replace_schema_metadata(scorer.metadata | told), file)
    return scores


@lru_cache(maxsize=1)
def _scorer(job: Job) -> Scorer:
    bundle = job.bundle.load()
    strategy = build_strategy(bundle, job.strategy, job.samples)
    return Scorer(bundle, strategy, coverage=job.coverage, target_error=job.target_error)


def _refuse_unless_ours(folder: Path, names: Collection[str], metadata: dict[str, str]) -> None:
    for file in sorted(folder.iterdir()) if folder.exists() else []:
        if file.name == SUMMARY or file.name.startswith("."):
            if fnmatchcase(file.name, LEFT_BEHIND) and time.time() - file.stat().st_mtime > OLD_SECONDS:
                file.unlink(missing_ok=True)
            continue
        if not fnmatchcase(file.name, "part-*.parquet"):
            raise FileExistsError(f"{folder} holds something else than scores, as {file.name}")
        there = _metadata(file)
        unlike = next((key for key, value in metadata.items() if there is not None and there.get(key) != value), None)
        if there is not None and unlike is not None:
            raise FileExistsError(
                f"{file} is by other settings: {unlike} {there.get(unlike)}, and not {metadata[unlike]}"
            )
        if file.name not in names:
            raise FileExistsError(f"{file} is of images that are no longer there: delete it")


def _finished(path: Path, piece: Piece) -> Scores | None:
    """What the part at ``path`` comes to; ``None`` if there is none of ``piece`` as it is now, or that is gone."""
    there = _metadata(path) if path.exists() else None
    try:
        if there is None or there.get("piece") != pieces.stamp(piece):
            return None
    except OSError:
        return None
    return Scores(**json.loads(there["scores"]))


def _metadata(path: Path) -> dict[str, str] | None:
    """``None`` of what can't be read."""
    try:
        found = parquet.read_schema(path).metadata or {}
    except (ArrowException, OSError):
        return None
    return {key.decode(): value.decode() for key, value in found.items()}
