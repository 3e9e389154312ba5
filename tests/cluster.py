"""A real Ray cluster on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["NODE", "cluster_of"]

NODE = {"num_cpus": 1, "object_store_memory": 200 * 2**20}


@contextmanager
def cluster_of(nodes: int) -> Iterator[Any]:
    """One of so many nodes, each a :data:`NODE`."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    # A node that dies is noticed in seconds rather than in half a minute.
    noticing = {
        "health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 5
    }  # fmt: skip
    cluster: Any = Cluster(
        initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "_system_config": noticing}
    )
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()
