"""The generic executor: any network under the masks of a bank, by taking each image once for every sub-network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from calibration.masks import MaskBank
from calibration.sites import (
    PROBE_IMAGES,
    Survey,
    UnsupportedNetworkError,
    dropout_modules,
    layer_of,
    parameter_like,
    probe_images,
    site_name,
    structural_copy,
)
from calibration.tracing import Cut
from models.noise import DropConnectLinear

__all__ = ["MaskedCopies"]

CHUNK_BYTES = 32 << 20
"""Bound on the activations of the largest layer in one pass over some sub-networks and images."""


@dataclass
class _Pass:
    """What masked layers must know of the forward pass that they are in."""

    rows: slice
    images: int
    calls: dict[nn.Module, int] = field(default_factory=dict)


_current: ContextVar[_Pass] = ContextVar("the forward pass under way in this thread")


class MaskedCopies:
    """``network`` under the masks of ``bank``: masked layers in the place of its dropout layers, in a copy that shares
    its weights. Where ``cut`` says how, what comes before the first of them is run once an image.

    ``found`` is the network's survey: dropout layers in it that are not in the bank are meant to do nothing. The size
    of its largest value is that by which passes are cut to bound the memory they take.
    """

    def __init__(
        self, network: nn.Module, bank: MaskBank, input_shape: Sequence[int], found: Survey, cut: Cut | None
    ) -> None:
        like = parameter_like(network)
        self._trunk: Callable[[Tensor], tuple[Tensor, ...]] = lambda inputs: (inputs,)
        replica = structural_copy(network)
        if cut is not None:
            trunk = cut.trunk()
            probes = [probe_images(network, input_shape, count) for count in PROBE_IMAGES]
            if all(_all_batched(trunk(probe), len(probe)) for probe in probes):
                self._trunk, replica = trunk, structural_copy(cut.rest())
        sampled, known = ({layer_of(site) for site in sites} for sites in (bank.layers, found.layers))
        masked: dict[str, _MaskedLayer] = {}
        for name, layer, alias in list(dropout_modules(replica)):
            if name in sampled:
                kind = _MaskedWeights if isinstance(layer, DropConnectLinear) else _Masked
                stand_in = masked.setdefault(name, kind(name, layer, bank, like))
                replica.set_submodule(alias, stand_in)
            elif name not in known and layer.p > 0:
                replica.set_submodule(alias, _Unexpected(name))
        self._network, self._widest, self._calls = replica, found.widest, len(bank.layers)

    @torch.inference_mode()
    def logits(self, inputs: Tensor, rows: slice) -> Tensor:
        """Logits ``[T, B, C]`` of the sub-networks ``rows`` for ``inputs`` ``[B, ...]``."""
        values = self._trunk(inputs)
        copy_bytes = self._widest * inputs.element_size()
        at_once = max(1, CHUNK_BYTES // (copy_bytes * max(1, len(inputs))))
        outputs = []
        for first in range(rows.start, rows.stop, at_once):
            part = slice(first, min(first + at_once, rows.stop))
            count = part.stop - part.start
            current = _Pass(part, len(inputs))
            token = _current.set(current)
            try:
                flat = self._network(*(_copies(value, count) for value in values))
            finally:
                _current.reset(token)
            if sum(current.calls.values()) < self._calls:
                raise UnsupportedNetworkError(
                    "some dropout layers that noise of the same shape meets are not used here"
                )
            outputs.append(flat.unflatten(0, (count, len(inputs))))
        return torch.cat(outputs)


class _MaskedLayer(nn.Module):
    """Takes ``[rows * B, ...]``, ordered by row, to be masked by the current rows of the masks for its current call."""

    def __init__(self, name: str, bank: MaskBank) -> None:
        super().__init__()
        self._name = name
        self._masks = {site: mask for site, mask in bank.layers.items() if layer_of(site) == name}
        # Torch's fused transformer layers pass over the modules inside them, unless one of those has a hook.
        self.register_forward_pre_hook(_nothing)

    def _call(self, input: Tensor) -> tuple[str, slice, Tensor]:  # noqa: A002
        """The site that this call is, the current rows, and ``input`` as ``[rows, B, ...]``."""
        current = _current.get()
        call = current.calls.get(self, 0)
        current.calls[self] = call + 1
        site = site_name(self._name, call)
        if site not in self._masks:
            raise _unexpected(self._name)
        count = current.rows.stop - current.rows.start
        if len(input) != count * current.images:
            raise UnsupportedNetworkError(
                f"dropout layer {self._name!r} gets {len(input)} examples where {current.images} images for each of "
                f"{count} sub-networks were expected: which belongs to which can't be told"
            )
        return site, current.rows, input.unflatten(0, (count, -1))


class _MaskedWeights(_MaskedLayer):
    """In the place of a DropConnect layer."""

    def __init__(self, name: str, layer: DropConnectLinear, bank: MaskBank, like: Tensor) -> None:
        super().__init__(name, bank)
        self._linear, self._like = layer.linear, like
        # Scaled when they are needed: as many as there are weights, for each sub-network, they are large.
        self._rows = {site: bank.rows[site] for site in self._masks}

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name for it)
        site, rows, copies = self._call(input)
        scale, _ = self._masks[site].affine(self._rows[site][rows], self._like)
        weights = scale.mul_(self._linear.weight)
        products = copies.flatten(1, -2) @ weights.transpose(1, 2)
        result = products.view(*copies.shape[:-1], -1).flatten(0, 1)
        return result if self._linear.bias is None else result.add_(self._linear.bias)


class _Masked(_MaskedLayer):
    """In the place of a layer that drops values."""

    def __init__(self, name: str, layer: Any, bank: MaskBank, like: Tensor) -> None:
        super().__init__(name, bank)
        self._affine = {site: mask.affine(bank.rows[site], like) for site, mask in self._masks.items()}
        self._in_place = bool(layer.inplace)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name for it)
        site, rows, copies = self._call(input)
        scale, shift = self._affine[site]
        scale = scale[rows].unsqueeze(1)
        masked = copies * scale if shift is None else torch.addcmul(shift[rows].unsqueeze(1), copies, scale)
        result = masked.flatten(0, 1)
        # What comes after a layer that works in place may look at its input rather than at its result.
        return input.copy_(result) if self._in_place else result


def _nothing(_: nn.Module, __: object) -> None:
    pass


class _Unexpected(nn.Module):
    """In the place of a dropout layer that no probe has met."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def forward(self, _: Tensor) -> Tensor:
        raise _unexpected(self._name)


def _unexpected(name: str) -> UnsupportedNetworkError:
    return UnsupportedNetworkError(
        f"dropout layer {name!r} is used more often on these images than on noise of the same shape; whether it is "
        "used must not depend on the images"
    )


def _copies(value: Tensor, count: int) -> Tensor:
    # Never a view: what works in place may follow, and the next rows need the value as it is.
    return value.repeat(count, *(1 for _ in value.shape[1:]))


def _all_batched(values: tuple[object, ...], images: int) -> bool:
    return all(isinstance(value, Tensor) and value.dim() > 0 and len(value) == images for value in values)
