"""The document at /docs.json is valid, and true of the running server."""

from __future__ import annotations

from typing import Any

import httpx
import jsonschema
import pytest
from openapi_spec_validator import validate


@pytest.fixture(scope="module", params=["server", "plain_server"])
def any_server(request: pytest.FixtureRequest) -> httpx.Client:
    """The shipped bundle's server, then that of a bundle without dropout."""
    client: httpx.Client = request.getfixturevalue(request.param)
    return client


@pytest.fixture(scope="module")
def document(any_server: httpx.Client) -> dict[str, Any]:
    answer = any_server.get("/docs.json")
    assert answer.status_code == 200
    content: dict[str, Any] = answer.json()
    return content


def conforms(document: dict[str, Any], path: str, method: str, answer: httpx.Response) -> None:
    responses = document["paths"][path][method]["responses"]
    schema = responses[str(answer.status_code)]["content"]["application/json"]["schema"]
    jsonschema.validate(answer.json(), {**schema, "components": document["components"]})


def test_it_is_valid(any_server: httpx.Client, document: dict[str, Any]) -> None:
    validate(document)
    assert {
        "/predict", "/predict_image", "/predict_raw", "/compare", "/model", "/report", "/drift", "/ui", "/livez",
        "/readyz", "/metrics", "/v2", "/v2/models/{name}/infer",
    } < set(document["paths"])  # fmt: skip


def test_the_example_gets_the_example_answer(any_server: httpx.Client, document: dict[str, Any]) -> None:
    operation = document["paths"]["/predict"]["post"]
    answer = any_server.post("/predict", json=operation["requestBody"]["content"]["application/json"]["example"])
    assert answer.json() == operation["responses"]["200"]["content"]["application/json"]["example"]
    conforms(document, "/predict", "post", answer)


def test_answers_and_errors_conform(any_server: httpx.Client, document: dict[str, Any]) -> None:
    conforms(document, "/model", "get", any_server.get("/model"))
    conforms(document, "/predict", "post", any_server.post("/predict", json={}))
    conforms(document, "/predict", "post", any_server.post("/predict", content=b"{}"))
    picture = {"Content-Type": "image/png"}
    conforms(document, "/predict_image", "post", any_server.post("/predict_image", content=b"x", headers=picture))
    scaled = {"instances": [[0] * 784], "strategy": "weight_scaling"}
    conforms(document, "/predict", "post", any_server.post("/predict", json=scaled))


def test_the_query_is_described(any_server: httpx.Client, document: dict[str, Any]) -> None:
    parameters = {entry["name"]: entry for entry in document["paths"]["/predict_image"]["post"]["parameters"]}
    assert set(parameters) == {
        "model", "strategy", "samples", "seed", "coverage", "target_error", "members", "invert",
    }  # fmt: skip
    assert parameters["samples"]["schema"]["default"] == any_server.get("/model").json()["default_samples"]
    assert parameters["strategy"]["schema"]["default"] == any_server.get("/model").json()["strategies"][0]


def test_every_documented_path_exists(any_server: httpx.Client, document: dict[str, Any]) -> None:
    model = any_server.get("/model").json()
    for path, operations in document["paths"].items():
        for method in operations:
            answer = any_server.request(method, path.format(name=model["name"], version=model["version"]))
            assert answer.status_code not in {404, 405, 500} or "report attached" in answer.text
