"""A chain of linear layers with dropout, compiled for the fixed sub-networks of a mask bank.

A unit that a sub-network drops takes no part in it: its row in the layer before and its column in the layer after can
go. What is left of each layer's weights, for all T sub-networks, is packed into one batched product. For the first
layer, whose input x all share, there is a choice. With m marking what a sub-network keeps and d what it drops,

    W (m * x) = W x - W (d * x)

so that where less is dropped than kept, one dense product is shared by all, and each sub-network subtracts a small one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from calibration.masks import LayerMask, MaskBank
from calibration.sites import DROPOUT
from calibration.tracing import Cut, is_path

__all__ = ["ELEMENTWISE", "IDLE", "Chain", "DenseChain", "ThinnedChain", "can_fold", "find_chain", "folded"]

ROWS_PACKED = 64
"""Sub-networks whose weights are packed together."""
PACKED_BYTES = 256 << 20
"""Up to so much, all sub-networks' weights are packed beforehand; above it, whenever they are needed."""
BLOCK_BYTES = 16 << 20
"""Bound on the inputs and outputs of the first layer that are gathered for one block of sub-networks."""

ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
)  # fmt: skip
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
IDLE = (nn.Identity, *DROPOUT)
"""What does nothing here: dropout layers among them are those at rate 0, or left at weight scaling."""


Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


@dataclass(frozen=True)
class Link:
    """A linear layer: the dropout layer before it by name, if there is one, and the activations after it."""

    dropout: str | None
    linear: nn.Linear
    activations: tuple[nn.Module, ...]


@dataclass(frozen=True)
class Chain:
    """A network as what happens before its first dropout layer, and the links from there to its output."""

    trunk: Callable[[Tensor], tuple[Tensor, ...]]
    links: tuple[Link, ...]


def find_chain(cut: Cut, layers: Mapping[str, LayerMask]) -> Chain | None:
    """What comes after ``cut`` as a :class:`Chain` with the active dropout ``layers``, in this order.

    ``None`` if it isn't one: not a single path of (dropout, linear, batch norm, elementwise activations) to the output,
    or with other dropout than that of single features by a factor of 0.
    """
    if not is_path(cut) or any(layer.kind != "bernoulli" or len(layer.shape) != 1 for layer in layers.values()):
        return None
    modules = dict(cut.network.named_modules())
    links: list[Link] = []
    waiting: str | None = None
    met: list[str] = []
    for node in cut.nodes[:-1]:
        name = str(node.target)
        layer = modules[name]
        if name in layers:
            if waiting:
                return None
            waiting = name
            met.append(name)
        elif isinstance(layer, nn.Linear):
            links.append(Link(waiting, layer, ()))
            waiting = None
        elif can_fold(layer) and links and not (waiting or links[-1].activations):
            links[-1] = replace(links[-1], linear=folded(links[-1].linear, layer))
        elif isinstance(layer, ELEMENTWISE) and links and not waiting:
            links[-1] = replace(links[-1], activations=(*links[-1].activations, layer))
        elif not isinstance(layer, IDLE):
            return None
    if waiting or met != list(layers):
        return None
    return Chain(cut.trunk(), tuple(links))


def can_fold(module: nn.Module) -> bool:
    """Whether ``module`` is a batch norm by fixed statistics, which :func:`folded` makes part of the layer before."""
    return isinstance(module, NORMS) and module.running_mean is not None


