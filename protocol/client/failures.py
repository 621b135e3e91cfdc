"""Everything the asyncio client raises, as a tree.

- `TidewireError`
    - `ConnectionFailed`: there is no connection, and trying again unchanged won't help (or the time for it is over).
    - `ClientClosed`: the client was closed while somebody waited.
    - `MessageError`
        - `MessageRefused`: never started, nothing is billed; the same id may be asked again (`Message.retry`).
        - `MessageFailed`: started, and ended without a whole answer; `message.partial` says whether text stands.
        - `MessageLost`: the server does not know the message (any more), or may not show it.
        - `MessageBroken`: the text could not be verified, however often it was asked for.
"""

from __future__ import annotations

from typing import Any

from protocol.client.message import ClientMessage, MessageState

Map = dict[str, Any]


class TidewireError(Exception):
    """A failure with a code of `protocol.errors`, or one of the client's own."""

    def __init__(
        self, code: str, text: str, *, retryable: bool = False, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text
        self.retryable = retryable
        """Whether asking again may help."""
        self.retry_after_seconds = retry_after_seconds


class ConnectionFailed(TidewireError):
    """There is no connection. `close_code` is the WebSocket close code or the HTTP status that said so, if any."""

    def __init__(self, code: str, text: str, *, close_code: int | None = None, retryable: bool = False) -> None:
        super().__init__(code, text, retryable=retryable)
        self.close_code = close_code


class ClientClosed(TidewireError):
    """The client was closed while somebody waited for a message; the message itself goes on."""

    def __init__(self) -> None:
        super().__init__("client_closed", "the client was closed; the message goes on and can be resumed")


class MessageError(TidewireError):
    """A message did not come to a good end. `message` holds what stands of it."""

    def __init__(self, message: ClientMessage) -> None:
        error: Map = message.error or {"code": "internal", "message": "no reason was given", "retryable": False}
        after_ms = error.get("retry_after_ms")
        super().__init__(
            error["code"],
            error["message"],
            retryable=error["retryable"],
            retry_after_seconds=None if after_ms is None else after_ms / 1000,
        )
        self.message = message
        self.details: Map | None = error.get("details")


class MessageRefused(MessageError):
    """Never started; nothing is billed."""


class MessageFailed(MessageError):
    """Started, and ended without a whole answer."""


class MessageLost(MessageError):
    """The server does not know the message (any more), or may not show it."""


class MessageBroken(MessageError):
    """The text could not be verified."""


def failure_of(message: ClientMessage) -> MessageError | None:
    """What to raise about an ended message; None if it ended well (done, cancelled) or has not ended."""
    kinds: dict[MessageState, type[MessageError]] = {
        MessageState.REFUSED: MessageRefused,
        MessageState.FAILED: MessageFailed,
        MessageState.LOST: MessageLost,
        MessageState.BROKEN: MessageBroken,
    }
    kind = kinds.get(message.state)
    return kind(message) if kind else None
