"""Stochastic layers that torch lacks, or has only slowly."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Dropout", "GaussianDropout"]

LEVELS = 1 << 16


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` whose masks are drawn several times faster on the CPU.

    Every random 64-bit word decides four units, where torch spends a double-precision variate on each; drawing masks
    is the largest cost of training a small network. The rate is therefore a multiple of 2**-16, within 8e-6 of ``p``,
    and what is kept is divided by exactly the probability of keeping it, so that the expectation is the input.

    Wherever dropout is recognised by type (sampling strategies, ``eval()``) this is an ``nn.Dropout``.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the base class's name for it)
        dropped_levels = min(round(self.p * LEVELS), LEVELS - 1)
        if not self.training or dropped_levels == 0 or input.device.type != "cpu":
            return super().forward(input)
        words = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        levels = words.view(torch.int16)[: input.numel()].view(input.shape)
        kept = levels >= dropped_levels - LEVELS // 2
        return input * kept.to(input.dtype).mul_(LEVELS / (LEVELS - dropped_levels))


class GaussianDropout(nn.Module):
    """Multiplies by normal noise of mean 1 and variance p / (1 - p), the mean and variance of dropout at rate ``p``
    (Srivastava et al. 2014, section 10). The identity in eval mode; in train mode torch's global generator is drawn
    from, as by torch's own layers. Raises ``ValueError`` unless 0 <= p < 1.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"a dropout rate must lie in [0, 1), got {p}")
        self.p, self.inplace = p, False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name for it)
        if not self.training or self.p == 0:
            return input
        return input * torch.randn_like(input).mul_(math.sqrt(self.p / (1 - self.p))).add_(1)

    def extra_repr(self) -> str:
        return f"p={self.p}"
