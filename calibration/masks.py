"""Mask banks: T fixed sub-networks, drawn once from a seed and shared by all images.

With masks shared by all images an answer depends on the image and the seed alone: not on what else is in the batch,
nor on what was asked before, nor on any global generator. It is the ensemble reading of dropout taken literally: T
thinned networks with shared weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["LayerMask", "MaskBank"]


@dataclass(frozen=True)
class LayerMask:
    """What a dropout layer needs masks for: its rate (the probability of dropping) and the shape of one example."""

    rate: float
    shape: tuple[int, ...]


@dataclass(frozen=True)
class MaskBank:
    """T boolean rows per dropout layer: ``kept[layer]`` is ``[T, *shape]``, true where a unit is kept.

    Row t over all layers is sub-network t.
    """

    layers: Mapping[str, LayerMask]
    kept: Mapping[str, Tensor]
    samples: int

    @classmethod
    def independent(cls, layers: Mapping[str, LayerMask], samples: int, seed: int) -> MaskBank:
        """Every unit of every row kept independently with probability ``1 - rate``.

        The first rows of a larger bank with the same seed are the smaller bank. Each layer, by its position, has a
        stream of its own. Raises ``ValueError`` if ``samples`` is below 1 or ``seed`` is negative.
        """
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        kept = {}
        for index, (name, layer) in enumerate(layers.items()):
            generator = np.random.default_rng([seed, index])
            kept[name] = torch.from_numpy(generator.random((samples, *layer.shape)) >= layer.rate)
        return cls(dict(layers), kept, samples)
