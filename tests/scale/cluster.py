"""A real Ray cluster on this machine, how commands are told of it, and what they leave."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import ROOT

__all__ = ["NODE", "cluster_of", "content", "ray"]

NODE = {"num_cpus": 1, "object_store_memory": 200 * 2**20}


@contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """One of so many nodes, each a :data:`NODE`, whose workers can import the tests.

    ``address`` is for who is on one of them, ``client_address`` for who is not.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # A node that dies is noticed in seconds rather than in half a minute.
    noticing = {
        "health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 5
    }  # fmt: skip
    head = {**NODE, "include_dashboard": False, "ray_client_server_port": port, "_system_config": noticing}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        from ray.cluster_utils import Cluster

        cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        cluster.client_address = f"ray://127.0.0.1:{port}"
        try:
            for _ in range(nodes - 1):
                cluster.add_node(**NODE)
            cluster.wait_for_nodes()
            yield cluster
        finally:
            cluster.shutdown()


def ray(cluster: Any) -> list[str]:
    """The options that name it."""
    return ["--engine", "ray", "--address", cluster.address]


def content(folder: Path) -> dict[str, bytes]:
    """Of each file."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}
