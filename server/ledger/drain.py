"""Usage records from the streams in Redis into the ledger's database, exactly once.

Insert, commit, then delete from the stream: whoever dies in between leaves entries that are read again, and a record
that is there already changes nothing. So the lease that one node holds spares work; nothing depends on it.

An entry is left in its stream for `SETTLE_MS`: by then Redis has it on disk (`appendfsync everysec`), so what is in the
database is not forgotten by a Redis that is killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from server.ledger.errors import LedgerRefused, LedgerUnavailable
from server.ledger.record import BadEntry, Row, rows_of
from server.ledger.scripts import LEASE
from server.ledger.shelf import Shelf
from server.store.keys import LEDGER_LEASE, QUOTA_TAGS, usage_stream
from server.store.link import StoreError
from server.store.store import Store
from server.telemetry.tasks import TaskOwner

if TYPE_CHECKING:
    from server.ledger.book import Book, Conflict

log = structlog.get_logger("ledger")

DRAIN_SECONDS: Final = 0.5
"""Between two looks."""
LEASE_MS: Final = 5_000
SETTLE_MS: Final = 2_000
STREAMS_AT_ONCE: Final = 128
"""Streams looked at in one round, beside those that had something lately: all of them within two rounds."""
BUSY_ROUNDS: Final = 120
"""For how many rounds a stream that had something is looked at in every one."""
ENTRIES_AT_ONCE: Final = 500
"""Most entries read from one stream at once."""
STEP_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 5.0
RETRY_SECONDS: Final = (1.0, 2.0, 5.0, 10.0)
"""How long a database that failed is left alone, the first times and from then on."""


class LedgerWatch(Protocol):
    """What is told of the ledger, for metrics."""

    def ledger_drained(self, records: int, lag_seconds: float) -> None: ...  # noqa: D102
    def ledger_trouble(self, kind: str, count: int = 1) -> None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a stream."""

    stream: bytes
    id: bytes
    data: bytes

    @property
    def at_ms(self) -> int:
        """When it was written, by the clock of its Redis."""
        return int(self.id.split(b"-")[0])


@dataclass(slots=True)
class Outcome:
    """What became of some entries."""

    records: int = 0
    conflicts: list[Conflict] = field(default_factory=list)
    aside: list[tuple[Entry, str]] = field(default_factory=list)
    """Entries that cannot be booked, and why: `malformed` or `refused`."""


