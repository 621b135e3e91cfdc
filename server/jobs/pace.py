"""How many items of jobs a node runs beside the messages of people who wait. Pure.

While nobody was here lately, `most` at once. From somebody's message on, until `CALM_SECONDS` after the last one, half
as many, begun at a distance, and no more than what a small share of the event loop's time is enough for: how long a
person waits for the first token grows with the share of time in which the loop does something else. None begins while
the loop is late: whoever comes next would feel it.
"""

from __future__ import annotations

import math
from typing import Final

CALM_SECONDS: Final = 30.0
"""So long after the last message of a person this node counts as in use: who asks once a minute is a person, too."""
GAP_SECONDS: Final = 0.25
"""Least distance between the starts of items meanwhile: one costs about 5 ms of the loop, so 2 % of it."""
SHARE: Final = 0.05
"""Largest part of the loop's time that the items running beside people take, by estimate."""
LATE_SECONDS: Final = 0.02
"""An event loop that comes back so much too late has too much to do."""
MEMORY_SECONDS: Final = 1.0
"""Over which the loop's load is averaged."""


class Pace:
    """Decides by what it is told; times are seconds of a monotonic clock."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._people = 0
        self._people_at = -CALM_SECONDS
        self._began_at = -GAP_SECONDS
        self._late_until = 0.0
        self._load = 0.0

    def people(self, now: float, count: int) -> None:
        """So many messages of people run here."""
        self._people = count
        if count:
            self._people_at = now

    def turned(self, now: float, late: float, seconds: float, busy: float) -> None:
        """The event loop came back `late` seconds later than it was asked to; of the last `seconds` its thread
        computed for `busy`."""
        if late > LATE_SECONDS:
            self._late_until = now + late
        weight = min(1.0, seconds / MEMORY_SECONDS)
        self._load += (busy / seconds - self._load) * weight

    def in_use(self, now: float) -> bool:
        """Whether people are being served."""
        return now - self._people_at < CALM_SECONDS

    def room(self, now: float, running: int) -> int:
        """How many items may begin now, beside the `running` ones."""
        if now < self._late_until:
            return 0
        if not self.in_use(now):
            return max(0, self.most - running)
        if now - self._began_at < GAP_SECONDS:
            return 0
        return min(1, max(0, self._beside(running) - running))

    def wait(self, now: float) -> float:
        """Seconds until there may be more room, if it is not for want of slots."""
        gap = self._began_at + GAP_SECONDS - now if self.in_use(now) else 0.0
        return max(0.0, self._late_until - now, gap)

    def began(self, now: float) -> None:
        """An item begins."""
        self._began_at = now

    def _beside(self, running: int) -> int:
        """How many items may run beside people. Never none: a job goes on, if slowly.

        A running message of any kind is taken to cost the loop the same.
        """
        half = max(1, self.most // 2)
        everybody = self._people + running
        enough = math.floor(SHARE * everybody / self._load) if self._load > SHARE else half
        return min(self.most, half, max(1, enough))
