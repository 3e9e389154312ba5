"""The slow and plain ways that the project's own are checked against."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from calibration.masks import MaskBank
from models.noise import GaussianDropout


def masked_forward(network: nn.Sequential, bank: MaskBank, names: dict[int, str], inputs: Tensor) -> Tensor:
    """Logits ``[T, B, C]``: layer by layer, one sub-network after another, ``names[i]`` being layer i's in the bank."""
    outputs = []
    for row in range(bank.samples):
        values = inputs
        for index, layer in enumerate(network):
            if index in names:
                values = dropped(bank, names[index], row, values)
            elif not isinstance(layer, (_DropoutNd, GaussianDropout)):
                values = layer(values)
        outputs.append(values)
    return torch.stack(outputs)


def dropped(bank: MaskBank, name: str, row: int, values: Tensor) -> Tensor:
    """``values`` ``[B, ...]`` after dropout layer ``name`` in sub-network ``row``, written out for each kind."""
    layer, mask = bank.layers[name], bank.rows[name][row]
    rate = layer.rate
    if layer.kind == "gaussian":
        return values.mul(1 + mask.to(values) * (rate / (1 - rate)) ** 0.5)
    if layer.kind == "alpha":
        floor = -1.7580993408473766
        mended = torch.where(mask, values, torch.full_like(values, floor))
        return (mended - rate * floor).div(((1 - rate) * (1 + rate * floor**2)) ** 0.5)
    return (values * mask).div(1 - rate)


def every_subnetwork(
    network: nn.Sequential, inputs: Tensor, units: dict[int, tuple[int, float]]
) -> tuple[Tensor, Tensor]:
    """Logits ``[M, B, C]`` of all M = 2^n sub-networks and their probabilities ``[M]``.

    ``units[i]`` are the number of units and the rate of dropout layer i.
    """
    total = sum(count for count, _ in units.values())
    logits, weights = [], []
    for bits in itertools.product((0.0, 1.0), repeat=total):
        values, weight, position = inputs, 1.0, 0
        for index, layer in enumerate(network):
            if index in units:
                count, rate = units[index]
                mask = torch.tensor(bits[position : position + count], dtype=inputs.dtype)
                position += count
                values = values * mask / (1 - rate)
                for bit in mask.tolist():
                    weight *= (1 - rate) if bit else rate
            elif not isinstance(layer, nn.Dropout):
                values = layer(values)
        logits.append(values)
        weights.append(weight)
    return torch.stack(logits), torch.tensor(weights, dtype=inputs.dtype)
