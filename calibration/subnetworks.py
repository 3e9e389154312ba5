"""A dropout network as T fixed sub-networks, and the choice of how to run them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from calibration.copies import MaskedCopies
from calibration.masks import DEFAULT_DESIGN, LayerMask, MaskBank
from calibration.sites import (
    PROBE_IMAGES,
    NoActiveDropoutError,
    Survey,
    UnsupportedNetworkError,
    active_layers,
    layer_of,
    probe_images,
    structural_copy,
    survey,
)
from calibration.thinned import DenseChain, ThinnedChain, find_chain
from calibration.thinned_convolutions import ThinnedConvolutions, find_convolutions
from calibration.tracing import cut
from models.records import MaskDesign

__all__ = ["NoActiveDropoutError", "SubnetworkEnsemble", "UnsupportedNetworkError", "dropout_layers"]

IMAGES_AT_ONCE = 128
"""Images in one pass: few enough that what it works on stays in the processor's cache."""
FEW_FOR_CHAIN, FEW_FOR_CONVOLUTIONS = 4, 2
"""Up to so many images, masked inputs through the dense layers are faster: thinned products would be too thin."""


class Executor(Protocol):
    """Runs sub-networks on images, without state between calls: threads may share it."""

    def logits(self, inputs: Tensor, rows: slice) -> Tensor:
        """Logits ``[T, B, C]`` of the sub-networks ``rows`` for ``inputs`` ``[B, ...]``."""


def dropout_layers(network: nn.Module, input_shape: Sequence[int]) -> dict[str, LayerMask]:
    """What each active dropout layer of ``network`` needs masks for, in the order in which a forward pass meets them.

    One entry a call; see :func:`calibration.sites.survey`, also for what is refused. ``input_shape`` is that of one
    example, without the batch axis.
    """
    return survey(network, input_shape).layers


class SubnetworkEnsemble:
    """``network`` under the masks of a bank, as a function from images to the logits of every sub-network.

    ``input_shape`` is that of one example. ``samples``, ``seed``, ``design`` and ``replicates`` draw the bank (see
    :meth:`calibration.masks.MaskBank.draw`). ``rate``, if given, replaces the rate of every layer at test time.
    ``last_layer_only`` leaves all but the last dropout layer at weight scaling.

    The network is never touched; its weights must not change afterwards. Safe to call from several threads at once.

    Raises :class:`NoActiveDropoutError` for a network without active dropout, which would give T equal answers and an
    uncertainty of zero that means nothing; ``ValueError`` for a rate outside (0, 1); and whatever
    :func:`dropout_layers` and :meth:`~calibration.masks.MaskBank.draw` raise.
    """

    def __init__(
        self,
        network: nn.Module,
        input_shape: Sequence[int],
        *,
        samples: int,
        seed: int,
        design: MaskDesign = DEFAULT_DESIGN,
        replicates: int | None = None,
        rate: float | None = None,
        last_layer_only: bool = False,
    ) -> None:
        found = active_layers(network, input_shape)
        layers = found.layers
        if rate is not None:
            if not 0 < rate < 1:
                raise ValueError(f"a test-time dropout rate must lie in (0, 1), got {rate}")
            layers = {name: replace(layer, rate=rate) for name, layer in layers.items()}
        if last_layer_only:
            last = layer_of(list(layers)[-1])
            layers = {site: layer for site, layer in layers.items() if layer_of(site) == last}
        self.bank = MaskBank.draw(layers, samples, seed, design, replicates)
        self._few, self._many, self._are_few = _executors(network, input_shape, self.bank, found)

    @property
    def samples(self) -> int:
        return self.bank.samples

    @torch.inference_mode()
    def logits(self, inputs: Tensor, rows: slice | None = None) -> Tensor:
        """Logits ``[T, B, C]`` for ``inputs`` ``[B, *input_shape]``, of all sub-networks or of those in ``rows``.

        Raises ``ValueError`` if ``rows`` selects none.
        """
        start, stop, _ = (rows or slice(None)).indices(self.samples)
        if start >= stop:
            raise ValueError(f"{rows} selects none of the {self.samples} sub-networks")
        executor = self._few if len(inputs) <= self._are_few else self._many
        if len(inputs) <= IMAGES_AT_ONCE:
            return executor.logits(inputs, slice(start, stop))
        result: Tensor | None = None
        for first in range(0, len(inputs), IMAGES_AT_ONCE):
            part = executor.logits(inputs[first : first + IMAGES_AT_ONCE], slice(start, stop))
            if result is None:
                result = part.new_empty(len(part), len(inputs), part.shape[2])
            result[:, first : first + part.shape[1]] = part
        assert result is not None  # noqa: S101
        return result


def _executors(
    network: nn.Module, input_shape: Sequence[int], bank: MaskBank, found: Survey
) -> tuple[Executor, Executor, int]:
    """The fastest ways to run ``network`` on few images and on many, and up to how many are few.

    Each is first held against the plainest, which reads nothing into the network's structure.
    """
    first = slice(0, min(2, bank.samples))
    sample = MaskBank(bank.layers, {name: rows[first] for name, rows in bank.rows.items()}, first.stop, 1)
    images = probe_images(network, input_shape, PROBE_IMAGES[1])
    expected = MaskedCopies(network, sample, input_shape, found, None).logits(images, first)
    tolerance = 100 * torch.finfo(expected.dtype).eps ** 0.75 * max(1.0, float(expected.abs().max()))

    def agrees(executor: Executor) -> bool:
        return torch.allclose(executor.logits(images, first), expected, rtol=0, atol=tolerance)

    for few, many, limit in _candidates(network, input_shape, bank, found):
        if agrees(few) and agrees(many):
            return few, many, limit
    plain = MaskedCopies(network, bank, input_shape, found, None)
    return plain, plain, 0


def _candidates(
    network: nn.Module, input_shape: Sequence[int], bank: MaskBank, found: Survey
) -> Iterator[tuple[Executor, Executor, int]]:
    """What may run ``network``, the fastest first."""
    here = cut(structural_copy(network), bank.layers)
    if here is None:
        return
    if (chain := find_chain(here, bank.layers)) is not None:
        yield DenseChain(chain, bank), ThinnedChain(chain, bank), FEW_FOR_CHAIN
        return
    copies = MaskedCopies(network, bank, input_shape, found, here)
    if (convolutions := find_convolutions(here, bank.layers)) is not None:
        yield copies, ThinnedConvolutions(convolutions, bank), FEW_FOR_CONVOLUTIONS
    yield copies, copies, 0