def folded(layer: Layer, norm: nn.Module) -> Layer:
    """A plain layer that does what ``layer`` and the batch norm after it do."""
    assert isinstance(norm, NORMS)  # noqa: S101
    assert norm.running_mean is not None  # noqa: S101
    assert norm.running_var is not None  # noqa: S101
    kind = next(kind for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(layer, kind))
    result = kind.__new__(kind)
    nn.Module.__init__(result)
    # Its options and no more: a weight that is computed by a parametrization is taken as it is now.
    vars(result).update({name: value for name, value in vars(layer).items() if not name.startswith("_")})
    result.weight, result.bias = fuse_conv_bn_weights(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return cast("Layer", result)


class DenseChain:
    """``chain`` under the masks of ``bank``, every sub-network as a dense one with masked inputs.

    Weights are copied: later changes to the network are not seen. Keeps no state, so threads may share it.
    """

    def __init__(self, chain: Chain, bank: MaskBank) -> None:
        self._trunk = chain.trunk
        self._layers = [_DenseLayer.of(link, bank) for link in chain.links]

    @torch.inference_mode()
    def logits(self, inputs: Tensor, rows: slice) -> Tensor:
        """Logits ``[T, B, C]`` of the sub-networks ``rows`` for ``inputs`` ``[B, ...]``."""
        (features,) = self._trunk(inputs)
        values = features.unsqueeze(1).expand(-1, rows.stop - rows.start, -1)
        for layer in self._layers:
            values = layer(values, rows)
        return values.transpose(0, 1)


class ThinnedChain:
    """``chain`` under the masks of ``bank``, every sub-network without the units that it drops.

    Weights are copied: later changes to the network are not seen. Keeps no state, so threads may share it.
    """

    def __init__(self, chain: Chain, bank: MaskBank) -> None:
        self._trunk, self._links = chain.trunk, chain.links
        device = chain.links[0].linear.weight.device
        self._masks = [None if link.dropout is None else bank.rows[link.dropout].to(device) for link in chain.links]
        self._rates = [0.0 if link.dropout is None else bank.layers[link.dropout].rate for link in chain.links]
        starts = range(0, bank.samples, ROWS_PACKED)
        first = self._pack(0)
        block_bytes = first.first.packed_bytes + sum(layer.packed_bytes for layer in first.later)
        fits = block_bytes * len(starts) <= PACKED_BYTES
        self._packed = {start: self._pack(start) if start else first for start in starts} if fits else {}

    @torch.inference_mode()
    def logits(self, inputs: Tensor, rows: slice) -> Tensor:
        """Logits ``[T, B, C]`` of the sub-networks ``rows`` for ``inputs`` ``[B, ...]``."""
        (features,) = self._trunk(inputs)
        columns = features.t().contiguous()
        shared: Tensor | None = None
        outputs = []
        for start in range(rows.start - rows.start % ROWS_PACKED, rows.stop, ROWS_PACKED):
            block = self._packed.get(start) or self._pack(start)
            if shared is None:
                shared = block.first.shared(columns)
            first, stop = max(rows.start - start, 0), min(rows.stop - start, ROWS_PACKED)
            column_bytes = columns.element_size() * max(1, columns.shape[1])
            at_once = max(1, BLOCK_BYTES // (block.first.gathered * column_bytes))
            for low in range(first, stop, at_once):
                part = slice(low, min(low + at_once, stop))
                values = block.first(columns, shared, part)
                for layer in block.later:
                    values = layer(values, part)
                outputs.append(values)
        return torch.cat(outputs).transpose(1, 2)

    def _pack(self, start: int) -> _Block:
        """The weights of ``ROWS_PACKED`` sub-networks from ``start`` on."""
        masks = [None if mask is None else mask[start : start + ROWS_PACKED] for mask in self._masks]
        kept_after = [*(None if mask is None else _padded(mask) for mask in masks[1:]), None]
        first_mask = masks[0]
        assert first_mask is not None, "a chain begins with dropout"  # noqa: S101
        first = _FirstLayer(self._links[0], first_mask, self._rates[0], kept_after[0])
        later = [
            _LaterLayer(link, rate, kept_before, kept, len(first_mask))
            for link, rate, kept_before, kept in zip(
                self._links[1:], self._rates[1:], kept_after[:-1], kept_after[1:], strict=True
            )
        ]
        return _Block(first, later)


@dataclass(frozen=True)
class _Padded:
    """For each sub-network the units that are ``kept``: ``index`` ``[T, K]`` with K that of the sub-network that
    keeps most; ``real`` ``[T, K]`` is false where another has no unit, and index 0 stands in."""

    index: Tensor
    real: Tensor


def _padded(kept: Tensor) -> _Padded:
    counts = kept.sum(1)
    width = max(1, int(counts.max()))
    index = torch.argsort(~kept, dim=1, stable=True)[:, :width]
    real = torch.arange(width, device=kept.device) < counts.unsqueeze(1)
    return _Padded(index.where(real, 0), real)


def _bias(linear: nn.Linear) -> Tensor:
    return torch.zeros_like(linear.weight[:, 0]) if linear.bias is None else linear.bias.detach()


def _activate(values: Tensor, activations: Sequence[nn.Module]) -> Tensor:
    for activation in activations:
        # On values that nothing else refers to, the commonest activation need not make a copy.
        values = values.relu_() if type(activation) is nn.ReLU else activation(values)
    return values


@dataclass(frozen=True)
class _DenseLayer:
    mask: Tensor | None
    weight: Tensor
    bias: Tensor
    activations: tuple[nn.Module, ...]

    @classmethod
    def of(cls, link: Link, bank: MaskBank) -> _DenseLayer:
        weight = link.linear.weight.detach()
        if link.dropout is None:
            return cls(None, weight.t(), _bias(link.linear), link.activations)
        rate = bank.layers[link.dropout].rate
        return cls(bank.rows[link.dropout].to(weight), weight.t() / (1 - rate), _bias(link.linear), link.activations)

    def __call__(self, values: Tensor, rows: slice) -> Tensor:
        """From ``[B, T, n]`` to the next layer's units."""
        masked = values if self.mask is None else values * self.mask[rows]
        flat = torch.addmm(self.bias, masked.reshape(-1, masked.shape[-1]), self.weight)
        return _activate(flat, self.activations).view(*values.shape[:2], self.weight.shape[1])


class _FirstLayer:
    """From the features ``[n, B]`` that all sub-networks share to each one's units ``[T, K, B]``."""

    def __init__(self, link: Link, mask: Tensor, rate: float, after: _Padded | None) -> None:
        weight = link.linear.weight.detach() / (1 - rate)
        self._activations = link.activations
        self._subtract = rate < 0.5
        before = _padded(~mask if self._subtract else mask)
        self._inputs = before.index
        units = len(weight)
        index = torch.arange(units, device=weight.device).expand(len(mask), -1) if after is None else after.index
        real = torch.ones_like(index, dtype=torch.bool) if after is None else after.real
        self._units = index
        self._weight = _pack(weight, index, real, before)
        self.packed_bytes = self._weight.numel() * self._weight.element_size()
        self._dense, self._bias = weight, _bias(link.linear).unsqueeze(1)
        self.gathered = before.index.shape[1] + index.shape[1]

    def shared(self, columns: Tensor) -> Tensor:
        """What is the same for all sub-networks ``[units, B]``."""
        if self._subtract:
            return torch.addmm(self._bias, self._dense, columns)
        return self._bias.expand(-1, columns.shape[1])

    def __call__(self, columns: Tensor, shared: Tensor, rows: slice) -> Tensor:
        # In place: the product out of place would begin by copying what was gathered.
        values = _gather(shared, self._units[rows]).baddbmm_(
            self._weight[rows], _gather(columns, self._inputs[rows]), alpha=-1 if self._subtract else 1
        )
        return _activate(values, self._activations)


class _LaterLayer:
    """From each sub-network's units ``[T, K, B]`` to its units in the next layer."""

    def __init__(self, link: Link, rate: float, before: _Padded | None, after: _Padded | None, samples: int) -> None:
        weight, bias = link.linear.weight.detach() / (1 - rate), _bias(link.linear)
        self._activations = link.activations
        before, after = (
            _padded(torch.ones(samples, units, dtype=torch.bool, device=weight.device)) if padded is None else padded
            for padded, units in ((before, weight.shape[1]), (after, weight.shape[0]))
        )
        self._weight = _pack(weight, after.index, after.real, before)
        self.packed_bytes = self._weight.numel() * self._weight.element_size()
        self._bias = (bias[after.index] * after.real).unsqueeze(-1)

    def __call__(self, values: Tensor, rows: slice) -> Tensor:
        return _activate(torch.baddbmm(self._bias[rows], self._weight[rows], values), self._activations)


@dataclass(frozen=True)
class _Block:
    first: _FirstLayer
    later: list[_LaterLayer]


def _pack(weight: Tensor, outputs: Tensor, real: Tensor, inputs: _Padded) -> Tensor:
    """Each sub-network's part of ``weight``: ``[T, outputs, inputs]``, 0 where there is no unit."""
    part = weight[outputs.unsqueeze(2), inputs.index.unsqueeze(1)]
    return part.mul_(real.unsqueeze(2) & inputs.real.unsqueeze(1))


def _gather(columns: Tensor, index: Tensor) -> Tensor:
    """Rows of ``columns`` ``[n, B]`` by ``index`` ``[T, K]``: ``[T, K, B]``."""
    return columns.index_select(0, index.reshape(-1)).view(*index.shape, columns.shape[1])
