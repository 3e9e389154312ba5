"""The HTTP contract, against a real running server and with real test images."""

from __future__ import annotations

import io
import json
import math
import random
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from calibration import strategies
from calibration.scaling import calibrate
from models import bundle
from tests.conftest import write_bundle
from tests.serving import serving
from training.data import FashionMNISTSplits

STRATEGIES = ["mc_dropout", "weight_scaling", "geometric_mean"]


def predict(server: httpx.Client, pixels: Tensor, **options: object) -> dict[str, Any]:
    answer = server.post("/predict", json={"instances": pixels.tolist(), **options})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def png(pixels: Tensor | np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_real_test_images_are_recognised(
    server: httpx.Client, fashion: FashionMNISTSplits, shipped: bundle.Bundle
) -> None:
    answer = predict(server, fashion.test.pixels[:256])
    assert answer["model"] == {"name": "mlp", "version": shipped.version}
    assert (answer["strategy"], answer["samples"]) == ("mc_dropout", 64)
    classes = torch.tensor([prediction["class_index"] for prediction in answer["predictions"]])
    assert (classes == fashion.test.labels[:256]).double().mean() > 0.8
    first = answer["predictions"][0]
    assert (first["label"], first["class_index"]) == ("Ankle boot", 9)
    for prediction in answer["predictions"]:
        probabilities = list(prediction["probabilities"].values())
        uncertainty = prediction["uncertainty"]
        assert list(prediction["probabilities"]) == list(shipped.card.classes)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert prediction["confidence"] == max(probabilities) == prediction["probabilities"][prediction["label"]]
        assert uncertainty["total"] == pytest.approx(-sum(p * math.log(p) for p in probabilities if p), abs=1e-4)
        assert uncertainty["total"] == pytest.approx(uncertainty["aleatoric"] + uncertainty["epistemic"], abs=1e-5)
        assert 0 <= prediction["standard_error"] < 0.2


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("samples", [2, 64, 1024])
def test_answers_are_those_of_the_library(
    server: httpx.Client, fashion: FashionMNISTSplits, shipped: bundle.Bundle, strategy: str, samples: int
) -> None:
    pixels = fashion.test.pixels[:5]
    answer = predict(server, pixels, strategy=strategy, samples=samples)
    built = strategies.build(strategy, shipped.network, (28, 28), samples=samples)
    expected = built(shipped.prepare(pixels), shipped.temperature(strategy))
    assert answer["samples"] == (1 if strategy == "weight_scaling" else samples)
    assert answer["temperature"] == pytest.approx(shipped.temperature(strategy), abs=1e-6)
    for index, prediction in enumerate(answer["predictions"]):
        assert list(prediction["probabilities"].values()) == pytest.approx(expected.mean[index].tolist(), abs=2e-6)
        assert prediction["uncertainty"]["total"] == pytest.approx(float(expected.predictive_entropy[index]), abs=1e-5)
        if strategy == "mc_dropout":
            assert prediction["uncertainty"]["epistemic"] == pytest.approx(
                float(expected.mutual_information[index]), abs=1e-5
            )
        else:
            assert prediction["uncertainty"]["epistemic"] is None
            assert prediction["standard_error"] is None


def test_rows_and_flat_images_and_picture_files_agree(server: httpx.Client, fashion: FashionMNISTSplits) -> None:
    pixels = fashion.test.pixels[:1]
    rows, flat = predict(server, pixels), predict(server, pixels.flatten(1))
    file = server.post("/predict_image", content=png(pixels[0]), headers={"Content-Type": "image/png"})
    assert rows == flat == file.json()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_photograph_like_picture(server: httpx.Client, fashion: FashionMNISTSplits, kind: str, mode: str) -> None:
    """A boot, enlarged, dark on white, in every format."""
    dark_on_white = 255 - fashion.test.pixels[0].numpy()
    picture = Image.fromarray(dark_on_white).resize((280, 280), Image.Resampling.BICUBIC).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, format=kind)
    answer = server.post(
        "/predict_image", content=buffer.getvalue(), headers={"Content-Type": f"image/{kind.lower()}"},
        params={"strategy": "weight_scaling"},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    assert answer.json()["strategy"] == "weight_scaling"
    assert answer.json()["predictions"][0]["label"] == "Ankle boot"


def test_the_same_request_gets_the_same_answer_whatever_else_is_in_flight(
    server: httpx.Client, fashion: FashionMNISTSplits
) -> None:
    chooser = random.Random(0)
    requests = [
        {
            "instances": fashion.test.pixels[start : start + count].tolist(),
            "strategy": chooser.choice(STRATEGIES),
            "samples": chooser.choice([2, 16, 64]),
        }
        for start, count in ((chooser.randrange(9000), chooser.randrange(1, 20)) for _ in range(40))
    ]

    def ask(request: dict[str, Any]) -> str:
        answer = server.post("/predict", json=request)
        assert answer.status_code == 200, answer.text
        return answer.text

    alone = [ask(request) for request in requests]
    order = list(range(40)) * 3
    chooser.shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        for index, text in zip(order, pool.map(ask, [requests[index] for index in order]), strict=True):
            assert text == alone[index]


def test_an_instance_is_answered_the_same_in_any_company(server: httpx.Client, fashion: FashionMNISTSplits) -> None:
    pixels = fashion.test.pixels[100:140]
    together = predict(server, pixels)["predictions"]
    for index in (0, 17, 39):
        alone = predict(server, pixels[index : index + 1])["predictions"][0]
        assert alone["label"] == together[index]["label"]
        assert list(alone["probabilities"].values()) == pytest.approx(
            list(together[index]["probabilities"].values()), abs=2e-6
        )


JSON = {"Content-Type": "application/json"}
PNG = {"Content-Type": "image/png"}
IMAGE = [0] * 784


def with_instances(*instances: object, **options: object) -> bytes:
    return json.dumps({"instances": instances, **options}).encode()


BAD_PREDICT = {
    "empty body": (b"", JSON, 400, None, "the body is empty"),
    "malformed": (b'{"instances": [', JSON, 400, None, "Invalid JSON"),
    "not UTF-8": (b'{"instances": "\xff"}', JSON, 400, None, "Invalid JSON"),
    "nested too deep": (b"[" * 100_000, JSON, 400, None, "Invalid JSON"),
    "a list": (b"[]", JSON, 400, None, "object"),
    "null": (b"null", JSON, 400, None, "object"),
    "no instances": (b"{}", JSON, 400, "instances", "Field required"),
    "instances null": (b'{"instances": null}', JSON, 400, "instances", "valid array"),
    "zero instances": (with_instances(), JSON, 400, "instances", "at least 1 item"),
    "257 instances": (with_instances(*[IMAGE] * 257), JSON, 400, "instances", "at most 256 items"),
    "short": (with_instances(IMAGE[:-1]), JSON, 400, "instances.0", "at least 784 items"),
    "long": (with_instances([*IMAGE, 0]), JSON, 400, "instances.0", "at most 784 items"),
    "27 rows": (with_instances([[0] * 28] * 27), JSON, 400, "instances.0", "at least 28 items"),
    "29 columns": (with_instances([[0] * 29] * 28), JSON, 400, "instances.0.0", "at most 28 items"),
    "ragged": (with_instances([[0] * 28] * 27 + [[0] * 27]), JSON, 400, "instances.0.27", "at least 28 items"),
    "second is wrong": (with_instances(IMAGE, [1]), JSON, 400, "instances.1", "at least 784 items"),
    "empty instance": (with_instances([]), JSON, 400, "instances.0", "at least 784 items"),
    "instance a number": (with_instances(5), JSON, 400, "instances.0", "valid array"),
    "string pixel": (with_instances(["7", *IMAGE[1:]]), JSON, 400, "instances.0.0", "valid number"),
    "null pixel": (with_instances([None, *IMAGE[1:]]), JSON, 400, "instances.0.0", "valid number"),
    "boolean pixel": (with_instances([True, *IMAGE[1:]]), JSON, 400, "instances.0.0", "valid number"),
    "pixel of 256": (with_instances([*IMAGE[1:], 256]), JSON, 400, "instances.0.783", "less than or equal to 255"),
    "negative pixel": (with_instances([*IMAGE[1:], -1]), JSON, 400, "instances.0.783", "greater than or equal to 0"),
    "NaN": (with_instances([math.nan, *IMAGE[1:]]), JSON, 400, "instances.0.0", "finite number"),
    "infinite": (with_instances([math.inf, *IMAGE[1:]]), JSON, 400, "instances.0.0", "finite number"),
    "huge exponent": (with_instances(IMAGE).replace(b"[[0", b"[[1e999", 1), JSON, 400, "instances.0.0", ""),
    "unknown strategy": (with_instances(IMAGE, strategy="magic"), JSON, 400, "strategy", "'mc_dropout'"),
    "strategy null": (with_instances(IMAGE, strategy=None), JSON, 400, "strategy", "'mc_dropout'"),
    "one sample": (with_instances(IMAGE, samples=1), JSON, 400, "samples", "greater than or equal to 2"),
    "1025 samples": (with_instances(IMAGE, samples=1025), JSON, 400, "samples", "less than or equal to 1024"),
    "samples a string": (with_instances(IMAGE, samples="64"), JSON, 400, "samples", "valid integer"),
    "samples a fraction": (with_instances(IMAGE, samples=6.5), JSON, 400, "samples", "valid integer"),
    "samples a boolean": (with_instances(IMAGE, samples=True), JSON, 400, "samples", "valid integer"),
    "unknown field": (with_instances(IMAGE, temperature=2), JSON, 400, "temperature", "not permitted"),
    "form": (with_instances(IMAGE), {"Content-Type": "application/x-www-form-urlencoded"}, 415, "Content-Type", "json"),
    "no content type": (with_instances(IMAGE), {}, 415, "Content-Type", "application/json"),
    "pickle": (b"\x80\x04N.", {"Content-Type": "application/vnd.bentoml+pickle"}, 415, "Content-Type", "json"),
    "multipart": (b"--x", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "Content-Type", "json"),
    "over 4 MiB": (b" " * (4 * 2**20 + 1), JSON, 413, None, "larger than 4,194,304 bytes"),
}  # fmt: skip


def refusal(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"code", "message", "field", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    assert len(answer.content) < 2_000
    return error


@pytest.mark.parametrize("case", BAD_PREDICT)
def test_bad_numbers_are_refused_with_a_reason(server: httpx.Client, case: str) -> None:
    body, headers, status, field, message = BAD_PREDICT[case]
    error = refusal(server.post("/predict", content=body, headers=headers), status)
    assert error["field"] == field
    assert message in error["message"]


def truncated_png() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    return png(noise)[:2000]


def bomb() -> bytes:
    """A small file of 5,000 x 5,000 pixels."""
    buffer = io.BytesIO()
    Image.new("1", (5000, 5000)).save(buffer, format="PNG")
    return buffer.getvalue()


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (28, 28)).save(buffer, format="GIF")
    return buffer.getvalue()


BLACK = png(np.zeros((28, 28), dtype=np.uint8))
BAD_IMAGE = {
    "empty body": (b"", PNG, "", 400, None, "the body is empty"),
    "text": (b"hello", PNG, "", 422, None, "not an image of a kind read here: PNG, JPEG, WEBP, BMP"),
    "a URL": (b"http://127.0.0.1:1/boot.png", PNG, "", 422, None, "not an image"),
    "truncated": (truncated_png(), PNG, "", 422, None, "damaged"),
    "only the signature": (b"\x89PNG\r\n\x1a\n", PNG, "", 422, None, ""),
    "GIF": (gif(), {"Content-Type": "image/gif"}, "", 422, None, "not an image of a kind"),
    "bomb": (bomb(), PNG, "", 422, None, "5000 x 5000 pixels; the limit is 16,000,000"),
    "over 4 MiB": (b"\x00" * (4 * 2**20 + 1), PNG, "", 413, None, "larger than"),
    "JSON": (with_instances(IMAGE), JSON, "", 415, "Content-Type", "image/*"),
    "octets": (BLACK, {"Content-Type": "application/octet-stream"}, "", 415, "Content-Type", "image/*"),
    "unknown strategy": (BLACK, PNG, "strategy=magic", 400, "strategy", "'mc_dropout'"),
    "one sample": (BLACK, PNG, "samples=1", 400, "samples", "greater than or equal to 2"),
    "samples not a number": (BLACK, PNG, "samples=many", 400, "samples", "valid integer"),
    "samples empty": (BLACK, PNG, "samples=", 400, "samples", "valid integer"),
    "unknown inversion": (BLACK, PNG, "invert=maybe", 400, "invert", "'auto', 'true' or 'false'"),
    "unknown parameter": (BLACK, PNG, "sample=64", 400, "sample", "not permitted"),
    "a parameter twice": (BLACK, PNG, "samples=2&samples=4", 400, None, "once"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_IMAGE)
def test_bad_pictures_are_refused_with_a_reason(server: httpx.Client, case: str) -> None:
    body, headers, query, status, field, message = BAD_IMAGE[case]
    error = refusal(server.post(f"/predict_image?{query}", content=body, headers=headers), status)
    assert error["field"] == field
    assert message in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("PUT", "/predict", 405),
        ("GET", "/predict_image", 405),
        ("POST", "/model", 405),
        ("GET", "/nowhere", 404),
        ("POST", "/nowhere", 404),
    ],
)
def test_wrong_paths_and_methods(server: httpx.Client, method: str, path: str, status: int) -> None:
    error = refusal(server.request(method, path), status)
    assert "/docs.json" in error["message"]


