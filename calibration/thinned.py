"""A chain of linear layers with dropout, compiled for the fixed sub-networks of a mask bank.

A unit that a sub-network drops takes no part in it: its row in the layer before and its column in the layer after can
go. What is left of each layer's weights, for all T sub-networks, is packed into one batched product. For the first
layer, whose input x all share, there is a choice. With m marking what a sub-network keeps and d what it drops,

    W (m * x) = W x - W (d * x)

so that where less is dropped than kept, one dense product is shared by all, and each sub-network subtracts a small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd

from calibration.masks import MaskBank

__all__ = ["Chain", "ThinnedChain", "find_chain"]

IMAGES_AT_ONCE = 128
"""Images in one product: few enough that what it works on stays in the processor's cache."""
BLOCK_BYTES = 16 << 20
"""Bound on the inputs and outputs of the first layer that are gathered for one block of sub-networks."""
FEW_IMAGES = 4
"""Up to so many, masked inputs through the dense layers are faster: the thinned products would be too thin."""

ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Identity,
)  # fmt: skip


@dataclass(frozen=True)
class Link:
    """A linear layer: the dropout layer before it by name, if there is one, and the activations after it."""

    dropout: str | None
    linear: nn.Linear
    activations: tuple[nn.Module, ...]


@dataclass(frozen=True)
class Chain:
    """A network as what happens before its first dropout layer, and the links from there to its output."""

    trunk: nn.Module
    links: tuple[Link, ...]


def find_chain(network: nn.Module, dropout: Sequence[str]) -> Chain | None:
    """``network``, in eval mode, as a :class:`Chain` with the active dropout layers named, in this order.

    ``None`` if it isn't one: the layers are not all on one path of (dropout, linear, elementwise activations) to the
    output, or the network can't be traced, because what it computes depends on its input's values, say.
    """
    try:
        graph = _Tracer().trace(network)
    except Exception:  # Tracing runs the network's own code on stand-ins, which may fail in any way.
        return None
    modules = dict(network.named_modules())
    nodes = list(graph.nodes)
    first = next((index for index, node in enumerate(nodes) if node.target in dropout), None)
    if first is None or not _is_path(nodes[first:]):
        return None
    links: list[Link] = []
    waiting: str | None = None
    met: list[str] = []
    for node in nodes[first:-1]:
        layer = modules[str(node.target)]
        if str(node.target) in dropout:
            if waiting:
                return None
            waiting = str(node.target)
            met.append(waiting)
        elif isinstance(layer, nn.Linear):
            links.append(Link(waiting, layer, ()))
            waiting = None
        elif isinstance(layer, ELEMENTWISE) and links and not waiting:
            links[-1] = replace(links[-1], activations=(*links[-1].activations, layer))
        elif not isinstance(layer, _DropoutNd):  # One at rate 0 does nothing.
            return None
    if waiting or met != list(dropout):
        return None
    return Chain(_before(network, graph, nodes[first]), tuple(links))


