"""The generic executor: any network under the masks of a bank, by taking each image once for every sub-network."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from calibration.masks import MaskBank
from calibration.sites import (
    PROBE_IMAGES,
    UnsupportedNetworkError,
    dropout_modules,
    layer_of,
    parameter_like,
    site_name,
    structural_copy,
)
from calibration.tracing import Cut

__all__ = ["MaskedCopies"]

CHUNK_BYTES = 32 << 20
"""Bound on the activations of the largest layer in one pass over some sub-networks and images."""


@dataclass
class _Pass:
    """What masked layers must know of the forward pass that they are in."""

    rows: slice
    calls: dict[nn.Module, int] = field(default_factory=dict)


_current: ContextVar[_Pass] = ContextVar("the forward pass under way in this thread")


class MaskedCopies:
    """``network`` under the masks of ``bank``: masked layers in the place of its dropout layers, in a copy that shares
    its weights. Where ``cut`` says how, what comes before the first of them is run once an image.

    ``widest`` is the size of the largest value that one example has in it, by which passes are cut to bound the memory
    they take.
    """

    def __init__(
        self, network: nn.Module, bank: MaskBank, input_shape: Sequence[int], widest: int, cut: Cut | None
    ) -> None:
        trunk = None if cut is None else cut.trunk()
        like = parameter_like(network)
        probe = torch.zeros(PROBE_IMAGES, *input_shape, device=like.device, dtype=like.dtype)
        if cut is not None and trunk is not None and _all_batched(trunk(probe)):
            self._trunk, replica = trunk, structural_copy(cut.rest())
        else:
            self._trunk, replica = lambda inputs: (inputs,), structural_copy(network)
        layers = {layer_of(site) for site in bank.layers}
        masked: dict[str, _Masked] = {}
        for name, _, alias in list(dropout_modules(replica)):
            if name in layers:
                replica.set_submodule(alias, masked.setdefault(name, _Masked(name, bank, like)))
        self._network, self._widest, self._calls = replica, widest, len(bank.layers)

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
            current = _Pass(part)
            token = _current.set(current)
            try:
                flat = self._network(*(_copies(value, count) for value in values))
            finally:
                _current.reset(token)
            if sum(current.calls.values()) < self._calls:
                raise UnsupportedNetworkError("some dropout layers that zeros of the same shape meet are not used here")
            outputs.append(flat.unflatten(0, (count, len(inputs))))
        return torch.cat(outputs)


class _Masked(nn.Module):
    """Takes ``[rows * B, ...]``, ordered by row, and applies the current rows of the masks for its current call."""

    def __init__(self, name: str, bank: MaskBank, like: Tensor) -> None:
        super().__init__()
        self._name = name
        # Torch's fused transformer layers pass over the modules inside them, unless one of those has a hook.
        self.register_forward_pre_hook(lambda *_: None)
        self._calls = {
            site: layer.affine(bank.rows[site], like) for site, layer in bank.layers.items() if layer_of(site) == name
        }

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name for it)
        current = _current.get()
        call = current.calls.get(self, 0)
        current.calls[self] = call + 1
        site = site_name(self._name, call)
        if site not in self._calls:
            raise UnsupportedNetworkError(
                f"dropout layer {self._name!r} is used more often on these images than on zeros of the same shape"
            )
        scale, shift = self._calls[site]
        scale = scale[current.rows].unsqueeze(1)
        copies: Tensor = input.unflatten(0, (len(scale), -1))
        masked = copies * scale if shift is None else torch.addcmul(shift[current.rows].unsqueeze(1), copies, scale)
        return masked.flatten(0, 1)


def _copies(value: Tensor, count: int) -> Tensor:
    # Never a view: what works in place may follow, and the next rows need the value as it is.
    return value.repeat(count, *(1 for _ in value.shape[1:]))


def _all_batched(values: tuple[object, ...]) -> bool:
    return all(isinstance(value, Tensor) and value.dim() > 0 and len(value) == PROBE_IMAGES for value in values)
