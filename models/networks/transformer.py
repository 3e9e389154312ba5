"""A small vision transformer for 28x28 images in ten classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.networks.arguments import check_rates, check_sizes
from models.networks.mlp import CLASSES
from models.noise import Dropout

__all__ = ["VisionTransformer"]

SIDE = 28
EXPANSION = 2
"""Width of an encoder block's hidden layer, in that of its tokens."""


class VisionTransformer(nn.Module):
    """Patches as tokens, with learned positions, through pre-norm encoder blocks (Dosovitskiy et al. 2021), each of
    attention and a hidden layer; the mean token gives the class.

    ``patch`` is a patch's side, which must divide 28. ``attention_dropout`` is the rate for attention weights,
    ``dropout`` that for what attention and the MLP give back and for the MLP's hidden units, ``path_dropout`` that for
    whole residual branches, an example at a time (stochastic depth, Huang et al. 2016; the same rate at each depth).
    Rates are probabilities of dropping; 0 adds no layer.

    The forward pass takes ``[B, 28, 28]`` or ``[B, 1, 28, 28]`` and returns logits ``[B, 10]``. Raises ``ValueError``
    for a size or rate out of range, or if ``heads`` doesn't divide ``width``.
    """

    def __init__(
        self,
        patch: int = 7,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        *,
        attention_dropout: float = 0.1,
        dropout: float = 0.1,
        path_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_sizes(patch=patch, width=width, depth=depth, heads=heads)
        check_rates(attention_dropout=attention_dropout, dropout=dropout, path_dropout=path_dropout)
        if SIDE % patch:
            raise ValueError(f"patch must divide {SIDE}, got {patch}")
        if width % heads:
            raise ValueError(f"heads must divide width {width}, got {heads}")
        self.patch = patch
        self.embedding = nn.Linear(patch * patch, width)
        self.positions = nn.Parameter(torch.empty((SIDE // patch) ** 2, width).normal_(std=0.02))
        blocks: list[nn.Module] = []
        for _ in range(depth):
            blocks.append(Branch(width, Attention(width, heads, attention_dropout), dropout, path_dropout))
            blocks.append(Branch(width, _hidden_layer(width, dropout), dropout, path_dropout))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        count, size = SIDE // self.patch, self.patch
        squares = images.flatten(1).unflatten(1, (count, size, count, size)).transpose(2, 3)
        patches = squares.flatten(3).flatten(1, 2)
        tokens = self.blocks(self.embedding(patches) + self.positions)
        logits: Tensor = self.output(self.norm(tokens).mean(1))
        return logits


class Branch(nn.Module):
    """A residual branch: the tokens ``[B, N, width]`` plus what ``inner`` makes of them, normalised before."""

    def __init__(self, width: int, inner: nn.Module, dropout: float, path_dropout: float) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), inner
        self.dropout = _dropout(dropout)
        self.path = _dropout(path_dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        # Dropout of a single one for each example is a mask of the whole branch.
        kept = self.path(torch.ones_like(tokens[:, :1, :1]))
        result: Tensor = tokens + kept * self.dropout(self.inner(self.norm(tokens)))
        return result


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) on ``[B, N, width]``, with its weights in plain sight."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.Linear(width, 3 * width)
        self.dropout = _dropout(dropout)
        self.output = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.projections(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts[0], parts[1], parts[2]
        scores = queries @ keys.transpose(-2, -1) * keys.shape[-1] ** -0.5
        weights = self.dropout(scores.softmax(-1))
        result: Tensor = self.output((weights @ values).transpose(1, 2).flatten(2))
        return result


def _hidden_layer(width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, EXPANSION * width), nn.GELU(), _dropout(dropout), nn.Linear(EXPANSION * width, width)
    )


def _dropout(rate: float) -> nn.Module:
    return Dropout(rate) if rate else nn.Identity()
