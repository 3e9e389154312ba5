"""The generic executor: any network under the masks of a bank, by taking each image once for every sub-network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

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
        masked: dict[str, nn.Module] = {}
        for name, layer, alias in list(dropout_modules(replica)):
            if name in sampled:
                stand_in = masked.setdefault(name, _Masked(name, bank, like, in_place=layer.inplace))
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


class _Masked(nn.Module):
    """Takes ``[rows * B, ...]``, ordered by row, and applies the current rows of the masks for its current call."""

    def __init__(self, name: str, bank: MaskBank, like: Tensor, *, in_place: bool) -> None:
        super().__init__()
        self._name, self._in_place = name, in_place
        # Torch's fused transformer layers pass over the modules inside them, unless one of those has a hook.
        self.register_forward_pre_hook(_nothing)
        self._calls = {
            site: layer.affine(bank.rows[site], like) for site, layer in bank.layers.items() if layer_of(site) == name
        }

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's name for it)
        current = _current.get()
        call = current.calls.get(self, 0)
        current.calls[self] = call + 1
        site = site_name(self._name, call)
        if site not in self._calls:
            raise _unexpected(self._name)
        scale, shift = self._calls[site]
        scale = scale[current.rows].unsqueeze(1)
        if len(input) != len(scale) * current.images:
            raise UnsupportedNetworkError(
                f"dropout layer {self._name!r} gets {len(input)} examples where {current.images} images for each of "
                f"{len(scale)} sub-networks were expected: which belongs to which can't be told"
            )
        copies: Tensor = input.unflatten(0, (len(scale), -1))
        masked = copies * scale if shift is None else torch.addcmul(shift[current.rows].unsqueeze(1), copies, scale)
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
