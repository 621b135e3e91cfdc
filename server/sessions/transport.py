"""uvicorn's WebSocket protocol, with one difference: what is to end, ends.

uvicorn closes the transport of a peer that missed its pings, or whose session is over, and asyncio's `close` waits
until what is buffered has been sent. A peer that does not read has a window of zero and keeps it open for ever; so the
socket and its buffers would outlive the session for as long as a stranger likes.
"""

from __future__ import annotations

from typing import Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

LINGER_SECONDS: Final = 2.0
"""How long a peer may take to read what was said before the connection was over."""


class DroppingProtocol(WebSocketsSansIOProtocol):
    """See the module. For `uvicorn.Config(ws=DroppingProtocol)`."""

    def keepalive_timeout(self) -> None:
        """Two pings were missed: tell the peer, if it should still listen, and let go."""
        super().keepalive_timeout()
        self._let_go()

    async def run_asgi(self) -> None:
        """As uvicorn's; once the session is over, the connection ends soon."""
        try:
            await super().run_asgi()
        finally:
            if not self.disconnected:
                self.loop.call_later(LINGER_SECONDS, self._let_go)

    def _let_go(self) -> None:
        if not self.disconnected:
            self.transport.abort()
