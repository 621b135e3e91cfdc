"""uvicorn's WebSocket protocol, with two differences: what is to end, ends; and what comes is taken in slices.

uvicorn closes the transport of a peer that missed its pings, or whose session is over, and asyncio's `close` waits
until what is buffered has been sent. A peer that does not read has a window of zero and keeps it open for ever; so the
socket and its buffers would outlive the session for as long as a stranger likes.

It also parses all that one read brings at once, up to 256 KB: 36,000 of the smallest messages, a third of a second in
which nobody else is served. And after we have closed it reads on at full speed until the peer agrees.
"""

from __future__ import annotations

from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode

LINGER_SECONDS: Final = 2.0
"""How long a peer may take to read what was said before the connection was over."""
SLICE_BYTES: Final = 8_192
"""So much of what has come is parsed before others have their turn: a millisecond, ten for the smallest frames."""
CLOSED_SLICE_SECONDS: Final = 0.05
"""How long is waited between two slices once we have closed: all that may still count is the peer's own goodbye."""


class DroppingProtocol(WebSocketsSansIOProtocol):
    """See the module. For `uvicorn.Config(ws=DroppingProtocol)`."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._rest = b""
        """What has come and is not parsed yet."""
        self._waits = False
        """Whether the next slice has its time."""

    def data_received(self, data: bytes) -> None:
        """Parse it, if it is little; else a slice now and the others in turn with everybody else."""
        if len(data) <= SLICE_BYTES and not self._rest and not self.close_sent:
            super().data_received(data)
            return
        self._rest += data
        self._next_slice()

    def _next_slice(self) -> None:
        if self._waits or self.transport.is_closing():
            return
        if not self.read_paused:  # else `receive` comes back to it
            now, self._rest = self._rest[:SLICE_BYTES], self._rest[SLICE_BYTES:]
            super().data_received(now)
        if self.transport.is_closing():
            return
        if self._rest or self.close_sent:
            self.transport.pause_reading()
            if not self.read_paused:
                self._waits = True
                self.loop.call_later(CLOSED_SLICE_SECONDS if self.close_sent else 0.0, self._waited)

    def _waited(self) -> None:
        self._waits = False
        if self.transport.is_closing():
            return
        if self._rest:
            self._next_slice()
        if not self._rest and not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    async def receive(self) -> Any:
        """As uvicorn's, which resumes reading once it has handed out all there was; but first comes the rest."""
        message = await super().receive()
        if self._rest and not self.read_paused:
            self._next_slice()
        return message

    def connection_lost(self, exc: Exception | None) -> None:
        """What the peer sent before it left still counts."""
        rest, self._rest = self._rest, b""
        if rest and not self.close_sent:
            self.read_paused = True
            self.conn.receive_data(rest)
            for event in self.conn.events_received():
                if isinstance(event, Frame):
                    self._take_last(event)
        super().connection_lost(exc)

    def _take_last(self, frame: Frame) -> None:
        if frame.opcode is Opcode.TEXT:
            self.handle_text(frame)
        elif frame.opcode is Opcode.BINARY:
            self.handle_bytes(frame)
        elif frame.opcode is Opcode.CONT:
            self.handle_cont(frame)

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
