"""The Open Inference Protocol V2 over HTTP: requests from bytes, answers to bytes.

Also known as the KServe V2 protocol, which Triton and others speak:
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
with tensors as binary data after the JSON, as in Triton's extension:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

from service.protocol_v2.messages import (
    HEADER_LENGTH,
    InferenceRequestBody,
    InferenceResponseBody,
    ModelMetadata,
    ServerMetadata,
)
from service.protocol_v2.requests import InferRequest, WantedOutput, decode_infer, parse_header_length
from service.protocol_v2.responses import encode_infer, model_metadata, server_metadata

__all__ = [
    "HEADER_LENGTH",
    "InferRequest",
    "InferenceRequestBody",
    "InferenceResponseBody",
    "ModelMetadata",
    "ServerMetadata",
    "WantedOutput",
    "decode_infer",
    "encode_infer",
    "model_metadata",
    "parse_header_length",
    "server_metadata",
]
