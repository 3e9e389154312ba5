"""What the default strategy makes of the test images: of each class, and of single images worth looking at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.predictive import PredictiveSummary
from calibration.report.schema import ClassRow, GalleryEntry
from training.data import LabelledImages

__all__ = ["Examples", "class_rows", "galleries"]

GALLERY_SIZE = 12


@dataclass(frozen=True)
class Examples:
    """What is predicted for ``test``, by ``several`` members or one; and the prediction sets, ``[N, C]``, if there are
    any."""

    test: LabelledImages
    summary: PredictiveSummary
    several: bool
    sets: Tensor | None
    classes: Sequence[str]


def class_rows(examples: Examples) -> Iterator[ClassRow]:
    """A row for each class that occurs."""
    summary, labels, classes, sets = examples.summary, examples.test.labels, examples.classes, examples.sets
    confidence, predicted = summary.mean.max(1)
    for index in labels.unique().tolist():
        own = labels == index
        wrong = torch.bincount(predicted[own], minlength=len(classes)).double()
        wrong[index] = 0
        taken = predicted == index
        yield ClassRow(
            label=classes[index],
            images=int(own.sum()),
            recall=float((predicted[own] == index).double().mean()),
            precision=float(own[taken].double().mean()) if taken.any() else None,
            confidence=float(confidence[own].mean()),
            total=float(summary.predictive_entropy[own].mean()),
            epistemic=float(summary.mutual_information[own].mean()) if examples.several else None,
            confused_with=classes[int(wrong.argmax())] if wrong.any() else None,
            confused=float(wrong.max() / own.sum()),
            set_coverage=None if sets is None else float(sets[own, index].double().mean()),
            set_size=None if sets is None else float(sets[own].sum(1).double().mean()),
        )


def galleries(examples: Examples, names: Sequence[str]) -> dict[str, tuple[GalleryEntry, ...]]:
    """The first images by each order; ``names`` are theirs, if they have any."""
    summary = examples.summary
    confidence, predicted = summary.mean.max(1)
    wrong = predicted != examples.test.labels
    orders = {
        "most uncertain": summary.predictive_entropy.argsort(descending=True, stable=True),
        "most confidently wrong": torch.where(wrong, confidence, -1).argsort(descending=True, stable=True)[
            : int(wrong.sum())
        ],
    }
    if examples.several:
        orders["highest epistemic uncertainty"] = summary.mutual_information.argsort(descending=True, stable=True)
    return {name: tuple(_entries(examples, names, order)) for name, order in orders.items()}


def _entries(examples: Examples, names: Sequence[str], order: Tensor) -> Iterator[GalleryEntry]:
    summary, classes = examples.summary, examples.classes
    confidence, predicted = summary.mean.max(1)
    for index in order[:GALLERY_SIZE].tolist():
        yield GalleryEntry(
            index=index,
            name=names[index] if names else None,
            label=classes[int(examples.test.labels[index])],
            predicted=classes[int(predicted[index])],
            confidence=float(confidence[index]),
            total=float(summary.predictive_entropy[index]),
            aleatoric=float(summary.expected_entropy[index]) if examples.several else None,
            epistemic=float(summary.mutual_information[index]) if examples.several else None,
        )
