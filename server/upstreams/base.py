"""What every driver offers and what it is asked: the one interface between messages and models.

A driver turns a `Call` into a stream of `Batch`es. Everything that arrived in one read from the network is one batch,
with neighbouring pieces of one kind already merged, so that a fast upstream costs few steps. Failures are raised as
`UpstreamFailure`, never yielded. Closing the stream (`aclose`, or cancellation) closes the upstream connection at
once. Time during which the consumer does not ask for more never counts against a time-out.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

Piece = (
    tuple[Literal["text"], str] | tuple[Literal["reasoning"], str] | tuple[Literal["tool_calls"], list[dict[str, Any]]]
)
"""New output: text, reasoning, or tool-call deltas in the chat-completions format (`index`, `id`?, `function`…)."""


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens as the provider reports them: `input` includes the cached ones, `output` the reasoning."""

    input: int
    output: int
    cached: int = 0
    reasoning: int = 0


@dataclass(slots=True)
class Batch:
    """What one read brought. `chunks` counts the provider's content chunks in it (a lower bound of its tokens)."""

    pieces: list[Piece] = field(default_factory=list)
    chunks: int = 0
    finish_reason: str | None = None
    """`stop`, `length`, `tool_calls` or `content_filter`; set once, at the end."""
    usage: TokenUsage | None = None
    """Set once, at the end, if the provider tells it."""
    model: str | None = None
    """The model as the provider names it, if it differs from what was asked."""


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt at one target. `messages` and the options are in the chat-completions format."""

    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    """temperature, top_p, stop, seed, tools, tool_choice, response_format; only those that were given."""
    max_output_tokens: int | None = None
    user: str | None = None
    """An opaque, keyed hash of the end user for the provider's own reports; never the raw id."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """The request's `metadata`, for the provider's own reports."""
    message_id: str = ""
    """For logs only."""
    traceparent: str | None = None
    """The attempt's span, for an upstream that traces too (W3C Trace Context)."""


class Fault(StrEnum):
    """What went wrong upstream. `server.upstreams.faults` maps each to code, class, status and next step."""

    REFUSED = "refused"
    """No connection: refused, unreachable, DNS, TLS."""
    CONNECT_TIMEOUT = "connect_timeout"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"
    IDLE_TIMEOUT = "idle_timeout"
    TOTAL_TIMEOUT = "total_timeout"
    BROKEN_STREAM = "broken_stream"
    """The stream ended before its end was told, or was cut."""
    GARBLED = "garbled"
    """The answer is not what its format promises (no JSON, wrong content type, an HTML page)."""
    EMPTY = "empty"
    """A well-formed stream without any content."""
    SERVER_ERROR = "server_error"
    """5xx, 529, a 4xx that does not blame the request, or an error object inside a 200."""
    RATE_LIMITED = "rate_limited"
    UNAUTHORIZED = "unauthorized"
    """401, 402, 403, 407: this credential does not work."""
    NOT_FOUND = "not_found"
    """404, 405, 410: no such model or endpoint."""
    REJECTED = "rejected"
    """400, 415, 422, 451: the request itself is at fault."""
    CONTEXT_LENGTH = "context_length"
    CONTENT_FILTER = "content_filter"
    OFF_FORMAT = "off_format"
    """The whole answer came, and does not fit the `response_format` that was asked for."""
    WORKER_LOST = "worker_lost"
    """The child process that serves this target died."""


class UpstreamFailure(Exception):
    """An attempt failed. The text is for the log and never contains credentials or message text."""

    def __init__(
        self,
        fault: Fault,
        message: str,
        *,
        status: int | None = None,
        retry_after_seconds: float | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message
        self.status = status
        """HTTP status the provider answered, if it did."""
        self.retry_after_seconds = retry_after_seconds
        self.detail = detail
        """What the client may read of it beside the fault's meaning: never words of the provider or of the model."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a driver can do, for its conformance suite and for fallback modes."""

    tools: bool
    reasoning: bool
    usage_in_stream: bool
    prefill: bool
    """Whether a trailing assistant message is continued, not answered."""
    images: bool


class Driver(Protocol):
    """One target's way to its model."""

    capabilities: Capabilities

    def stream(self, call: Call) -> AsyncGenerator[Batch, None]:
        """Start the attempt and yield what it brings, until the finish reason.

        Raises `UpstreamFailure`. A stream that ends without raising has told its `finish_reason`.
        """
        ...

    async def check(self) -> str | None:
        """Whether the target could be called now: None, or what is wrong and how to mend it. For `doctor`."""
        ...

    async def close(self) -> None:
        """Free connections and processes. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """A `[targets.NAME]` section as drivers see it; times in seconds."""

    name: str
    driver: Literal["openai", "litellm", "embedded"]
    model: str
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    connect_seconds: float = 5.0
    first_token_seconds: float = 30.0
    idle_seconds: float = 30.0
    total_seconds: float = 600.0
    context_tokens: int | None = None
    prefill: bool = False
    identity: tuple[str, ...] = ("user", "metadata")
    """The fields in which the endpoint takes `Call.user` and `Call.tags`: `user`, `safety_identifier`, `metadata`."""
