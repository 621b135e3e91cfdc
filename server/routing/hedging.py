"""When a second target is asked beside a silent first one, and how often that may be. Pure."""

from __future__ import annotations

from bisect import insort
from collections import deque
from typing import Final

SAMPLES: Final = 128
"""Recent answers that the 95th percentile is taken of."""
LEAST_SAMPLES: Final = 20
BURST: Final = 10.0
"""Hedges that a quiet time may save up."""


class Latencies:
    """The newest `SAMPLES` times until the first content of one target, in seconds."""

    __slots__ = ("_by_age", "_by_size")

    def __init__(self) -> None:
        self._by_age: deque[float] = deque()
        self._by_size: list[float] = []

    def add(self, seconds: float) -> None:
        """Take one in."""
        self._by_age.append(seconds)
        insort(self._by_size, seconds)
        if len(self._by_age) > SAMPLES:
            self._by_size.remove(self._by_age.popleft())

    @property
    def p95(self) -> float | None:
        """95 % were not above this; None until there are `LEAST_SAMPLES`."""
        count = len(self._by_size)
        return None if count < LEAST_SAMPLES else self._by_size[min(count - 1, count * 95 // 100)]


class HedgeBudget:
    """At no time more hedges than `share` of the calls so far; a quiet time saves up at most `BURST`."""

    __slots__ = ("_saved", "share")

    def __init__(self, share: float) -> None:
        self.share = share
        self._saved = 0.0

    def call(self) -> None:
        """A call begins."""
        self._saved = min(self._saved + self.share, BURST)

    def take(self) -> bool:
        """Take one hedge out; False if there is none left."""
        if self._saved < 1.0 - 1e-9:
            return False
        self._saved -= 1.0
        return True
