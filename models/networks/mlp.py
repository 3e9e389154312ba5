"""Multilayer perceptrons for 28x28 images in ten classes: the notebook's, and a wide one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from models.networks.arguments import MAX_WIDTH, check_choice
from models.noise import DropConnectLinear, Dropout, GaussianDropout

__all__ = [
    "MLP",
    "Activation",
    "BatchNorm",
    "DropoutKind",
    "ModelWithSingleDropout",
    "RandomDropoutModel",
    "ReLUNet",
    "WideMLP",
    "YourDropoutModel",
]

PIXELS = 28 * 28
CLASSES = 10

DropoutKind = Literal["element", "gaussian", "alpha", "dropconnect"]
BatchNorm = Literal["none", "before_dropout", "after_dropout"]
Activation = Literal["relu", "selu"]

DROPOUT: Mapping[DropoutKind, Callable[[float], nn.Module]] = {
    "element": Dropout, "gaussian": GaussianDropout, "alpha": nn.AlphaDropout
}  # fmt: skip
"""Layers by kind; DropConnect is in the linear layers themselves."""


class MLP(nn.Module):
    """Linear layers with an activation function between them, and dropout before any of them.

    ``widths`` are the layers' sizes from input to output. ``dropout`` holds one rate for the input of each linear
    layer, so ``len(widths) - 1`` of them: the probability that a unit is *dropped*. A rate of 0 adds no layer.
    ``dropout_kind`` is what is done at that rate: to units, ``element`` (Bernoulli), ``gaussian`` (Srivastava et al.
    2014, section 10) or ``alpha`` (Klambauer et al. 2017; with ``selu`` alone); or ``dropconnect`` to the weights of
    the linear layer that follows (Wan et al. 2013). ``batch_norm`` in each hidden layer is either before its activation
    function, so that dropout comes after it, or after dropout (Li et al. 2019 compare the two).

    The forward pass takes ``[B, ...]`` with ``widths[0]`` values an example and returns logits ``[B, widths[-1]]``.
    Raises ``ValueError`` for widths out of range, a wrong number of rates, a rate outside [0, 1), an unknown option, or
    alpha dropout with another activation function than ``selu``.
    """

    def __init__(
        self,
        widths: Sequence[int],
        dropout: Sequence[float],
        *,
        dropout_kind: DropoutKind = "element",
        batch_norm: BatchNorm = "none",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        _check(widths, dropout)
        check_choice("dropout_kind", dropout_kind, get_args(DropoutKind))
        check_choice("batch_norm", batch_norm, get_args(BatchNorm))
        check_choice("activation", activation, get_args(Activation))
        if dropout_kind == "alpha" and activation != "selu":
            raise ValueError(
                f"alpha dropout keeps the mean and variance of SELU's units alone: it needs activation selu, not "
                f"{activation}"
            )
        layers: list[nn.Module] = [nn.Flatten()]
        for index, (rate, inputs, outputs) in enumerate(zip(dropout, widths[:-1], widths[1:], strict=True)):
            if index:
                if batch_norm == "before_dropout":
                    layers.append(nn.BatchNorm1d(inputs))
                layers.append(nn.SELU() if activation == "selu" else nn.ReLU())
            if rate and dropout_kind in DROPOUT:
                layers.append(DROPOUT[dropout_kind](rate))
            if index and batch_norm == "after_dropout":
                layers.append(nn.BatchNorm1d(inputs))
            dropped_weights = rate and dropout_kind == "dropconnect"
            layers.append(DropConnectLinear(inputs, outputs, rate) if dropped_weights else nn.Linear(inputs, outputs))
        self.layers = nn.Sequential(*layers)
        if activation == "selu":
            self._begin_normalised()

    def _begin_normalised(self) -> None:
        """LeCun's initial weights, with which SELU's units stay near mean 0 and variance 1 (Klambauer et al. 2017)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


def _check(widths: Sequence[int], dropout: Sequence[float]) -> None:
    if not isinstance(dropout, Sequence):
        raise ValueError(f"dropout must be a list of rates, got {dropout!r}")
    if len(widths) < 2 or not all(1 <= width <= MAX_WIDTH for width in widths):
        raise ValueError(f"widths must be at least two sizes from 1 to {MAX_WIDTH:,}, got {list(widths)}")
    if len(dropout) != len(widths) - 1:
        raise ValueError(
            f"widths {list(widths)} need {len(widths) - 1} dropout rates "
            f"(the input, then each hidden layer), got {len(dropout)}"
        )
    for rate in dropout:
        if not (math.isfinite(rate) and 0 <= rate < 1):
            raise ValueError(f"a dropout rate must lie in [0, 1), got {rate}")


class ReLUNet(MLP):
    """784-120-60-10 without dropout: the baseline."""

    def __init__(self) -> None:
        super().__init__((PIXELS, 120, 60, CLASSES), (0.0, 0.0, 0.0))


class ModelWithSingleDropout(MLP):
    """784-120-10 with p = 0.5 after the first layer."""

    def __init__(self) -> None:
        super().__init__((PIXELS, 120, CLASSES), (0.0, 0.5))


class RandomDropoutModel(MLP):
    """784-120-60-10 with p = 0.2 on the input and 0.5 on both hidden layers (Srivastava et al. 2014)."""

    def __init__(self) -> None:
        super().__init__((PIXELS, 120, 60, CLASSES), (0.2, 0.5, 0.5))


class YourDropoutModel(MLP):
    """784-120-60-10 with rates of the user's choice, and if wanted hidden widths and the other options of
    :class:`MLP`."""

    def __init__(
        self,
        dropout: Sequence[float] = (0.2, 0.5, 0.5),
        hidden_widths: Sequence[int] = (120, 60),
        *,
        dropout_kind: DropoutKind = "element",
        batch_norm: BatchNorm = "none",
        activation: Activation = "relu",
    ) -> None:
        if not isinstance(hidden_widths, Sequence):
            raise ValueError(f"hidden_widths must be a list of sizes, got {hidden_widths!r}")
        super().__init__(
            (PIXELS, *hidden_widths, CLASSES), dropout,
            dropout_kind=dropout_kind, batch_norm=batch_norm, activation=activation,
        )  # fmt: skip


class WideMLP(YourDropoutModel):
    """The same with 784-1024-1024-10, of 1.9 million parameters: wide enough to overfit, where dropout has something to
    do."""

    def __init__(
        self,
        dropout: Sequence[float] = (0.2, 0.5, 0.5),
        hidden_widths: Sequence[int] = (1024, 1024),
        *,
        dropout_kind: DropoutKind = "element",
        batch_norm: BatchNorm = "none",
        activation: Activation = "relu",
    ) -> None:
        super().__init__(
            dropout, hidden_widths, dropout_kind=dropout_kind, batch_norm=batch_norm, activation=activation
        )
