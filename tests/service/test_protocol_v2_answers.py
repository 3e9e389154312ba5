"""Answers of the Open Inference Protocol, read as its description says, and what the server says of itself."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import RequestError
from service.protocol_v2 import (
    HEADER_LENGTH,
    InferenceResponseBody,
    InferRequest,
    WantedOutput,
    encode_infer,
    model_metadata,
    server_metadata,
)
from training.data import CLASSES

READ = {"FP32": "<f4", "INT64": "<i8", "BOOL": "?"}
FRACTIONS = st.floats(0, 3, width=32)
DECISION = {
    "coverage": 0.9, "min_probability": 0.12, "target_error": 0.05, "min_confidence": 0.63, "guarantee": "exact",
}  # fmt: skip


def prediction(probabilities: list[float], total: float = 0.5, **fields: object) -> dict[str, object]:
    best = int(np.argmax(probabilities))
    described: dict[str, object] = {
        "label": CLASSES[best],
        "class_index": best,
        "confidence": probabilities[best],
        "probabilities": dict(zip(CLASSES, probabilities, strict=True)),
        "uncertainty": {"total": total, "aleatoric": total / 2, "epistemic": total / 4},
        "novelty": {"distance": 12.5, "p_value": 0.25},
        "standard_error": 0.003347,
        "samples": 64,
        "prediction_set": [CLASSES[best], CLASSES[0]],
        "abstain": best == 3,
        "reason": None,
        "members": None,
    }
    return described | fields


def answer(*predictions: dict[str, object], decision: object = DECISION) -> dict[str, object]:
    return {
        "model": {"name": "mlp", "version": "26deb87a0870"},
        "strategy": "mc_dropout",
        "samples": 64,
        "temperature": 0.673768,
        "decision": decision,
        "predictions": predictions,
    }


SURE = prediction([0.0] * 9 + [1.0])


def wanting(*outputs: WantedOutput, binary: bool = False, request_id: str | None = None) -> InferRequest:
    return InferRequest(request_id, None, np.zeros((1, 28, 28), np.float32), {}, outputs, binary)


def read(body: bytes, headers: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The JSON of a response, and its tensors by name, as the protocol's description says to read them."""
    length = int(headers.get(HEADER_LENGTH, len(body)))
    content = json.loads(body[:length])
    assert InferenceResponseBody.model_validate(content).model_dump(exclude_none=True) == content
    rest, tensors = body[length:], {}
    for output in content["outputs"]:
        if "parameters" not in output:
            tensors[output["name"]] = np.array(output["data"], READ.get(output["datatype"])).reshape(output["shape"])
            continue
        assert "data" not in output
        size = output["parameters"]["binary_data_size"]
        raw, rest = rest[:size], rest[size:]
        assert len(raw) == size
        values = strings(raw) if output["datatype"] == "BYTES" else np.frombuffer(raw, READ[output["datatype"]])
        tensors[output["name"]] = np.reshape(values, output["shape"])
    assert not rest
    return content, tensors


def strings(raw: bytes) -> list[str]:
    found = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        found.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return found


@given(rows=st.lists(st.lists(FRACTIONS, min_size=10, max_size=10), min_size=1, max_size=3), total=FRACTIONS)
@settings(deadline=None, max_examples=50)
def test_an_answer_reads_the_same_as_json_and_as_binary(rows: list[list[float]], total: float) -> None:
    given_answer = answer(*[prediction(row, total) for row in rows])
    _, as_json = read(*encode_infer(wanting(), given_answer, CLASSES))
    body, headers = encode_infer(wanting(binary=True), given_answer, CLASSES)
    assert headers["Content-Type"] == "application/octet-stream"
    _, as_binary = read(body, headers)
    assert as_json.keys() == as_binary.keys()
    for name, values in as_json.items():
        assert values.tobytes() == as_binary[name].tobytes() or name == "label"
        assert values.tolist() == as_binary[name].tolist()
    assert as_binary["probabilities"].tobytes() == np.array(rows, "<f4").tobytes()
    assert as_binary["total_uncertainty"].tobytes() == np.array([total] * len(rows), "<f4").tobytes()


