"""Every sub-network of a small network, with its probability: the truth that sampling approaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.copies import MaskedCopies
from calibration.masks import LayerMask, MaskBank
from calibration.predictive import entropy
from calibration.sites import UnsupportedNetworkError, active_layers, structural_copy
from calibration.tracing import cut

__all__ = ["MOST_UNITS", "ExactPrediction", "enumerate_subnetworks"]

MOST_UNITS = 20
"""Units under dropout, of which the number of sub-networks is 2 to the power."""
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class ExactPrediction:
    """Over all ``subnetworks`` by number, weighted with their probabilities, for B images and C classes.

    ``mean`` ``[B, C]`` and ``variance`` ``[B, C]`` of their probabilities; their normalised ``geometric_mean``
    ``[B, C]``; the entropy of the mean and the mean of their entropies ``[B]``, in nats.
    """

    subnetworks: int
    mean: Tensor
    variance: Tensor
    geometric_mean: Tensor
    expected_entropy: Tensor

    @property
    def predictive_entropy(self) -> Tensor:
        """Total uncertainty ``[B]``."""
        return entropy(self.mean)

    @property
    def mutual_information(self) -> Tensor:
        """Epistemic uncertainty ``[B]``."""
        return self.predictive_entropy - self.expected_entropy


@torch.inference_mode()
def enumerate_subnetworks(network: nn.Module, input_shape: Sequence[int], inputs: Tensor) -> ExactPrediction:
    """The prediction of all 2^n sub-networks of ``network`` for ``inputs`` ``[B, *input_shape]``, n up to 20.

    Accumulated in double precision, without keeping members. Raises ``ValueError`` for more than 20 units under
    dropout, :class:`~calibration.sites.UnsupportedNetworkError` for Gaussian dropout, which has no finite number of
    sub-networks, and what :class:`~calibration.subnetworks.SubnetworkEnsemble` raises.
    """
    found = active_layers(network, input_shape)
    units = sum(layer.units for layer in found.layers.values())
    if any(layer.kind == "gaussian" for layer in found.layers.values()):
        raise UnsupportedNetworkError("Gaussian dropout has infinitely many sub-networks; they can only be sampled")
    if units > MOST_UNITS:
        raise ValueError(
            f"{units} units under dropout have 2^{units} sub-networks; at most {MOST_UNITS} can be enumerated"
        )
    here = cut(structural_copy(network), found.layers)
    total = 1 << units
    sums: list[Tensor] = []
    for start in range(0, total, ROWS_AT_ONCE):
        codes = torch.arange(start, min(start + ROWS_AT_ONCE, total))
        bank, weights = _bank(found.layers, codes)
        logits = MaskedCopies(network, bank, input_shape, found, here).logits(inputs, slice(0, len(codes)))
        logs = logits.double().log_softmax(-1)
        probabilities = logs.exp()
        weights = weights.to(logs)
        parts = (probabilities, probabilities.square(), logs, entropy(probabilities))
        part_sums = [torch.tensordot(weights, part, 1) for part in parts]
        sums = [old + new for old, new in zip(sums, part_sums, strict=True)] if sums else part_sums
    mean, square, log_mean, expected_entropy = sums
    return ExactPrediction(total, mean, (square - mean**2).clamp_min(0), log_mean.softmax(-1), expected_entropy)


def _bank(layers: dict[str, LayerMask], codes: Tensor) -> tuple[MaskBank, Tensor]:
    """The sub-networks by number, one bit a unit, and their probabilities."""
    rows: dict[str, Tensor] = {}
    weights = torch.ones(len(codes), dtype=torch.float64)
    position = 0
    for name, layer in layers.items():
        bits = (codes.unsqueeze(1) >> torch.arange(position, position + layer.units)) & 1
        position += layer.units
        weights *= torch.where(bits > 0, 1 - layer.rate, layer.rate).double().prod(1)
        rows[name] = (bits > 0).view(-1, *layer.shape)
    return MaskBank(layers, rows, len(codes), 1), weights
