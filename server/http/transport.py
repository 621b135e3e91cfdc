"""uvicorn's HTTP protocol, with one addition: a response can drop its connection.

asyncio's `close` waits until what is buffered has been sent. A reader that stalls has a window of zero and would keep
the connection and its buffer for as long as it likes.
"""

from __future__ import annotations

from typing import Any, Final

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

ABORT: Final = "tidewire.abort"
"""Key in the scope of a request: call it to drop the connection."""


class DroppableProtocol(H11Protocol):
    """See the module. For `uvicorn.Config(http=DroppableProtocol)`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        application: Any = self.app

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope[ABORT] = self.transport.abort
            await application(scope, receive, send)

        self.app = app


def drop(scope: Scope) -> None:
    """Drop the connection of a request, if its server can."""
    abort = scope.get(ABORT)
    if abort is not None:
        abort()
