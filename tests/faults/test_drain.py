"""A server that is told to end while clients are at work."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path

from tests.faults.clients import Answer, Client, Running, get, post, running
from tests.service.asking import IMAGE, with_instances

DRAIN = 2.0
BODY = with_instances(IMAGE)
REQUEST = post("/predict", BODY, Content_Type="application/json")
HEAVY = post("/predict_raw?samples=1024", bytes(256 * 784), Content_Type="application/octet-stream")


class Ending:
    """A server's answers from a second before it is told to end until it has; ``told`` is when."""

    def __init__(self) -> None:
        self.told = self.ended = 0.0
        self.exit_code: int | None = None
        self.answers: list[Answer] = []
        self.ready: list[Answer] = []
        self.late: list[Answer] = []

    async def watch(self, server: Running) -> None:
        never = asyncio.Event()
        clients = [Client(server.port, REQUEST, keep=keep) for keep in [True] * 8 + [False] * 8]
        tasks = [asyncio.create_task(client.ask_until(never)) for client in clients]
        await asyncio.sleep(0.9)
        idle = Client(server.port, get("/readyz"), keep=True)
        assert (await idle.ask()).status == 200
        await asyncio.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        self.told = time.monotonic()
        await asyncio.sleep(0.5)
        self.ready = [await idle.ask(), await Client(server.port, get("/readyz"), keep=False).ask()]
        await asyncio.sleep(self.told + DRAIN - 0.3 - time.monotonic())
        heavy = [Client(server.port, HEAVY, keep=False) for _ in range(2)]
        self.late = await asyncio.gather(*(client.ask() for client in heavy))
        self.exit_code = await asyncio.to_thread(server.process.wait, 20)
        self.ended = time.monotonic()
        self.answers = [answer for found in await asyncio.gather(*tasks) for answer in found]


def test_requests_are_answered_until_the_drain_ends(tmp_path: Path) -> None:
    """What is sent when it has ended may be lost: for a fifth of a second connections are taken and not served."""
    ending = Ending()
    with running(tmp_path / "log", workers=2, drain_seconds=DRAIN) as server:
        asyncio.run(ending.watch(server))
    in_time = [answer for answer in ending.answers if answer.sent < ending.told + DRAIN - 0.2]
    assert len(in_time) > 100
    assert [answer for answer in in_time if answer.status != 200] == []
    assert all(len(answer.json()["predictions"]) == 1 for answer in in_time)

    drained = [answer for answer in in_time if answer.sent > ending.told + 0.5]
    assert len(drained) > 16
    assert {answer.headers.get("connection") for answer in drained} == {"close"}
    for answer in ending.ready:
        assert (answer.status, answer.json()["error"]["code"]) == (503, "unavailable")
        assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]

    assert [answer.status for answer in ending.late] == [200] * 2
    assert max(answer.done for answer in ending.late) > ending.told + DRAIN
    assert ending.exit_code == 0
    assert DRAIN <= ending.ended - ending.told < DRAIN + 8

    statuses = {answer.status for answer in ending.answers}
    assert statuses == {0, 200}
    assert sum(answer.fault == "refused" for answer in ending.answers) == 16
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert all(json.loads(line) for line in log.splitlines() if line.startswith("{"))