def test_every_output_of_an_answer() -> None:
    second = prediction([0.25, 0, 0, 0.75, *[0] * 6], prediction_set=[], samples=80)
    body, headers = encode_infer(wanting(), answer(SURE, second), CLASSES)
    assert headers == {"Content-Type": "application/json"}
    content, tensors = read(body, headers)
    per_image = {name: values.tolist() for name, values in tensors.items() if values.ndim == 1}
    assert per_image == {
        "label": ["Ankle boot", "Dress"],
        "class_index": [9, 3],
        "confidence": [1.0, 0.75],
        "total_uncertainty": [0.5, 0.5],
        "aleatoric_uncertainty": [0.25, 0.25],
        "epistemic_uncertainty": [0.125, 0.125],
        "novelty_distance": [12.5, 12.5],
        "novelty_p_value": [0.25, 0.25],
        "standard_error": [np.float32(0.003347)] * 2,
        "abstain": [False, True],
        "samples": [64, 80],
    }  # fmt: skip
    assert tensors["probabilities"].tolist() == [[0.0] * 9 + [1.0], [0.25, 0, 0, 0.75, *[0] * 6]]
    assert tensors["prediction_set"].tolist() == [[True, *[False] * 8, True], [False] * 10]
    assert content["outputs"][0] == {
        "name": "label",
        "datatype": "BYTES",
        "shape": [2],
        "data": ["Ankle boot", "Dress"],
    }
    assert content["model_name"] == "mlp"
    assert content["model_version"] == "26deb87a0870"
    assert content["parameters"] == {"strategy": "mc_dropout", "temperature": 0.673768, **DECISION}
    assert "id" not in content


def test_outputs_come_as_and_in_the_order_they_were_asked_for() -> None:
    request = wanting(WantedOutput("samples", True), WantedOutput("label", False), WantedOutput("abstain", True))
    content, tensors = read(*encode_infer(request, answer(SURE), CLASSES))
    assert list(tensors) == ["samples", "label", "abstain"]
    assert [("data" in output) for output in content["outputs"]] == [False, True, False]


def test_what_a_strategy_does_not_give_is_left_out_and_refused_by_name() -> None:
    single = prediction(
        [0.0] * 9 + [1.0], uncertainty={"total": 0.5, "aleatoric": None, "epistemic": None}, standard_error=None
    )
    given_answer = answer(single) | {"strategy": "weight_scaling"}
    _, tensors = read(*encode_infer(wanting(), given_answer, CLASSES))
    missing = {"aleatoric_uncertainty", "epistemic_uncertainty", "standard_error"}
    assert not missing & tensors.keys()
    assert len(tensors) == 10
    with pytest.raises(RequestError, match="weight_scaling gives no standard_error; leave it out") as caught:
        encode_infer(wanting(WantedOutput("label", True), WantedOutput("standard_error", True)), given_answer, CLASSES)
    assert (caught.value.status, caught.value.field) == (400, "outputs.1.name")


def test_an_uncalibrated_model_decides_nothing() -> None:
    given_answer = answer(prediction([1.0] + [0.0] * 9, prediction_set=None, abstain=None), decision=None)
    content, tensors = read(*encode_infer(wanting(), given_answer, CLASSES))
    assert not {"prediction_set", "abstain"} & tensors.keys()
    assert content["parameters"] == {"strategy": "mc_dropout", "temperature": 0.673768}
    with pytest.raises(RequestError, match="an uncalibrated model gives no abstain"):
        encode_infer(wanting(WantedOutput("abstain", False)), given_answer, CLASSES)


def test_a_model_without_a_density_gives_no_novelty() -> None:
    given_answer = answer(prediction([1.0] + [0.0] * 9, novelty=None))
    _, tensors = read(*encode_infer(wanting(), given_answer, CLASSES))
    assert not {"novelty_distance", "novelty_p_value"} & tensors.keys()
    with pytest.raises(RequestError, match="a model without a density of its training images gives no novelty_p_value"):
        encode_infer(wanting(WantedOutput("novelty_p_value", False)), given_answer, CLASSES)


def test_without_a_guarantee_there_is_no_least_confidence() -> None:
    content, tensors = read(
        *encode_infer(
            wanting(), answer(SURE | {"abstain": True}, decision=DECISION | {"min_confidence": None}), CLASSES
        )
    )
    assert "min_confidence" not in content["parameters"]
    assert tensors["abstain"].tolist() == [True]


def test_an_id_comes_back_whatever_is_in_it() -> None:
    for binary in (False, True):
        content, _ = read(*encode_infer(wanting(binary=binary, request_id='é"\n\x00'), answer(SURE), CLASSES))
        assert content["id"] == 'é"\n\x00'


def test_what_the_server_and_a_model_say_of_themselves() -> None:
    server = server_metadata()
    assert server["name"] == "dropout-uncertainty"
    assert "binary_tensor_data" in server["extensions"]
    model = model_metadata("mlp", ["26deb87a0870"], CLASSES, (28, 28))
    assert model["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28]}]
    _, tensors = read(*encode_infer(wanting(), answer(SURE), CLASSES))
    assert [output["name"] for output in model["outputs"]] == list(tensors)
    for output in model["outputs"]:
        assert output["shape"][1:] == list(tensors[output["name"]].shape[1:])
