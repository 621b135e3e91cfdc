"""Reading a message back from Redis: pages of its journal, snapshots of what stands, its end.

Memory is bounded: one page is about `PAGE_BYTES`, and a semaphore bounds the pages of the whole process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import orjson

from protocol.frames import DEFAULT_ROUTE, END_STATES
from server.messages.events import (
    ATTEMPT,
    CALLS,
    END,
    REASONING,
    TEXT,
    Entry,
    Event,
    merge_calls,
    split_bytes,
    split_calls,
    unpack,
)
from server.messages.follow import Frame, snapshot_part
from server.messages.scripts import PAGE
from server.store.keys import MessageKeys
from server.store.store import Store

PAGE_BYTES: Final = 131_072
"""How much of a journal one read brings, about."""
PAGES_AT_ONCE: Final = 32
"""Most pages being read at once in one process."""
READ_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Record:
    """What a reader needs of a message's record."""

    state: str
    head: int
    base: int
    """Seq of the attempt event since which the text stands."""
    end: dict[str, Any] | None
    standing: tuple[int, int, int] | None
    """Bytes of text, reasoning and tool calls kept beside the journal."""
    conversation: str | None = None
    generation: str = ""
    """Of the claim: another one than before, if Redis lost the claim and granted it anew."""

    @property
    def ended(self) -> bool:
        """Whether the message has ended."""
        return self.state in END_STATES


@dataclass(frozen=True, slots=True)
class Details:
    """All that is told of a message beside its text."""

    record: Record
    created: float
    """When it was claimed, in Unix seconds."""
    model: str
    """The route it was asked of."""
    may_reopen: bool
    """Whether it failed in a way that a repeat may mend."""
    runs: int
    """How often it ran: once, and once more for every time it was reopened."""
    attempts: list[dict[str, Any]]
    """Every attempt: the usage records once it has ended, what was allocated until then."""
    prompt: dict[str, str] | None = None
    """{name, version} of the prompt it was resolved to."""

    @property
    def ended_at(self) -> float:
        """When the last attempt ended, in Unix seconds; 0 if nobody noted it."""
        return max((attempt.get("ended_at") or 0.0 for attempt in self.attempts), default=0.0)


