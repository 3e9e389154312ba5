"""A worker that is killed while it answers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
import pytest

from tests.faults.clients import Answer, Client, Running, clients_of, post, running, wait_until
from tests.service.asking import IMAGE, with_instances

REQUEST = post("/predict", with_instances(IMAGE), Content_Type="application/json")
RESPAWN_SECONDS = 45
"""The supervisor looks every ten seconds, and a worker takes some to start."""


async def kill_under_load(server: Running, victim: psutil.Process) -> tuple[float, set[int], list[Answer]]:
    """When it was killed, who was connected to it, and all answers from a second before to two seconds after."""
    stop = asyncio.Event()
    clients = [Client(server.port, REQUEST, keep=keep) for keep in [True] * 12 + [False] * 12]
    tasks = [asyncio.create_task(client.ask_until(stop)) for client in clients]
    await asyncio.sleep(1)
    victim.suspend()  # So that who is connected to it does not change.
    await asyncio.sleep(0.1)
    connected = clients_of(victim)
    killed = time.monotonic()
    victim.kill()
    await asyncio.sleep(2)
    stop.set()
    return killed, connected, [answer for answers in await asyncio.gather(*tasks) for answer in answers]


def test_only_its_own_requests_are_lost_and_another_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BENTOML_CONTAINERIZED", raising=False)  # There BentoML leaves it to the orchestrator.
    with running(tmp_path / "log", workers=2) as server:
        victim, survivor = server.workers()
        killed, connected, answers = asyncio.run(kill_under_load(server, victim))
        lost = [answer for answer in answers if answer.fault]
        assert 1 <= len(lost) <= len(connected)
        for answer in lost:
            assert answer.fault.startswith("lost"), "no connection is refused"
            assert answer.port in connected
            assert answer.sent < killed
        assert {answer.status for answer in answers if not answer.fault} == {200}
        assert sum(answer.sent > killed for answer in answers) > 100, "the other one answers on"

        wait_until(lambda: len(server.workers()) == 2, RESPAWN_SECONDS)
        (successor,) = (worker for worker in server.workers() if worker != survivor)
        assert successor != victim
        wait_until(lambda: server.reaches(successor), RESPAWN_SECONDS)
