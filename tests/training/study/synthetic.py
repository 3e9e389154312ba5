"""Studies made of chosen numbers, for what is computed and said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.records import Recipe
from training.fit import EpochRecord
from training.study.results import summarise
from training.study.schema import Configuration, Evaluation, Failure, Plan, RunResult, Sampled, Study


def configuration(name: str, baseline: str | None = None, **fields: Any) -> Configuration:
    return Configuration(name=name, network="YourDropoutModel", baseline=baseline, **fields)


def run(
    name: str, seed: int, *, accuracy: float = 0.8, loss: float = 0.5, train_loss: float = 0.4,
    validation: Sequence[float] = (0.6, 0.5, 0.4), sampled: float | None = None,
    shift: Mapping[str, float] | None = None, detection: Mapping[str, float] | None = None,
) -> RunResult:  # fmt: skip
    history = tuple(EpochRecord(epoch, 0.7, 0.7, value, 0.75, 1.0) for epoch, value in enumerate(validation, start=1))
    return RunResult(
        key=f"{name}-{seed}", name=name, seed=seed, parameters=1000, seconds=3.0, history=history,
        epochs_to_best=min(history, key=lambda record: record.validation_loss).epoch, kept_epoch=len(history),
        stopped="completed", train=Evaluation(loss=train_loss, accuracy=0.9),
        validation=Evaluation(loss=loss, accuracy=accuracy), test=Evaluation(loss=loss, accuracy=accuracy), ece=0.03,
        sampled=None if sampled is None else Sampled(
            nll=sampled, accuracy=accuracy, ece=0.02, mutual_information=0.1, detection=dict(detection or {})
        ),
        variance_shift=dict(shift or {}),
    )  # fmt: skip


def study(
    configurations: Sequence[Configuration], runs: Sequence[RunResult], failures: Sequence[Failure] = (), seeds: int = 3
) -> Study:
    plan = Plan(name="made-up", title="Made up", question="What if?", seeds=seeds, configurations=tuple(configurations))
    return summarise(plan, runs, failures, "python -m training study made-up")


def compared(gain: float, loss: float = 0.0, *, noise: float = 0.001, seeds: int = 3) -> Study:
    """A baseline and ``other``, better by ``gain`` in accuracy and by ``-loss`` in test loss."""
    wobble = [noise * (seed - 1) for seed in range(seeds)]
    return study(
        [configuration("plain"), configuration("other", "plain")],
        [run("plain", seed, accuracy=0.8 + 5 * each, loss=0.5) for seed, each in enumerate(wobble)]
        + [
            run("other", seed, accuracy=0.8 + 5 * each + gain + each, loss=0.5 + loss + each, sampled=0.45 + loss)
            for seed, each in enumerate(wobble)
        ],
        seeds=seeds,
    )


def detecting() -> Study:
    """``other`` detects letters better by 0.1 than its baseline, and noise no differently; ``third`` was not asked."""
    return study(
        [configuration("plain"), configuration("other", "plain"), configuration("third", "plain")],
        [
            run(name, seed, sampled=0.4, detection=detection)
            for seed in range(3)
            for name, detection in (
                ("plain", {"letters": 0.8 + 0.05 * seed, "uniform_noise": 0.9}),
                ("other", {"letters": 0.9 + 0.051 * seed, "uniform_noise": 0.9 + 0.01 * (seed - 1)}),
                ("third", None),
            )
        ],
    )


def grid() -> Study:
    """Rates 0, 0.2, 0.4 by 0, 0.5 at two learning rates; the best accuracy at 0.2/0.5 and 0/0."""
    configurations, runs = [], []
    for learning_rate, best in ((0.001, (0.2, 0.5)), (0.003, (0.0, 0.0))):
        baseline = f"0/0 at {learning_rate}"
        for first in (0.0, 0.2, 0.4):
            for second in (0.0, 0.5):
                name = f"{first:g}/{second:g} at {learning_rate}"
                configurations.append(
                    configuration(
                        name, None if name == baseline else baseline, arguments={"dropout": [first, second, second]},
                        recipe=Recipe(learning_rate=learning_rate), group=f"learning rate {learning_rate}",
                    )
                )  # fmt: skip
                far = abs(first - best[0]) + abs(second - best[1])
                runs += [
                    run(
                        name,
                        seed,
                        accuracy=0.9 - 0.1 * far,
                        loss=0.3 + far,
                        sampled=0.3 + far if first + second else None,
                    )
                    for seed in range(3)
                ]
    return study(configurations, runs)


def by_size() -> Study:
    """Dropout helps at 1,000 and 5,000 images, and hurts at 100."""
    configurations, runs = [], []
    for images, gain in ((100, -0.05), (1000, 0.04), (5000, 0.03)):
        configurations += [
            configuration(f"plain {images}", train_images=images),
            configuration(f"dropout {images}", f"plain {images}", train_images=images),
        ]
        for seed in range(3):
            runs += [
                run(f"plain {images}", seed, accuracy=0.7),
                run(f"dropout {images}", seed, accuracy=0.7 + gain + 0.001 * seed, loss=0.5 - gain, sampled=0.4),
            ]
    return study(configurations, runs)
