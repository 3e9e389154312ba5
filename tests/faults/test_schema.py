"""Requests made of the OpenAPI document alone, right ones and wrong ones: the server does as it says."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks as openapi

EXAMPLES = 8
CHECKS = [
    checks.not_a_server_error, openapi.status_code_conformance, openapi.content_type_conformance,
    openapi.response_headers_conformance, openapi.response_schema_conformance,
]  # fmt: skip
WRONG = [*CHECKS, openapi.negative_data_rejection]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(schemathesis|jsonschema|hypothesis).*")


@pytest.fixture(scope="module")
def operations(server: httpx.Client) -> dict[str, Any]:
    document = schemathesis.openapi.from_url(f"{server.base_url}/docs.json")
    found = [result.ok() for result in document.get_all_operations() if isinstance(result, Ok)]
    assert len(found) == document.statistic.operations.total
    return {operation.label: operation for operation in found}


def test_it_describes_what_there_is(operations: dict[str, Any]) -> None:
    assert {"POST /predict", "POST /predict_image", "POST /predict_raw", "POST /compare", "GET /model"} < set(
        operations
    )


def fuzz(operation: Any, mode: GenerationMode, wanted: list[Any]) -> int:
    """How many requests were sent."""
    asked = 0

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        nonlocal asked
        asked += 1
        case.call_and_validate(checks=wanted, timeout=30)

    check()
    return asked


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_answers_are_what_the_document_says(operations: dict[str, Any], mode: GenerationMode) -> None:
    wanted = CHECKS if mode is GenerationMode.POSITIVE else WRONG
    asked = 0
    for operation in operations.values():
        if mode is GenerationMode.NEGATIVE and not (operation.query or operation.body):
            continue  # Nothing in it can be wrong: any string may be a name.
        asked += fuzz(operation, mode, wanted)
    assert asked > 50
