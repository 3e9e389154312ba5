"""Requests of the Open Inference Protocol: what is read from them, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jsonschema import Draft202012Validator
from numpy.typing import NDArray

from service.errors import RequestError
from service.protocol_v2 import (
    HEADER_LENGTH,
    InferenceRequestBody,
    WantedOutput,
    decode_infer,
    parse_header_length,
)

BLACK = [0] * 784
PIXELS = st.integers(1, 3).flatmap(
    lambda count: arrays(np.float32, (count, 28, 28), elements=st.floats(0, 255, width=32))
)


def tensor(data: object = BLACK, **fields: object) -> dict[str, object]:
    """The input of one image; fields of ``None`` are left out."""
    described = {"name": "images", "datatype": "FP32", "shape": [1, 784], "data": data} | fields
    return {name: value for name, value in described.items() if value is not None}


def text(*inputs: object, **fields: object) -> bytes:
    return json.dumps({"inputs": inputs, **fields}).encode()


def binary_body(pixels: NDArray[Any], **fields: object) -> tuple[bytes, int]:
    """``pixels`` as binary data, and the length of the JSON before it."""
    datatype = {"uint8": "UINT8", "float32": "FP32"}[str(pixels.dtype)]
    parameters = {"binary_data_size": pixels.nbytes}
    head = text(tensor(None, datatype=datatype, shape=pixels.shape, parameters=parameters), **fields)
    return head + pixels.tobytes(), len(head)


def refusal(body: bytes, header_length: int | None = None) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode_infer(body, header_length)
    assert 0 < len(caught.value.message) <= 500
    return caught.value


@given(pixels=PIXELS, flat_images=st.booleans())
@settings(deadline=None, max_examples=50)
def test_pixels_arrive_bit_for_bit_as_json_and_as_binary(pixels: NDArray[np.float32], flat_images: bool) -> None:
    shaped = pixels.reshape(-1, 784) if flat_images else pixels
    nested = text(tensor(shaped.tolist(), shape=shaped.shape))
    flat = text(tensor(shaped.ravel().tolist(), shape=shaped.shape))
    for body, header_length in ((nested, None), (flat, None), (flat, len(flat)), binary_body(shaped)):
        decoded = decode_infer(body, header_length).pixels
        assert decoded.dtype == np.float32
        assert decoded.shape == pixels.shape
        assert decoded.tobytes() == pixels.tobytes()
        assert decoded.flags.writeable


def test_bytes_are_pixels_too() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 28, 28), dtype=np.uint8)
    from_json = decode_infer(text(tensor(pixels.tolist(), datatype="UINT8", shape=pixels.shape)), None)
    from_binary = decode_infer(*binary_body(pixels))
    assert np.array_equal(from_json.pixels, pixels)
    assert np.array_equal(from_binary.pixels, pixels)
    assert from_binary.pixels.dtype == np.float32


def test_what_a_request_leaves_out() -> None:
    request = decode_infer(text(tensor()), None)
    assert (request.id, request.model_name, request.parameters, request.outputs) == (None, None, {}, ())
    assert not request.binary


def test_what_a_request_can_say() -> None:
    options = {"strategy": "last_layer", "samples": "auto", "seed": 7, "coverage": 0.8, "target_error": 0.01}
    wanted = [
        {"name": "samples"},
        {"name": "label", "parameters": {"binary_data": False}},
        {"name": "abstain", "parameters": {}},
    ]
    body, header_length = binary_body(
        np.zeros((1, 784), np.uint8),
        id="é",
        model_name="mlp",
        parameters=options | {"binary_data_output": True},
        outputs=wanted,
    )
    request = decode_infer(body, header_length)
    assert (request.id, request.model_name, request.binary) == ("é", "mlp", True)
    assert request.parameters == options
    assert request.outputs == (
        WantedOutput("samples", True), WantedOutput("label", False), WantedOutput("abstain", True)
    )  # fmt: skip


def test_no_outputs_listed_and_nulls_are_as_left_out() -> None:
    nulls = text(tensor() | {"parameters": None}, id=None, parameters=None, outputs=[])
    assert decode_infer(nulls, None).outputs == ()


DEEP = b'{"inputs": ' + b"[" * 100_000
HUGE = 10**400
BAD: Mapping[str, tuple[bytes, int, str | None, str]] = {
    "empty": (b"", 400, None, "Invalid JSON"),
    "cut short": (text(tensor())[:-1], 400, None, "Invalid JSON"),
    "not UTF-8": (b'{"id": "\xff"}', 400, None, "Invalid JSON"),
    "half a surrogate": (b'{"id": "\\ud800"}', 400, None, "Invalid JSON"),
    "nested too deep": (DEEP, 400, None, "recursion limit"),
    "bytes after the JSON": (text(tensor()) + b"\x00", 400, None, "trailing characters"),
    "a list": (b"[]", 400, None, "a JSON object"),
    "no inputs": (b"{}", 400, "inputs", "Field required"),
    "inputs null": (b'{"inputs": null}', 400, "inputs", "valid list"),
    "zero inputs": (text(), 400, "inputs", "at least 1 item"),
    "two inputs": (text(tensor(), tensor()), 400, "inputs", "at most 1 item"),
    "another input": (text(tensor(name="image")), 400, "inputs.0.name", "'images'"),
    "an unknown field": (text(tensor(), input=1), 400, "input", "not permitted"),
    "an unknown field of the input": (text(tensor(dtype="FP32")), 400, "inputs.0.dtype", "not permitted"),
    "shared memory": (
        text(tensor(None, parameters={"shared_memory_region": "x"})),
        400, "inputs.0.parameters.shared_memory_region", "not permitted",
    ),
    "id a number": (text(tensor(), id=1), 400, "id", "valid string"),
    "a long id": (text(tensor(), id="x" * 257), 400, "id", "at most 256 characters"),
    "FP64": (text(tensor(datatype="FP64")), 400, "inputs.0.datatype", "'UINT8' or 'FP32'"),
    "no datatype": (text(tensor(datatype=None)), 400, "inputs.0.datatype", "required"),
    "no shape": (text(tensor(shape=None)), 400, "inputs.0.shape", "required"),
    "shape empty": (text(tensor(shape=[])), 400, "inputs.0.shape", "[N, 28, 28] or [N, 784]"),
    "shape without N": (text(tensor(shape=[784])), 400, "inputs.0.shape", "[N, 28, 28] or [N, 784]"),
    "shape with a channel": (text(tensor(shape=[1, 1, 28, 28])), 400, "inputs.0.shape", "[N, 28, 28]"),
    "zero images": (text(tensor([], shape=[0, 784])), 400, "inputs.0.shape", "N from 1 to 256"),
    "257 images": (text(tensor([], shape=[257, 784])), 400, "inputs.0.shape", "N from 1 to 256"),
    "shape beyond any memory": (text(tensor(shape=[HUGE, 784])), 400, "inputs.0.shape", "N from 1 to 256"),
    "negative shape": (text(tensor(shape=[-1, 28, 28])), 400, "inputs.0.shape", "N from 1 to 256"),
    "shape of fractions": (text(tensor(shape=[1.0, 784])), 400, "inputs.0.shape.0", "valid integer"),
    "shape of booleans": (text(tensor(shape=[True, 784])), 400, "inputs.0.shape.0", "valid integer"),
    "no data": (text(tensor(None)), 400, "inputs.0", "either data or parameters.binary_data_size"),
    "data an object": (text(tensor({})), 400, "inputs.0.data", "valid list"),
    "data empty": (text(tensor([])), 400, "inputs.0.data", "784 numbers"),
    "too few": (text(tensor(BLACK[1:])), 400, "inputs.0.data", "784 numbers"),
    "too many": (text(tensor([*BLACK, 0])), 400, "inputs.0.data", "784 numbers"),
    "nested otherwise than the shape": (
        text(tensor([[[0] * 28] * 28])), 400, "inputs.0.data", "flat or nested as the shape",
    ),
    "rows without images": (
        text(tensor([[0] * 28] * 28, shape=[1, 28, 28])), 400, "inputs.0.data", "nested as the shape",
    ),
    "ragged": (text(tensor([[0] * 783, [0] * 785], shape=[2, 784])), 400, "inputs.0.data", "1568 numbers"),
    "nested in part": (text(tensor([BLACK, 0], shape=[2, 784])), 400, "inputs.0.data", "1568 numbers"),
    "flat, then nested": (text(tensor([0, *[[0]] * 783])), 400, "inputs.0.data", "must be numbers"),
    "strings": (text(tensor(["7", *BLACK[1:]])), 400, "inputs.0.data", "must be numbers"),
    "null": (text(tensor([*BLACK[1:], None])), 400, "inputs.0.data", "must be numbers"),
    "booleans": (text(tensor([True, *BLACK[1:]])), 400, "inputs.0.data", "must be numbers"),
    "fractions as UINT8": (text(tensor([0.5, *BLACK[1:]], datatype="UINT8")), 400, "inputs.0.data", "whole numbers"),
    "256 as UINT8": (text(tensor([0, 256, *BLACK[2:]], datatype="UINT8")), 400, "inputs.0.data", "element 1 "),
    "-1 as UINT8": (text(tensor([-1, *BLACK[1:]], datatype="UINT8")), 400, "inputs.0.data", "element 0 "),
    "huge as UINT8": (text(tensor([*BLACK[1:], HUGE], datatype="UINT8")), 400, "inputs.0.data", "element 783 "),
    "256": (text(tensor([*BLACK[1:], 255.5])), 422, "inputs.0.data", "0..255, which element 783 is not"),
    "negative": (text(tensor([-0.1, *BLACK[1:]])), 422, "inputs.0.data", "0..255"),
    "NaN": (text(tensor([0, math.nan, *BLACK[2:]])), 422, "inputs.0.data", "element 1 "),
    "infinite": (text(tensor([math.inf, *BLACK[1:]])), 422, "inputs.0.data", "0..255"),
    "a huge exponent": (text(tensor()).replace(b"[0,", b"[1e999,", 1), 422, "inputs.0.data", "element 0 "),
    "huge": (text(tensor([0, math.nan, HUGE, *BLACK[3:]])), 422, "inputs.0.data", "element 1 "),
    "an unknown output": (text(tensor(), outputs=[{"name": "logits"}]), 400, "outputs.0.name", "'probabilities'"),
    "an output twice": (text(tensor(), outputs=[{"name": "label"}] * 2), 400, "outputs", "once"),
    "more outputs than there are": (text(tensor(), outputs=[{"name": "label"}] * 14), 400, "outputs", "at most 13"),
    "an output a string": (text(tensor(), outputs=["label"]), 400, "outputs.0", ""),
    "classification": (
        text(tensor(), outputs=[{"name": "label", "parameters": {"classification": 3}}]),
        400, "outputs.0.parameters.classification", "not permitted",
    ),
    "binary_data a number": (
        text(tensor(), outputs=[{"name": "label", "parameters": {"binary_data": 1}}]),
        400, "outputs.0.parameters.binary_data", "valid boolean",
    ),
    "an unknown parameter": (text(tensor(), parameters={"timeout": 5}), 400, "parameters.timeout", "not permitted"),
    "members": (text(tensor(), parameters={"members": "votes"}), 400, "parameters.members", "not permitted"),
    "parameter null": (text(tensor(), parameters={"seed": None}), 400, "parameters.seed", "string, a finite number"),
    "parameter a list": (text(tensor(), parameters={"seed": [1]}), 400, "parameters.seed", "string, a finite number"),
    "parameter NaN": (text(tensor(), parameters={"coverage": math.nan}), 400, "parameters.coverage", "finite"),
    "binary without its header": (
        text(tensor(None, parameters={"binary_data_size": 3136})), 400, None, "0 bytes follow the JSON",
    ),
    "binary and data": (
        text(tensor(parameters={"binary_data_size": 3136})), 400, "inputs.0", "either data or parameters",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case: str) -> None:
    body, status, field, message = BAD[case]
    error = refusal(body)
    assert (error.status, error.field) == (status, field)
    assert message in error.message


@pytest.mark.parametrize(
    ("size", "sent", "field"),
    [
        (3135, 3136, "inputs.0.parameters.binary_data_size"),
        (3136, 3135, None),
        (3136, 3137, None),
        (3136, 0, None),
        (784, 784, "inputs.0.parameters.binary_data_size"),
        (0, 0, "inputs.0.parameters.binary_data_size"),
        (-1, 0, "inputs.0.parameters.binary_data_size"),
        (HUGE, 3136, "inputs.0.parameters.binary_data_size"),
        ("3136", 3136, "inputs.0.parameters.binary_data_size"),
        (3136.0, 3136, "inputs.0.parameters.binary_data_size"),
        (True, 1, "inputs.0.parameters.binary_data_size"),
    ],
)
def test_binary_data_of_another_size_is_refused(size: object, sent: int, field: str | None) -> None:
    head = text(tensor(None, parameters={"binary_data_size": size}))
    error = refusal(head + bytes(sent), len(head))
    assert (error.status, error.field) == (400, field)


def test_bytes_that_nothing_speaks_of_are_refused() -> None:
    head = text(tensor())
    assert "1 bytes follow the JSON, which says nothing of them" in refusal(head + b"\x00", len(head)).message


@pytest.mark.parametrize("value", [-math.inf, -1.0, 255.5, math.inf, math.nan])
def test_binary_pixels_out_of_range_are_refused(value: float) -> None:
    pixels = np.zeros((2, 784), np.float32)
    pixels[1, 3] = value
    error = refusal(*binary_body(pixels))
    assert (error.status, error.field) == (422, "inputs.0.data")
    assert "element 787 " in error.message


def test_a_signalling_nan_is_refused_without_a_warning() -> None:
    pixels = np.full(784, 0x7F800001, np.uint32).view(np.float32).reshape(1, 784)
    assert refusal(*binary_body(pixels)).status == 422


@pytest.mark.parametrize("length", [-1, 0, 10**9])
def test_absurd_header_lengths_are_refused(length: int) -> None:
    error = refusal(text(tensor()), length)
    assert (error.status, error.field) == (400, HEADER_LENGTH)


def test_header_lengths_that_cut_the_json_are_refused() -> None:
    body, header_length = binary_body(np.zeros((1, 784), np.uint8))
    for length in (1, header_length - 1, header_length + 1, len(body)):
        assert "Invalid JSON" in refusal(body, length).message


def test_header_lengths_are_decimal_digits() -> None:
    assert parse_header_length(None) is None
    assert parse_header_length("0123") == 123
    for value in ("", " 5", "+5", "-5", "5.0", "1_000", "0x10", "٣", "five", "9" * 5000):
        with pytest.raises(RequestError) as caught:
            parse_header_length(value)
        assert caught.value.status == 400


@given(body=st.binary(max_size=300), header_length=st.none() | st.integers(-2, 310))
@settings(deadline=None, max_examples=300)
def test_no_bytes_are_worse_than_refused(body: bytes, header_length: int | None) -> None:
    refusal(body, header_length)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    where=st.sampled_from(
        ["id", "model_name", "parameters", "inputs", "outputs", "shape", "data", "datatype", "first"]
    ),
    value=JSON_VALUES,
)
@settings(deadline=None, max_examples=300)
def test_any_value_anywhere_is_taken_or_refused(where: str, value: object) -> None:
    one = tensor()
    if where == "first":
        one["data"] = [value, *BLACK[1:]]
    elif where in one:
        one[where] = value
    content = {"inputs": [one]} | ({where: value} if where not in one and where != "first" else {})
    try:
        decode_infer(json.dumps(content).encode(), None)
    except RequestError as error:
        assert error.status in {400, 422}  # noqa: PT017


@given(position=st.integers(0, 1000), value=st.integers(0, 255))
@settings(deadline=None, max_examples=300)
def test_a_damaged_request_is_taken_or_refused(position: int, value: int) -> None:
    body, header_length = binary_body(np.full((1, 28, 28), 200, np.float32), outputs=[{"name": "label"}])
    damaged = bytearray(body)
    damaged[position] = value
    try:
        pixels = decode_infer(bytes(damaged), header_length).pixels
        assert ((pixels >= 0) & (pixels <= 255)).all()
    except RequestError as error:
        assert error.status in {400, 422}  # noqa: PT017


def test_the_schema_knows_what_is_taken() -> None:
    validator = Draft202012Validator(InferenceRequestBody.model_json_schema())
    validator.validate(json.loads(text(tensor(), id="1", parameters={"samples": "auto"}, outputs=[{"name": "label"}])))
    assert not validator.is_valid({"inputs": [tensor()], "parameters": {"magic": 1}})
    assert not validator.is_valid({"inputs": []})
