"""The table of faults, and how providers' refusals map to faults."""

from __future__ import annotations

from email.utils import formatdate

import orjson
import pytest

from protocol.errors import ERRORS
from server.upstreams.base import Fault
from server.upstreams.faults import CONSEQUENCES
from server.upstreams.litellm_faults import failure_of
from server.upstreams.provider_errors import MAX_RETRY_AFTER_SECONDS, failure, failure_inside, retry_after_seconds


def test_every_fault_has_a_row_with_a_code_of_the_protocol() -> None:
    assert set(CONSEQUENCES) == set(Fault)
    for fault, row in CONSEQUENCES.items():
        assert row.fault is fault
        assert row.code in ERRORS
        assert row.status == ERRORS[row.code].status
        assert row.meaning.endswith(".")


def test_a_request_that_is_at_fault_does_not_open_a_breaker() -> None:
    blameless = {fault for fault, row in CONSEQUENCES.items() if not row.counts_towards_breaker}
    assert blameless == {Fault.REJECTED, Fault.CONTEXT_LENGTH, Fault.CONTENT_FILTER, Fault.OFF_FORMAT}


@pytest.mark.parametrize(
    ("status", "error", "fault"),
    [
        (400, {"code": "context_length_exceeded"}, Fault.CONTEXT_LENGTH),
        (400, {"message": "This model's maximum context length is 8192 tokens"}, Fault.CONTEXT_LENGTH),
        (400, {"type": "exceed_context_size_error"}, Fault.CONTEXT_LENGTH),
        (400, {"code": "content_filter"}, Fault.CONTENT_FILTER),
        (400, {"message": "nonsense"}, Fault.REJECTED),
        (422, {}, Fault.REJECTED),
        (401, {}, Fault.UNAUTHORIZED),
        (402, {}, Fault.UNAUTHORIZED),
        (403, {}, Fault.UNAUTHORIZED),
        (404, {}, Fault.NOT_FOUND),
        (408, {}, Fault.SERVER_ERROR),
        (413, {}, Fault.CONTEXT_LENGTH),
        (429, {}, Fault.RATE_LIMITED),
        (429, {"code": "insufficient_quota"}, Fault.UNAUTHORIZED),
        (500, {}, Fault.SERVER_ERROR),
        (529, {"type": "overloaded_error"}, Fault.SERVER_ERROR),
        (302, {}, Fault.GARBLED),
    ],
)
def test_statuses(status: int, error: dict[str, str], fault: Fault) -> None:
    found = failure(status, orjson.dumps({"error": error}), {}, 0.0)
    assert (found.fault, found.status) == (fault, status)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"error": "text"}', b'{"error": null}', b"\xff"])
def test_any_body_will_do(body: bytes) -> None:
    assert failure(500, body, {}, 0.0).fault is Fault.SERVER_ERROR


def test_what_the_provider_says_stays_out_of_the_text() -> None:
    body = orjson.dumps({"error": {"message": "Incorrect API key: sk-secret", "code": "sk secret", "type": "invalid"}})
    assert str(failure(401, body, {}, 0.0)) == "HTTP 401 invalid"


def test_an_error_inside_a_200_may_hold_a_status() -> None:
    assert failure_inside({"code": 429, "message": "slow down"}).fault is Fault.RATE_LIMITED
    assert failure_inside({"type": "overloaded_error"}).fault is Fault.SERVER_ERROR
    assert failure_inside({"type": "rate_limit_error"}).fault is Fault.RATE_LIMITED
    assert failure_inside("broken").fault is Fault.SERVER_ERROR


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("1e9", MAX_RETRY_AFTER_SECONDS), ("nan", None),
     (formatdate(1_000_030, usegmt=True), 30.0), (formatdate(999_000, usegmt=True), 0.0)],
)  # fmt: skip
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_seconds({"retry-after": value}, 1_000_000.0) == seconds


def test_retry_after_in_milliseconds_wins() -> None:
    assert retry_after_seconds({"retry-after-ms": "250", "retry-after": "9"}, 0.0) == 0.25


class ConnectError(Exception):
    pass


class InternalServerError(Exception):
    status_code = 500


class MidStreamFallbackError(Exception):
    status_code = 503
    original_exception: Exception | None = None


def test_the_transport_says_more_than_the_class_litellm_chose() -> None:
    error = InternalServerError("Connection error with sk-secret")
    error.__cause__ = ConnectError()
    found = failure_of(error)
    assert found.fault is Fault.REFUSED
    assert "secret" not in str(found)


def test_litellm_wrappers_are_looked_through() -> None:
    error = MidStreamFallbackError()
    error.original_exception = UnicodeDecodeError("utf-8", b"", 0, 1, "x")
    assert failure_of(error).fault is Fault.GARBLED
    assert failure_of(MidStreamFallbackError()).fault is Fault.SERVER_ERROR


class Timeout(Exception):
    status_code = 504


class HTTPStatusError(Exception):
    status_code = 504


def test_a_504_is_the_providers_and_no_timeout_of_ours() -> None:
    error = Timeout()
    assert failure_of(error).fault is Fault.FIRST_TOKEN_TIMEOUT
    error.__cause__ = HTTPStatusError()
    found = failure_of(error)
    assert (found.fault, found.status) == (Fault.SERVER_ERROR, 504)


def test_the_effects_on_the_breaker() -> None:
    effects = {
        effect: {f for f, row in CONSEQUENCES.items() if row.breaker == effect} for effect in ("opens", "throttles")
    }
    assert effects == {"opens": {Fault.UNAUTHORIZED, Fault.NOT_FOUND}, "throttles": {Fault.RATE_LIMITED}}
