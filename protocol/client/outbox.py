"""What is to go out on the present connection, and whether there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from protocol.client.message import ClientMessage

Map = dict[str, Any]


class Outbox:
    """Frames for the server, in order, for as long as the connection lives."""

    def __init__(self) -> None:
        self.open = False
        """Whether `welcome` arrived on the present connection."""
        self.draining = False
        """Whether the server said `goaway`: what is asked for now waits for the next connection."""
        self._queue: list[Map] = []

    def __bool__(self) -> bool:
        """Whether `take` would return anything."""
        return self.open and bool(self._queue)

    def put(self, frame: Map) -> None:
        """Queue a frame of this connection; without one there is nobody to tell."""
        if self.open:
            self._queue.append(frame)

    def send(self, message: ClientMessage) -> None:
        """Ask for a message; or again, with what a retry reopens."""
        if self.draining:
            return
        frame = {"type": "send", "id": message.id, **(message.request or {})}
        if message._reopened_at >= 0:
            frame |= {"retry_of": message._reopened_at, "after": message.cursor}
        self.put(frame)

    def resume(self, message: ClientMessage) -> None:
        """Ask for everything after the message's cursor."""
        message._pong_mark = None
        self.put({"type": "resume", "id": message.id, "after": message.cursor})

    def withdraw(self, which: Callable[[Map], bool]) -> None:
        """Take back what has not gone out yet."""
        self._queue = [frame for frame in self._queue if not which(frame)]

    def begin(self) -> None:
        """A connection was made: it starts with nothing queued."""
        self.open, self.draining = True, False
        self._queue = []

    def end(self) -> None:
        """The connection is gone, and with it what had not gone out."""
        self.open = False
        self._queue = []

    def take(self) -> list[Map]:
        """Everything queued, once."""
        if not self:
            return []
        frames, self._queue = self._queue, []
        return frames
