"""What a provider's refusal means: HTTP status, headers and error body to an `UpstreamFailure`. Pure.

The text of a failure is made of our own words, the status, and the provider's `code` and `type`; never of its
`message`, which may quote the key or the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final

import orjson

from server.upstreams.base import Fault, UpstreamFailure

MAX_RETRY_AFTER_SECONDS: Final = 3600.0
"""A longer wait is cut to this: no provider means it, and a breaker must be able to probe."""

_REQUEST_AT_FAULT: Final = frozenset({400, 415, 422, 451})
"""Statuses that blame what was asked; any other 4xx that is not treated by itself says nothing about the request, and
another target may well answer it."""

_NAME: Final = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_CONTEXT: Final = re.compile(
    r"context.?(length|window|size)|maximum (context|input|prompt)|too many (input )?tokens|prompt is too long"
    r"|input is too long|exceed_context|string_above_max_length|request_too_large",
    re.IGNORECASE,
)
_FILTER: Final = re.compile(
    r"content.?(filter|policy|management)|responsibleai|moderation|safety_violation|flagged", re.IGNORECASE
)
_NO_CREDIT: Final = re.compile(r"insufficient_(quota|balance|credits?)|billing|credit balance", re.IGNORECASE)
_RATE: Final = re.compile(r"rate.?limit|too many requests|throttl|resource_exhausted", re.IGNORECASE)
_KEY: Final = re.compile(r"invalid.?api.?key|authentication|permission|unauthorized", re.IGNORECASE)
_INVALID: Final = re.compile(r"invalid_request|bad_request|badrequest|unsupported_", re.IGNORECASE)


def failure(status: int, body: bytes, headers: Mapping[str, str], now: float) -> UpstreamFailure:
    """The failure an answer with an error status is. `now` is in seconds since the epoch."""
    error = _error_of(body)
    fault = _by_status(status, _words(error))
    wait = retry_after_seconds(headers, now)
    return UpstreamFailure(fault, _text(f"HTTP {status}", error), status=status, retry_after_seconds=wait)


def failure_inside(error: Any) -> UpstreamFailure:
    """The failure that an error object inside a 200 is. Its `code` may be an HTTP status (OpenRouter)."""
    error = error if isinstance(error, dict) else {"message": str(error)}
    status = _status_in(error)
    words = _words(error)
    return UpstreamFailure(fault_of(status, words), _text("an error within the answer", error), status=status or 200)


def fault_of(status: int | None, words: str) -> Fault:
    """The fault by HTTP status, where there is one, and by the provider's words: code, type and message."""
    return _by_words(words) if status is None else _by_status(status, words)


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """The wait of a Retry-After header (RFC 9110 section 10.2.3), or of `retry-after-ms`; None without or if broken."""
    if (precise := headers.get("retry-after-ms")) is not None and (wait := _number(precise)) is not None:
        return _bounded(wait / 1000)
    value = headers.get("retry-after")
    if value is None:
        return None
    if (wait := _number(value)) is not None:
        return _bounded(wait)
    try:
        return _bounded(parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _by_status(status: int, words: str) -> Fault:
    if status in (401, 402, 403, 407):
        return Fault.CONTENT_FILTER if status == 403 and _FILTER.search(words) else Fault.UNAUTHORIZED
    if status == 429:
        return Fault.UNAUTHORIZED if _NO_CREDIT.search(words) else Fault.RATE_LIMITED
    if status in (404, 405, 410):
        return Fault.NOT_FOUND
    if status == 413:
        return Fault.CONTEXT_LENGTH
    if status >= 500 or status in (408, 409, 425):
        return Fault.SERVER_ERROR
    if status < 400:
        return Fault.GARBLED
    if _CONTEXT.search(words):
        return Fault.CONTEXT_LENGTH
    if _FILTER.search(words):
        return Fault.CONTENT_FILTER
    return Fault.REJECTED if status in _REQUEST_AT_FAULT else Fault.SERVER_ERROR


def _by_words(words: str) -> Fault:
    rules = (
        (_CONTEXT, Fault.CONTEXT_LENGTH),
        (_FILTER, Fault.CONTENT_FILTER),
        (_NO_CREDIT, Fault.UNAUTHORIZED),
        (_RATE, Fault.RATE_LIMITED),
        (_KEY, Fault.UNAUTHORIZED),
        (_INVALID, Fault.REJECTED),
    )
    return next((fault for pattern, fault in rules if pattern.search(words)), Fault.SERVER_ERROR)


def _error_of(body: bytes) -> dict[str, Any]:
    """The error object of a body: `{"error": {…}}`, `{"error": "…"}`, `{"message": …}`, or nothing."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if isinstance(found, list) and found:
        found = found[0]
    if not isinstance(found, dict):
        return {}
    inner = found.get("error", found)
    return inner if isinstance(inner, dict) else {"message": str(inner)}


def _words(error: Mapping[str, Any]) -> str:
    return " ".join(str(error[name]) for name in ("code", "type", "status", "message") if error.get(name))


def _text(start: str, error: Mapping[str, Any]) -> str:
    names = [str(error[name]) for name in ("code", "type") if error.get(name)]
    return " ".join((start, *(name for name in names if _NAME.fullmatch(name))))


def _status_in(error: Mapping[str, Any]) -> int | None:
    code = error.get("code", error.get("status"))
    if isinstance(code, str) and code.isdecimal():
        code = int(code)
    return code if isinstance(code, int) and 400 <= code <= 599 else None


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value == value else None


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)