class Drain:
    """One per node; the node that holds the lease drains all streams."""

    def __init__(self, store: Store, node: str, shelf: Shelf, watch: LedgerWatch) -> None:
        self._store = store
        self._node = node
        self._shelf = shelf
        self._watch = watch
        self._streams = [usage_stream(f"q{number}") for number in range(QUOTA_TAGS)]
        self._busy: dict[bytes, int] = {}
        """Streams that had something lately → for how many more rounds they are looked at."""
        self._next = 0
        self._failures = 0
        self._owner = TaskOwner("ledger")

    def start(self) -> None:
        """Begin to drain."""
        self._owner.start(self._run(), "drain")

    async def close(self) -> None:
        """Drain what has rested long enough, if this node does that and its database is open; then let go.

        What has not is left to the other nodes, or to the next start: Redis may be killed a moment later.
        """
        await self._owner.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._shelf.opened and (now_ms := await self._lease()) is not None:
                    await self.round(now_ms - SETTLE_MS, self._streams, now_ms)
                await self._store.run(LEASE, [LEDGER_LEASE], [self._node, 0], STEP_SECONDS)
        except (StoreError, TimeoutError) as error:
            log.info("ledger_left", error=str(error))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._pause())
            try:
                now_ms = await self._lease()
                if now_ms is not None:
                    await self.round(now_ms - SETTLE_MS, self._due(), now_ms)
            except (StoreError, TimeoutError) as error:
                log.debug("ledger_waits_for_redis", error=str(error))

    def _pause(self) -> float:
        if not self._failures:
            return DRAIN_SECONDS
        return RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS)) - 1]

    async def _lease(self) -> int | None:
        """Redis's time in milliseconds, if this node is the one that drains."""
        has, now = await self._store.run(LEASE, [LEDGER_LEASE], [self._node, LEASE_MS], STEP_SECONDS)
        return int(now) if has else None

    def _due(self) -> list[bytes]:
        """The streams of this round."""
        self._busy = {stream: rounds - 1 for stream, rounds in self._busy.items() if rounds > 1}
        some = [self._streams[(self._next + n) % QUOTA_TAGS] for n in range(STREAMS_AT_ONCE)]
        self._next = (self._next + STREAMS_AT_ONCE) % QUOTA_TAGS
        return [*self._busy, *(stream for stream in some if stream not in self._busy)]

    # --- one round ---------------------------------------------------------------------------------------------------

    async def round(self, settled_before_ms: int | None, streams: Sequence[bytes], now_ms: int | None = None) -> None:
        """Bring what the streams hold into the database. Raises `StoreError` or `TimeoutError`.

        `settled_before_ms`: leave what was written later; None: leave nothing.
        """
        found = [entry for some in await asyncio.gather(*map(self._read, streams)) for entry in some]
        entries = [entry for entry in found if settled_before_ms is None or entry.at_ms <= settled_before_ms]
        if not entries:
            if found and not self._shelf.opened:
                await self._insert([])  # it opens while the first entries rest
            self._watch.ledger_drained(0, 0.0)
            return
        outcome = await self._insert(entries)
        if outcome is None:
            self._watch.ledger_drained(0, _age(entries, now_ms))
            return
        self._tell(outcome.conflicts)
        await asyncio.gather(*(self._set_aside(entry, kind) for entry, kind in outcome.aside))
        await self._acknowledge(entries)
        self._watch.ledger_drained(outcome.records, _age(entries, now_ms))

    async def _read(self, stream: bytes) -> list[Entry]:
        command = ("XRANGE", stream, "-", "+", "COUNT", ENTRIES_AT_ONCE)
        try:
            reply = await self._store.call(stream, *command, seconds=STEP_SECONDS)
        except (StoreError, TimeoutError) as error:  # one primary of several: the others' records need not wait
            log.debug("ledger_waits_for_redis", stream=stream.decode(), error=str(error))
            return []
        if reply:
            self._busy[stream] = BUSY_ROUNDS
        return [Entry(stream, entry_id, fields[1]) for entry_id, fields in reply]

    async def _insert(self, entries: Sequence[Entry]) -> Outcome | None:
        """Commit what the entries hold; None: the database does not take anything now."""
        try:
            outcome = await self._shelf.write(lambda book: _insert(book, entries))
        except LedgerUnavailable as failed:
            self._failures += 1
            self._watch.ledger_trouble("unavailable")
            log.error("ledger_unavailable", error=str(failed), failures=self._failures)
            return None
        self._failures = 0
        return outcome

    def _tell(self, conflicts: Iterable[Conflict]) -> None:
        for conflict in conflicts:
            self._watch.ledger_trouble("conflict")
            log.error(
                "ledger_conflict",
                id=conflict.message_id,
                tag=conflict.key.message_key,
                attempt=conflict.key.attempt,
                columns=list(conflict.columns),
            )

    async def _set_aside(self, entry: Entry, kind: str) -> None:
        """Keep what cannot be booked, for a person to look at, where it delays nothing."""
        self._watch.ledger_trouble(kind)
        aside = entry.stream + b":aside"
        await self._store.call(aside, "XADD", aside, "*", "e", entry.data, seconds=STEP_SECONDS)

    async def _acknowledge(self, entries: Iterable[Entry]) -> None:
        """Delete what is committed. If that fails it is read, and found in the database, again."""
        by_stream: dict[bytes, list[bytes]] = {}
        for entry in entries:
            by_stream.setdefault(entry.stream, []).append(entry.id)
        delete = (
            self._store.call(stream, "XDEL", stream, *ids, seconds=STEP_SECONDS) for stream, ids in by_stream.items()
        )
        await asyncio.gather(*delete)


def _insert(book: Book, entries: Sequence[Entry]) -> Outcome:
    """Commit what the entries hold, in a thread. Raises `LedgerUnavailable`."""
    rows, outcome = _unpacked(entries)
    try:
        outcome.conflicts += book.insert(row for some in rows.values() for row in some)
        outcome.records = sum(map(len, rows.values()))
    except LedgerRefused:  # one of them; the others must not wait for it
        for entry, some in rows.items():
            try:
                outcome.conflicts += book.insert(some)
                outcome.records += len(some)
            except LedgerRefused as error:
                log.error("ledger_entry_refused", entry=entry.id.decode(), error=str(error))
                outcome.aside.append((entry, "refused"))
    return outcome


def _unpacked(entries: Sequence[Entry]) -> tuple[dict[Entry, list[Row]], Outcome]:
    """The rows of each entry; what is none of ours is set aside."""
    rows: dict[Entry, list[Row]] = {}
    outcome = Outcome()
    for entry in entries:
        try:
            rows[entry] = rows_of(entry.data)
        except BadEntry as error:
            log.error("ledger_entry_malformed", stream=entry.stream.decode(), entry=entry.id.decode(), error=str(error))
            outcome.aside.append((entry, "malformed"))
    return rows, outcome


def _age(entries: Sequence[Entry], now_ms: int | None) -> float:
    """Seconds since the oldest was written."""
    return 0.0 if now_ms is None else max(0.0, (now_ms - min(entry.at_ms for entry in entries)) / 1000)
