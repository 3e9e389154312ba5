"""Stochastic layers that torch lacks, or has only slowly."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DropConnectLinear", "Dropout", "GaussianDropout"]

LEVELS = 1 << 16


def dropped(values: Tensor, p: float) -> Tensor:
    """``values`` of any shape, each set to 0 with probability ``p``, else divided by 1 - p; see :class:`Dropout`."""
    dropped_levels = min(round(p * LEVELS), LEVELS - 1)
    if dropped_levels == 0 or values.device.type != "cpu":
        return F.dropout(values, p)
    words = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    levels = words.view(torch.int16)[: values.numel()].view(values.shape)
    kept = levels >= dropped_levels - LEVELS // 2
    # As bytes: torch turns truth values into floats one by one.
    return values * kept.view(torch.uint8).to(values.dtype).mul_(LEVELS / (LEVELS - dropped_levels))


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` whose masks are drawn several times faster on the CPU.

    Every random 64-bit word decides four units, where torch spends a double-precision variate on each; drawing masks
    is the largest cost of training a small network. The rate is therefore a multiple of 2**-16, within 8e-6 of ``p``,
    and what is kept is divided by exactly the probability of keeping it, so that the expectation is the input.

    Wherever dropout is recognised by type (sampling strategies, ``eval()``) this is an ``nn.Dropout``.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the base class's name for it)
        return dropped(input, self.p) if self.training else input


class DropConnectLinear(nn.Module):
    """A linear layer that drops weights rather than units, at rate ``p`` (Wan et al. 2013); never its bias.

    In train mode each batch ``[B, ..., in]`` has one mask of the weights, ``[out, in]``, and what is kept is divided by
    1 - p, so that the expectation is the plain linear layer, which it is in eval mode. Masks are drawn as
    :class:`Dropout` draws them. Raises ``ValueError`` unless 0 <= p < 1.
    """

    def __init__(self, in_features: int, out_features: int, p: float = 0.5, *, bias: bool = True) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"a dropout rate must lie in [0, 1), got {p}")
        self.p, self.inplace = p, False
        self.linear = nn.Linear(in_features, out_features, bias=bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name for it)
        weight = self.linear.weight
        return F.linear(input, dropped(weight, self.p) if self.training else weight, self.linear.bias)

    def extra_repr(self) -> str:
        return f"p={self.p}"


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
