"""What follows from each upstream fault: one row per `Fault`, and nothing is decided about faults anywhere else. Pure.

`code` is the protocol's error code if this attempt turns out to be the last one; its class and status are those of the
code. What the breaker of the target makes of it is a question of the target's health: a request that is at fault
itself says nothing about it. `next_step` is what the attempts of a route do next. `markdown` is the table as
`docs/resilience.md` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from protocol.errors import ERRORS, ErrorClass
from server.upstreams.base import Fault

NextStep = Literal["next_target", "larger_target", "end"]
"""`next_target`: another target may well answer this. `larger_target`: one with a larger context may. `end`: no target
would, or none should be asked."""

Effect = Literal["counts", "throttles", "opens", "ignored"]
"""What a fault does to the target's breaker. `counts`: a failed call in the window. `throttles`: every target with this
credential is left alone until the Retry-After. `opens`: it opens at once, with an alarm, since every call would fail
until a person mends it. `ignored`: it says nothing about the target."""


@dataclass(frozen=True, slots=True)
class Consequence:
    """What one kind of fault means to the client, the breaker and the route."""

    fault: Fault
    code: str
    """Name in `protocol.errors.ERRORS`."""
    breaker: Effect
    next_step: NextStep
    meaning: str
    """What happened and why it has these consequences; goes into the documentation."""

    @property
    def counts_towards_breaker(self) -> bool:
        """Whether it says anything about the target's health."""
        return self.breaker != "ignored"

    @property
    def error_class(self) -> ErrorClass:
        """Whether the same request may succeed later."""
        return ERRORS[self.code].error_class

    @property
    def status(self) -> int:
        """HTTP status towards the client."""
        return ERRORS[self.code].status

    @property
    def retryable(self) -> bool:
        """Whether a client may send the same request again."""
        return ERRORS[self.code].retryable


_TABLE: Final = (
    Consequence(
        Fault.REFUSED,
        "upstream_unavailable",
        "counts",
        "next_target",
        "Nothing listens there, its name is unknown, or TLS failed. No request was sent, so nothing was paid.",
    ),
    Consequence(
        Fault.CONNECT_TIMEOUT,
        "upstream_timeout",
        "counts",
        "next_target",
        "No connection in `connect_seconds`. No request was sent, so nothing was paid.",
    ),
    Consequence(
        Fault.FIRST_TOKEN_TIMEOUT,
        "upstream_timeout",
        "counts",
        "next_target",
        "The request was taken but no content came in `first_token_seconds`. The provider may charge for it.",
    ),
    Consequence(
        Fault.IDLE_TIMEOUT,
        "upstream_timeout",
        "counts",
        "next_target",
        "The stream fell silent for `idle_seconds` after content had come. What stands is replaced or continued.",
    ),
    Consequence(
        Fault.TOTAL_TIMEOUT,
        "upstream_timeout",
        "counts",
        "end",
        "The answer as a whole took longer than `total_seconds`. Another attempt would take as long again.",
    ),
    Consequence(
        Fault.BROKEN_STREAM,
        "upstream_unavailable",
        "counts",
        "next_target",
        "The connection broke, or the stream ended before its end was told. What came is not the whole answer.",
    ),
    Consequence(
        Fault.GARBLED,
        "upstream_unavailable",
        "counts",
        "next_target",
        "The answer is not in its format: a proxy's HTML page, broken JSON, an event beyond the limit.",
    ),
    Consequence(
        Fault.EMPTY,
        "upstream_unavailable",
        "counts",
        "next_target",
        "A well-formed answer without text, reasoning or tool call. An overloaded or misconfigured model does that.",
    ),
    Consequence(
        Fault.SERVER_ERROR,
        "upstream_unavailable",
        "counts",
        "next_target",
        "The provider says that it failed or is overloaded: 5xx, 529, a 4xx that does not blame the request, or an "
        "error object inside a 200.",
    ),
    Consequence(
        Fault.RATE_LIMITED,
        "upstream_unavailable",
        "throttles",
        "next_target",
        "The provider's limit for our credential, not the user's quota. The credential rests until the Retry-After.",
    ),
    Consequence(
        Fault.UNAUTHORIZED,
        "upstream_unavailable",
        "opens",
        "next_target",
        "The server's credential for this target does not work or has no credit. The operator's fault, not the user's.",
    ),
    Consequence(
        Fault.NOT_FOUND,
        "upstream_unavailable",
        "opens",
        "next_target",
        "The endpoint or the model does not exist there: a wrong `base_url` or `model`, or a model withdrawn.",
    ),
    Consequence(
        Fault.REJECTED,
        "upstream_rejected",
        "ignored",
        "end",
        "The provider refuses this request as invalid. It would be refused again, and elsewhere.",
    ),
    Consequence(
        Fault.CONTEXT_LENGTH,
        "context_length_exceeded",
        "ignored",
        "larger_target",
        "The input does not fit this model's context. A later target of the route may have a larger one.",
    ),
    Consequence(
        Fault.CONTENT_FILTER,
        "content_filter",
        "ignored",
        "end",
        "The provider's filter refuses the content. To try it elsewhere would be to evade the filter.",
    ),
    Consequence(
        Fault.OFF_FORMAT,
        "output_invalid",
        "ignored",
        "next_target",
        "The answer came to its end and does not fit the `response_format`. Another model may do better.",
    ),
    Consequence(
        Fault.WORKER_LOST,
        "upstream_unavailable",
        "counts",
        "next_target",
        "The child process that serves this target died or is not ready. It is started again by its owner.",
    ),
)

CONSEQUENCES: Final[Mapping[Fault, Consequence]] = MappingProxyType({row.fault: row for row in _TABLE})
"""Every fault's row."""


def consequence(fault: Fault) -> Consequence:
    """The row of one fault."""
    return CONSEQUENCES[fault]


def markdown() -> str:
    """The table for the documentation, one row per fault."""
    lines = ["| fault | code | class | status | breaker | next step | meaning |", "|---|---|---|---|---|---|---|"]
    for row in _TABLE:
        step = row.next_step.replace("_", " ")
        code = f"`{row.code}` | {row.error_class} | {row.status}"
        lines.append(f"| `{row.fault}` | {code} | {row.breaker} | {step} | {row.meaning} |")
    return "\n".join(lines)
