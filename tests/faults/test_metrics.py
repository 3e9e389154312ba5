"""Metrics that several workers share."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.faults.clients import Client, Running, get, post, wait_until
from tests.service.asking import IMAGE, JSON, with_instances

PREFIX = "dropout_uncertainty_"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(client: httpx.Client) -> Samples:
    """What a worker says, whichever takes the new connection."""
    answer = client.get("/metrics", headers={"Connection": "close"})
    assert answer.status_code == 200
    found: Samples = defaultdict(float)
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def key(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return PREFIX + name, tuple(sorted(labels.items()))


async def ask(port: int, request: bytes, count: int) -> None:
    """``count`` times, at most 50 at once, each on a connection of its own."""
    for start in range(0, count, 50):
        clients = [Client(port, request, keep=False) for _ in range(min(50, count - start))]
        answers = await asyncio.gather(*(client.ask() for client in clients))
        assert {answer.status for answer in answers} == {200}


def settled(client: httpx.Client) -> Samples:
    """What is said once all has been noted that was asked before."""
    time.sleep(0.5)
    return scrape(client)


REQUESTS = key("requests_total", route="/predict", status="200")
PREDICTED = {"model": "mlp", "strategy": "mc_dropout"}


def test_two_workers_add_up(impatient: Running) -> None:
    before = settled(impatient.client)
    request = post("/predict", with_instances(IMAGE, IMAGE, IMAGE), Content_Type="application/json")
    asyncio.run(ask(impatient.port, request, 150))
    wait_until(lambda: scrape(impatient.client)[REQUESTS] == before[REQUESTS] + 150, 5)
    for _ in range(10):  # Either worker says the same.
        after = scrape(impatient.client)
        risen = {sample: after[sample] - before[sample] for sample in after}
        assert risen[REQUESTS] == 150
        assert risen[key("request_seconds_count", route="/predict")] == 150
        for name in ("confidence_count", "total_uncertainty_nats_count", "epistemic_uncertainty_nats_count",
                     "samples_count"):  # fmt: skip
            assert risen[key(name, **PREDICTED)] == 450, name
        labels = [value for (name, _), value in risen.items() if name == PREFIX + "predictions_total"]
        assert sum(labels) == 450
        for stage in ("read", "decode", "wait", "predict", "encode"):
            assert risen[key("stage_seconds_count", stage=stage)] == 150
        assert risen[key("samples_sum", **PREDICTED)] == 450 * 64


def test_servers_side_by_side_do_not_disturb_each_other(server: httpx.Client, impatient: Running) -> None:
    port = server.base_url.port
    assert port is not None
    request = post("/predict", with_instances(IMAGE), Content_Type="application/json")
    before, before_other = settled(impatient.client), settled(server)
    asyncio.run(ask(impatient.port, request, 20))
    asyncio.run(ask(port, request, 30))
    assert settled(impatient.client)[REQUESTS] == before[REQUESTS] + 20
    assert settled(server)[REQUESTS] == before_other[REQUESTS] + 30


def test_labels_are_bounded_whatever_is_asked(impatient: Running) -> None:
    def ask_oddly(start: int) -> None:
        client = impatient.client
        for number in range(start, start + 30):
            client.get(f"/nowhere/{number}")
            client.get(f"/v2/models/model-{number}")
            client.post(f"/v2/models/model-{number}/versions/{number}/infer", content=b"{}")
            client.get("/model", params={"model": f"model-{number}"})
            client.request(f"METHOD{number}", "/predict")
            for option in ({"model": f"model-{number}"}, {"strategy": f"strategy-{number}"}, {f"field{number}": 1}):
                body = json.dumps({"instances": [IMAGE], **option})
                assert client.post("/predict", content=body, headers=JSON).status_code == 400
        assert asyncio.run(Client(impatient.port, get("/%ff/" + "a" * 3000), keep=False).ask()).status == 404

    ask_oddly(0)
    wait_until(lambda: scrape(impatient.client)[key("rejected_inputs_total", code="not_found")] > 0, 5)
    first = set(scrape(impatient.client))
    ask_oddly(1000)
    wait_until(lambda: scrape(impatient.client)[key("rejected_inputs_total", code="not_found")] > 100, 5)
    assert set(scrape(impatient.client)) == first
    assert not any(
        "nowhere" in str(sample) or "model-" in str(sample) or "strategy-" in str(sample) for sample in first
    )
