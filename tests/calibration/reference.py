"""The slow and plain ways that the project's own are checked against."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from calibration.masks import MaskBank


def masked_forward(network: nn.Sequential, bank: MaskBank, names: dict[int, str], inputs: Tensor) -> Tensor:
    """Logits ``[T, B, C]``: layer by layer, one sub-network after another, ``names[i]`` being layer i's in the bank."""
    outputs = []
    for row in range(bank.samples):
        values = inputs
        for index, layer in enumerate(network):
            if index in names:
                name = names[index]
                values = values * bank.kept[name][row] / (1 - bank.layers[name].rate)
            elif not isinstance(layer, nn.Dropout):
                values = layer(values)
        outputs.append(values)
    return torch.stack(outputs)


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
