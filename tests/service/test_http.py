"""The HTTP contract, against a real running server and with real test images."""

from __future__ import annotations

import io
import math
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bentoml
import httpx
import pytest
import torch
from PIL import Image

from calibration import strategies
from calibration.calibrators import calibrate
from models import bundle
from tests.conftest import write_bundle
from tests.service.asking import IMAGE, JSON, png, predict, refusal, with_instances
from tests.serving import serving
from training.data import FashionMNISTSplits

STRATEGIES = ["mc_dropout", "weight_scaling", "geometric_mean", "last_layer", "moment_propagation"]


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
    expected = built(shipped.prepare(pixels), shipped.scaling(strategy))
    assert answer["samples"] == (1 if strategy in ("weight_scaling", "moment_propagation") else samples)
    assert answer["temperature"] == pytest.approx(shipped.scaling(strategy).temperature, abs=1e-6)
    for index, prediction in enumerate(answer["predictions"]):
        assert list(prediction["probabilities"].values()) == pytest.approx(expected.mean[index].tolist(), abs=2e-6)
        assert prediction["uncertainty"]["total"] == pytest.approx(float(expected.predictive_entropy[index]), abs=1e-5)
        if strategy in ("mc_dropout", "last_layer", "moment_propagation"):
            assert prediction["uncertainty"]["epistemic"] == pytest.approx(
                float(expected.mutual_information[index]), abs=1e-5
            )
        else:
            assert prediction["uncertainty"]["epistemic"] is None
        if strategy in ("mc_dropout", "last_layer"):
            error = float(expected.standard_error[index, expected.mean[index].argmax()])
            assert prediction["standard_error"] == pytest.approx(error, abs=1e-5)
        else:
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
    assert model["calibration"]["strategies"]["mc_dropout"]["scaling"] == shipped.scaling("mc_dropout").model_dump()


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


def test_bentomls_own_client(server: httpx.Client, fashion: FashionMNISTSplits) -> None:
    with bentoml.SyncHTTPClient(str(server.base_url)) as client:
        answer = client.predict({"instances": fashion.test.pixels[:1].tolist(), "samples": 16})
    assert answer["predictions"][0]["label"] == "Ankle boot"
    assert answer["samples"] == 16


class TestWithoutDropout:
    """A bundle without dropout, uncalibrated, from a folder."""

    def test_sampling_is_refused_rather_than_certain(self, plain_server: httpx.Client) -> None:
        for strategy in ("mc_dropout", "geometric_mean", "last_layer", "moment_propagation"):
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
    mine = bundle.save_calibration(
        mine, *calibrate(mine, fashion.calibration[slice(0, 500)], samples=24, seed=7, design="antithetic")
    )
    pixels = fashion.test.pixels[:3]
    with serving(tmp_path / "log", str(tmp_path / "mine")) as client:
        answer = predict(client, pixels)
        document = client.get("/docs.json").json()
    assert answer["samples"] == 24
    assert document["components"]["schemas"]["PredictRequest"]["properties"]["samples"]["default"] == 24
    strategy = strategies.build("mc_dropout", mine.network, (28, 28), samples=24, seed=7, design="antithetic")
    expected = strategy(mine.prepare(pixels), mine.scaling("mc_dropout")).mean
    for prediction, row in zip(answer["predictions"], expected.tolist(), strict=True):
        assert list(prediction["probabilities"].values()) == pytest.approx(row, abs=2e-6)
