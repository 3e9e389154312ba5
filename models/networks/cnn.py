"""A convolutional network for 28x28 images in ten classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from models.networks.arguments import check_choice, check_rates, check_sizes
from models.networks.mlp import CLASSES
from models.noise import Dropout

__all__ = ["CNN", "TrunkDropout"]

SIDE = 28
MAX_STAGES = 4
"""Each halves the image's side, of which at least one pixel must be left."""
TrunkDropout = Literal["channel", "element"]


class CNN(nn.Module):
    """Stages of 3x3 convolutions with ReLU, 2x2 max pooling and dropout; then a hidden linear layer with dropout.

    ``channels`` are the stages' widths, ``convolutions`` the number in each. ``trunk_dropout`` is the rate after each
    stage, one for all or one for each: by ``trunk_kind`` of whole channels (``channel``: spatial dropout, Tompson et
    al. 2015) or of single values (``element``). ``head_dropout`` is that after the hidden layer of ``hidden_width``.
    Rates are probabilities of dropping; 0 adds no layer. ``batch_norm`` normalises before each ReLU.

    The forward pass takes ``[B, 28, 28]`` or ``[B, 1, 28, 28]`` and returns logits ``[B, 10]``. Raises ``ValueError``
    for a width, number or rate out of range, more than four stages, or an unknown kind.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32),
        hidden_width: int = 128,
        *,
        convolutions: int = 1,
        trunk_dropout: float | Sequence[float] = 0.1,
        head_dropout: float = 0.5,
        trunk_kind: TrunkDropout = "channel",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(channels, (list, tuple)) or not 1 <= len(channels) <= MAX_STAGES:
            raise ValueError(f"channels must be a list of the widths of 1 to {MAX_STAGES} stages, got {channels!r}")
        check_sizes(hidden_width=hidden_width, **{f"channels[{stage}]": width for stage, width in enumerate(channels)})
        check_sizes(convolutions=convolutions)
        rates = _rates(trunk_dropout, len(channels))
        check_rates(head_dropout=head_dropout)
        check_choice("trunk_kind", trunk_kind, get_args(TrunkDropout))
        check_choice("batch_norm", batch_norm, (False, True))
        trunk: list[nn.Module] = []
        width = 1
        for outputs, rate in zip(channels, rates, strict=True):
            for _ in range(convolutions):
                trunk.append(nn.Conv2d(width, outputs, 3, padding=1))
                if batch_norm:
                    trunk.append(nn.BatchNorm2d(outputs))
                trunk.append(nn.ReLU())
                width = outputs
            trunk.append(nn.MaxPool2d(2))
            if rate:
                trunk.append(nn.Dropout2d(rate) if trunk_kind == "channel" else Dropout(rate))
        side = SIDE >> len(channels)
        head: list[nn.Module] = [nn.Flatten(), nn.Linear(channels[-1] * side * side, hidden_width)]
        if batch_norm:
            head.append(nn.BatchNorm1d(hidden_width))
        head.append(nn.ReLU())
        if head_dropout:
            head.append(Dropout(head_dropout))
        head.append(nn.Linear(hidden_width, CLASSES))
        self.trunk, self.head = nn.Sequential(*trunk), nn.Sequential(*head)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.trunk(images.flatten(1).unflatten(1, (1, SIDE, SIDE))))
        return logits


def _rates(rates: float | Sequence[float], stages: int) -> Sequence[float]:
    """One for each stage."""
    if not isinstance(rates, (list, tuple)):
        check_rates(trunk_dropout=rates)
        return [float(rates)] * stages  # type: ignore[arg-type]
    if len(rates) != stages:
        raise ValueError(f"trunk_dropout must be one rate, or one for each of the {stages} stages, got {rates!r}")
    check_rates(**{f"trunk_dropout[{stage}]": rate for stage, rate in enumerate(rates)})
    return rates