class Reader:
    """Reads journals for every session of the process."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._pages = asyncio.Semaphore(PAGES_AT_ONCE)

    async def record(self, keys: MessageKeys, seconds: float = READ_SECONDS) -> Record | None:
        """The message's record; None if there is none. Raises `StoreError` or `TimeoutError`."""
        return _record(await self.store.call(keys.record, "HMGET", keys.record, *_RECORD, seconds=seconds))

    async def details(self, keys: MessageKeys, seconds: float = READ_SECONDS) -> Details | None:
        """More of the message; None if there is none. Raises `StoreError` or `TimeoutError`."""
        names = ("created", "model", "retry", "run", "records", "attempts", "prompt", *_RECORD)
        found = await self.store.call(keys.record, "HMGET", keys.record, *names, seconds=seconds)
        record, (created, model, retry, run, records, attempts, prompt) = _record(found[7:]), found[:7]
        if record is None or created is None:
            return None
        made: list[dict[str, Any]] = msgpack.unpackb(records) if records else []
        if not record.ended:
            made += await self._open_attempts(keys, made, int(attempts or 0), seconds)
        route = model.decode() if model else DEFAULT_ROUTE
        used = None if prompt is None else orjson.loads(prompt)
        return Details(record, float(created), route, retry == b"1", int(run or 1), made, used)

    async def _open_attempts(
        self, keys: MessageKeys, made: list[dict[str, Any]], count: int, seconds: float
    ) -> list[dict[str, Any]]:
        """What was allocated and not yet recorded."""
        told = {attempt["attempt"] for attempt in made}
        numbers = [number for number in range(1, count + 1) if number not in told]
        if not numbers:
            return []
        fields = [f"attempt:{number}" for number in numbers]
        found = await self.store.call(keys.record, "HMGET", keys.record, *fields, seconds=seconds)
        return [{"attempt": n, **msgpack.unpackb(data)} for n, data in zip(numbers, found, strict=True) if data]

    async def page(self, keys: MessageKeys, cursor: int, inclusive: bool = True) -> list[Entry]:
        """Entries from the one that holds `cursor` on (`inclusive`), or those after it; empty at the head."""
        start = f"{cursor}-0" if inclusive else f"({cursor}-0"
        async with self._pages:
            packed = await self.store.run(PAGE, [keys.journal], [start, PAGE_BYTES], seconds=READ_SECONDS)
        return [unpack(data) for data in packed]

    async def snapshot(
        self, message_id: str, keys: MessageKeys, record: Record, limit: int
    ) -> AsyncGenerator[Frame, None]:
        """The parts of a snapshot at the record's head, each with at most about `limit` bytes of content.

        It breaks off without a `last` part if a restart comes in between; then it is to begin anew.
        """
        part, attempt = 0, 0
        seq = record.head - 1 if record.ended else record.head  # the end event has the head's number and follows
        held: list[Event] = []
        async for event in self._standing(keys, record, limit):
            if event[0] == ATTEMPT:
                if part and event[1]["mode"] != "continue":
                    return
                attempt = event[1]["attempt"]
                continue
            if held and _size(held) + _size([event]) > limit:
                part += 1
                yield snapshot_part(message_id, seq, attempt, part, False, held)
                held = []
            held.append(event)
        yield snapshot_part(message_id, seq, attempt, part + 1, True, held)

    async def _standing(self, keys: MessageKeys, record: Record, limit: int) -> AsyncGenerator[Event, None]:
        """Events since the last restart up to the record's head, from the journal or from what was kept of it."""
        cursor, inclusive, found = record.base, True, record.head == 0
        while cursor < record.head:
            entries = await self.page(keys, cursor, inclusive)
            if not entries:
                break
            found = True
            for entry in entries:
                first = max(entry.first, record.base)
                for offset, event in enumerate(entry.events[first - entry.first :]):
                    if first + offset > record.head:
                        return
                    if event[0] == END:
                        continue  # of a failure that was reopened since, or the last one
                    yield event
            cursor, inclusive = entries[-1].last, False
        if not found and record.standing is not None:
            async for event in self._kept(keys, record.standing, limit):
                yield event

    async def _kept(self, keys: MessageKeys, lengths: Sequence[int], limit: int) -> AsyncGenerator[Event, None]:
        """The kept text, reasoning and tool calls, by the page, each event of at most about `limit` bytes."""
        start = 0
        for kind, length in zip((TEXT, REASONING), lengths, strict=False):
            end = start + length
            while start < end:
                stop = min(start + PAGE_BYTES // 8, end)
                async with self._pages:
                    data = await self.store.call(
                        keys.standing, "GETRANGE", keys.standing, start, min(stop + 3, end) - 1, seconds=READ_SECONDS
                    )
                if not data:
                    return
                data = _whole_characters(data, stop - start)
                start += len(data)
                for part in split_bytes(data, max(4, limit)):
                    yield kind, part
        if lengths[2]:
            data = await self.store.call(
                keys.standing, "GETRANGE", keys.standing, start, start + lengths[2] - 1, seconds=READ_SECONDS
            )
            for delta in split_calls(msgpack.unpackb(data) if data else [], max(4, limit)):
                yield CALLS, [delta]


_RECORD: Final = ("state", "head", "base", "end", "standing", "conversation", "gen")


def _record(found: Sequence[bytes | None]) -> Record | None:
    """The record, of the fields `_RECORD`."""
    state, head, base, end, standing, conversation, generation = found
    if state is None:
        return None
    return Record(
        state=state.decode(),
        head=int(head or 0),
        base=int(base or 0),
        end=msgpack.unpackb(end) if end else None,
        standing=tuple(msgpack.unpackb(standing)) if standing else None,
        conversation=conversation.decode() if conversation else None,
        generation=generation.decode() if generation else "",
    )


def _whole_characters(data: bytes, size: int) -> bytes:
    """At most `size` bytes of UTF-8 and up to three more, to end on a whole character."""
    while size < len(data) and data[size] & 0xC0 == 0x80:
        size += 1
    return data[:size]


def _size(events: Sequence[Event]) -> int:
    return sum(len(body) if isinstance(body, str) else len(str(body)) for _, body in events)


class Standing:
    """Gathers what stands at the end, event by event, for `finalize`."""

    def __init__(self) -> None:
        self.seq = 0
        """Of the last event; 0 = none."""
        self.text: list[bytes] = []
        self.reasoning: list[bytes] = []
        self.calls: list[dict[str, Any]] = []
        self.attempt = 0
        """The attempt that it stands since: what those before it said was dropped."""

    def add(self, event: Event) -> None:
        """Take one event of the log."""
        kind, body = event[0], event[1]
        if kind == TEXT:
            self.text.append(body.encode())
        elif kind == REASONING:
            self.reasoning.append(body.encode())
        elif kind == CALLS:
            merge_calls(self.calls, body)
        elif kind == ATTEMPT and body["mode"] != "continue":
            self.text, self.reasoning, self.calls = [], [], []
            self.attempt = body["attempt"]
