"""One run of a study: trains a configuration from a seed, and measures what came of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calibration import metrics, ranking, strategies
from calibration.predictive import UNSCALED
from calibration.sites import NoActiveDropoutError
from models import bundle, networks, records
from training import data, outliers
from training.fit import DivergedError, EpochRecord, Fitted, evaluate, fit
from training.study.schema import SCHEMA, Configuration, Evaluation, RunResult, Sampled

__all__ = ["SAMPLES", "drawn", "key_of", "train_and_measure"]

SAMPLES = 32
"""Sub-networks of MC dropout: half of what the service uses, for it is most of the time that a short run takes."""
INPUT = records.InputRecord()
SHAPE = (28, 28)
DETECTED = 2000
"""Images of each set, and of the test images, in a measure of detection."""
DECIMALS = 6
"""Of the curves, which would be most of a study's file."""


def key_of(configuration: Configuration, seed: int, split_seed: int = data.DEFAULT_SPLIT_SEED) -> str:
    """Digest of all that a run's result depends on, in 16 hexadecimal digits: not its name, group and baseline."""
    content = {
        "schema": SCHEMA,
        "network": configuration.network,
        "arguments": configuration.arguments,
        "train_images": configuration.train_images,
        "recipe": configuration.recipe.model_copy(update={"seed": seed}).model_dump(mode="json"),
        "data": data.CHECKSUMS,
        "split_seed": split_seed,
        "samples": SAMPLES,
        # Another torch may draw other weights and round otherwise.
        "torch": torch.__version__.partition("+")[0],
        **({"detection": True} if configuration.detection else {}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def train_and_measure(configuration: Configuration, seed: int, splits: data.FashionMNISTSplits) -> RunResult:
    """Train from ``seed``, and measure on the images trained on, the validation images and all test images.

    Raises ``ValueError`` if the network can't be built or regularised so, and
    :class:`~training.fit.DivergedError` if its loss diverges in the first epoch; later the last good weights are kept.
    """
    network = networks.build(configuration.network, configuration.arguments, seed=seed)
    train = drawn(splits.train, configuration.train_images, seed)
    recipe = configuration.recipe.model_copy(update={"seed": seed})
    try:
        fitted = fit(network, train, splits.validation, recipe, prepare=_prepare)
    except DivergedError as error:
        if not error.fitted.history:
            raise
        fitted = error.fitted
    test = _prepare(splits.test.pixels)
    probabilities = strategies.weight_scaling(network)(test).mean
    return RunResult(
        key=key_of(configuration, seed, splits.split_seed),
        name=configuration.name,
        seed=seed,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        seconds=sum(record.seconds for record in fitted.history),
        history=tuple(_rounded(record) for record in fitted.history),
        epochs_to_best=_best(fitted),
        kept_epoch=fitted.best_epoch,
        stopped=fitted.stopped,
        train=_evaluation(network, train),
        validation=_evaluation(network, splits.validation),
        test=_evaluation(network, splits.test),
        ece=float(metrics.expected_calibration_error(probabilities, splits.test.labels)),
        sampled=_sampled(network, test, splits.test.labels, detection=configuration.detection),
        variance_shift=_variance_shift(network, test),
    )


def drawn(images: data.LabelledImages, count: int, seed: int) -> data.LabelledImages:
    """``count`` of the images, the same for all that are trained from ``seed``; those themselves if all are wanted."""
    if count == len(images):
        return images
    return images[torch.from_numpy(np.random.default_rng(seed).permutation(len(images))[:count])]


def _prepare(pixels: Tensor) -> Tensor:
    return bundle.normalise(pixels, INPUT)


def _evaluation(network: nn.Module, images: data.LabelledImages) -> Evaluation:
    loss, accuracy = evaluate(network, _prepare(images.pixels), images.labels)
    return Evaluation(loss=loss, accuracy=accuracy)


def _best(fitted: Fitted) -> int:
    return min(fitted.history, key=lambda record: record.validation_loss).epoch


def _rounded(record: EpochRecord) -> EpochRecord:
    values: dict[str, Any] = {
        name: round(value, DECIMALS) for name, value in vars(record).items() if isinstance(value, float)
    }
    return replace(record, **values)


def _sampled(network: nn.Module, inputs: Tensor, labels: Tensor, *, detection: bool) -> Sampled | None:
    try:
        strategy = strategies.build("mc_dropout", network, SHAPE, samples=SAMPLES)
    except NoActiveDropoutError:
        return None
    found = strategy.summarise(inputs, UNSCALED)
    return Sampled(
        nll=float(metrics.negative_log_likelihood(found.mean, labels)),
        accuracy=float(metrics.accuracy(found.mean, labels)),
        ece=float(metrics.expected_calibration_error(found.mean, labels)),
        mutual_information=float(found.mutual_information.mean()),
        detection=_detection(strategy, found.mutual_information) if detection else {},
    )


def _detection(strategy: strategies.Strategy, of_test: Tensor) -> dict[str, float]:
    """AUROC of the mutual information on the sets that choices are made on, and on those that are reported."""
    sets = outliers.selection_sets() | outliers.load_outliers().sets
    found = {}
    for name, pixels in sets.items():
        of_outliers = strategy.summarise(_prepare(pixels[:DETECTED])).mutual_information
        found[name] = float(ranking.auroc(of_test[:DETECTED], of_outliers))
    return found


@torch.inference_mode()
def _variance_shift(network: nn.Module, inputs: Tensor) -> dict[str, float]:
    """The variance that each batch norm meets with dropout off over that which it was taught, median over its units."""
    layers = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    # Count, sum and sum of squares, for all values of a convolution's layer would not fit in memory.
    sums: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def add(_: nn.Module, values: tuple[Tensor, ...]) -> None:
            units = values[0].transpose(0, 1).flatten(1).double()
            count = torch.full((len(units),), units.shape[1], dtype=torch.float64)
            found = torch.stack([count, units.sum(1), units.square().sum(1)])
            sums[name] = sums[name] + found if name in sums else found

        return add

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers.items()]
    try:
        for chunk in inputs.split(1000):
            network(chunk)
    finally:
        for handle in handles:
            handle.remove()
    shifts = {}
    for name, module in layers.items():
        assert module.running_var is not None  # noqa: S101  (the project's networks have them all)
        count, total, squares = sums[name]
        variance = (squares - total.square() / count) / (count - 1)
        shifts[name] = float((variance / module.running_var).median())
    return shifts
