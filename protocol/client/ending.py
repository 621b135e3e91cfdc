"""Why a connection ended, and what that means for the next one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from websockets.exceptions import ConnectionClosed, InvalidStatus, InvalidURI, NegotiationError, WebSocketException

from protocol.errors import CloseCode

PASSING_STATUSES: Final = frozenset({408, 425, 429})
"""HTTP 4xx statuses of a refused handshake that pass by themselves."""


@dataclass(slots=True)
class Ending:
    """How a connection ended."""

    reason: str
    code: int | None = None
    """Close code, if a close frame came."""
    status: int | None = None
    """HTTP status, if the handshake was refused."""
    wait_seconds: float = 0.0
    """Wait at least this long."""
    fatal: bool = False
    planned: bool = False
    """We left because the server asked us to."""


def token_refused(ending: Ending) -> bool:
    """Whether another token may be welcome."""
    return ending.code == CloseCode.UNAUTHENTICATED or ending.status == 401


def ending_of(error: OSError | TimeoutError | WebSocketException) -> Ending:
    """What a failure to connect, or a closed connection, means."""
    if isinstance(error, ConnectionClosed):
        if error.rcvd is None:
            return Ending("the connection broke")
        return Ending(error.rcvd.reason or f"closed with code {error.rcvd.code}", code=error.rcvd.code)
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        wait = error.response.headers.get("Retry-After", "")
        return Ending(
            f"the server refused the connection with HTTP status {status}",
            status=status,
            wait_seconds=float(wait) if wait.isdigit() else 0.0,
            fatal=400 <= status < 500 and status not in PASSING_STATUSES,
        )
    if isinstance(error, InvalidURI | NegotiationError):
        return Ending(str(error), fatal=True)
    return Ending(str(error) or type(error).__name__)
