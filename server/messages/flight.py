"""One attempt under way: its driver's stream, what it used, and the ticket that its breaker gave for it.

`race` lets a second attempt start beside a silent first one: the one whose first content comes first wins.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from server.messages.tally import AttemptTally
from server.routing.attempts import GiveUp, Try
from server.routing.gate import Ticket
from server.telemetry.tasks import TaskOwner
from server.upstreams.base import Batch, UpstreamFailure


@dataclass(slots=True)
class Flight:
    """See the module."""

    step: Try
    tally: AttemptTally
    ticket: Ticket
    stream: AsyncGenerator[Batch, None]
    first: Batch | None = None
    """What came first, if somebody waited for it before the stream was read."""
    failure: UpstreamFailure | None = None
    """Why nothing came."""
    ended: bool = False

    async def prime(self) -> None:
        """Wait for the first batch or the failure."""
        try:
            self.first = await anext(self.stream, None)
        except UpstreamFailure as failure:
            self.failure = failure
            return
        if self.first is not None:
            self.take(self.first)

    def take(self, batch: Batch) -> None:
        """Count a batch that has just come."""
        tally = self.tally
        waited = tally.first_content_at is None
        tally.take(batch, time.time())
        if waited and tally.first_content_at is not None:
            self.ticket.began(tally.first_content_at - tally.started_at)

    def end(self, outcome: str) -> bool:
        """Note how it ended; False if that was known."""
        if self.ended:
            return False
        self.ended = True
        self.tally.outcome = outcome
        return True

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.time() - self.tally.started_at


async def race(
    flights: list[Flight],
    after_seconds: float,
    second: Callable[[], Awaitable[Flight | None]],
    lost: Callable[[Flight, UpstreamFailure], GiveUp | None],
) -> Flight | GiveUp:
    """The flight whose first content came first, or the last one that fell; `flights` begins with the first.

    After `after_seconds` of silence `second` may start another, which is put into `flights`. `lost` is told of one
    that fell while another goes on, and may give up for both. Closing all flights but the winner is the caller's.
    """
    owner = TaskOwner("race")
    try:
        running = {owner.start(flights[0].prime(), "first"): flights[0]}
        done, _ = await asyncio.wait(running, timeout=after_seconds)
        if not done and (other := await second()) is not None:
            flights.append(other)
            running[owner.start(other.prime(), "second")] = other
        while True:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: flights.index(running[task])):
                flight = running.pop(task)
                if flight.failure is None or not running:
                    return flight
                if (verdict := lost(flight, flight.failure)) is not None:
                    return verdict
    finally:
        await owner.close()
