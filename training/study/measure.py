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

from calibration import metrics, strategies
from calibration.predictive import UNSCALED
from calibration.sites import NoActiveDropoutError
from models import bundle, networks, records
from training import data
from training.fit import DivergedError, EpochRecord, Fitted, evaluate, fit
from training.study.schema import SCHEMA, TRAIN_IMAGES, Configuration, Evaluation, RunResult, Sampled

__all__ = ["SAMPLES", "key_of", "train_and_measure"]

SAMPLES = 32
"""Sub-networks of MC dropout: half of what the service uses, for it is most of the time that a short run takes."""
INPUT = records.InputRecord()
SHAPE = (28, 28)
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
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def train_and_measure(configuration: Configuration, seed: int, splits: data.FashionMNISTSplits) -> RunResult:
    """Train from ``seed``, and measure on the images trained on, the validation images and all test images.

    Raises ``ValueError`` if the network can't be built or regularised so, and
    :class:`~training.fit.DivergedError` if its loss diverges in the first epoch; later the last good weights are kept.
    """
    network = networks.build(configuration.network, configuration.arguments, seed=seed)
    train = _drawn(splits.train, configuration.train_images, seed)
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
        sampled=_sampled(network, test, splits.test.labels),
        variance_shift=_variance_shift(network, test),
    )


def _drawn(images: data.LabelledImages, count: int, seed: int) -> data.LabelledImages:
    if count == TRAIN_IMAGES:
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


def _sampled(network: nn.Module, inputs: Tensor, labels: Tensor) -> Sampled | None:
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
    )


@torch.inference_mode()
def _variance_shift(network: nn.Module, inputs: Tensor) -> dict[str, float]:
    """The variance that each batch norm meets with dropout off over that which it was taught, median over its units."""
    met: dict[str, list[Tensor]] = {}
    layers = {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}

    def hook(name: str) -> Any:
        return lambda _, values: met.setdefault(name, []).append(values[0].transpose(0, 1).flatten(1))

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
        shifts[name] = float((torch.cat(met[name], 1).var(1) / module.running_var).median())
    return shifts
