"""What `ClientSession.receive` reports. Every event that concerns a message carries the message itself."""

from __future__ import annotations

from typing import Any, NamedTuple

from protocol.client.message import AttemptInfo, ClientMessage

Map = dict[str, Any]


class Welcomed(NamedTuple):
    """The server greeted us; the connection carries messages from now on."""

    session: str
    user: str
    tier: str
    heartbeat_seconds: float
    max_frame_bytes: int
    expires_in_seconds: float | None
    """Until the token expires; None if it does not."""
    active: list[Map]
    """The user's running messages, `{id, conversation?, state, seq}` each, also those of other devices."""
    frame: Map


class MessageAccepted(NamedTuple):
    """The message exists: it was admitted now, or existed before (`replay`)."""

    message: ClientMessage
    replay: bool


class AttemptStarted(NamedTuple):
    """A target starts to answer. Unless `info.mode` is `continue`, output so far was dropped."""

    message: ClientMessage
    info: AttemptInfo


class Output(NamedTuple):
    """New output, already applied to the message."""

    message: ClientMessage
    text: str | None
    reasoning: str | None
    tool_calls: list[Map] | None
    """As deltas, in the chat-completions format."""


class Replaced(NamedTuple):
    """All output was replaced (a snapshot), or dropped to be told anew."""

    message: ClientMessage


class Resyncing(NamedTuple):
    """Something was missing or wrong and is asked for again. Nothing is lost, it takes a moment."""

    message: ClientMessage
    reason: str
    """`gap`, `snapshot`, `mismatch`, `behind`, `missing`, `unanswered`, or `lost`: the server lost what it had told,
    and the message begins anew."""


class Stalled(NamedTuple):
    """The server can't tell more of this message now: call `ClientSession.resume` after the delay."""

    message: ClientMessage
    error: Map
    retry_after_seconds: float | None


class MessageEnded(NamedTuple):
    """Nothing more comes; `message.state` and `message.error` say how it ended."""

    message: ClientMessage


class ErrorReceived(NamedTuple):
    """An error that ends nothing: of the connection (`message` is None), or of one frame.

    A `subscribe` or `history` that was refused for now (`error["retryable"]`) is repeated by `ClientSession.again`.
    """

    message: ClientMessage | None
    re: str | None
    """Type of the frame that could not be served."""
    error: Map
    conversation: str | None = None
    """The conversation that the frame was about."""


class GoingAway(NamedTuple):
    """The node drains: reconnect after the delay. Messages asked for until then wait for the next connection."""

    reason: str
    reconnect_after_seconds: float


class QuotaChanged(NamedTuple):
    """The user's limits, `{name, limit, remaining, reset_seconds}` each."""

    limits: list[Map]


class ConversationMessage(NamedTuple):
    """A subscribed conversation got a message (the `message` frame)."""

    frame: Map


class ConversationChanged(NamedTuple):
    """Something happened to a conversation (`frame["op"]` says what), or an operation on one was answered."""

    frame: Map


class HistoryReceived(NamedTuple):
    """A page of a conversation (the `history` frame)."""

    frame: Map


class PongReceived(NamedTuple):
    """The answer to a `ping`."""

    nonce: str | int | None


Event = (
    Welcomed
    | MessageAccepted
    | AttemptStarted
    | Output
    | Replaced
    | Resyncing
    | Stalled
    | MessageEnded
    | ErrorReceived
    | GoingAway
    | QuotaChanged
    | ConversationMessage
    | ConversationChanged
    | HistoryReceived
    | PongReceived
)
"""Everything that can be reported."""
