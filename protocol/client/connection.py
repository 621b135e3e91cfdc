"""What belongs to one socket of the asyncio client: its times, and why it was given up."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

from websockets.asyncio.client import ClientConnection

from protocol.client.ending import Ending
from protocol.client.timing import Heartbeat


@dataclass(slots=True)
class Connection:
    """One socket. All times are seconds of the loop's clock; `inf` is never."""

    socket: ClientConnection
    heart: Heartbeat
    greet_by: float
    """Without a greeting by then it is given up."""
    greeted_at: float = math.inf
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """There is something to send."""
    nudge: asyncio.Event = field(default_factory=asyncio.Event)
    """Times changed: the heart has to look again."""
    max_frame_bytes: int = 2**20
    retire_at: float = math.inf
    """The server drains: reconnect then."""
    check_by: float = math.inf
    """Without a `pong` by then it is dead."""
    renew_at: float = math.inf
    renew_seconds: float = math.inf
    """How long after a token the next one is asked for."""
    verdict: Ending | None = None
    """Why we ended it ourselves."""

    def due(self, greeted: bool) -> float:
        """When there is something to do again."""
        times = (self.heart.next_at, self.retire_at, self.check_by, self.renew_at)
        return min(times) if greeted else min(*times, self.greet_by)

    def give_up(self, why: str) -> None:
        """It is dead, whatever the socket says: let go of it without a word."""
        self.verdict = Ending(why)
        self.socket.transport.abort()
