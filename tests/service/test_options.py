"""What a request may ask for besides the label: sets, abstention, members, numbers of sub-networks, other bundles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from calibration import strategies
from calibration.adaptive import predict_adaptively
from calibration.decisions import DecisionRule
from calibration.subnetworks import SubnetworkEnsemble
from models import bundle
from tests.conftest import write_bundle
from tests.service.asking import IMAGE, JSON, predict, refusal, with_instances
from tests.serving import serving
from training.data import FashionMNISTSplits

STRATEGIES = ["mc_dropout", "weight_scaling", "geometric_mean", "last_layer", "moment_propagation"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("coverage", "target_error"), [(0.5, 0.05), (0.9, 0.05), (0.99, 0.02), (0.999, 0.001)])
def test_sets_and_abstention_are_the_rules(
    server: httpx.Client, fashion: FashionMNISTSplits, shipped: bundle.Bundle, *, strategy: str, coverage: float,
    target_error: float,
) -> None:  # fmt: skip
    pixels = fashion.test.pixels[:64]
    answer = predict(server, pixels, strategy=strategy, coverage=coverage, target_error=target_error)
    rule = DecisionRule.fitted(shipped, strategy, coverage, target_error)
    assert rule is not None
    decision = answer["decision"]
    assert (decision["coverage"], decision["target_error"]) == (coverage, target_error)
    assert decision["guarantee"] == "exact"
    assert decision["min_probability"] == pytest.approx(rule.min_probability, abs=1e-6)
    if rule.min_confidence is None:
        assert decision["min_confidence"] is None
    else:
        assert decision["min_confidence"] == pytest.approx(rule.min_confidence, abs=1e-6)
    for prediction in answer["predictions"]:
        least = decision["min_probability"]
        close = [name for name, p in prediction["probabilities"].items() if abs(p - least) < 2e-6]
        expected = [name for name, p in prediction["probabilities"].items() if p >= least]
        assert set(expected) ^ set(prediction["prediction_set"]) <= set(close)
        if rule.min_confidence is None:
            assert (prediction["abstain"], prediction["reason"]) == (True, "no_guarantee")
        elif abs(prediction["confidence"] - rule.min_confidence) > 2e-6:
            assert prediction["abstain"] is (prediction["confidence"] < rule.min_confidence)
            assert prediction["reason"] == ("low_confidence" if prediction["abstain"] else None)


def test_promises_are_approximate_with_other_sub_networks(server: httpx.Client) -> None:
    blank = torch.zeros(1, 784)
    others: list[dict[str, object]] = [{"samples": 16}, {"seed": 5}, {"samples": "auto"}]
    for options in others:
        assert predict(server, blank, **options)["decision"]["guarantee"] == "approximate"
    for same in ({"strategy": "weight_scaling", "samples": 16}, {"samples": 64, "seed": 0}):
        assert predict(server, blank, **same)["decision"]["guarantee"] == "exact"


def test_a_seed_draws_other_sub_networks_and_always_the_same(
    server: httpx.Client, fashion: FashionMNISTSplits, shipped: bundle.Bundle
) -> None:
    pixels = fashion.test.pixels[:8]
    answers = [predict(server, pixels, seed=seed) for seed in (7, 8, 7)]
    assert answers[0] == answers[2] != answers[1]
    assert shipped.calibration is not None
    built = strategies.build(
        "mc_dropout", shipped.network, (28, 28), samples=64, seed=7, design=shipped.calibration.design
    )
    expected = built(shipped.prepare(pixels), shipped.scaling("mc_dropout")).mean
    for prediction, row in zip(answers[0]["predictions"], expected.tolist(), strict=True):
        assert list(prediction["probabilities"].values()) == pytest.approx(row, abs=2e-6)


@pytest.mark.parametrize("strategy", ["mc_dropout", "last_layer"])
def test_as_many_samples_as_each_image_needs(
    server: httpx.Client, fashion: FashionMNISTSplits, shipped: bundle.Bundle, strategy: str
) -> None:
    pixels = fashion.test.pixels[:40]
    answer = predict(server, pixels, strategy=strategy, samples="auto")
    rule = DecisionRule.fitted(shipped, strategy, 0.9, 0.05)
    assert rule is not None
    ensemble = SubnetworkEnsemble(
        shipped.network, (28, 28), samples=1024, seed=0, design="independent", last_layer_only=strategy == "last_layer"
    )
    expected = predict_adaptively(
        ensemble, shipped.prepare(pixels), shipped.scaling(strategy), threshold=rule.min_confidence
    )
    assert answer["samples"] == "auto"
    used = [prediction["samples"] for prediction in answer["predictions"]]
    assert used == expected.samples.tolist()
    assert len(set(used)) > 1
    for prediction, row in zip(answer["predictions"], expected.summary.mean.tolist(), strict=True):
        assert list(prediction["probabilities"].values()) == pytest.approx(row, abs=2e-6)


class TestMembers:
    def test_votes_and_probabilities(
        self, server: httpx.Client, fashion: FashionMNISTSplits, shipped: bundle.Bundle
    ) -> None:
        pixels = fashion.test.pixels[:6]
        built = strategies.build("mc_dropout", shipped.network, (28, 28), samples=32)
        members = built(shipped.prepare(pixels)).members
        answer = predict(server, pixels, samples=32, members="probabilities")
        for index, prediction in enumerate(answer["predictions"]):
            found = prediction["members"]
            assert torch.allclose(torch.tensor(found["probabilities"]), members[:, index], atol=1e-4)
            assert found["votes"] == members[:, index].argmax(1).tolist()
            counts = torch.bincount(members[:, index].argmax(1), minlength=10).tolist()
            names = {name: count for name, count in zip(shipped.card.classes, counts, strict=True) if count}
            assert found["histogram"] == names
        votes = predict(server, pixels, samples=32, members="votes")["predictions"][0]["members"]
        assert votes == {**answer["predictions"][0]["members"], "probabilities": None}

    def test_nobody_is_told_of_unasked(self, server: httpx.Client) -> None:
        assert predict(server, torch.zeros(1, 784))["predictions"][0]["members"] is None


def test_strategies_are_compared(server: httpx.Client, fashion: FashionMNISTSplits) -> None:
    pixels = fashion.test.pixels[:5]
    body = {"instances": pixels.tolist(), "samples": 32, "coverage": 0.8, "target_error": 0.02}
    answer = server.post("/compare", json=body)
    assert answer.status_code == 200, answer.text
    compared = answer.json()["strategies"]
    assert list(compared) == STRATEGIES
    for strategy in STRATEGIES:
        alone = predict(server, pixels, strategy=strategy, samples=32, coverage=0.8, target_error=0.02)
        assert compared[strategy].pop("milliseconds") > 0
        assert compared[strategy] == {name: alone[name] for name in compared[strategy]}


def test_bytes_are_answered_as_numbers_are(server: httpx.Client, fashion: FashionMNISTSplits) -> None:
    pixels = fashion.test.pixels[:70]
    answer = server.post(
        "/predict_raw?samples=16&coverage=0.8&members=votes",
        content=pixels.numpy().tobytes(),
        headers={"Content-Type": "application/octet-stream"},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json() == predict(server, pixels, samples=16, coverage=0.8, members="votes")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Serves the shipped bundle, and one with random weights and no calibration as ``other``."""
    folder = tmp_path_factory.mktemp("several")
    write_bundle(folder / "untrained", "YourDropoutModel")
    with serving(folder / "log", f"mlp,other={folder / 'untrained'}", workers=1) as client:
        yield client