def test_a_body_sent_in_chunks_is_limited_too(server: httpx.Client) -> None:
    chunks = (b" " * 2**16 for _ in range(70))
    assert refusal(server.post("/predict", content=chunks, headers=JSON), 413)["code"] == "body_too_large"
    assert server.get("/readyz").status_code == 200


def test_bad_requests_leave_no_traceback_and_the_server_answers_on(
    server: httpx.Client, server_log: Path, fashion: FashionMNISTSplits
) -> None:
    for body, headers, *_ in BAD_PREDICT.values():
        server.post("/predict", content=body, headers=headers)
    assert predict(server, fashion.test.pixels[:1])["predictions"][0]["label"] == "Ankle boot"
    assert "Traceback" not in server_log.read_text()


def test_a_request_id_is_kept_if_it_is_sane(server: httpx.Client) -> None:
    assert server.get("/model", headers={"X-Request-ID": "order-66"}).headers["x-request-id"] == "order-66"
    assert server.get("/model", headers={"X-Request-ID": "a b\tc"}).headers["x-request-id"] != "a b\tc"


def test_the_model_describes_itself(server: httpx.Client, shipped: bundle.Bundle) -> None:
    model = server.get("/model").json()
    assert model["name"] == "mlp"
    assert model["version"] == shipped.version
    assert model["strategies"] == STRATEGIES
    assert model["default_samples"] == 64
    assert model["card"]["weights_sha256"] == shipped.card.weights_sha256
    assert model["calibration"]["strategies"]["mc_dropout"]["temperature"] == shipped.temperature("mc_dropout")


