"""The tables of error and close codes."""

from __future__ import annotations

import re
from http import HTTPStatus

import pytest

from protocol.errors import CLOSE_MEANINGS, ERRORS, CloseCode, ProtocolError, may_reconnect
from protocol.frames import ErrorBody

NAMED = {
    "invalid_frame": 400,
    "unauthenticated": 401,
    "token_expired": 401,
    "forbidden": 403,
    "message_unknown": 404,
    "model_not_found": 404,
    "conversation_busy": 409,
    "idempotency_mismatch": 422,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "request_too_large_for_tier": 400,
    "quota_exceeded": 429,
    "rate_limited": 429,
    "too_many_messages": 429,
    "upstream_rejected": 400,
    "upstream_unavailable": 503,
    "upstream_timeout": 504,
    "all_targets_failed": 503,
    "store_unavailable": 503,
    "draining": 503,
    "internal": 500,
}
"""Those that protocol version 1 promises."""


@pytest.mark.parametrize("code", ERRORS)
def test_every_code_makes_sense(code: str) -> None:
    row = ERRORS[code]
    assert row.code == code
    assert re.fullmatch(r"[a-z_]+", code)
    assert HTTPStatus(row.status) >= 400
    assert row.retryable == (row.error_class == "temporary")
    assert row.meaning.endswith(".")
    body = ErrorBody.model_validate(ProtocolError(code, "because").as_dict())
    assert (body.code, body.status, body.retryable) == (code, row.status, row.retryable)


def test_codes_that_must_exist() -> None:
    for code, status in NAMED.items():
        assert ERRORS[code].status == status


def test_wire_form() -> None:
    error = ProtocolError("quota_exceeded", "wait", retry_after_ms=5, details={"limit": "x"})
    assert error.as_dict() == {
        "code": "quota_exceeded",
        "class": "temporary",
        "status": 429,
        "message": "wait",
        "retryable": True,
        "retry_after_ms": 5,
        "details": {"limit": "x"},
    }
    permanent = ProtocolError("all_targets_failed", "each said no", error_class="permanent")
    assert (permanent.retryable, permanent.as_dict()["class"]) == (False, "permanent")
    with pytest.raises(KeyError):
        ProtocolError("no_such_code", "x")


def test_close_codes() -> None:
    assert CLOSE_MEANINGS.keys() == set(CloseCode)
    reconnect = {code for code in CloseCode if may_reconnect(code)}
    assert reconnect == {1001, 1011, 1012, 1013}
    assert may_reconnect(1006)
    assert not may_reconnect(4450)
