"""When to reconnect and when to worry: backoff and heartbeats. The clock and the dice are passed in."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

BACKOFF_BASE_SECONDS: Final = 0.25
BACKOFF_CAP_SECONDS: Final = 30.0
MISSED_BEATS: Final = 2
"""So many unanswered pings in a row mean that the connection is half open."""


class Backoff:
    """Full-jitter exponential backoff: a uniform share of a ceiling that doubles with every failure.

    `dice` returns a float in [0, 1). Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """

    def __init__(
        self,
        dice: Callable[[], float],
        *,
        base_seconds: float = BACKOFF_BASE_SECONDS,
        cap_seconds: float = BACKOFF_CAP_SECONDS,
    ) -> None:
        self._dice = dice
        self._base = base_seconds
        self._cap = cap_seconds
        self.failures = 0
        """How many delays were handed out since the last `reset`."""

    @property
    def ceiling_seconds(self) -> float:
        """What the next delay stays below."""
        doublings = min(self.failures, 64)
        return min(self._cap, self._base * 2.0**doublings)

    def next_delay(self) -> float:
        """Seconds to wait before the next try."""
        delay = self._dice() * self.ceiling_seconds
        self.failures += 1
        return delay

    def reset(self) -> None:
        """The connection works: the next failure is a first one."""
        self.failures = 0


class Beat(Enum):
    """What the heart wants."""

    WAIT = "wait"
    PING = "ping"
    DEAD = "dead"


class Heartbeat:
    """Says when to ping and when a silent connection is dead. All times are seconds of one monotonic clock."""

    def __init__(self, interval_seconds: float, now: float) -> None:
        self.interval_seconds = interval_seconds
        self.next_at = now + interval_seconds
        """When `poll` will next want something."""
        self.missed = 0
        """Pings in a row after which nothing at all was heard."""
        self._waiting = False
        self._heard = False

    def heard(self) -> None:
        """Anything arrived: the connection lives."""
        self._heard = True

    def poll(self, now: float) -> Beat:
        """What to do at `now`. After `PING` the caller pings; after `DEAD` it reconnects."""
        if now < self.next_at:
            return Beat.WAIT
        if self._waiting:
            self.missed = 0 if self._heard else self.missed + 1
            if self.missed >= MISSED_BEATS:
                return Beat.DEAD
        self._waiting, self._heard = True, False
        self.next_at = now + self.interval_seconds
        return Beat.PING
