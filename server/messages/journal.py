"""The journal writer: one lane per Redis primary, each gathering what all messages produced while its last write was
in flight and sending it as one pipeline of fenced append scripts. Nothing is shown before Redis has acknowledged it.

An `Outbox` is one owned message's side: what waits, what is in flight, where the head stands. A batch that was sent
is never built anew: a retry after a lost connection sends the same bytes, which the script recognises. Where Redis has
lost acknowledged entries they are written again, the same bytes under the same seqs, as far as the hub's tail still
holds them, after the claim and the attempts that it has lost with them; else the message is lost to this owner, who
takes it over from itself. The `Ending` of a message that has ended can be written again in the same way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeAlias

import structlog

from server.messages.events import EVENT_BYTES, Entry, Event, NewEvents, pack
from server.messages.hub import Channel
from server.messages.scripts import APPEND, CLAIM, START_ATTEMPT
from server.store.keys import MessageKeys
from server.store.link import Link, StoreError, StoreReply, StoreUnavailable
from server.store.store import Store, forget
from server.telemetry.tasks import TaskOwner
from server.upstreams.base import Piece

log = structlog.get_logger("journal")

FLUSH_BYTES: Final = 65_536
"""Most text of one message in one flush, so that a firehose does not delay its neighbours."""
BACKLOG_BYTES: Final = 1_048_576
"""Most text of one message that may wait for the journal; then reading its upstream pauses."""
PROCESS_BACKLOG_BYTES: Final = 67_108_864
"""The same for all messages of the process."""
RECONNECT_SECONDS: Final = 0.5
RETRY_SECONDS: Final = 0.02


class Verdict(IntEnum):
    """What the append script answers."""

    WRITTEN = 1
    WRITTEN_CANCEL = 2
    FENCED = -1
    ENDED = -2
    GAP = -3
    MISSING = -4


class JournalLost(Exception):
    """This node may no longer write this message: another one owns it, or it has ended."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.name)
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class End:
    """What the terminal append carries beside the end event."""

    state: str
    event: bytes
    """The end frame's fields, packed; answers readers once the journal has gone."""
    records: bytes
    """One usage record per attempt, packed."""
    may_reopen: bool
    """Whether `retry_of` may reopen the message (a temporary failure)."""


@dataclass(slots=True)
class _Flight:
    """One entry on its way, kept until Redis has answered."""

    entry: Entry
    data: bytes
    base: int | None
    attempts: int
    """So many are allocated before it."""
    end: End | None = None


@dataclass(frozen=True, slots=True)
class _Claimed:
    """The claim, on its way again."""

    args: Sequence[Any]


@dataclass(frozen=True, slots=True)
class _Begun:
    """The allocation of an attempt, on its way again."""

    number: int
    description: bytes


_Step: TypeAlias = _Flight | _Begun | _Claimed
"""What may be in flight."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The last entry of a message and what is needed to write it again, should Redis lose it."""

    keys: MessageKeys
    fence: bytes
    last: _Flight
    tail: tuple[Entry, ...]
    """What was written before it, as far as it was in the hub's tail."""
    begun: Mapping[int, bytes]
    starts_freely: bool
    claim_again: Callable[[], Sequence[Any] | None]

    def again(self, journal: Journal) -> Outbox:
        """Send it once more, and what turns out to be lost before it. Raises `StoreUnavailable`."""
        lane, entry = journal.lane(self.keys.record), self.last.entry
        channel = Channel("", self.keys, entry.prev, local=True, limit=self.size)
        channel.entries.extend(self.tail)
        outbox = Outbox(lane, channel, self.keys, self.fence, entry.prev, entry.first, lambda lost: None)
        outbox.begun, outbox.attempts = dict(self.begun), self.last.attempts
        outbox.starts_freely, outbox.claim_again = self.starts_freely, self.claim_again
        outbox.flight = self.last
        lane.resend.append(outbox)
        lane.wake.set()
        return outbox

    @property
    def size(self) -> int:
        """Bytes, roughly."""
        end = self.last.end
        assert end is not None
        return sum(entry.size for entry in self.tail) + len(self.last.data) + len(end.event) + len(end.records)


