"""The Open Inference Protocol as Triton's own client speaks it, with a running server."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.http import (  # type: ignore[import-untyped]
    InferenceServerClient,
    InferenceServerException,
    InferInput,
    InferRequestedOutput,
)

from service.protocol_v2 import HEADER_LENGTH
from tests.service.asking import refusal
from training.data import CLASSES, FashionMNISTSplits

ALL_OUTPUTS = {
    "label", "class_index", "confidence", "probabilities", "total_uncertainty", "aleatoric_uncertainty",
    "epistemic_uncertainty", "novelty_distance", "novelty_p_value", "standard_error", "prediction_set", "abstain",
    "samples",
}  # fmt: skip
OF_CALIBRATED = {"prediction_set", "abstain", "novelty_distance", "novelty_p_value"}
OF_SAMPLES = {"aleatoric_uncertainty", "epistemic_uncertainty", "standard_error"}


@contextmanager
def connected(server: httpx.Client) -> Iterator[Any]:
    with InferenceServerClient(f"{server.base_url.host}:{server.base_url.port}", network_timeout=30) as client:
        yield client


@pytest.fixture
def client(server: httpx.Client) -> Iterator[Any]:
    with connected(server) as connection:
        yield connection


@pytest.fixture(scope="module")
def pixels(fashion: FashionMNISTSplits) -> NDArray[np.uint8]:
    """``[5, 28, 28]``"""
    return fashion.test.pixels[:5].numpy().astype(np.uint8)


def images(pixels: NDArray[Any], binary: bool = True) -> list[Any]:
    datatype = {"uint8": "UINT8", "float32": "FP32"}[str(pixels.dtype)]
    return [InferInput("images", list(pixels.shape), datatype).set_data_from_numpy(pixels, binary_data=binary)]


def predicted(server: httpx.Client, pixels: NDArray[Any], **options: object) -> dict[str, Any]:
    answer = server.post("/predict", json={"instances": pixels.tolist(), **options})
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    return content


def names(result: Any) -> set[str]:
    return {output["name"] for output in result.get_response()["outputs"]}


def refused(call: Any, *arguments: object, **options: object) -> tuple[str, dict[str, Any]]:
    """Status and error of the call."""
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **options)
    return caught.value.status(), caught.value.message()


def test_the_server_is_live_and_ready_and_says_what_it_is(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata()["name"] == "dropout-uncertainty"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]


def test_a_model_is_ready_and_says_what_it_takes_and_gives(client: Any, server: httpx.Client) -> None:
    version = server.get("/model").json()["version"]
    for given in ("", version):
        assert client.is_model_ready("mlp", given)
        metadata = client.get_model_metadata("mlp", given)
        assert (metadata["name"], metadata["versions"]) == ("mlp", [version])
        assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28]}]
        assert {output["name"] for output in metadata["outputs"]} == ALL_OUTPUTS


@pytest.mark.parametrize(("name", "version"), [("nowhere", ""), ("mlp", "0"), ("nowhere", "0")])
def test_an_unknown_model_is_not_there(client: Any, pixels: NDArray[np.uint8], name: str, version: str) -> None:
    assert not client.is_model_ready(name, version)
    assert refused(client.get_model_metadata, name, version)[0] == "404"
    assert refused(client.infer, name, images(pixels), version)[0] == "404"


@pytest.mark.parametrize("binary_answer", [True, False])
@pytest.mark.parametrize("binary_request", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_answer_is_that_of_predict(
    client: Any, server: httpx.Client, pixels: NDArray[np.uint8], dtype: type, *, binary_request: bool,
    binary_answer: bool,
) -> None:  # fmt: skip
    outputs = None if binary_answer else [InferRequestedOutput(name, binary_data=False) for name in ALL_OUTPUTS]
    result = client.infer("mlp", images(pixels.astype(dtype), binary_request), outputs=outputs)
    answer = predicted(server, pixels)
    response, found = result.get_response(), answer["predictions"]
    assert (response["model_name"], response["model_version"]) == ("mlp", answer["model"]["version"])
    assert response["parameters"]["strategy"] == answer["strategy"]
    assert response["parameters"]["temperature"] == answer["temperature"]
    assert response["parameters"]["coverage"] == answer["decision"]["coverage"]
    assert names(result) == ALL_OUTPUTS
    labels = result.as_numpy("label").tolist()
    assert [label.decode() if binary_answer else label for label in labels] == [one["label"] for one in found]
    expected: dict[str, NDArray[Any]] = {
        "class_index": np.array([one["class_index"] for one in found]),
        "confidence": np.array([one["confidence"] for one in found], np.float32),
        "probabilities": np.array([[one["probabilities"][name] for name in CLASSES] for one in found], np.float32),
        "total_uncertainty": np.array([one["uncertainty"]["total"] for one in found], np.float32),
        "aleatoric_uncertainty": np.array([one["uncertainty"]["aleatoric"] for one in found], np.float32),
        "epistemic_uncertainty": np.array([one["uncertainty"]["epistemic"] for one in found], np.float32),
        "novelty_distance": np.array([one["novelty"]["distance"] for one in found], np.float32),
        "novelty_p_value": np.array([one["novelty"]["p_value"] for one in found], np.float32),
        "standard_error": np.array([one["standard_error"] for one in found], np.float32),
        "prediction_set": np.array([[name in one["prediction_set"] for name in CLASSES] for one in found]),
        "abstain": np.array([one["abstain"] for one in found]),
        "samples": np.array([one["samples"] for one in found]),
    }
    assert expected.keys() | {"label"} == ALL_OUTPUTS
    for name, values in expected.items():
        assert result.as_numpy(name).dtype == values.dtype
        assert np.array_equal(result.as_numpy(name), values), name


def test_flat_images_are_the_same_images(client: Any, pixels: NDArray[np.uint8]) -> None:
    squares = client.infer("mlp", images(pixels)).as_numpy("probabilities")
    flat = client.infer("mlp", images(pixels.reshape(-1, 784))).as_numpy("probabilities")
    assert np.array_equal(squares, flat)


def test_outputs_that_are_asked_for_come_in_that_order(client: Any, pixels: NDArray[np.uint8]) -> None:
    wanted = [InferRequestedOutput("abstain"), InferRequestedOutput("label", binary_data=False)]
    result = client.infer("mlp", images(pixels), outputs=wanted)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["abstain", "label"]
    assert "parameters" in result.get_output("abstain")
    assert result.get_output("label")["data"] == result.as_numpy("label").tolist()


def test_options_are_parameters(client: Any, server: httpx.Client, pixels: NDArray[np.uint8]) -> None:
    options = {"strategy": "last_layer", "samples": 8, "seed": 7, "coverage": 0.8, "target_error": 0.04}
    result = client.infer("mlp", images(pixels), parameters=options)
    answer = predicted(server, pixels, **options)
    for name in ("strategy", "coverage", "target_error"):
        assert result.get_response()["parameters"][name] == options[name]
    assert result.as_numpy("samples").tolist() == [8] * 5
    confidences = np.array([one["confidence"] for one in answer["predictions"]], np.float32)
    assert np.array_equal(result.as_numpy("confidence"), confidences)


def test_a_strategy_without_samples_gives_no_parts_of_uncertainty(client: Any, pixels: NDArray[np.uint8]) -> None:
    options = {"strategy": "weight_scaling"}
    assert names(client.infer("mlp", images(pixels), parameters=options)) == ALL_OUTPUTS - OF_SAMPLES
    wanted = [InferRequestedOutput("standard_error")]
    status, error = refused(client.infer, "mlp", images(pixels), outputs=wanted, parameters=options)
    assert status == "400"
    assert "weight_scaling gives no standard_error" in error["message"]


def test_an_uncalibrated_model_decides_nothing(plain_server: httpx.Client, pixels: NDArray[np.uint8]) -> None:
    with connected(plain_server) as client:
        result = client.infer("plain", images(pixels))
        assert names(result) == ALL_OUTPUTS - OF_SAMPLES - OF_CALIBRATED
        assert result.get_response()["parameters"].keys() == {"strategy", "temperature"}
        assert refused(client.infer, "mlp", images(pixels))[0] == "404"


def test_a_request_is_known_by_its_id_and_may_name_a_version(
    client: Any, server: httpx.Client, pixels: NDArray[np.uint8]
) -> None:
    version = server.get("/model").json()["version"]
    response = client.infer("mlp", images(pixels), version, request_id="42").get_response()
    assert (response["id"], response["model_version"]) == ("42", version)
    assert "id" not in client.infer("mlp", images(pixels)).get_response()


def test_refusals_reach_the_client(client: Any, pixels: NDArray[np.uint8]) -> None:
    status, error = refused(client.infer, "mlp", images(pixels[:, :27]))
    assert (status, error["field"]) == ("400", "inputs.0.shape")
    status, error = refused(client.infer, "mlp", images(np.full((1, 784), 256, np.float32)))
    assert (status, error["field"]) == ("422", "inputs.0.data")
    status, error = refused(client.infer, "mlp", images(pixels), timeout=5)
    assert (status, error["field"]) == ("400", "parameters.timeout")
    status, error = refused(client.infer, "mlp", images(pixels), parameters={"samples": 1})
    assert status == "400"
    assert "samples" in error["field"]


@pytest.mark.parametrize("length", ["five", "-1", "0", "1_0", "99999999999999999999"])
def test_a_header_length_that_is_none_is_refused(server: httpx.Client, pixels: NDArray[np.uint8], length: str) -> None:
    body, _ = InferenceServerClient.generate_request_body(images(pixels))
    answer = server.post("/v2/models/mlp/infer", content=body, headers={HEADER_LENGTH: length})
    assert refusal(answer, 400)["field"] == HEADER_LENGTH


def test_what_is_no_request_is_refused_in_our_shape(server: httpx.Client) -> None:
    path = "/v2/models/mlp/infer"
    assert "Invalid JSON" in refusal(server.post(path, content=b"\x80\x04N."), 400)["message"]
    assert "the body is empty" in refusal(server.post(path), 400)["message"]
    assert "larger than" in refusal(server.post(path, content=bytes(4 * 2**20 + 1)), 413)["message"]
    refusal(server.get(path), 405)
    refusal(server.get("/v2/nowhere"), 404)


def test_binary_answers_are_marked_as_such(server: httpx.Client, pixels: NDArray[np.uint8]) -> None:
    body, header_length = InferenceServerClient.generate_request_body(images(pixels))
    answer = server.post("/v2/models/mlp/infer", content=body, headers={HEADER_LENGTH: str(header_length)})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert json.loads(answer.content[: int(answer.headers[HEADER_LENGTH])])["model_name"] == "mlp"


def test_the_client_has_not_patched_this_process() -> None:
    assert socket.socket.__module__ == "socket"
