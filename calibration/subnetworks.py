"""Runs a dropout network as T fixed sub-networks, by one of two executors.

Compiled (:mod:`calibration.thinned`): for a network that ends in a chain of linear layers with all its dropout.
Generic, for all others: a copy of the network's structure, which shares its weights, has masked layers in the place of
the dropout layers, and takes each image once for every sub-network.

The network that is passed in is never touched, and neither executor keeps state between calls: threads may share them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from calibration.masks import LayerMask, MaskBank
from calibration.thinned import ThinnedChain, find_chain

__all__ = ["MaskedCopies", "NoActiveDropoutError", "SubnetworkEnsemble", "UnsupportedNetworkError", "dropout_layers"]

IMAGES_PER_CHUNK = 256
CHUNK_BYTES = 32 << 20
"""Bound on the activations of the largest layer in one pass over some sub-networks and images."""

_rows: ContextVar[slice] = ContextVar("rows of the mask bank that the current pass runs")


class NoActiveDropoutError(ValueError):
    """The network has nothing to sample: no dropout layer, or only layers at rate 0."""


class UnsupportedNetworkError(ValueError):
    """The network has randomness of a kind that can't be sampled faithfully here."""


def dropout_layers(network: nn.Module, input_shape: Sequence[int]) -> dict[str, LayerMask]:
    """The active dropout layers of ``network`` by qualified name, in the order in which a forward pass meets them.

    ``input_shape`` is that of one example, without the batch axis. Layers at rate 0, and layers that no forward pass
    meets, don't count. Raises :class:`UnsupportedNetworkError` for a dropout layer of another kind than
    ``nn.Dropout``, or one that is met more than once, since it would need a mask of its own each time.
    """
    return _survey(network, input_shape)[0]


class SubnetworkEnsemble:
    """``network`` under the masks of a bank, as a function from images to the logits of every sub-network.

    ``input_shape`` is that of one example. The network's weights must not change afterwards. Raises
    :class:`NoActiveDropoutError` for a network without active dropout, which would give T equal answers and an
    uncertainty of zero that means nothing, and whatever :func:`dropout_layers` raises.
    """

    def __init__(self, network: nn.Module, input_shape: Sequence[int], *, samples: int, seed: int) -> None:
        layers, widest = _survey(network, input_shape)
        if not layers:
            raise NoActiveDropoutError(
                f"{type(network).__name__} has no active dropout layer, so it has no sub-networks to sample; "
                "use the weight_scaling strategy, or a network trained with dropout"
            )
        self.bank = MaskBank.independent(layers, samples, seed)
        chain = find_chain(_structural_copy(network), tuple(layers))
        executor = MaskedCopies(network, self.bank, widest) if chain is None else ThinnedChain(chain, self.bank)
        self.logits: Callable[[Tensor], Tensor] = executor.logits
        """Takes ``inputs`` ``[B, *input_shape]`` to the logits ``[T, B, C]`` of every sub-network."""

    @property
    def samples(self) -> int:
        return self.bank.samples


class MaskedCopies:
    """The generic executor: ``network`` under the masks of ``bank``. ``widest`` is the size of the largest value that
    one example has in it, by which passes are cut to bound the memory they take."""

    def __init__(self, network: nn.Module, bank: MaskBank, widest: int) -> None:
        replica = _structural_copy(network)
        like = next(replica.parameters())
        for name, layer in bank.layers.items():
            replica.set_submodule(name, _MaskedDropout(bank.kept[name].to(like) / (1 - layer.rate)))
        self._network, self._samples, self._widest = replica, bank.samples, widest

    @torch.inference_mode()
    def logits(self, inputs: Tensor) -> Tensor:
        """Logits ``[T, B, C]`` for ``inputs`` ``[B, ...]``."""
        return torch.cat([self._chunk_of_images(chunk) for chunk in torch.split(inputs, IMAGES_PER_CHUNK)], dim=1)

    def _chunk_of_images(self, inputs: Tensor) -> Tensor:
        rows_at_once = max(1, CHUNK_BYTES // (self._widest * inputs.element_size() * max(1, len(inputs))))
        outputs = []
        for first in range(0, self._samples, rows_at_once):
            count = min(rows_at_once, self._samples - first)
            token = _rows.set(slice(first, first + count))
            try:
                flat = self._network(inputs.expand(count, *inputs.shape).flatten(0, 1))
            finally:
                _rows.reset(token)
            outputs.append(flat.unflatten(0, (count, len(inputs))))
        return torch.cat(outputs)


class _MaskedDropout(nn.Module):
    """Takes ``[rows * B, ...]``, ordered by row, and multiplies by the current rows of ``scaled`` ``[T, ...]``."""

    scaled: Tensor

    def __init__(self, scaled: Tensor) -> None:
        super().__init__()
        self.register_buffer("scaled", scaled, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        masks = self.scaled[_rows.get()].unsqueeze(1)
        masked: Tensor = inputs.unflatten(0, (len(masks), -1)) * masks
        return masked.flatten(0, 1)


def _survey(network: nn.Module, input_shape: Sequence[int]) -> tuple[dict[str, LayerMask], int]:
    """The active dropout layers, and the size of the largest value that any module takes for one example."""
    probe = _structural_copy(network)
    layers: dict[str, LayerMask] = {}
    sizes = [0]

    def measure(_: nn.Module, inputs: tuple[object, ...]) -> None:
        sizes.extend(value.numel() for value in inputs if isinstance(value, Tensor))

    for name, module in probe.named_modules():
        module.register_forward_pre_hook(measure)
        if isinstance(module, _DropoutNd) and module.p > 0:
            module.register_forward_pre_hook(_recorder(name, layers))
    parameter = next(network.parameters())
    with torch.inference_mode():
        probe(torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype))
    return layers, max(sizes)


def _recorder(name: str, layers: dict[str, LayerMask]):  # type: ignore[no-untyped-def]
    def record(module: _DropoutNd, inputs: tuple[Tensor, ...]) -> None:
        if not isinstance(module, nn.Dropout):
            raise UnsupportedNetworkError(
                f"layer {name!r} is {type(module).__name__}; of torch's dropout layers only Dropout can be sampled"
            )
        if name in layers:
            raise UnsupportedNetworkError(
                f"dropout layer {name!r} is used more than once in a forward pass; give each use a layer of its own"
            )
        layers[name] = LayerMask(module.p, tuple(inputs[0].shape[1:]))

    return record


def _structural_copy(network: nn.Module) -> nn.Module:
    """A copy in eval mode that shares parameters and buffers with ``network``."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, memo=dict(shared)).eval()