class Outbox:
    """What one owned message has for its journal."""

    __slots__ = (
        "_drained",
        "_end",
        "_end_event",
        "_failure",
        "_lost",
        "attempts",
        "base",
        "begun",
        "channel",
        "claim_again",
        "ended",
        "fence",
        "flight",
        "head",
        "keys",
        "lane",
        "next",
        "on_signal",
        "queued",
        "starts_freely",
        "waiting",
    )

    def __init__(
        self,
        lane: Lane,
        channel: Channel,
        keys: MessageKeys,
        fence: bytes,
        head: int,
        first: int,
        on_signal: Callable[[bool], None],
        event_bytes: int = EVENT_BYTES,
    ) -> None:
        self.lane = lane
        self.channel = channel
        self.keys = keys
        self.fence = fence
        self.head = head
        """Seq that the next entry continues, as readers see it."""
        self.next = first
        """Seq of the next event; `head + 1`, or further on after a takeover."""
        self.base: int | None = None
        self.waiting = NewEvents(event_bytes)
        self.flight: _Step | None = None
        self.queued = False
        self.attempts = 0
        """How many attempts are allocated in the record, as far as this owner knows."""
        self.begun: dict[int, bytes] = {}
        """Those of them that this owner allocated, with their descriptions."""
        self.starts_freely = False
        """Whether its first attempt waited for nobody's turn, so that it may be allocated again by itself."""
        self.claim_again: Callable[[], Sequence[Any] | None] = lambda: None
        """The arguments of the claim script that make this very claim once more; None where that can't be."""
        self.ended: _Flight | None = None
        """The last entry, once it is written."""
        self._lost: deque[_Step] = deque()
        """What is to be written again after the entry in flight; the newest entry is the last."""
        self.on_signal = on_signal
        """Called with False when a cancel was requested, with True when this node lost the message."""
        self._end: End | None = None
        self._end_event: Event | None = None
        self._failure: JournalLost | None = None
        self._drained = asyncio.Event()
        self._drained.set()

    # --- the message's side ---------------------------------------------------------------------------------------

    def add(self, pieces: Iterable[Piece]) -> None:
        """Append new output. Raises `JournalLost` once this node may not write any more."""
        self._check()
        before = self.waiting.size
        self.waiting.add(pieces)
        self.lane.backlog += self.waiting.size - before
        self._dirty()

    def begins(self, number: int, description: bytes) -> None:
        """An attempt was allocated in the record."""
        self.attempts = number
        self.begun[number] = description

    def attempt(self, event: dict[str, Any], starts_over: bool) -> None:
        """Append an attempt event; `starts_over` = text before it does not stand any more."""
        self._check()
        if starts_over:
            self.base = -1  # its seq is known when it is taken
            self.waiting.starts_over()
        self.waiting.put(("a", event))
        self.lane.backlog += 256
        self._dirty()

    def end(self, event: dict[str, Any], end: End) -> None:
        """Append the end event; nothing may follow it."""
        self._check()
        self._end = end
        self._end_event = ("e", end.state, event)
        self._dirty()

    @property
    def full(self) -> bool:
        """Whether `room` would wait: reading the upstream must pause."""
        return self.waiting.size > BACKLOG_BYTES or self.lane.backlog > PROCESS_BACKLOG_BYTES

    async def room(self) -> None:
        """Wait until more may be added. Raises `JournalLost`."""
        while self.full:
            self._check()
            await self.lane.flushed()
        self._check()

    async def flushed(self) -> None:
        """Wait until everything added has been acknowledged. Raises `JournalLost`."""
        while self.flight is not None or self.waiting or self._end is not None:
            await self._progress()
        self._check()

    def ending(self) -> Ending:
        """What was written last, to be kept. Only once the end is."""
        assert self.ended is not None
        tail = tuple(entry for entry in self.channel.entries if entry.last < self.ended.entry.first)
        return Ending(self.keys, self.fence, self.ended, tail, self.begun, self.starts_freely, self.claim_again)

    def abandon(self) -> None:
        """Nothing more will be written from here."""
        self.lane.backlog -= self.waiting.size
        self.waiting.drop()
        self._end = None

    async def _progress(self) -> None:
        self._check()
        self._drained.clear()
        await self._drained.wait()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _dirty(self) -> None:
        if not self.queued and self.flight is None:
            self.queued = True
            self.lane.dirty.append(self)
            self.lane.wake.set()

    # --- the lane's side --------------------------------------------------------------------------------------------

    def take(self) -> _Flight | None:
        """The next entry to send; None if nothing waits."""
        before = self.waiting.size
        events = self.waiting.take(FLUSH_BYTES)
        self.lane.backlog -= before - self.waiting.size
        end = None
        if not self.waiting and self._end is not None:
            assert self._end_event is not None
            events = [*events, self._end_event]
            end, self._end = self._end, None
        if not events:
            return None
        data = pack(self.head, self.next, events)
        entry = Entry(self.head, self.next, events, len(data))
        base = _base_in(entry) if self.base == -1 else None
        if base is not None:
            self.base = base
        self.flight = flight = _Flight(entry, data, base, self.attempts, end)
        return flight

    def move_to(self, lane: Lane) -> None:
        """Go on in another lane, with the entry that is in flight."""
        self.lane.backlog -= self.waiting.size
        lane.backlog += self.waiting.size
        self.lane = lane
        lane.resend.append(self)
        lane.wake.set()

    def remake(self) -> None:
        """Redis has lost the claim: make it and what followed once more, unless the next entry finds out anyway."""
        if self.flight is None and not self.queued and self._failure is None:
            again = self._again(0, b"", self.head, self.next - 1, missing=True)
            if again:
                self._lost = deque(again)
                self.flight = self._lost.popleft()
                self.lane.resend.append(self)
                self.lane.wake.set()

    def landed(self, reply: Any) -> bool:
        """Redis has answered what was in flight; False if something else is in flight now, to be sent at once."""
        flight = self.flight
        assert flight is not None
        if isinstance(flight, _Claimed):
            ours = self.fence in (reply[1:2] if reply[0] == b"new" else reply[5:6])
            verdict = Verdict.WRITTEN if ours else Verdict.FENCED
        else:
            tip, attempts = (int(reply[1]), reply[2]) if isinstance(reply, list) else (0, b"")
            verdict = Verdict(reply[0] if isinstance(reply, list) else reply)
            if verdict in (Verdict.GAP, Verdict.MISSING) and self._mends(tip, attempts, verdict is Verdict.MISSING):
                return False
        self.flight = None
        if verdict > 0 and self._lost:
            self.flight = self._lost.popleft()
            return False
        if verdict > 0:
            if isinstance(flight, _Flight):
                self._written(flight)
            if verdict is Verdict.WRITTEN_CANCEL:
                self.on_signal(False)
            if self.waiting or self._end is not None:
                self._dirty()
        else:
            self._failure = JournalLost(verdict)
            self._lost.clear()
            self.abandon()
            self.on_signal(True)
        self._drained.set()
        return True

    def _written(self, flight: _Flight) -> None:
        entry = flight.entry
        self.ended = flight if flight.end is not None else None
        self.head, self.next = entry.last, entry.last + 1
        if not self.channel.publish(entry):
            self.channel.reset(entry.last, entry.ends)

    def _mends(self, tip: int, attempts: bytes, missing: bool) -> bool:
        """Whether what Redis lost after `tip` can be written again, before the newest entry; then it is in flight."""
        newest = self._lost[-1] if self._lost else self.flight
        if not isinstance(newest, _Flight):
            return False
        again = self._again(tip, attempts, newest.entry.prev, newest.entry.first - 1, missing)
        if not again:
            return False
        self._lost = deque([*again, newest])
        self.flight = self._lost.popleft()
        return True

    def _again(self, tip: int, attempts: bytes, head: int, follows: int, missing: bool) -> list[_Step]:
        """What leads once more from `tip` to `head`, and so to the tip that the next entry `follows`.

        Nothing if the tail does not reach so far back, or it must not be written again.
        """
        entries = [entry for entry in self.channel.entries if tip < entry.last <= head]
        complete = entries[0].first - 1 == tip and entries[-1].last == head if entries else follows == tip
        if not complete or not (attempts or self.starts_freely):
            return []
        again: list[_Step] = []
        if missing:
            if (args := self.claim_again()) is None:
                return []
            again.append(_Claimed(args))
        known = int(attempts or 0)
        again += [_Begun(number, self.begun[number]) for number in sorted(self.begun) if number > known]
        log.warning("lost_entries_written_again", entries=len(entries), others=len(again), tip=tip, head=head)
        return again + [_Flight(e, pack(e.prev, e.first, e.events), _base_in(e), self.attempts) for e in entries]

    def command(self) -> tuple[Any, ...]:
        """The script call of what is in flight: the same bytes at every retry."""
        flight, keys = self.flight, self.keys
        assert flight is not None
        if isinstance(flight, _Claimed):
            return ("EVALSHA", CLAIM.sha, 3, keys.record, keys.journal, keys.standing, *flight.args)
        if isinstance(flight, _Begun):
            return ("EVALSHA", START_ATTEMPT.sha, 1, keys.record, self.fence, flight.number, flight.description)
        entry, end = flight.entry, flight.end
        return (
            "EVALSHA",
            APPEND.sha,
            3,
            keys.record,
            keys.journal,
            keys.channel,
            self.fence,
            entry.first - 1,
            entry.last,
            flight.data,
            "" if flight.base is None else flight.base,
            flight.attempts,
            *(("", "", "", "") if end is None else (end.state, end.event, end.records, "1" if end.may_reopen else "")),
        )


