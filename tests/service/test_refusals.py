"""What is refused over HTTP, with which status and which words: bad requests, and more than can be done."""

from __future__ import annotations

import io
import json
import math
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.service.asking import IMAGE, JSON, PNG, png, predict, refusal, with_instances
from training.data import FashionMNISTSplits

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
    "samples some": (with_instances(IMAGE, samples="some"), JSON, 400, "samples", "valid integer"),
    "auto for one pass": (
        with_instances(IMAGE, samples="auto", strategy="weight_scaling"), JSON, 400, "samples", "not for weight_",
    ),
    "negative seed": (with_instances(IMAGE, seed=-1), JSON, 400, "seed", "greater than or equal to 0"),
    "huge seed": (with_instances(IMAGE, seed=2**32), JSON, 400, "seed", "less than 4294967296"),
    "coverage too low": (with_instances(IMAGE, coverage=0.4), JSON, 400, "coverage", "greater than or equal to 0.5"),
    "coverage of 1": (with_instances(IMAGE, coverage=1), JSON, 400, "coverage", "less than or equal to 0.999"),
    "coverage a string": (with_instances(IMAGE, coverage="0.9"), JSON, 400, "coverage", "valid number"),
    "coverage NaN": (with_instances(IMAGE, coverage=math.nan), JSON, 400, "coverage", ""),
    "looser target": (with_instances(IMAGE, target_error=0.06), JSON, 400, "target_error", "at most 0.05"),
    "target of 0": (with_instances(IMAGE, target_error=0), JSON, 400, "target_error", "greater than or equal to 0.001"),
    "unknown members": (with_instances(IMAGE, members="all"), JSON, 400, "members", "'votes' or 'probabilities'"),
    "members of one pass": (
        with_instances(IMAGE, members="votes", strategy="geometric_mean"), JSON, 400, "members", "has no sub-networks",
    ),
    "members of auto": (with_instances(IMAGE, members="votes", samples="auto"), JSON, 400, "members", "name a number"),
    "too many members": (
        with_instances(*[IMAGE] * 65, members="votes", samples=1024), JSON, 400, "members", "at most 65,536 images",
    ),
    "unknown model": (with_instances(IMAGE, model="cnn"), JSON, 400, "model", "no bundle 'cnn' is loaded"),
    "model a number": (with_instances(IMAGE, model=1), JSON, 400, "model", "valid string"),
    "a very long name": (with_instances(IMAGE, **{"x" * 100_000: 1}), JSON, 400, "x" * 100, "not permitted"),
    "unknown field": (with_instances(IMAGE, temperature=2), JSON, 400, "temperature", "not permitted"),
    "form": (with_instances(IMAGE), {"Content-Type": "application/x-www-form-urlencoded"}, 415, "Content-Type", "json"),
    "no content type": (with_instances(IMAGE), {}, 415, "Content-Type", "application/json"),
    "pickle": (b"\x80\x04N.", {"Content-Type": "application/vnd.bentoml+pickle"}, 415, "Content-Type", "json"),
    "multipart": (b"--x", {"Content-Type": "multipart/form-data; boundary=x"}, 415, "Content-Type", "json"),
    "over 4 MiB": (b" " * (4 * 2**20 + 1), JSON, 413, None, "larger than 4,194,304 bytes"),
}  # fmt: skip


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


BYTES = {"Content-Type": "application/octet-stream"}
BAD_RAW = {
    "empty body": (b"", BYTES, "", 400, None, "the body is empty"),
    "a byte short": (bytes(783), BYTES, "", 400, None, "whole images of 784 bytes; it has 783 bytes"),
    "a byte too many": (bytes(785), BYTES, "", 400, None, "it has 785 bytes"),
    "257 images": (bytes(257 * 784), BYTES, "", 400, None, "at most 256 images may be sent, not 257"),
    "over 4 MiB": (bytes(4 * 2**20 + 1), BYTES, "", 413, None, "larger than"),
    "JSON": (with_instances(IMAGE), JSON, "", 415, "Content-Type", "application/octet-stream"),
    "unknown strategy": (bytes(784), BYTES, "strategy=magic", 400, "strategy", "'mc_dropout'"),
    "invert is for pictures": (bytes(784), BYTES, "invert=true", 400, "invert", "not permitted"),
    "coverage not a number": (bytes(784), BYTES, "coverage=high", 400, "coverage", "valid number"),
    "coverage NaN": (bytes(784), BYTES, "coverage=nan", 400, "coverage", ""),
    "a parameter twice": (bytes(784), BYTES, "seed=2&seed=2", 400, None, "once"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_RAW)
def test_bad_bytes_are_refused_with_a_reason(server: httpx.Client, case: str) -> None:
    body, headers, query, status, field, message = BAD_RAW[case]
    error = refusal(server.post(f"/predict_raw?{query}", content=body, headers=headers), status)
    assert error["field"] == field
    assert message in error["message"]


BAD_COMPARE = {
    "empty body": (b"", JSON, 400, None, "the body is empty"),
    "malformed": (b"{", JSON, 400, None, "Invalid JSON"),
    "no instances": (b"{}", JSON, 400, "instances", "Field required"),
    "short": (with_instances(IMAGE[:-1]), JSON, 400, "instances.0", "at least 784 items"),
    "a strategy": (with_instances(IMAGE, strategy="mc_dropout"), JSON, 400, "strategy", "not permitted"),
    "members": (with_instances(IMAGE, members="votes"), JSON, 400, "members", "not permitted"),
    "auto": (with_instances(IMAGE, samples="auto"), JSON, 400, "samples", "valid integer"),
    "looser target": (with_instances(IMAGE, target_error=0.2), JSON, 400, "target_error", "at most 0.05"),
    "a picture": (BLACK, PNG, 415, "Content-Type", "application/json"),
}


@pytest.mark.parametrize("case", BAD_COMPARE)
def test_bad_comparisons_are_refused_with_a_reason(server: httpx.Client, case: str) -> None:
    body, headers, status, field, message = BAD_COMPARE[case]
    error = refusal(server.post("/compare", content=body, headers=headers), status)
    assert error["field"] == field
    assert message in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("PUT", "/predict", 405),
        ("GET", "/predict_image", 405),
        ("POST", "/model", 405),
        ("GET", "/compare", 405),
        ("GET", "/predict_raw", 405),
        ("POST", "/report", 405),
        ("DELETE", "/drift", 405),
        ("POST", "/ui", 405),
        ("POST", "/v2", 405),
        ("GET", "/v2/models/mlp/infer", 405),
        ("GET", "/v2/nowhere", 404),
        ("GET", "/v2/health/nowhere", 404),
        ("GET", "/v2/models/cnn", 404),
        ("GET", "/nowhere", 404),
        ("POST", "/nowhere", 404),
    ],
)
def test_wrong_paths_and_methods(server: httpx.Client, method: str, path: str, status: int) -> None:
    error = refusal(server.request(method, path), status)
    assert "/docs.json" in error["message"] or path == "/v2/models/cnn"


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
