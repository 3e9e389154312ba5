"""A recurrent network that reads 28x28 images row by row."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from models.networks.arguments import check_choice, check_rates, check_sizes
from models.networks.mlp import CLASSES
from models.noise import Dropout

__all__ = ["RowRecurrent", "TimeMask"]

ROWS, COLUMNS = 28, 28
TimeMask = Literal["variational", "naive"]


class RowRecurrent(nn.Module):
    """A long short-term memory of ``width`` units over the rows, from top to bottom; its last state gives the class.

    ``input_dropout`` is the rate for a row's pixels, ``recurrent_dropout`` that for the state in the gates of the next
    step, ``output_dropout`` that for the last state: probabilities of dropping; 0 adds no layer. With the
    ``variational`` mask the same columns and the same units are dropped at every step, as dropout of the rows of weight
    matrices that all steps share (Gal & Ghahramani 2016, "A theoretically grounded application of dropout in recurrent
    neural networks"); ``naive`` draws anew at each.

    The forward pass takes ``[B, 28, 28]`` or ``[B, 1, 28, 28]`` and returns logits ``[B, 10]``. Raises ``ValueError``
    for a width or rate out of range, or an unknown mask.
    """

    def __init__(
        self,
        width: int = 128,
        *,
        input_dropout: float = 0.1,
        recurrent_dropout: float = 0.2,
        output_dropout: float = 0.5,
        mask: TimeMask = "variational",
    ) -> None:
        super().__init__()
        check_sizes(width=width)
        check_rates(input_dropout=input_dropout, recurrent_dropout=recurrent_dropout, output_dropout=output_dropout)
        check_choice("mask", mask, get_args(TimeMask))
        self.width, self.variational = width, mask == "variational"
        self.input_dropout = Dropout(input_dropout) if input_dropout else nn.Identity()
        self.recurrent_dropout = Dropout(recurrent_dropout) if recurrent_dropout else nn.Identity()
        self.output_dropout = Dropout(output_dropout) if output_dropout else nn.Identity()
        # Not a GRU, which carries its state through the mask: what is kept would grow by 1 / (1 - p) at each step.
        self.cell = nn.LSTMCell(COLUMNS, width)
        self.output = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1).unflatten(1, (ROWS, COLUMNS))
        state = memory = rows.new_zeros(rows.shape[0], self.width)
        if self.variational:
            # Dropout of ones is a mask, drawn once and used at each step.
            rows = rows * self.input_dropout(torch.ones_like(rows[:, :1]))
            kept = self.recurrent_dropout(torch.ones_like(state))
        else:
            rows = self.input_dropout(rows)
        for step in range(ROWS):
            handed_on = state * kept if self.variational else self.recurrent_dropout(state)
            state, memory = self.cell(rows[:, step], (handed_on, memory))
        logits: Tensor = self.output(self.output_dropout(state))
        return logits