def _base_in(entry: Entry) -> int | None:
    """Seq of the last attempt in an entry that starts over; None if there is none."""
    for index in range(len(entry.events) - 1, -1, -1):
        event = entry.events[index]
        if event[0] == "a" and event[1]["mode"] != "continue":
            return entry.first + index
    return None


class Lane:
    """The writer to one Redis primary."""

    def __init__(self, link: Link, journal: Journal) -> None:
        self.link = link
        self.journal = journal
        self.dirty: deque[Outbox] = deque()
        self.resend: list[Outbox] = []
        """Outboxes whose entry in flight came from another lane: their slot has moved here."""
        self.wake = asyncio.Event()
        self.backlog = 0
        """Characters of all outboxes that wait."""
        self.flushes = 0
        self.entries = 0
        self._flushed = asyncio.Event()

    async def flushed(self) -> None:
        """Wait for the end of the next flush, whosesoever entries it carries."""
        await self._flushed.wait()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            batch, self.dirty = self.dirty, deque()
            flights, self.resend = self.resend, []
            for outbox in batch:
                outbox.queued = False
                if outbox.take() is not None:
                    flights.append(outbox)
            while flights:
                flights = self._still_here(await self._send(flights))
                self._flushed.set()
                self._flushed = asyncio.Event()

    def _still_here(self, flights: list[Outbox]) -> list[Outbox]:
        """Those whose slot has moved to another primary go on in that primary's lane, with the same bytes."""
        here = []
        for outbox in flights:
            try:
                lane = self.journal.lane(outbox.keys.record)
            except StoreUnavailable:
                lane = self
            if lane is self:
                here.append(outbox)
            else:
                outbox.move_to(lane)
        return here

    async def _send(self, flights: list[Outbox]) -> list[Outbox]:
        """Send every entry in flight; returns the outboxes that have one to send still, or again."""
        self.flushes += 1
        self.entries += len(flights)
        try:
            futures = [self.link.call(*outbox.command()) for outbox in flights]
        except StoreUnavailable:
            await self._recover(None)
            return flights
        await asyncio.wait(futures[-1:])  # replies come in order: the last one is the last
        unknown = []
        more = []
        why: BaseException | None = None
        for outbox, future in zip(flights, futures, strict=True):
            error = future.exception()
            if error is not None:
                why = error
                unknown.append(outbox)
            elif not outbox.landed(future.result()):
                more.append(outbox)
        if unknown:
            log.warning("appends_unanswered", count=len(unknown), error=str(why))
            await self._recover(why)
        return unknown + more

    async def _recover(self, why: BaseException | None) -> None:
        """Wait for what a retry needs: a connection, another primary, the script, or just a moment."""
        await asyncio.sleep(RETRY_SECONDS)
        try:
            await self.link.ready(RECONNECT_SECONDS)
        except StoreError:
            log.warning("journal_waits_for_redis", address=str(self.link.address))
            return
        if isinstance(why, StoreReply) and not self.journal.store.misplaced(why) and str(why).startswith("NOSCRIPT"):
            for script in (APPEND, START_ATTEMPT, CLAIM):
                self.link.call("SCRIPT", "LOAD", script.source).add_done_callback(forget)


class Journal:
    """Every lane of the process."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._owner = TaskOwner("journal")
        self._lanes: dict[Link, Lane] = {}

    def lane(self, key: bytes) -> Lane:
        """The lane to the primary of `key`."""
        link = self.store.link(key)
        lane = self._lanes.get(link)
        if lane is None:
            lane = self._lanes[link] = Lane(link, self)
            self._owner.start(lane.run(), str(link.address))
        return lane

    async def close(self) -> None:
        """Stop writing; what waits is abandoned."""
        await self._owner.close()
