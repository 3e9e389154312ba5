"""A running server answers from a network of the user's own: other sizes, classes and pixels than those that ship."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from calibration import predict
from calibration.calibrators import calibrate
from calibration.importing import import_network
from models import bundle
from models.networks import own
from models.records import InputRecord
from tests import own_networks
from tests.service.asking import JSON
from tests.serving import free_port, serving, start, stop
from training.data import LabelledImages

DIGITS = "tests.own_networks:digits"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Holds ``digits``, calibrated, and ``colour``, which takes 3x4x4; with random weights."""
    place = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setenv(own.ENVIRONMENT_VARIABLE, "")
        torch.manual_seed(0)
        safetensors.torch.save_file(own_networks.digits().state_dict(), place / "digits.safetensors")
        safetensors.torch.save_file(own_networks.digits(hidden=48 // 3).state_dict(), place / "other.safetensors")
        made, _ = import_network(
            DIGITS, place / "digits.safetensors", place / "digits", arguments={}, classes=tuple("0123456789"),
            inputs=InputRecord(shape=(8, 8), maximum=16.0, mean=0.0, std=1.0), outputs="logits", bundle_name="digits",
        )  # fmt: skip
        images = LabelledImages(torch.rand(200, 8, 8) * 16, torch.randint(10, (200,)))
        bundle.save_calibration(made, *calibrate(made, images, train=images, samples=16))
        import_network(
            DIGITS, place / "other.safetensors", place / "colour", arguments={"hidden": 16},
            classes=tuple("abcdefghij"), inputs=InputRecord(shape=(1, 8, 8), mean=0.5, std=0.5), outputs="logits",
            bundle_name="colour",
        )  # fmt: skip
        yield place


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[httpx.Client]:
    bundles = f"digits={folder / 'digits'},colour={folder / 'colour'},mlp"
    with serving(folder / "log", bundles, workers=1, networks=DIGITS) as client:
        yield client


@pytest.fixture(scope="module")
def digits(folder: Path) -> bundle.Bundle:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(own.ENVIRONMENT_VARIABLE, DIGITS)
        return bundle.load(folder / "digits")


PIXELS = np.random.default_rng(0).integers(0, 17, (3, 8, 8))


def ask(server: httpx.Client, route: str = "/predict", **body: Any) -> dict[str, Any]:
    answer = server.post(route, content=json.dumps(body), headers=JSON)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def refused(server: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = server.post("/predict", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 400, answer.text
    found: dict[str, Any] = answer.json()["error"]
    return found


def test_numbers_nested_or_flat_are_answered_as_by_the_library(server: httpx.Client, digits: bundle.Bundle) -> None:
    nested = ask(server, instances=PIXELS.tolist())["predictions"]
    assert ask(server, instances=PIXELS.reshape(3, 64).tolist())["predictions"] == nested
    expected = predict(digits, PIXELS.astype(np.uint8))
    for index, prediction in enumerate(nested):
        assert list(prediction["probabilities"]) == list("0123456789")
        assert list(prediction["probabilities"].values()) == pytest.approx(expected.mean[index].tolist(), abs=2e-6)
        assert 0 < prediction["novelty"]["p_value"] <= 1
        assert prediction["prediction_set"] is not None


def test_bytes_pictures_and_tensors_too(server: httpx.Client) -> None:
    expected = ask(server, instances=PIXELS.tolist())["predictions"]
    raw = server.post(
        "/predict_raw", content=PIXELS.astype(np.uint8).tobytes(), headers={"Content-Type": "application/octet-stream"}
    )  # fmt: skip
    assert raw.json()["predictions"] == expected
    body = {"inputs": [{"name": "images", "datatype": "FP32", "shape": [3, 8, 8], "data": PIXELS.ravel().tolist()}]}
    tensors = server.post("/v2/models/digits/infer", json=body).json()
    assert tensors["outputs"][0]["data"] == [one["label"] for one in expected]
    assert server.get("/v2/models/digits").json()["inputs"][0]["shape"] == [-1, 8, 8]
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(PIXELS[0] * 255 // 16)).save(buffer, "PNG")
    picture = server.post(
        "/predict_image?invert=false", content=buffer.getvalue(), headers={"Content-Type": "image/png"}
    ).json()["predictions"][0]
    assert picture["confidence"] == pytest.approx(expected[0]["confidence"], abs=0.05)


def test_each_of_several_takes_its_own(server: httpx.Client) -> None:
    assert len(ask(server, instances=[[0] * 784], model="mlp")["predictions"][0]["probabilities"]) == 10
    colour = ask(server, instances=[[PIXELS[0].tolist()]], model="colour")
    assert colour["model"]["name"] == "colour"
    compared = ask(server, "/compare", instances=[PIXELS[0].tolist()], model="digits")
    assert "mc_dropout" in compared["strategies"]
    assert refused(server, instances=[[0] * 784])["message"].startswith(
        "instances.0: List should have at most 64 items"
    )
    assert "at least 784 items" in refused(server, instances=PIXELS.reshape(3, 64).tolist(), model="mlp")["message"]
    assert "no bundle 'nowhere' is loaded" in refused(server, instances=[[0] * 64], model="nowhere")["message"]
    assert "less than or equal to 16" in refused(server, instances=[[17] * 64])["message"]


def test_what_does_not_fit_is_refused_everywhere(server: httpx.Client) -> None:
    body = {"inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 784], "data": [0.0] * 784}]}
    tensor = server.post("/v2/models/digits/infer", json=body)
    assert tensor.status_code == 400
    assert tensor.json()["error"]["message"] == "inputs.0.shape: must be [N, 8, 8] or [N, 64] with N from 1 to 256"
    raw = {"Content-Type": "application/octet-stream"}
    short = server.post("/predict_raw", content=bytes(65), headers=raw)
    assert "whole images of 64 bytes" in short.json()["error"]["message"]
    bright = server.post("/predict_raw", content=bytes([17] * 64), headers=raw)
    assert (bright.status_code, bright.json()["error"]["message"]) == (422, "each byte should be in 0..16")


def test_the_document_is_that_of_the_default_model(server: httpx.Client) -> None:
    document = server.get("/docs.json").json()
    instances = document["components"]["schemas"]["PredictRequest"]["properties"]["instances"]
    assert instances["description"].startswith("Images, each as 64 pixel values or nested as 8x8, in 0..16")
    example = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert server.post("/predict", json=example).status_code == 200


def test_code_that_is_not_named_is_not_run(folder: Path) -> None:
    log = folder / "untrusted"
    with start(log, free_port(), str(folder / "digits"), workers=1, networks="") as process:
        try:
            assert process.wait(timeout=60) == 1
        finally:
            stop(process)
    assert f"DROPOUT_NETWORKS={DIGITS}" in log.read_text()
