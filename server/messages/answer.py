"""What one running message has brought: its output on the way into the journal, what each attempt used, its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgpack

from protocol.errors import ErrorClass, ProtocolError
from server.ledger.cost import as_usd
from server.messages import request as asked
from server.messages.finalize import gather
from server.messages.flight import Flight
from server.messages.hub import Channel
from server.messages.journal import End, JournalLost, Outbox, Verdict
from server.messages.life import Life, until_redis_answers
from server.messages.means import Means
from server.messages.reader import Reader
from server.messages.state import Happening, State
from server.messages.tally import AttemptTally, own_records, user_cost, user_usage, withdrawn
from server.routing.attempts import GiveUp, Try
from server.upstreams.base import Batch


class Answer:
    """See the module."""

    def __init__(
        self, life: Life, means: Means, reader: Reader, channel: Channel, signalled: Callable[[bool], None]
    ) -> None:
        claim = life.claim
        self.life = life
        self.means = means
        self.reader = reader
        self.tallies: list[AttemptTally] = []
        self.shown = claim.shown
        self.shown.structured = self.shown.structured or asked.wants_structure(claim.request)
        self.records: list[dict[str, Any]] = []
        """What was used, once it has ended: one record an attempt."""
        self._starts_over = False
        """Whether an attempt of this run has replaced the text of earlier ones."""
        lane = means.journal.lane(claim.keys.record)
        self.outbox = Outbox(
            lane, channel, claim.keys, claim.fence, claim.head, claim.first, signalled, means.event_bytes
        )
        self.outbox.attempts = claim.attempts
        self.outbox.starts_freely = claim.place is None
        self.outbox.waiting.standing(claim.standing_text)

    # --- output ------------------------------------------------------------------------------------------------------

    def add(self, flight: Flight, batch: Batch) -> str | None:
        """Put a batch into the journal; the finish reason, if it was the last. Raises `JournalLost`."""
        if not flight.tally.stands and (batch.pieces or batch.finish_reason is not None):
            self._show(flight.step, flight.tally)
        if batch.pieces:
            for kind, _ in batch.pieces:
                if kind != "text":
                    self.shown.structured = True
            self.outbox.add(batch.pieces)
            if self.outbox.waiting.text_bytes > self.means.max_bytes:
                return "length"
        return batch.finish_reason

    def _show(self, step: Try, tally: AttemptTally) -> None:
        """The attempt's first content: from here on followers know of it."""
        continues = step.mode == "continue"
        if not continues:
            for earlier in self.tallies:
                earlier.stands = False
            self.shown.structured = asked.wants_structure(self.life.claim.request)
            self._starts_over = True
        tally.stands = True
        tally.continues = continues
        self.shown.anything = True
        event: dict[str, Any] = {
            "attempt": step.number,
            "target": tally.target,
            "model": tally.model,
            "mode": step.mode,
        }
        if step.reason is not None:
            event["reason"] = step.reason.as_dict()
        self.outbox.attempt(event, not continues)
        if tally.first_content_at is not None:
            self.means.watch.first_content(tally.target, tally.first_content_at - tally.started_at)

    def standing_output(self) -> int:
        """Output tokens of this run that stand."""
        return sum(tally.usage.output for tally in self.tallies if tally.stands)

    async def standing_text(self) -> str:
        """The visible text so far, all of it journaled. Raises `JournalLost`, also if Redis has lost some of it."""
        await self.outbox.flushed()
        claim = self.life.claim
        base = self.outbox.base or claim.base
        standing = await until_redis_answers(lambda: gather(self.reader, claim.keys, base))
        if standing.seq != self.outbox.head:
            raise JournalLost(Verdict.GAP)
        return b"".join(standing.text).decode()

    # --- the end -----------------------------------------------------------------------------------------------------

    def done(self, finish_reason: str, flight: Flight) -> None:
        """It was answered to the end."""
        self.life.happens(Happening.FINISH)
        event = {
            **self._text(),
            "finish_reason": finish_reason,
            "usage": user_usage(self.tallies),
            "cost_usd": as_usd(user_cost(own_records(self.tallies, self.life.claim.run, ()))),
            "model": flight.tally.model,
            "target": flight.tally.target,
            "attempts": self.tallies[-1].number,
        }
        if event["cost_usd"] is None:
            del event["cost_usd"]
        if self.life.claim.prompt is not None:
            event["prompt"] = self.life.claim.prompt
        self._end(event)

    def cancelled(self) -> None:
        """It was stopped: what stands is kept."""
        self.life.happens(Happening.CANCEL)
        self.life.promise()
        self._end({**self._text(), "usage": user_usage(self.tallies)})

    def failed(self, verdict: GiveUp) -> None:
        """No attempt follows."""
        self.life.happens(Happening.FAIL)
        self.life.promise()
        error = error_of(verdict)
        partial = self.shown.anything and (self._text()["text_bytes"] > 0 or self.shown.structured)
        event = {"error": error.as_dict(), "usage": user_usage(self.tallies), "partial": partial}
        self._end(event, error.error_class)

    def _text(self) -> dict[str, Any]:
        waiting = self.outbox.waiting
        sha = waiting.text_sha256()  # first: it ends half a surrogate pair, which adds to the bytes
        return {"text_bytes": waiting.text_bytes, "text_sha256": sha}

    def _end(self, event: dict[str, Any], error_class: ErrorClass = "permanent") -> None:
        state = self.life.state
        earlier = self._earlier_records()
        self.records = [*earlier, *own_records(self.tallies, self.life.claim.run, earlier)]
        self.outbox.end(
            event,
            End(
                state,
                msgpack.packb(event),
                msgpack.packb(self.records),
                may_reopen=state is State.FAILED and error_class == "temporary",
            ),
        )

    def _earlier_records(self) -> list[dict[str, Any]]:
        earlier: list[Mapping[str, Any]] = list(self.life.claim.records)
        if self._starts_over:  # what earlier runs brought does not stand any more
            return [withdrawn(record, self.life.claim.run) for record in earlier]
        return [dict(record) for record in earlier]


def error_of(verdict: GiveUp) -> ProtocolError:
    """The wire form of a verdict."""
    return ProtocolError(
        verdict.code,
        verdict.message,
        retry_after_ms=verdict.retry_after_ms,
        details=dict(verdict.details) if verdict.details else None,
        error_class=verdict.error_class,
    )
