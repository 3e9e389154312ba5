"""The training loop: Adam on cross-entropy, regularised as the recipe says, with early stopping that restores the best
weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.records import Recipe
from training import regularisers
from training.data import LabelledImages

__all__ = ["DivergedError", "EpochRecord", "Fitted", "Recipe", "evaluate", "fit"]

Stopped = Literal["completed", "early", "diverged"]


@dataclass(frozen=True)
class EpochRecord:
    """One epoch. Train figures are running means over its batches with dropout and noise on, without penalties and
    label smoothing; validation figures are of the weights at its end with dropout off; losses in nats, ``seconds`` for
    training alone."""

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Fitted:
    """``best_epoch`` (from 1) is the epoch whose weights the network now has."""

    history: tuple[EpochRecord, ...]
    best_epoch: int
    stopped: Stopped


class DivergedError(Exception):
    """The loss became infinite or NaN. The network has the weights of the last good epoch, as ``fitted`` tells.

    ``fitted`` has an empty history if it happened in the first epoch; the weights are then the initial ones.
    """

    def __init__(self, message: str, fitted: Fitted) -> None:
        super().__init__(message)
        self.fitted = fitted


def fit(
    network: nn.Module,
    train: LabelledImages,
    validation: LabelledImages,
    recipe: Recipe,
    *,
    prepare: Callable[[Tensor], Tensor],
    on_batch: Callable[[int], None] = lambda _: None,
    on_epoch: Callable[[EpochRecord], None] = lambda _: None,
) -> Fitted:
    """Train ``network`` in place, and leave it in eval mode with the weights of ``best_epoch``.

    ``prepare`` turns uint8 pixels ``[N, 28, 28]`` into the network's input; it is applied once, to all images.
    ``on_batch`` is told the number of images of each batch done, ``on_epoch`` each epoch's figures. All randomness
    (order of examples, dropout, noise) comes from ``recipe.seed``; torch's global generator is left as it was.

    With early stopping the best epoch is the one with the least validation loss, otherwise the last.
    Raises :class:`DivergedError` when the loss is no longer finite.
    """
    inputs, labels = prepare(train.pixels), train.labels
    validation_inputs = prepare(validation.pixels)
    wanted = recipe.regularisation
    optimizer = regularisers.optimizer_for(network, recipe)
    weights = regularisers.weights_of(network)
    stochastic = regularisers.stochastic_weights(network, wanted)
    history: list[EpochRecord] = []
    best_epoch, best_loss = 0, math.inf
    best_state = _copy_of_state(network)
    stopped: Stopped = "completed"

    def diverged(message: str) -> DivergedError:
        network.load_state_dict(best_state)
        network.eval()
        return DivergedError(message, Fitted(tuple(history), best_epoch, "diverged"))

    with torch.random.fork_rng(devices=[]), regularisers.activation_noise(network, wanted.activation_noise):
        torch.manual_seed(recipe.seed)
        for epoch in range(1, recipe.epochs + 1):
            started = time.perf_counter()
            network.train()
            loss_sum, correct = 0.0, 0
            for number, batch in enumerate(torch.randperm(len(labels)).split(recipe.batch_size), start=1):
                with ExitStack() as drawn:
                    for each in stochastic:
                        drawn.enter_context(each.drawn())
                    logits = network(regularisers.noisy(inputs[batch], wanted.input_noise))
                    loss = F.cross_entropy(logits, labels[batch])
                    trained_on = (
                        F.cross_entropy(logits, labels[batch], label_smoothing=wanted.label_smoothing)
                        if wanted.label_smoothing
                        else loss
                    )
                    optimizer.zero_grad()
                    trained_on.backward()
                value = loss.item()
                if not math.isfinite(value):
                    raise diverged(f"the training loss became {value} in epoch {epoch}, batch {number}")
                optimizer.step()
                if wanted.max_norm is not None:
                    regularisers.bound_norms(weights, wanted.max_norm)
                loss_sum += value * len(batch)
                correct += int((logits.argmax(1) == labels[batch]).sum())
                on_batch(len(batch))
            seconds = time.perf_counter() - started
            validation_loss, validation_accuracy = evaluate(network, validation_inputs, validation.labels)
            if not math.isfinite(validation_loss):
                raise diverged(f"the validation loss became {validation_loss} in epoch {epoch}")
            record = EpochRecord(
                epoch,
                loss_sum / len(labels),
                correct / len(labels),
                validation_loss,
                validation_accuracy,
                seconds,
            )
            history.append(record)
            on_epoch(record)
            if not recipe.early_stopping or validation_loss < best_loss:
                best_epoch, best_loss, best_state = epoch, validation_loss, _copy_of_state(network)
            elif epoch - best_epoch >= recipe.patience:
                stopped = "early"
                break

    network.load_state_dict(best_state)
    network.eval()
    return Fitted(tuple(history), best_epoch, stopped)


@torch.inference_mode()
def evaluate(network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy, with dropout off; leaves ``network`` in eval mode."""
    network.eval()
    logits = torch.cat([network(chunk) for chunk in inputs.split(4096)])
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()


def _copy_of_state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}