class TestSeveralBundles:
    def test_the_request_chooses(self, both: httpx.Client, fashion: FashionMNISTSplits) -> None:
        pixels = fashion.test.pixels[:2]
        first, other = predict(both, pixels), predict(both, pixels, model="other")
        assert first == predict(both, pixels, model="mlp")
        assert (first["model"]["name"], other["model"]["name"]) == ("mlp", "other")
        assert first["predictions"] != other["predictions"]

    def test_each_describes_itself(self, both: httpx.Client, shipped: bundle.Bundle) -> None:
        assert both.get("/model").json()["version"] == shipped.version
        other = both.get("/model?model=other").json()
        assert (other["name"], other["loaded"], other["calibration"]) == ("other", ["mlp", "other"], None)
        error = refusal(both.get("/model?model=third"), 400)
        assert error["message"] == "model: no bundle 'third' is loaded; there are mlp, other"

    def test_an_uncalibrated_one_promises_nothing(self, both: httpx.Client) -> None:
        answer = predict(both, torch.zeros(1, 784), model="other")
        assert answer["decision"] is None
        prediction: dict[str, Any] = answer["predictions"][0]
        assert [prediction[field] for field in ("prediction_set", "abstain", "reason")] == [None] * 3
        for promise in ({"coverage": 0.9}, {"target_error": 0.05}):
            body = with_instances(IMAGE, model="other", **promise)
            error = refusal(both.post("/predict", content=body, headers=JSON), 400)
            assert error["field"] == next(iter(promise))
            assert "other is not calibrated" in error["message"]


def test_the_servers_choices_hold_where_a_request_makes_none(tmp_path: Path) -> None:
    with serving(tmp_path / "log", workers=1, coverage=0.8, target_error=0.02) as client:
        decision = predict(client, torch.zeros(1, 784))["decision"]
        assert (decision["coverage"], decision["target_error"]) == (0.8, 0.02)
        model = client.get("/model").json()
        assert (model["default_coverage"], model["default_target_error"]) == (0.8, 0.02)
        looser = refusal(client.post("/predict", content=with_instances(IMAGE, target_error=0.05), headers=JSON), 400)
        assert looser["message"] == "target_error: this server promises at most 0.02; ask for that or for less"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Wants one of two keys, the second known by its hash alone."""
    hashed = "sha256:" + "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    log = tmp_path_factory.mktemp("guarded") / "log"
    with serving(log, workers=1, api_keys=f"plain key, {hashed}") as client:
        yield client


class TestKeys:
    @pytest.mark.parametrize("header", [{}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer"},
                                        {"Authorization": "Basic secret"}, {"X-API-Key": "schlüssel"},
                                        {"Authorization": "Bearer " + "2bb80d537b1da3e38bd30361aa855686"}])  # fmt: skip
    @pytest.mark.parametrize("path", ["/predict", "/model", "/metrics", "/v2/models/mlp/infer", "/nowhere", "/"])
    def test_without_one_nothing_is_answered(self, guarded: httpx.Client, header: dict[str, str], path: str) -> None:
        answer = guarded.post(path, headers=[(name.encode(), value.encode()) for name, value in header.items()])
        error = refusal(answer, 401)
        assert error["code"] == "unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer"

    @pytest.mark.parametrize(
        "header",
        [{"X-API-Key": "plain key"}, {"Authorization": "Bearer secret"}, {"Authorization": "bearer plain key"}],
    )
    def test_with_one_all_is(self, guarded: httpx.Client, header: dict[str, str]) -> None:
        assert guarded.get("/model", headers=header).status_code == 200
        answer = guarded.post("/predict", content=with_instances(IMAGE), headers={**JSON, **header})
        assert answer.status_code == 200

    @pytest.mark.parametrize("path", ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready", "/ui"])
    def test_health_and_the_page_need_none(self, guarded: httpx.Client, path: str) -> None:
        assert guarded.get(path).status_code == 200
