"""What a pass through a network costs, told from its layers and not from a clock."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from calibration.sites import probe_images, structural_copy

__all__ = ["multiplications"]


def multiplications(network: nn.Module, input_shape: Sequence[int]) -> int:
    """Of one image, in linear layers and convolutions: what most networks' time goes into. Others count nothing."""
    found: list[int] = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)  # noqa: S101
        found.append(output.numel() * math.prod(weight.shape[1:]))

    probe = structural_copy(network)
    for module in probe.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            module.register_forward_hook(count)
    with torch.inference_mode():
        probe(probe_images(network, input_shape, 1))
    return sum(found)
