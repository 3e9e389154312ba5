"""The networks by the names that the command line, the bundle's card and the reports use."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from models.networks import own
from models.networks.cnn import CNN
from models.networks.mlp import (
    MLP,
    ModelWithSingleDropout,
    RandomDropoutModel,
    ReLUNet,
    WideMLP,
    YourDropoutModel,
)
from models.networks.recurrent import RowRecurrent
from models.networks.transformer import VisionTransformer

__all__ = [
    "CNN",
    "MLP",
    "NETWORKS",
    "ModelWithSingleDropout",
    "RandomDropoutModel",
    "ReLUNet",
    "RowRecurrent",
    "VisionTransformer",
    "WideMLP",
    "YourDropoutModel",
    "accepted_arguments",
    "build",
]

NETWORKS: Mapping[str, type[nn.Module]] = {
    network.__name__: network
    for network in (
        ReLUNet,
        ModelWithSingleDropout,
        RandomDropoutModel,
        YourDropoutModel,
        WideMLP,
        CNN,
        RowRecurrent,
        VisionTransformer,
    )
}  # fmt: skip


def accepted_arguments(name: str) -> frozenset[str]:
    """Names of the constructor arguments of the network called ``name``."""
    return frozenset(inspect.signature(NETWORKS[name]).parameters)


def build(name: str, arguments: Mapping[str, Any] | None = None, *, seed: int | None = None) -> nn.Module:
    """Construct the network ``name`` with ``arguments``: one of :data:`NETWORKS`, or one of the user's own, see
    :mod:`models.networks.own`.

    ``seed`` draws the initial weights; the global generator is left as it was. Without a seed the network is for
    ``load_state_dict(..., assign=True)``: those of the project lie on torch's ``meta`` device, without weights.

    Raises ``ValueError`` for an unknown name, an unknown argument or a value that the network refuses.
    """
    arguments = dict(arguments or {})
    if own.is_own(name):
        return own.build(name, arguments, seed or 0)
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known are {', '.join(NETWORKS)}, and package.module:factory")
    accepted = accepted_arguments(name)
    if unknown := sorted(set(arguments) - accepted):
        takes = f"takes {', '.join(sorted(accepted))}" if accepted else "takes no arguments"
        raise ValueError(f"{name} {takes}, not {', '.join(unknown)}")
    if seed is None:
        with torch.device("meta"):
            return NETWORKS[name](**arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name](**arguments)
