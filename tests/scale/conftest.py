"""The cluster that tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.scale.cluster import cluster_of


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Of two nodes."""
    with cluster_of(2) as cluster:
        yield cluster
