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
    """Stages of 3x3 convolution, ReLU, 2x2 max pooling and dropout; then a hidden linear layer with dropout.

    ``channels`` are the stages' widths. ``trunk_dropout`` is the rate after each stage: by ``trunk_kind`` of whole
    channels (``channel``: spatial dropout, Tompson et al. 2015) or of single values (``element``). ``head_dropout`` is
    that after the hidden layer of ``hidden_width``. Rates are probabilities of dropping; 0 adds no layer.
    ``batch_norm`` normalises before each ReLU.

    The forward pass takes ``[B, 28, 28]`` or ``[B, 1, 28, 28]`` and returns logits ``[B, 10]``. Raises ``ValueError``
    for a width or rate out of range, more than four stages, or an unknown kind.
    """

    def __init__(
        self,
        channels: Sequence[int] = (16, 32),
        hidden_width: int = 128,
        *,
        trunk_dropout: float = 0.1,
        head_dropout: float = 0.5,
        trunk_kind: TrunkDropout = "channel",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(channels, (list, tuple)) or not 1 <= len(channels) <= MAX_STAGES:
            raise ValueError(f"channels must be a list of the widths of 1 to {MAX_STAGES} stages, got {channels!r}")
        check_sizes(hidden_width=hidden_width, **{f"channels[{stage}]": width for stage, width in enumerate(channels)})
        check_rates(trunk_dropout=trunk_dropout, head_dropout=head_dropout)
        check_choice("trunk_kind", trunk_kind, get_args(TrunkDropout))
        check_choice("batch_norm", batch_norm, (False, True))
        trunk: list[nn.Module] = []
        for inputs, outputs in zip((1, *channels[:-1]), channels, strict=True):
            trunk.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            if batch_norm:
                trunk.append(nn.BatchNorm2d(outputs))
            trunk += [nn.ReLU(), nn.MaxPool2d(2)]
            if trunk_dropout:
                trunk.append(nn.Dropout2d(trunk_dropout) if trunk_kind == "channel" else Dropout(trunk_dropout))
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
