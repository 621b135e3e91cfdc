"""The ends that this process wrote a moment ago, kept for as long as Redis may still lose them.

What Redis acknowledges is on its disk, or with its replica, a moment later. Where it loses an end in that moment, and
its writer lives, the writer has it still: the same end is written again, in place of another answer that is generated
and called for a second time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

import structlog

from server.messages.journal import Ending, Journal, JournalLost

log = structlog.get_logger("messages")

KEPT_SECONDS: Final = 30.0
"""For so long; an append-only file that is written every second is behind by two at most, a replica by what it lags."""
KEPT_BYTES: Final = 33_554_432
"""So much of all of them, with what they answer; then the oldest go early."""
ANSWER_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Kept:
    ending: Ending
    size: int
    until: float


class Endings:
    """See the module."""

    def __init__(self, journal: Journal, claim_seconds: float) -> None:
        self._journal = journal
        self._keep_seconds = min(KEPT_SECONDS, claim_seconds)
        """No longer than Redis keeps the message: what has expired is not to come back."""
        self._kept: dict[str, _Kept] = {}
        """By tag, the oldest first."""
        self._size = 0

    def keep(self, tag: str, ending: Ending, request_bytes: int, now: float) -> None:
        """A message has ended here. `now` is monotonic, in seconds."""
        self.forget(tag)
        kept = self._kept[tag] = _Kept(ending, ending.size + request_bytes, now + self._keep_seconds)
        self._size += kept.size
        while self._size > KEPT_BYTES:
            self.forget(next(iter(self._kept)))
        self._sweep(now)

    def tags(self, now: float) -> list[str]:
        """The messages whose ends are kept."""
        self._sweep(now)
        return list(self._kept)

    def _sweep(self, now: float) -> None:
        while self._kept and next(iter(self._kept.values())).until < now:
            self.forget(next(iter(self._kept)))

    def forget(self, tag: str) -> None:
        """It runs again, or is not wanted any more."""
        if (kept := self._kept.pop(tag, None)) is not None:
            self._size -= kept.size

    async def write_again(self, tag: str) -> None:
        """Have the end in Redis as it was, if it is kept and can be; nothing changes where it is there.

        Raises `StoreUnavailable`, or `TimeoutError` if Redis does not answer.
        """
        self._sweep(asyncio.get_running_loop().time())
        kept = self._kept.get(tag)
        if kept is None:
            return
        outbox = kept.ending.again(self._journal)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await outbox.flushed()
        except JournalLost as lost:  # another claim or run, or too much is lost
            self.forget(tag)
            log.info("end_not_written_again", tag=tag, verdict=lost.verdict.name)
