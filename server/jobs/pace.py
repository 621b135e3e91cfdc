"""How many items of jobs a node runs beside the messages of people who wait. Pure.

While nobody waits, `most` at once. As soon as somebody's message runs here, and for a while after, half as many, begun
at a distance. None begins while the event loop is late: whoever comes next would feel it.
"""

from __future__ import annotations

from typing import Final

CALM_SECONDS: Final = 1.0
"""So long after the last message of a person this node counts as in use."""
GAP_SECONDS: Final = 0.1
"""Least distance between the starts of items meanwhile."""
LATE_SECONDS: Final = 0.02
"""An event loop that comes back so much too late has too much to do."""


class Pace:
    """Decides by what it is told; times are seconds of a monotonic clock."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._people_at = -CALM_SECONDS
        self._began_at = -GAP_SECONDS
        self._late_until = 0.0

    def people(self, now: float) -> None:
        """Somebody's message runs here."""
        self._people_at = now

    def late(self, now: float, seconds: float) -> None:
        """The event loop came back so much later than it was asked to."""
        if seconds > LATE_SECONDS:
            self._late_until = now + seconds

    def in_use(self, now: float) -> bool:
        """Whether people are being served."""
        return now - self._people_at < CALM_SECONDS

    def room(self, now: float, running: int) -> int:
        """How many items may begin now."""
        if now < self._late_until:
            return 0
        if not self.in_use(now):
            return max(0, self.most - running)
        if now - self._began_at < GAP_SECONDS:
            return 0
        return min(1, max(0, self._half - running))

    def wait(self, now: float) -> float:
        """Seconds until there may be more room, if it is not for want of slots."""
        gap = self._began_at + GAP_SECONDS - now if self.in_use(now) else 0.0
        return max(0.0, self._late_until - now, gap)

    def began(self, now: float) -> None:
        """An item begins."""
        self._began_at = now

    @property
    def _half(self) -> int:
        return min(self.most, max(1, self.most // 2))
