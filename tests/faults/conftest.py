from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.clients import Running, running

TIMEOUT = 1.0


@pytest.fixture(scope="package")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two workers that give a request up after a second."""
    with running(tmp_path_factory.mktemp("impatient") / "log", workers=2, timeout_seconds=TIMEOUT) as server:
        yield server
