"""Every error code and every WebSocket close code of the protocol, in one table each.

An error travels as `{code, class, status, message, retryable, retry_after_ms?, details?}` inside `error` and `failed`
frames and, over HTTP, under the key `error`. `class` says whether the same request may succeed later
(`temporary`) or never will (`permanent`); `status` is the HTTP status of the same failure (RFC 9110, RFC 6585).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Literal

ErrorClass = Literal["temporary", "permanent"]


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """One row of the table: what a code means, wherever it appears."""

    code: str
    """Machine-readable name; stable within protocol version 1."""
    error_class: ErrorClass
    """`temporary`: the same request may succeed later. `permanent`: it will not."""
    status: int
    """HTTP status of the same failure."""
    meaning: str
    """What happened and what to do, for the documentation."""

    @property
    def retryable(self) -> bool:
        """Whether sending the same request again can help."""
        return self.error_class == "temporary"


_TABLE: Final = (
    ErrorCode("invalid_frame", "permanent", 400, "A frame or field is malformed; `message` names it."),
    ErrorCode("unauthenticated", "permanent", 401, "No token, or one that is not valid here. Get a new one."),
    ErrorCode("token_expired", "permanent", 401, "The token's time is over. Renew it with `auth`, then ask again."),
    ErrorCode("forbidden", "permanent", 403, "The credentials are valid but do not allow this."),
    ErrorCode("message_unknown", "permanent", 404, "No message of this user has this id, or it has expired."),
    ErrorCode("conversation_unknown", "permanent", 404, "No conversation of this user has this id."),
    ErrorCode("job_unknown", "permanent", 404, "No job of this user has this id, or it has expired."),
    ErrorCode("job_expired", "permanent", 410, "The job's time (`jobs.run_seconds`) was over before this was begun."),
    ErrorCode("model_not_found", "permanent", 404, "No route has this name; `details.models` lists those there are."),
    ErrorCode(
        "prompt_not_found",
        "permanent",
        404,
        "No prompt has this name, or no version on offer is in the range asked for.",
    ),
    ErrorCode("conversation_busy", "temporary", 409, "The conversation is answering and `on_busy` is `reject`."),
    ErrorCode(
        "conversation_limit", "permanent", 400, "A limit of conversations is reached; `details` has its name and size."
    ),
    ErrorCode("idempotency_mismatch", "permanent", 422, "This id was used before, for a different request."),
    ErrorCode("context_length_exceeded", "permanent", 400, "The input does not fit into the model's context."),
    ErrorCode("content_filter", "permanent", 400, "The provider refused the content."),
    ErrorCode(
        "request_too_large_for_tier", "permanent", 400, "Larger than the tier's bucket can ever hold: do not wait."
    ),
    ErrorCode("quota_exceeded", "temporary", 429, "The quota is used up; `retry_after_ms` is the exact wait."),
    ErrorCode("rate_limited", "temporary", 429, "Too many frames, handshakes or connections in a short time."),
    ErrorCode("too_many_messages", "temporary", 429, "Too many messages are open at once on this connection."),
    ErrorCode("too_many_jobs", "temporary", 429, "No more jobs of this user are kept; old ones go by themselves."),
    ErrorCode("upstream_rejected", "permanent", 400, "The provider refused the request as invalid."),
    ErrorCode("upstream_unavailable", "temporary", 503, "The provider could not be reached or broke off."),
    ErrorCode("upstream_timeout", "temporary", 504, "The provider did not answer in time."),
    ErrorCode("output_invalid", "temporary", 502, "The answer does not fit the `response_format` that was asked for."),
    ErrorCode("all_targets_failed", "temporary", 503, "Every target of the route failed."),
    ErrorCode("store_unavailable", "temporary", 503, "Redis does not answer; nothing was started."),
    ErrorCode("draining", "temporary", 503, "This node is shutting down. Reconnect and ask again."),
    ErrorCode(
        "answer_restarted",
        "temporary",
        503,
        "What an HTTP response had sent was withdrawn by a restart; the answer goes on. Repeat with the same key.",
    ),
    ErrorCode("invalid_request", "permanent", 400, "An HTTP body, header or parameter is malformed; `param` names it."),
    ErrorCode("not_found", "permanent", 404, "There is nothing at this path."),
    ErrorCode("method_not_allowed", "permanent", 405, "This path does not serve this method; see `Allow`."),
    ErrorCode("body_too_large", "permanent", 413, "The HTTP body is too large; `details.limit` is the limit."),
    ErrorCode("unsupported_media_type", "permanent", 415, "The HTTP body is of a type that this path does not take."),
    ErrorCode("not_supported", "permanent", 501, "This server does not offer this yet."),
    ErrorCode("internal", "temporary", 500, "A defect of the server; the log has it under the given id."),
)

ERRORS: Final[dict[str, ErrorCode]] = {row.code: row for row in _TABLE}
"""Every error code, by name."""

ATTEMPT_REASONS: Final[dict[str, str]] = {
    "hedged": "The target before it was silent; this one was asked too and answered first.",
    "owner_lost": "The node that generated this was lost; another goes on.",
    "retried": "The failed message was asked for again.",
}
"""Code → meaning of what an `attempt` may follow beside a failure, whose reason has the failure's error code."""