def test_health_and_metrics(server: httpx.Client) -> None:
    assert server.get("/livez").status_code == 200
    assert server.get("/readyz").status_code == 200
    metrics = server.get("/metrics")
    assert metrics.status_code == 200
    assert re.search(r'dropout_uncertainty_requests_total\{route="/predict",status="200"\} \d+\.0', metrics.text)
    assert 'dropout_uncertainty_request_seconds_bucket{le="0.1",route="/predict"}' in metrics.text


def test_unknown_paths_add_no_series(server: httpx.Client) -> None:
    def lines() -> int:
        return len(server.get("/metrics").text.splitlines())

    server.get("/nowhere/first")
    server.get("/nowhere/second")
    before = lines()
    for number in range(100):
        server.get(f"/nowhere/{number}")
    assert lines() == before


def test_more_work_than_can_be_done_in_time_is_refused_at_once(
    server: httpx.Client, fashion: FashionMNISTSplits
) -> None:
    body = json.dumps({"instances": fashion.test.pixels[:256].tolist(), "samples": 1024}).encode()

    def ask(_: int) -> httpx.Response:
        return server.post("/predict", content=body, headers=JSON)

    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(ask, range(60)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 8 <= len(answers) - len(refused) < 60
    for answer in refused:
        assert refusal(answer, 429)["code"] == "too_many_requests"
        assert int(answer.headers["retry-after"]) >= 1
    assert predict(server, fashion.test.pixels[:1])["predictions"][0]["label"] == "Ankle boot"


def test_a_client_that_never_finishes_is_given_up(server: httpx.Client) -> None:
    address = (server.base_url.host, server.base_url.port)
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 1000\r\n\r\n{")
        answer = connection.recv(10_000).decode()
        while "}}" not in answer:
            answer += connection.recv(10_000).decode()
    assert answer.startswith("HTTP/1.1 504 ")
    assert '"code":"timeout"' in answer
    assert "x-request-id" in answer


def test_bentomls_own_client(server: httpx.Client, fashion: FashionMNISTSplits) -> None:
    with bentoml.SyncHTTPClient(str(server.base_url)) as client:
        answer = client.predict({"instances": fashion.test.pixels[:1].tolist(), "samples": 16})
    assert answer["predictions"][0]["label"] == "Ankle boot"
    assert answer["samples"] == 16


class TestWithoutDropout:
    """A bundle without dropout, uncalibrated, from a folder."""

    def test_sampling_is_refused_rather_than_certain(self, plain_server: httpx.Client) -> None:
        for strategy in ("mc_dropout", "geometric_mean"):
            body = with_instances(IMAGE, strategy=strategy)
            error = refusal(plain_server.post("/predict", content=body, headers=JSON), 400)
            assert error["field"] == "strategy"
            assert "no active dropout to sample from; it allows weight_scaling" in error["message"]

    def test_weight_scaling_answers_by_default(self, plain_server: httpx.Client) -> None:
        answer = predict(plain_server, torch.zeros(1, 784))
        assert answer["strategy"] == "weight_scaling"
        assert answer["temperature"] == 1
        assert answer["predictions"][0]["uncertainty"]["epistemic"] is None

    def test_the_model_says_so(self, plain_server: httpx.Client) -> None:
        model = plain_server.get("/model").json()
        assert model["strategies"] == ["weight_scaling"]
        assert model["calibration"] is None


def test_the_sub_networks_are_those_of_the_calibration(tmp_path: Path, fashion: FashionMNISTSplits) -> None:
    """A bundle calibrated with another seed and number of sub-networks answers with those."""
    write_bundle(tmp_path / "mine")
    mine = bundle.load(tmp_path / "mine")
    mine = bundle.save_calibration(mine, calibrate(mine, fashion.calibration[slice(0, 500)], samples=24, seed=7))
    pixels = fashion.test.pixels[:3]
    with serving(tmp_path / "log", str(tmp_path / "mine")) as client:
        answer = predict(client, pixels)
        document = client.get("/docs.json").json()
    assert answer["samples"] == 24
    assert document["components"]["schemas"]["PredictRequest"]["properties"]["samples"]["default"] == 24
    strategy = strategies.build("mc_dropout", mine.network, (28, 28), samples=24, seed=7)
    expected = strategy(mine.prepare(pixels), mine.temperature("mc_dropout")).mean
    for prediction, row in zip(answer["predictions"], expected.tolist(), strict=True):
        assert list(prediction["probabilities"].values()) == pytest.approx(row, abs=2e-6)
