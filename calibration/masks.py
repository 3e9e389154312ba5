"""Mask banks: T fixed sub-networks, drawn once from a seed and shared by all images.

With masks shared by all images an answer depends on the image and the seed alone: not on what else is in the batch,
nor on what was asked before, nor on any global generator. It is the ensemble reading of dropout taken literally: T
thinned networks with shared weights.

A bank can be *designed*. In every design each row, on its own, is distributed exactly as dropout would draw it, so that
any mean over rows stays unbiased; what differs is how rows depend on each other, and with it the variance of the mean:

``independent``      rows are independent
``antithetic``       rows in pairs: where one is near to being dropped, the other is far from it
``latin_hypercube``  each unit is dropped in as near to p T of T rows as whole numbers allow (McKay et al. 1979): what
                     single units contribute to the variance is gone
``orthogonal``       the same, and for layers with p = 1/2 each pair of units that shares an orthogonal array is dropped
                     together in exactly a quarter of the rows (Owen 1992; the columns of a Hadamard matrix, as in
                     Plackett & Burman 1946): what pairs contribute is gone too

Rows of a designed bank are not independent, so that their spread says nothing valid about the error of their mean.
A bank therefore consists of a few ``replicates``, independent of each other, and the design, with its T, holds within
each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from models.records import MaskDesign

__all__ = ["DEFAULT_DESIGN", "DESIGNS", "LayerMask", "MaskBank"]

DESIGNS: tuple[MaskDesign, ...] = get_args(MaskDesign)
DEFAULT_DESIGN: MaskDesign = "orthogonal"
FEWEST_REPLICATES = 4

SELU_FLOOR = 1.7580993408473766
"""Minus the value that SELU tends to at minus infinity, which is what alpha dropout sets a dropped unit to."""


@dataclass(frozen=True)
class LayerMask:
    """What a dropout layer needs masks for.

    ``rate`` is the probability of dropping. ``shape`` is that of one example's mask, which broadcasts against the
    layer's input: ``(C, 1, 1)`` where whole channels are dropped. ``kind``: ``bernoulli`` multiplies by 0 or
    1 / (1 - rate) (Srivastava et al. 2014); ``alpha`` sets what is dropped to SELU's floor, and then mends mean and
    variance (Klambauer et al. 2017); ``gaussian`` multiplies by normal noise of mean 1 and variance rate / (1 - rate);
    ``weights`` does to a layer's weights ``(out, in)`` what ``bernoulli`` does to its input (DropConnect).
    """

    rate: float
    shape: tuple[int, ...]
    kind: Literal["bernoulli", "alpha", "gaussian", "weights"] = "bernoulli"

    @property
    def units(self) -> int:
        return math.prod(self.shape)

    def affine(self, rows: Tensor, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """The layer under ``rows`` ``[T, *shape]`` as ``x * scale + shift``, with the type and device of ``like``;
        no shift means 0."""
        values = rows.to(like)
        if self.kind == "gaussian":
            return 1 + math.sqrt(self.rate / (1 - self.rate)) * values, None
        if self.kind == "alpha":
            scale = 1 / math.sqrt((SELU_FLOOR**2 * self.rate + 1) * (1 - self.rate))
            return scale * values, scale * SELU_FLOOR * (values - 1 + self.rate)
        return values / (1 - self.rate), None


@dataclass(frozen=True)
class MaskBank:
    """T rows for each dropout layer: ``rows[layer]`` is ``[T, *shape]``; row t over all layers is sub-network t.

    For Bernoulli and alpha dropout rows are boolean, true where a unit is kept; for Gaussian dropout they are standard
    normal. ``replicates`` blocks of equally many rows, one after another, are independent of each other. Within a
    block of a power of two, the first 2, 4, 8 ... rows are balanced as a block of that size would be, in ``orthogonal``
    as far as there are columns for it.
    """

    layers: Mapping[str, LayerMask]
    rows: Mapping[str, Tensor]
    samples: int
    replicates: int

    @classmethod
    def draw(
        cls,
        layers: Mapping[str, LayerMask],
        samples: int,
        seed: int,
        design: MaskDesign = DEFAULT_DESIGN,
        replicates: int | None = None,
    ) -> MaskBank:
        """A bank of ``samples`` rows by ``design``, in ``replicates`` independent blocks.

        Each layer, by its position, has a stream of its own. By default there are as many blocks as have a purpose:
        every row for ``independent``, every pair for ``antithetic``, else 4, or the next number that divides
        ``samples``. Orthogonal arrays need a block whose size is a power of two, at least 4; ``orthogonal`` is
        ``latin_hypercube`` for others.

        Raises ``ValueError`` for an unknown design, if ``samples`` is below 1, ``seed`` is negative or not below 2**32,
        or ``replicates`` doesn't divide ``samples``.
        """
        if design not in DESIGNS:
            raise ValueError(f"unknown design {design!r}; known are {', '.join(DESIGNS)}")
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        if not 0 <= seed < 1 << 32:
            raise ValueError(f"seed must not be negative, and below 2**32, got {seed}")
        if replicates is None:
            replicates = _useful_replicates(design, samples)
        if replicates < 1 or samples % replicates:
            raise ValueError(f"replicates must divide the {samples} samples, got {replicates}")
        block = samples // replicates
        uniforms = {
            name: _uniforms(design, layer, replicates, block, np.random.default_rng([seed, index]))
            for index, (name, layer) in enumerate(layers.items())
        }
        rows = {name: _rows(layer, uniforms[name]) for name, layer in layers.items()}
        halves = [name for name, layer in layers.items() if layer.rate == 0.5 and layer.kind != "gaussian"]
        if design == "orthogonal" and halves and block >= 4 and block.bit_count() == 1:
            # One array over all of them, so that pairs of units in different layers are balanced as well.
            counts = [layers[name].units for name in halves]
            kept = _orthogonal(replicates, block, sum(counts), np.random.default_rng([seed, len(layers)]))
            rows.update(zip(halves, np.split(kept, np.cumsum(counts)[:-1], axis=1), strict=True))
        tensors = {name: torch.from_numpy(rows[name].reshape(samples, *layers[name].shape)) for name in layers}
        return cls(dict(layers), tensors, samples, replicates)


def _useful_replicates(design: MaskDesign, samples: int) -> int:
    if design == "independent":
        return samples
    if design == "antithetic":
        return samples // 2 if samples % 2 == 0 else samples
    return next(count for count in range(min(FEWEST_REPLICATES, samples), samples + 1) if samples % count == 0)


def _rows(layer: LayerMask, uniforms: NDArray[np.float64]) -> NDArray[np.generic]:
    if layer.kind == "gaussian":
        normal: NDArray[np.float32] = ndtri(uniforms).astype(np.float32)
        return normal
    return uniforms >= layer.rate


def _uniforms(
    design: MaskDesign, layer: LayerMask, replicates: int, block: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """``[replicates * block, units]`` in (0, 1); a unit is dropped where its number is below the rate."""
    units = layer.units
    if design == "independent":
        uniforms = generator.random((replicates * block, units))
    elif design == "antithetic":
        half = generator.random((replicates, -(-block // 2), 1, units))
        uniforms = np.concatenate([half, 1 - half], axis=2).reshape(replicates, -1, units)[:, :block]
    else:
        uniforms = (_strata(replicates, block, units, generator) + generator.random((replicates, block, units))) / block
    tiny = np.finfo(np.float64).epsneg
    return np.clip(uniforms.reshape(replicates * block, units), tiny, 1 - tiny)


def _strata(replicates: int, block: int, units: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """``[replicates, block, units]``: for each unit a random order of 0 ... ``block`` - 1, one stratum a row.

    For a power of two the order is such that the first 1, 2, 4, 8 ... rows meet each half, quarter, eighth ... once:
    from one size to the next, each row there is moves to a random half of its stratum, and the new rows fill the other
    halves in random order.
    """
    if block.bit_count() != 1:
        whole = np.broadcast_to(np.arange(block)[:, None], (replicates, block, units))
        return generator.permuted(whole, axis=1)
    strata = np.zeros((replicates, 1, units), dtype=np.int64)
    while strata.shape[1] < block:
        half = generator.integers(2, size=strata.shape)
        others = generator.permuted(2 * strata + 1 - half, axis=1)
        strata = np.concatenate([2 * strata + half, others], axis=1)
    return strata


def _orthogonal(replicates: int, block: int, units: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """``[replicates * block, units]``, true with probability 1/2, by columns of Hadamard matrices.

    A matrix of order ``block`` has ``block`` - 1 columns that are balanced and pairwise orthogonal. More units than
    that are cut into groups, each with the rows in an order of its own, so that only pairs across groups are left to
    chance. Random signs make each row uniform over all masks. Rows change places only within the rows 2^k ... 2^(k+1),
    and odd columns come first: those are balanced over the first 2, 4, 8 ... rows too.
    """
    columns = sorted(range(1, block), key=lambda column: column & -column)
    edges = [0, *(1 << exponent for exponent in range(block.bit_length()))]
    kept = np.empty((replicates, block, units), dtype=np.bool_)
    for replicate in kept:
        order = generator.permutation(units)
        for first in range(0, units, len(columns)):
            group = order[first : first + len(columns)]
            parts = [start + generator.permutation(stop - start) for start, stop in pairwise(edges)]
            signs = generator.integers(2, size=len(group), dtype=np.int8) > 0
            chosen = np.array(columns[: len(group)])
            even = np.bitwise_count(np.concatenate(parts)[:, None] & chosen) % 2 == 0
            replicate[:, group] = even ^ signs
    return kept.reshape(-1, units)