class ThinnedChain:
    """``chain`` under the masks of ``bank``. Weights are copied: later changes to the network are not seen.

    Keeps no state between calls, so threads may share it.
    """

    def __init__(self, chain: Chain, bank: MaskBank) -> None:
        self._trunk = chain.trunk
        self._samples = bank.samples
        like = chain.links[0].linear.weight
        masks = [None if link.dropout is None else bank.kept[link.dropout].to(like.device) for link in chain.links]
        rates = [0.0 if link.dropout is None else bank.layers[link.dropout].rate for link in chain.links]
        self._dense = [
            _DenseLayer(
                None if mask is None else mask.to(like.dtype),
                link.linear.weight.detach().t() / (1 - rate),
                _bias(link.linear),
                link.activations,
            )
            for link, mask, rate in zip(chain.links, masks, rates, strict=True)
        ]
        kept_after = [*(None if mask is None else _padded(mask) for mask in masks[1:]), None]
        first_mask = masks[0]
        assert first_mask is not None, "a chain begins with dropout"  # noqa: S101
        self._first = _FirstLayer(chain.links[0], first_mask, rates[0], kept_after[0])
        self._later = [
            _LaterLayer(link, rate, kept_before, kept, bank.samples)
            for link, rate, kept_before, kept in zip(
                chain.links[1:], rates[1:], kept_after[:-1], kept_after[1:], strict=True
            )
        ]

    @torch.inference_mode()
    def logits(self, inputs: Tensor) -> Tensor:
        """Logits ``[T, B, C]`` for ``inputs`` ``[B, ...]``."""
        if len(inputs) <= FEW_IMAGES:
            return self._masked(self._trunk(inputs))
        return torch.cat([self._packed(self._trunk(chunk)) for chunk in torch.split(inputs, IMAGES_AT_ONCE)], dim=1)

    def _masked(self, features: Tensor) -> Tensor:
        """Every sub-network as a dense one with masked inputs; features ``[B, n]``."""
        values = features.unsqueeze(1).expand(-1, self._samples, -1)
        for layer in self._dense:
            values = layer(values)
        return values.transpose(0, 1)

    def _packed(self, features: Tensor) -> Tensor:
        """Every sub-network thinned; features ``[B, n]``."""
        columns = features.t().contiguous()
        shared = self._first.shared(columns)
        at_once = max(1, BLOCK_BYTES // (self._first.gathered * columns.element_size() * max(1, columns.shape[1])))
        outputs = []
        for start in range(0, self._samples, at_once):
            rows = slice(start, start + at_once)
            values = self._first(columns, shared, rows)
            for layer in self._later:
                values = layer(values, rows)
            outputs.append(values)
        return torch.cat(outputs).transpose(1, 2)


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

    def __call__(self, values: Tensor) -> Tensor:
        masked = values if self.mask is None else values * self.mask
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
        self._dense, self._bias = weight, _bias(link.linear).unsqueeze(1)
        self.gathered = before.index.shape[1] + index.shape[1]

    def shared(self, columns: Tensor) -> Tensor:
        """What is the same for all sub-networks ``[units, B]``."""
        if self._subtract:
            return torch.addmm(self._bias, self._dense, columns)
        return self._bias.expand(-1, columns.shape[1])

    def __call__(self, columns: Tensor, shared: Tensor, rows: slice) -> Tensor:
        values = torch.baddbmm(
            _gather(shared, self._units[rows]),
            self._weight[rows],
            _gather(columns, self._inputs[rows]),
            alpha=-1 if self._subtract else 1,
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
        self._bias = (bias[after.index] * after.real).unsqueeze(-1)

    def __call__(self, values: Tensor, rows: slice) -> Tensor:
        return _activate(torch.baddbmm(self._bias[rows], self._weight[rows], values), self._activations)


def _pack(weight: Tensor, outputs: Tensor, real: Tensor, inputs: _Padded) -> Tensor:
    """Each sub-network's part of ``weight``: ``[T, outputs, inputs]``, 0 where there is no unit."""
    part = weight[outputs.unsqueeze(2), inputs.index.unsqueeze(1)]
    return part.mul_(real.unsqueeze(2) & inputs.real.unsqueeze(1))


def _gather(columns: Tensor, index: Tensor) -> Tensor:
    """Rows of ``columns`` ``[n, B]`` by ``index`` ``[T, K]``: ``[T, K, B]``."""
    return columns.index_select(0, index.reshape(-1)).view(*index.shape, columns.shape[1])


class _Tracer(fx.Tracer):
    """Takes dropout layers whole, also the project's own, whose code depends on values."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _DropoutNd) or bool(super().is_leaf_module(m, module_qualified_name))


def _is_path(nodes: Sequence[fx.Node]) -> bool:
    """Whether each node is a layer that is called on the one before alone, up to the output."""
    layers, output = nodes[:-1], nodes[-1]
    return (
        output.op == "output"
        and output.args == (layers[-1],)
        and all(node.op == "call_module" and not node.kwargs and len(node.users) == 1 for node in layers)
        and all(node.args == (previous,) for previous, node in pairwise(layers))
    )


def _before(network: nn.Module, graph: fx.Graph, node: fx.Node) -> nn.Module:
    """What ``network`` computes up to the input of ``node``, as a module."""
    trunk = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for earlier in graph.nodes:
        if earlier is node:
            break
        copies[earlier] = trunk.node_copy(earlier, lambda original: copies[original])
    trunk.output(copies[node.args[0]])  # type: ignore[index]
    return fx.GraphModule(network, trunk).eval()
