"""What a measurement was taken on."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import cpuinfo
import psutil
import torch

from models.bundle import software_versions

__all__ = ["describe"]

PEERS = ("torch-uncertainty", "baal", "pytorch-ood")


def describe(*, peers: bool = False) -> dict[str, Any]:
    """Processor, cores, memory and software versions; if asked, also of the libraries compared with."""
    others = {name: version(name) for name in PEERS} if peers else {}
    return {
        "processor": cpuinfo.get_cpu_info().get("brand_raw", platform.processor()),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "versions": software_versions() | others,
    }
