"""How a failure looks over HTTP: OpenAI's error object with our fields, the right status, and when to come back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import JSONResponse

from protocol.errors import ERRORS, ProtocolError

TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""`error.type` by status, as OpenAI names them; other 4xx are `invalid_request_error`, 5xx `server_error`."""


class BadRequest(ProtocolError):
    """What the client sent is malformed; `param` names the field, header or parameter."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(code, message)
        self.param = param


def error_type(status: int) -> str:
    """`error.type` for an HTTP status."""
    return TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def error_object(error: Mapping[str, Any], param: str | None = None) -> dict[str, Any]:
    """The value of `error` in a response: the wire form of `protocol.errors` with OpenAI's `type` and `param`."""
    return {**error, "type": error_type(error["status"]), "param": param}


def retry_headers(error: ProtocolError) -> dict[str, str]:
    """Whether and when to come back, in the forms that the stock SDKs read (RFC 9110 section 10.2.3 and theirs)."""
    headers = {"x-should-retry": "true" if error.retryable else "false"}
    if error.retry_after_ms is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_ms / 1000))
        headers["retry-after-ms"] = str(error.retry_after_ms)
    return headers


def error_response(error: ProtocolError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response that tells of `error`."""
    param = error.param if isinstance(error, BadRequest) else None
    all_headers = {**retry_headers(error), **(headers or {})}
    if error.status == 401:
        all_headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error_object(error.as_dict(), param)}, error.status, all_headers)


def stored_error(body: Mapping[str, Any], retry_after_ms: int | None = None) -> ProtocolError:
    """The error that a message ended with, to be raised again; `retry_after_ms` as it is now."""
    code = body["code"] if body["code"] in ERRORS else "internal"
    return ProtocolError(
        code,
        body["message"],
        retry_after_ms=retry_after_ms,
        details=body.get("details"),
        error_class=body["class"],
    )