class ProtocolError(Exception):
    """A failure that has a place in the error table, ready to be sent to a client.

    `retry_after_ms` is in milliseconds from now. `details` holds small JSON values only. A code of the table is
    required (`KeyError` otherwise), so an undocumented code cannot reach a client.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after_ms: int | None = None,
        details: dict[str, Any] | None = None,
        error_class: ErrorClass | None = None,
    ) -> None:
        super().__init__(message)
        row = ERRORS[code]
        self.code = code
        self.message = message
        self.status = row.status
        self.error_class: ErrorClass = error_class or row.error_class
        self.retry_after_ms = retry_after_ms
        self.details = details

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.error_class == "temporary"

    def as_dict(self) -> dict[str, Any]:
        """The wire form (`protocol.frames.ErrorBody`)."""
        body: dict[str, Any] = {
            "code": self.code,
            "class": self.error_class,
            "status": self.status,
            "message": self.message,
            "retryable": self.retryable,
        }
        if self.retry_after_ms is not None:
            body["retry_after_ms"] = self.retry_after_ms
        if self.details is not None:
            body["details"] = self.details
        return body


class CloseCode(IntEnum):
    """Why a WebSocket was closed (RFC 6455 section 7.4). 4400-4499: do not reconnect unchanged."""

    NORMAL = 1000
    GOING_AWAY = 1001
    INVALID_UTF8 = 1007
    TOO_BIG = 1009
    INTERNAL = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    MALFORMED = 4400
    UNAUTHENTICATED = 4401
    FORBIDDEN_ORIGIN = 4403
    HELLO_TIMEOUT = 4408
    TOO_MANY_CONNECTIONS = 4429


CLOSE_MEANINGS: Final[dict[CloseCode, str]] = {
    CloseCode.NORMAL: "The peer is done.",
    CloseCode.GOING_AWAY: "The server or page goes away; reconnect with backoff.",
    CloseCode.INVALID_UTF8: "A text message was not valid UTF-8.",
    CloseCode.TOO_BIG: "A message was larger than `max_frame_bytes`.",
    CloseCode.INTERNAL: "A defect of the server, or two missed pings; reconnect with backoff.",
    CloseCode.SERVICE_RESTART: "The server restarts; reconnect with backoff.",
    CloseCode.TRY_AGAIN_LATER: "The server is overloaded; reconnect with backoff.",
    CloseCode.MALFORMED: "What arrives is not this protocol (malformed JSON or msgpack, no `hello` first).",
    CloseCode.UNAUTHENTICATED: "No valid credentials, or they expired a minute ago.",
    CloseCode.FORBIDDEN_ORIGIN: "Pages of this origin may not connect (`server.allowed_origins`).",
    CloseCode.HELLO_TIMEOUT: "No `hello` within 10 seconds.",
    CloseCode.TOO_MANY_CONNECTIONS: "Too many connections of this user or address.",
}


def may_reconnect(code: int) -> bool:
    """Whether a client may reconnect without changing anything after a close with `code`."""
    return not (4400 <= code <= 4499 or code in (CloseCode.INVALID_UTF8, CloseCode.TOO_BIG, CloseCode.NORMAL))
