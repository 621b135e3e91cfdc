"""The time limits of one stream, kept by one timer that is moved only when it fires.

A timer per read would cost more than reading does. Here a read costs two looks at the clock; the timer fires about
once per limit, sees that the deadline has moved meanwhile, and sleeps on. Only time in which the consumer waits for
the model counts: `ask` starts the clock, `answered` stops it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from server.upstreams.base import Fault, UpstreamFailure


class Watchdog:
    """Calls `expire` with a failure when a limit is passed while the consumer waits. Limits are in seconds."""

    __slots__ = (
        "_asked",
        "_deadline",
        "_expire",
        "_fires",
        "_idle",
        "_left",
        "_loop",
        "_started",
        "_timer",
        "_total_left",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, *, first_token: float, idle: float, total: float) -> None:
        self._loop = loop
        self._left = first_token
        """What is left until the next sign of life is due."""
        self._total_left = total
        self._idle = idle
        self._started = False
        self._asked = 0.0
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fires = 0.0
        """When the timer fires (loop time); timers of uvloop do not always know."""
        self._expire: Callable[[UpstreamFailure], None] | None = None

    def watch(self, expire: Callable[[UpstreamFailure], None]) -> None:
        """What to call from now on; it must make the pending read fail."""
        self._expire = expire

    @property
    def budget(self) -> float:
        """Seconds until the nearest limit, not counting time in which nobody waits."""
        return max(0.0, min(self._left, self._total_left))

    def ask(self) -> None:
        """The consumer waits from now."""
        self._asked = self._loop.time()
        self._deadline = deadline = self._asked + min(self._left, self._total_left)
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._fire)
            self._fires = deadline
        elif self._fires > deadline:
            self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._fire)
            self._fires = deadline

    def answered(self, *, content: bool, progress: bool = False) -> None:
        """Something came. `content` ends the wait for the first token, then `progress` renews the idle limit."""
        spent = self._loop.time() - self._asked
        self._deadline = None
        self._total_left -= spent
        if content or (progress and self._started):
            self._started = True
            self._left = self._idle
        else:
            self._left -= spent

    def shorten(self, seconds: float) -> None:
        """Wait at most `seconds` more for what may still come."""
        self._left = min(self._idle, seconds)

    def stop(self) -> None:
        """The stream is over."""
        self._deadline = None
        self._expire = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def failure(self) -> UpstreamFailure:
        """The failure of the limit that is nearest."""
        if self._total_left <= self._left:
            return UpstreamFailure(Fault.TOTAL_TIMEOUT, "the answer took too long as a whole")
        if not self._started:
            return UpstreamFailure(Fault.FIRST_TOKEN_TIMEOUT, "the first token did not come in time")
        return UpstreamFailure(Fault.IDLE_TIMEOUT, "the stream fell silent")

    def _fire(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._fire)
            self._fires = self._deadline
        elif self._expire is not None:
            self._deadline = None
            self._expire(self.failure())
