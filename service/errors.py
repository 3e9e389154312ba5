"""The one shape of an error, and the one place that gives faults their status.

{"error": {"code": "...", "message": "...", "field": "instances.0" or null, "request_id": "..."}}
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from pydantic import BaseModel, Field, ValidationError
from starlette.responses import JSONResponse

__all__ = ["ErrorBody", "ErrorResponse", "RequestError", "from_status", "from_validation"]

MESSAGE_LIMIT = 500
FIELD_LIMIT = 100
UNION_TAGS = frozenset({"flat", "rows", "auto", "number"})
"""Names that pydantic puts into an error's place though the request has nothing there."""

CODES = {
    HTTPStatus.BAD_REQUEST: "bad_request",
    HTTPStatus.UNAUTHORIZED: "unauthorized",
    HTTPStatus.NOT_FOUND: "not_found",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "body_too_large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "unsupported_media_type",
    HTTPStatus.UNPROCESSABLE_ENTITY: "unprocessable",
    HTTPStatus.TOO_MANY_REQUESTS: "too_many_requests",
    HTTPStatus.INTERNAL_SERVER_ERROR: "internal_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "unavailable",
    HTTPStatus.GATEWAY_TIMEOUT: "timeout",
}
MESSAGES = {
    HTTPStatus.NOT_FOUND: "there is nothing at this path; /docs.json lists what there is",
    HTTPStatus.METHOD_NOT_ALLOWED: "this path does not answer this method; /docs.json lists what it answers",
    HTTPStatus.UNAUTHORIZED: "this server wants an API key that it knows",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "the body is larger than this path takes",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "this path does not take bodies of this Content-Type",
    HTTPStatus.UNPROCESSABLE_ENTITY: "the body can't be understood as what it is said to be",
    HTTPStatus.TOO_MANY_REQUESTS: "the server has more work than it can do in time; try again",
    HTTPStatus.SERVICE_UNAVAILABLE: "the server is not ready, or about to end; try again",
    HTTPStatus.GATEWAY_TIMEOUT: "the request took too long and was given up; try again with fewer instances or samples",
    HTTPStatus.INTERNAL_SERVER_ERROR: "the server failed to answer; its log says more under this request_id",
}


class ErrorDetail(BaseModel):
    code: str = Field(description="what kind of error, for programs")
    message: str = Field(description="what was wrong and what to do, for people")
    field: str | None = Field(description="where in the request, if it was in one place")
    request_id: str


class ErrorBody(BaseModel):
    error: ErrorDetail


class RequestError(Exception):
    """Something wrong with a request."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        field: str | None = None,
        *,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 3] + "..."
        self.field = field if field is None else field[:FIELD_LIMIT]
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    @property
    def code(self) -> str:
        """What kind of error, for programs."""
        return CODES.get(self.status, self.status.phrase.lower().replace(" ", "_"))


class ErrorResponse(JSONResponse):
    """A :class:`RequestError` as a response."""

    def __init__(self, fault: RequestError, request_id: str) -> None:
        detail = ErrorDetail(
            code=fault.code, message=fault.message, field=fault.field, request_id=request_id,
        )  # fmt: skip
        super().__init__(ErrorBody(error=detail).model_dump(), status_code=fault.status, headers=fault.headers)


def from_status(status: HTTPStatus, retry_after: int | None = None) -> RequestError:
    """The error that its status says all of."""
    return RequestError(status, MESSAGES.get(status, status.description or status.phrase), retry_after=retry_after)


def from_validation(error: ValidationError) -> RequestError:
    """The first of the errors that pydantic found, by its place in the request."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    more = error.error_count() - 1
    field = ".".join(str(part) for part in first["loc"] if part not in UNION_TAGS)[:FIELD_LIMIT] or None
    where = f"{field}: " if field else ""
    return RequestError(
        HTTPStatus.BAD_REQUEST, f"{where}{first['msg']}" + (f" (and {more} more errors)" if more else ""), field
    )
