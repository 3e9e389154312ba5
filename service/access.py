"""API keys."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from http import HTTPStatus

from starlette.datastructures import Headers

from service.errors import RequestError

__all__ = ["OPEN_PATHS", "check_key"]

OPEN_PATHS = frozenset({"/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready", "/ui"})
"""What an orchestrator asks, and the page, which says nothing until it is given a key."""


def check_key(path: str, headers: Headers, hashes: Collection[bytes]) -> None:
    """Raises :class:`~service.errors.RequestError` unless the request brings a key with one of the SHA-256 ``hashes``.

    All of them are compared, each in constant time, so that the time taken tells nothing about them.
    """
    if not hashes or path in OPEN_PATHS:
        return
    scheme, _, token = headers.get("authorization", "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    found = hashlib.sha256(key.encode("latin-1")).digest()
    if not sum(hmac.compare_digest(found, known) for known in hashes):
        raise RequestError(
            HTTPStatus.UNAUTHORIZED,
            "this server wants an API key: send Authorization: Bearer KEY, or X-API-Key: KEY"
            if not key
            else "the API key is not one that this server knows",
            "Authorization",
            headers={"WWW-Authenticate": "Bearer"},
        )
