"""Replicas behind a load balancer: which of them answers makes no difference, and one may die."""

from __future__ import annotations

import getpass
import re
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.command_line import ROOT
from tests.serving import free_port, kill, serving, started, wait_until_ready
from training.data import FashionMNISTSplits

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
BOOT = (ROOT / "docs" / "boot.png").read_bytes()


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """Two servers, of one worker and of two."""
    folder = tmp_path_factory.mktemp("replicas")
    bundles = "cnn,mlp"
    with serving(folder / "one", bundles, workers=1) as one, serving(folder / "two", bundles, workers=2) as two:
        yield one, two


def requests(fashion: FashionMNISTSplits) -> list[dict[str, Any]]:
    images = fashion.test.pixels[:40].tolist()
    numbers: list[dict[str, Any]] = [
        {"instances": images[:number], "strategy": strategy, "model": model}
        for number, strategy, model in product((1, 7, 40), ("mc_dropout", "weight_scaling"), ("cnn", "mlp"))
    ]
    numbers += [
        {"instances": images[:3], "samples": 200, "seed": 5},
        {"instances": images[:9], "samples": "auto", "model": "mlp"},
        {"instances": images[:2], "members": "probabilities", "samples": 4},
    ]
    return [
        *({"url": "/predict", "json": content} for content in numbers),
        {"url": "/compare", "json": {"instances": images[:2]}},
        {"url": "/predict_image", "content": BOOT, "headers": {"Content-Type": "image/png"}},
        {"url": "/predict", "json": {"instances": []}},
    ]


def answer(client: httpx.Client, request: dict[str, Any]) -> tuple[int, bytes]:
    headers = {**request.get("headers", {}), "X-Request-ID": "the-same"}
    found = client.post(**{**request, "headers": headers})
    # What /compare says of the time that it took is the replica's own.
    return found.status_code, re.sub(rb'"milliseconds":[^,}]*', b"", found.content)


def test_answers_do_not_depend_on_the_replica(
    replicas: tuple[httpx.Client, httpx.Client], fashion: FashionMNISTSplits
) -> None:
    """Nor on what else it is asked at the time, nor on what it was asked before."""
    one, two = replicas
    asked = requests(fashion)
    expected = [answer(one, request) for request in asked]
    assert [status for status, _ in expected] == [200] * (len(asked) - 1) + [400]
    over = threading.Event()

    def disturb() -> None:
        with httpx.Client(base_url=two.base_url, timeout=30) as client:
            while not over.is_set():
                for request in asked:
                    client.post(**request)

    threads = [threading.Thread(target=disturb) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            assert [answer(two, request) for request in reversed(asked)] == expected[::-1]
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert one.get("/model").content == two.get("/model").content
    assert one.get("/docs.json").content == two.get("/docs.json").content


@contextmanager
def balancing(folder: Path, *ports: int) -> Iterator[httpx.Client]:
    """nginx by the configuration in docs, in front of the servers on ``ports``."""
    assert NGINX is not None
    port = free_port()
    servers = "\n".join(f"server 127.0.0.1:{each} max_fails=1 fail_timeout=5s;" for each in ports)
    written = (ROOT / "docs" / "deploy" / "nginx.conf").read_text()
    for old, new in (
        ("server server:3000 max_fails=1 fail_timeout=5s;", servers),
        ("listen 8080;", f"listen 127.0.0.1:{port};"),
        (
            "events {}",
            f"events {{}}\nuser {getpass.getuser()};\npid {folder}/pid;\nerror_log {folder}/error;\ndaemon off;",
        ),
        ("http {", f"http {{\naccess_log off;\n{temporary(folder)}"),
    ):
        assert old in written
        written = written.replace(old, new, 1)
    (folder / "nginx.conf").write_text(written)
    command = [NGINX, "-e", str(folder / "error"), "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                wait_until_ready(client, process, folder / "error")
                yield client
        finally:
            process.send_signal(signal.SIGTERM)


def temporary(folder: Path) -> str:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "\n".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_replica_that_dies_behind_nginx_costs_no_answer(
    replicas: tuple[httpx.Client, httpx.Client], fashion: FashionMNISTSplits, tmp_path: Path
) -> None:
    asked = requests(fashion)[:-1]  # nginx names each request itself, as an error says again.
    expected = [answer(replicas[0], request) for request in asked]
    with (
        started(tmp_path / "log", "cnn,mlp", workers=1) as (process, third),
        balancing(tmp_path, replicas[0].base_url.port or 0, third.base_url.port or 0) as balanced,
    ):
        assert [answer(balanced, request) for request in asked] == expected
        assert balanced.get("/metrics").status_code == 404
        statuses: Counter[int] = Counter()
        unlike: list[int] = []
        over = threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=balanced.base_url, timeout=30) as client:
                while not over.is_set():
                    for number, request in enumerate(asked[:6]):
                        status, content = answer(client, request)
                        statuses[status] += 1
                        if (status, content) != expected[number]:
                            unlike.append(number)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        over.wait(2)
        before = sum(statuses.values())
        kill(process)
        over.wait(4)
        over.set()
        for thread in threads:
            thread.join()
        assert before > 10
        assert sum(statuses.values()) > before + 10
        assert statuses.keys() == {200}, statuses
        assert not unlike


class Full(BaseHTTPRequestHandler):
    """A replica that has no room."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(429)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_where_a_replica_is_full_nginx_asks_another(
    replicas: tuple[httpx.Client, httpx.Client], fashion: FashionMNISTSplits, tmp_path: Path
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Full) as full:
        threading.Thread(target=full.serve_forever, daemon=True).start()
        asked = requests(fashion)[:4]
        expected = [answer(replicas[0], request) for request in asked]
        with balancing(tmp_path, full.server_port, replicas[0].base_url.port or 0) as balanced:
            assert [answer(balanced, request) for request in asked * 3] == expected * 3
        (tmp_path / "alone").mkdir()
        with balancing(tmp_path / "alone", full.server_port) as balanced:
            assert balanced.post(**asked[0]).status_code == 429
        full.shutdown()
