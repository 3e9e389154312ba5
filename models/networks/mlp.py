"""The notebook's multilayer perceptrons for 28x28 images in ten classes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from models.noise import Dropout

PIXELS = 28 * 28
CLASSES = 10
MAX_WIDTH = 1 << 16


class MLP(nn.Module):
    """Linear layers with ReLU between them, and dropout before any of them.

    ``widths`` are the layers' sizes from input to output. ``dropout`` holds one rate for the input of each linear
    layer, so ``len(widths) - 1`` of them: the probability that a unit is *dropped*. A rate of 0 adds no layer.

    The forward pass takes ``[B, ...]`` with ``widths[0]`` values an example and returns logits ``[B, widths[-1]]``.
    Raises ``ValueError`` for widths out of range, a wrong number of rates, or a rate outside [0, 1).
    """

    def __init__(self, widths: Sequence[int], dropout: Sequence[float]) -> None:
        super().__init__()
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
        layers: list[nn.Module] = [nn.Flatten()]
        for index, (rate, inputs, outputs) in enumerate(zip(dropout, widths[:-1], widths[1:], strict=True)):
            if index:
                layers.append(nn.ReLU())
            if rate:
                layers.append(Dropout(rate))
            layers.append(nn.Linear(inputs, outputs))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images)
        return logits


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
    """784-120-60-10 with rates, and if wanted hidden widths, of the user's choice."""

    def __init__(self, dropout: Sequence[float] = (0.2, 0.5, 0.5), hidden_widths: Sequence[int] = (120, 60)) -> None:
        super().__init__((PIXELS, *hidden_widths, CLASSES), dropout)
