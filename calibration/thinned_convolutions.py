"""A chain of convolutions and linear layers with dropout of whole channels, thinned one sub-network after another.

With masks shared by all images, a channel that a sub-network drops is computed for none of them: its filter goes, and
its part in the filters that read it. The first layer reads what all sub-networks share, so the trick of
:mod:`calibration.thinned` holds for it too: where less is dropped than kept, the layer is run once on all channels, and
each sub-network subtracts what those that it drops would have given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.masks import LayerMask, MaskBank
from calibration.thinned import ELEMENTWISE, IDLE, can_fold, folded
from calibration.tracing import Cut, is_path

__all__ = ["Convolutions", "ThinnedConvolutions", "find_convolutions"]

PACKED_BYTES = 256 << 20
"""Up to so much, all sub-networks' weights are packed beforehand; above it, whenever they are needed."""

CONVOLUTIONS: Mapping[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d
}  # fmt: skip
BY_AXES: Mapping[int, tuple[type[nn.Module], ...]] = {
    1: (nn.Conv1d, nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
    2: (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    3: (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
}
"""Convolutions and pooling of images with so many axes; of others, they take channels for pixels."""
COMMUTING = (nn.ReLU, nn.LeakyReLU)
"""What takes a value times a factor of 0 or more to its result times that factor; as pooling does."""


Arrives = Literal["shared", "all", "thinned"]


@dataclass(frozen=True)
class Stage:
    """A convolution or linear ``layer``: the dropout layer before it by name, if there is one; what stands ``between``
    the two; and the modules ``after`` it, up to the next stage."""

    dropout: str | None
    between: tuple[nn.Module, ...]
    layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    after: tuple[nn.Module, ...] = ()

    @property
    def gives_channels(self) -> bool:
        """Whether one output of the layer is one channel, or feature, of what the next stage gets."""
        return isinstance(self.layer, nn.Linear) or not any(isinstance(module, nn.Flatten) for module in self.after)


@dataclass(frozen=True)
class Convolutions:
    """A network as what happens before its first dropout layer, and the stages from there to its output."""

    trunk: Callable[[Tensor], tuple[Tensor, ...]]
    stages: tuple[Stage, ...]


def find_convolutions(cut: Cut, layers: Mapping[str, LayerMask]) -> Convolutions | None:
    """What comes after ``cut`` as :class:`Convolutions` with the active dropout ``layers``, in this order.

    ``None`` if it isn't that: not a single path of dropout of channels or features, convolutions and linear layers
    with the modules listed above between them; or dropout with something that doesn't commute with it before the next
    layer.
    """
    masks_fit = all(layer.kind == "bernoulli" and layer.units == layer.shape[0] for layer in layers.values())
    if not (is_path(cut) and masks_fit):
        return None
    modules = dict(cut.network.named_modules())
    reading = _Reading(layers, axes=len(next(iter(layers.values())).shape) - 1)
    if not all(reading.take(str(node.target), modules[str(node.target)]) for node in cut.nodes[:-1]):
        return None
    if reading.waiting or reading.met != list(layers):
        return None
    return Convolutions(cut.trunk(), tuple(reading.stages))


class _Reading:
    """Takes the modules of a path one by one, and says whether each fits."""

    def __init__(self, layers: Mapping[str, LayerMask], *, axes: int) -> None:
        self.stages: list[Stage] = []
        self.waiting: str | None = None
        self.met: list[str] = []
        self._layers, self._flat = layers, axes == 0
        self._of_axes = BY_AXES.get(axes, ())
        self._between: list[nn.Module] = []

    def take(self, name: str, layer: nn.Module) -> bool:
        if name in self._layers:
            free = self.waiting is None
            self.waiting = name
            self.met.append(name)
            return free
        fits = nn.Linear if self._flat else self._of_axes[:1]
        if _is_plain(layer) and isinstance(layer, fits):
            self.stages.append(Stage(self.waiting, tuple(self._between), layer))
            self.waiting, self._between = None, []
            return True
        if isinstance(layer, IDLE):
            return True
        flattens = isinstance(layer, nn.Flatten) and layer.start_dim == 1 and layer.end_dim == -1
        pools = not self._flat and isinstance(layer, self._of_axes[1:]) and not getattr(layer, "return_indices", False)
        self._flat = self._flat or flattens
        if self.waiting:
            self._between.append(layer)
            return flattens or pools or isinstance(layer, COMMUTING)
        return self._after(layer, fits=flattens or pools or isinstance(layer, ELEMENTWISE))

    def _after(self, layer: nn.Module, *, fits: bool) -> bool:
        last = self.stages[-1]
        if can_fold(layer) and not last.after:
            self.stages[-1] = replace(last, layer=folded(last.layer, layer))
            return True
        self.stages[-1] = replace(last, after=(*last.after, layer))
        return fits


class ThinnedConvolutions:
    """``network`` under the masks of ``bank``, every sub-network without the channels that it drops.

    Keeps no state between calls, so threads may share it.
    """

    def __init__(self, network: Convolutions, bank: MaskBank) -> None:
        self._trunk = network.trunk
        self._layers = []
        before = [None, *network.stages[:-1]]
        after = [*network.stages[1:], None]
        for stage, previous, following in zip(network.stages, before, after, strict=True):
            needed = following.dropout if following is not None and stage.gives_channels else None
            arrives: Arrives = "shared" if previous is None else "all"
            if previous is not None and previous.gives_channels and stage.dropout:
                arrives = "thinned"
            self._layers.append(_ThinnedLayer(stage, bank, needed, arrives))
        self._packed: list[list[_Weights]] = []
        if bank.samples * sum(layer.packed_bytes for layer in self._layers) <= PACKED_BYTES:
            self._packed = [[layer.pack(row) for layer in self._layers] for row in range(bank.samples)]

    @torch.inference_mode()
    def logits(self, inputs: Tensor, rows: slice) -> Tensor:
        """Logits ``[T, B, C]`` of the sub-networks ``rows`` for ``inputs`` ``[B, ...]``."""
        first, *later = self._layers
        (values,) = self._trunk(inputs)
        values = first.prepare(values)
        shared = first.shared(values)
        outputs = []
        for row in range(rows.start, rows.stop):
            weights = self._packed[row] if self._packed else [layer.pack(row) for layer in self._layers]
            hidden = first.first(values, shared, weights[0])
            for layer, own in zip(later, weights[1:], strict=True):
                hidden = layer(hidden, own)
            outputs.append(hidden)
        return torch.stack(outputs)


@dataclass(frozen=True)
class _Weights:
    """One sub-network's part of a layer. ``inputs`` are the channels to pick, and ``outputs`` those to give, by index;
    ``None`` for what arrives, or for all."""

    inputs: Tensor | None
    outputs: Tensor | None
    weight: Tensor
    bias: Tensor


class _ThinnedLayer:
    """``stage`` under the masks of ``bank``. Of its outputs, those that the dropout layer ``needed`` keeps are needed;
    of its inputs, what arrives: all, ``shared`` by all sub-networks or each one's own, or ``thinned`` already to what
    its own dropout keeps."""

    def __init__(self, stage: Stage, bank: MaskBank, needed: str | None, arrives: Arrives) -> None:
        self._stage = stage
        self._weight = stage.layer.weight.detach()
        bias = stage.layer.bias
        self._bias = self._weight.new_zeros(len(self._weight)) if bias is None else bias.detach()
        device = self._weight.device
        self._outputs = None if needed is None else bank.rows[needed].flatten(1).to(device)
        self._inputs, self._subtract, self._pixels = None, False, 1
        self._thinned = arrives == "thinned"
        kept = 1.0 if needed is None else 1 - bank.layers[needed].rate
        if stage.dropout:
            rate = bank.layers[stage.dropout].rate
            rows = bank.rows[stage.dropout].flatten(1).to(device)
            self._weight = self._weight / (1 - rate)
            self._subtract = rate < 0.5 and arrives == "shared"
            self._inputs = ~rows if self._subtract else rows
            # Past a flatten, each channel is as many inputs of the layer as it has pixels.
            self._pixels = self._weight.shape[1] // rows.shape[1]
            kept *= rate if self._subtract else 1 - rate
        self.packed_bytes = int(self._weight.numel() * self._weight.element_size() * kept)

    def pack(self, row: int) -> _Weights:
        """The part of sub-network ``row``."""
        weight, bias, outputs, inputs = self._weight, self._bias, None, None
        if self._outputs is not None:
            outputs = _indices(self._outputs[row])
            weight, bias = weight[outputs], bias[outputs]
        if self._inputs is not None:
            inputs = _indices(self._inputs[row])
            # A layer that loses all its inputs keeps one, for the shape, and doesn't weigh it.
            weight = weight.unflatten(1, (-1, self._pixels))[:, inputs].flatten(1, 2) * self._inputs[row].any()
        return _Weights(None if self._thinned else inputs, outputs, weight.contiguous(), bias)

    def prepare(self, values: Tensor) -> Tensor:
        """For the first layer: what commutes with its dropout, done once for all sub-networks, with channels kept."""
        for module in self._stage.between:
            if not isinstance(module, nn.Flatten):
                values = module(values.clone() if getattr(module, "inplace", False) else values)
        return values

    def shared(self, values: Tensor) -> Tensor | None:
        """For the first layer: its output for all channels, if that is what sub-networks subtract from."""
        return self._apply(self._flat(values), self._weight, self._bias) if self._subtract else None

    def first(self, values: Tensor, shared: Tensor | None, own: _Weights) -> Tensor:
        """One sub-network's output of the first layer."""
        picked = self._flat(values.index_select(1, own.inputs)) if own.inputs is not None else self._flat(values)
        if shared is None:
            return self._finish(self._apply(picked, own.weight, own.bias))
        kept = shared if own.outputs is None else shared.index_select(1, own.outputs)
        return self._finish(kept - self._apply(picked, own.weight, None))

    def __call__(self, values: Tensor, own: _Weights) -> Tensor:
        """One sub-network's output of a later layer."""
        if own.inputs is not None:
            values = values.index_select(1, own.inputs)
        for module in self._stage.between:
            values = _run(module, values)
        return self._finish(self._apply(values, own.weight, own.bias))

    def _flat(self, values: Tensor) -> Tensor:
        return values.flatten(1) if isinstance(self._stage.layer, nn.Linear) else values

    def _apply(self, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer = self._stage.layer
        if isinstance(layer, nn.Linear):
            return F.linear(values, weight, bias)
        convolve = CONVOLUTIONS[type(layer)]
        return convolve(values, weight, bias, layer.stride, layer.padding, layer.dilation)

    def _finish(self, values: Tensor) -> Tensor:
        for module in self._stage.after:
            values = _run(module, values)
        return values


def _run(module: nn.Module, values: Tensor) -> Tensor:
    """``module`` on values that nothing else refers to, with quick ways for the commonest."""
    if type(module) is nn.ReLU:
        return values.relu_()
    if isinstance(module, nn.MaxPool2d) and _halves(module):
        # Ten times as fast as torch's pooling of contiguous images on the CPU, which was half of the work here.
        even = values[..., : values.shape[-2] // 2 * 2, : values.shape[-1] // 2 * 2]
        rows = torch.maximum(even[..., ::2, :], even[..., 1::2, :])
        return torch.maximum(rows[..., ::2], rows[..., 1::2])
    result: Tensor = module(values)
    return result


def _halves(pool: nn.MaxPool2d) -> bool:
    plain = pool.padding in (0, (0, 0)) and pool.dilation in (1, (1, 1)) and not pool.ceil_mode
    return plain and pool.kernel_size in (2, (2, 2)) and pool.stride in (2, (2, 2))


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    if isinstance(layer, nn.Linear):
        return True
    return (
        isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and type(layer) in CONVOLUTIONS
        and layer.groups == 1
        and layer.padding_mode == "zeros"
    )


def _indices(mask: Tensor) -> Tensor:
    found = mask.nonzero().squeeze(1)
    return found if len(found) else found.new_zeros(1)
