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

from models.records import Augmentation, Recipe
from training import regularisers
from training.augmentation import augmented
from training.data import LabelledImages
from training.diversity import disagreement, outliers_from

__all__ = ["DivergedError", "EpochRecord", "Fitted", "Recipe", "evaluate", "fit"]

CPU = torch.device("cpu")
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
    device: torch.device = CPU,
    on_batch: Callable[[int], None] = lambda _: None,
    on_epoch: Callable[[EpochRecord], None] = lambda _: None,
) -> Fitted:
    """Train ``network`` in place, and leave it in eval mode with the weights of ``best_epoch``.

    The work is done on ``device``; afterwards the network is on the CPU. ``prepare`` turns uint8 pixels ``[N, 28, 28]``
    into the network's input; it is applied once, to all images, or to each batch where they are changed. ``on_batch``
    is told the number of images of each batch done, ``on_epoch`` each epoch's figures. All randomness (order of
    examples, dropout, noise, augmentation, outliers) comes from ``recipe.seed``; torch's global generator is left as it
    was.

    With early stopping the best epoch is the one with the least validation loss, otherwise the last.
    Raises :class:`DivergedError` when the loss is no longer finite.
    """
    network.to(device)
    training = _Training(network, train, recipe, prepare, device)
    validation_inputs, validation_labels = prepare(validation.pixels).to(device), validation.labels.to(device)
    history: list[EpochRecord] = []
    best_epoch, best_loss = 0, math.inf
    best_state = _copy_of_state(network)
    stopped: Stopped = "completed"

    def diverged(message: str) -> DivergedError:
        network.load_state_dict(best_state)
        network.to(CPU).eval()
        return DivergedError(message, Fitted(tuple(history), best_epoch, "diverged"))

    noise = regularisers.activation_noise(network, recipe.regularisation.activation_noise)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), noise:
        torch.manual_seed(recipe.seed)
        for epoch in range(1, recipe.epochs + 1):
            started = time.perf_counter()
            try:
                train_loss, train_accuracy = training.epoch(on_batch)
            except _NotFiniteError as error:
                raise diverged(
                    f"the training loss became {error.value} in epoch {epoch}, batch {error.batch}"
                ) from None
            seconds = time.perf_counter() - started
            validation_loss, validation_accuracy = evaluate(training.kept, validation_inputs, validation_labels)
            if not math.isfinite(validation_loss):
                raise diverged(f"the validation loss became {validation_loss} in epoch {epoch}")
            record = EpochRecord(epoch, train_loss, train_accuracy, validation_loss, validation_accuracy, seconds)
            history.append(record)
            on_epoch(record)
            if not recipe.early_stopping or validation_loss < best_loss:
                best_epoch, best_loss, best_state = epoch, validation_loss, _copy_of_state(training.kept)
            elif epoch - best_epoch >= recipe.patience:
                stopped = "early"
                break

    network.load_state_dict(best_state)
    network.to(CPU).eval()
    return Fitted(tuple(history), best_epoch, stopped)


class _NotFiniteError(Exception):
    def __init__(self, value: float, batch: int) -> None:
        super().__init__()
        self.value, self.batch = value, batch


class _Training:
    """A network under training, by torch's global random numbers: what is the same in every epoch, and what goes on
    from one to the next. ``kept`` has the weights to be kept: the network itself, or its moving average."""

    def __init__(
        self, network: nn.Module, train: LabelledImages, recipe: Recipe, prepare: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:  # fmt: skip
        self._network, self._train, self._recipe, self._prepare, self._device = network, train, recipe, prepare, device
        changed = recipe.augmentation != Augmentation() or recipe.diversity.weight
        self._inputs = None if changed else prepare(train.pixels).to(device)
        if recipe.precision == "bfloat16":
            # What bfloat16 convolutions are fastest with.
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = regularisers.optimizer_for(network, recipe)
        steps = recipe.epochs * math.ceil(len(train) / recipe.batch_size)
        self._schedule = regularisers.schedule_for(self._optimizer, recipe, steps)
        self._average = regularisers.averaged(network, recipe.averaging)
        self._weights = regularisers.weights_of(network)
        self._stochastic = regularisers.stochastic_weights(network, recipe.regularisation)
        self.kept = network if self._average is None else self._average.module

    def epoch(self, on_batch: Callable[[int], None]) -> tuple[float, float]:
        """Mean loss and accuracy. Raises :class:`_NotFiniteError` when the loss is no longer finite."""
        self._network.train()
        loss_sum, correct = 0.0, 0
        for number, batch in enumerate(torch.randperm(len(self._train)).split(self._recipe.batch_size), start=1):
            labels = self._train.labels[batch].to(self._device)
            loss, logits = self._loss(batch, labels)
            if not math.isfinite(loss):
                raise _NotFiniteError(loss, number)
            self._optimizer.step()
            if (bound := self._recipe.regularisation.max_norm) is not None:
                regularisers.bound_norms(self._weights, bound)
            if self._schedule is not None:
                self._schedule.step()
            if self._average is not None:
                self._average.update_parameters(self._network)
            loss_sum += loss * len(batch)
            correct += int((logits.argmax(1) == labels).sum())
            on_batch(len(batch))
        return loss_sum / len(self._train), correct / len(self._train)

    def _loss(self, batch: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        """Of the images with the indices ``batch``, with their logits; leaves its gradient in the weights."""
        wanted = self._recipe.regularisation
        with ExitStack() as drawn:
            for each in self._stochastic:
                drawn.enter_context(each.drawn())
            images = regularisers.noisy(self._images(batch), wanted.input_noise)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._recipe.precision == "bfloat16"):
                everything: Tensor = self._network(images)
            logits, of_outliers = everything[: len(batch)].float(), everything[len(batch) :].float()
            loss = F.cross_entropy(logits, labels)
            trained_on = (
                F.cross_entropy(logits, labels, label_smoothing=wanted.label_smoothing)
                if wanted.label_smoothing
                else loss
            )
            if len(of_outliers):
                trained_on = trained_on - self._recipe.diversity.weight * disagreement(*of_outliers.chunk(2))
            self._optimizer.zero_grad()
            trained_on.backward()
        return loss.item(), logits

    def _images(self, batch: Tensor) -> Tensor:
        """Those with the indices ``batch``; then, if sub-networks shall disagree, outliers, all of them twice: in
        training each row has a mask of its own."""
        if self._inputs is not None:
            return self._inputs.index_select(0, batch.to(self._device))  # Faster by half than indexing.
        pixels = augmented(self._train.pixels[batch], self._recipe.augmentation)
        if self._recipe.diversity.weight:
            others = outliers_from(pixels, math.ceil(self._recipe.diversity.share * len(batch)))
            pixels = torch.cat([pixels, others, others])
        return self._prepare(pixels).to(self._device)


@torch.inference_mode()
def evaluate(network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross-entropy in nats, and accuracy, with dropout off; leaves ``network`` in eval mode."""
    network.eval()
    logits = torch.cat([network(chunk) for chunk in inputs.split(4096)])
    return F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()


def _copy_of_state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}
