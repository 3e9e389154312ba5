"""Networks of the user's own code, named as ``package.module:factory``.

To build one is to run that code. A bundle's card alone must not bring that about, so that a name has to be trusted
first, in the environment or by :func:`trust`.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["ENVIRONMENT_VARIABLE", "build", "is_own", "trust", "trusted"]

ENVIRONMENT_VARIABLE = "DROPOUT_NETWORKS"
"""Names that may be imported, separated by commas; processes that are started inherit it."""
TAKEN = ("models", "training", "calibration", "service")
"""Names of packages that are this project's."""
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


def is_own(name: str) -> bool:
    """Whether ``name`` is of the form ``package.module:factory``."""
    return NAME.fullmatch(name) is not None


def trusted() -> frozenset[str]:
    return frozenset(filter(None, map(str.strip, os.environ.get(ENVIRONMENT_VARIABLE, "").split(","))))


def trust(name: str) -> None:
    """Let this process, and those that it starts from now on, import and call ``name``."""
    os.environ[ENVIRONMENT_VARIABLE] = ",".join(sorted(trusted() | {name}))


def build(name: str, arguments: Mapping[str, Any], seed: int) -> nn.Module:
    """What the factory ``name`` makes of ``arguments``; random weights come from ``seed``, and the global generator is
    left as it was.

    Raises ``ValueError`` if the name is not trusted, can't be imported, or makes no network.
    """
    if name not in trusted():
        raise ValueError(
            f"the network {name} is code of its own, which loading would run; if you trust it, name it with --network "
            f"{name}, or in the environment: {ENVIRONMENT_VARIABLE}={name}"
        )
    module, _, path = name.partition(":")
    try:
        factory: Any = importlib.import_module(module)
        for part in path.split("."):
            factory = getattr(factory, part)
    except Exception as error:  # It is the user's code.
        what = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
        package = module.partition(".")[0]
        remedy = (
            f"{package} is a package of this project; give yours another name"
            if package in TAKEN
            else "Its package must be installed, or lie in a folder in PYTHONPATH"
        )
        raise ValueError(f"{name} can't be imported: {what}. {remedy}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network = factory(**arguments)
        except Exception as error:  # It is the user's code.
            raise ValueError(f"{name} can't be built: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} made {type(network).__name__}, not a torch.nn.Module")
    return network
