"""What a session says: bounds, turns, control first, snapshots and receipts. The channel is real, Redis is a list."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.codec import CODECS, JSON, MSGPACK, Codec
from server.messages.events import ATTEMPT, END, TEXT, Entry, Event, pack, unpack
from server.messages.hub import Channel
from server.messages.reader import Reader, Record
from server.sessions.outbound import (
    CONTROL_BYTES,
    CONTROL_FRAMES,
    FRAME_OVERHEAD,
    Outbound,
    error_frame,
    text_limit,
)
from server.store.keys import MessageKeys
from server.store.link import StoreUnavailable
from tests.wire import eventually

MAX = 1_048_576
DONE: Event = [END, "done", {"text_bytes": 0}]


def attempt(mode: str = "fresh", number: int = 1) -> Event:
    return [ATTEMPT, {"attempt": number, "target": "t", "model": "m", "mode": mode}]


class Log(Reader):
    """A reader whose journals lie in memory; its pages hold at most `page_bytes`, as the script's do."""

    def __init__(self, page_bytes: int = 1000) -> None:
        self.page_bytes = page_bytes
        self.journals: dict[MessageKeys, list[Entry]] = {}
        self.records: dict[MessageKeys, Record] = {}
        self.pages = 0
        self.failures = 0

    async def record(self, keys: MessageKeys, seconds: float = 0) -> Record | None:
        await asyncio.sleep(0)
        return self.records.get(keys)

    async def page(self, keys: MessageKeys, cursor: int, inclusive: bool = True) -> list[Entry]:
        await asyncio.sleep(0)
        self.pages += 1
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("away")
        found: list[Entry] = []
        for entry in self.journals.get(keys, []):
            if entry.last > cursor or (inclusive and entry.last == cursor):
                found.append(unpack(pack(entry.prev, entry.first, entry.events)))
                if sum(e.size for e in found) >= self.page_bytes:
                    break
        return found


class Message:
    """One message: a channel with its tail, and its journal in the log."""

    def __init__(self, log: Log, name: str = "m", tail: int = 10**9) -> None:
        self.log = log
        self.id = name
        self.keys = MessageKeys.of(name)
        self.channel = Channel(name, self.keys, 0, True, tail)
        self.base = 0
        log.journals[self.keys] = []
        self._note("streaming", None)

    def _note(self, state: str, end: Any) -> None:
        head = self.channel.head
        self.log.records[self.keys] = Record(state, head, self.base, end, None)

    def write(self, *events: Event, jump: int = 0, tell: bool = True) -> None:
        head = self.channel.head
        data = pack(head, head + 1 + jump, events)
        entry = unpack(data)
        self.log.journals[self.keys].append(entry)
        for seq, event in enumerate(events, entry.first):
            if event[0] == ATTEMPT and event[1]["mode"] != "continue":
                self.base = seq
        if tell:
            assert self.channel.publish(entry)
            last = events[-1]
            self._note(last[1] if last[0] == END else "streaming", last[2] if last[0] == END else None)

    def text(self, count: int, size: int = 10) -> str:
        whole = ""
        for number in range(count):
            part = f"{number:>{size}}"[:size]
            self.write([TEXT, part])
            whole += part
        return whole

    def followed_by(self, out: Outbound, cursor: int = 0, receipt_only: bool = False) -> None:
        self.channel.followers.add(out)
        out.follow(self.id, self.channel.tag, self.channel, cursor, receipt_only)


def frames(data: bytes, codec: Codec = JSON) -> list[dict[str, Any]]:
    got = json.loads(data) if codec is JSON else msgpack.unpackb(data)
    return got if isinstance(got, list) else [got]


def drain(out: Outbound, codec: Codec = JSON) -> list[dict[str, Any]]:
    """Everything that can be said now."""
    found = []
    while (data := out.take()) is not None:
        found += frames(data, codec)
    return found


@asynccontextmanager
async def speaking(out: Outbound) -> AsyncIterator[None]:
    """The session's reading of pages."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(out.read_pages())
        yield
        task.cancel()


async def hear(out: Outbound, ends: Sequence[str] = ("m",), codec: Codec = JSON) -> list[dict[str, Any]]:
    """Everything until these messages have ended."""
    found: list[dict[str, Any]] = []
    missing = set(ends)
    async with asyncio.timeout(5):
        while missing:
            data = out.take()
            if data is None:
                out.something.clear()
                await out.something.wait()
                continue
            for frame in frames(data, codec):
                found.append(frame)
                if frame["type"] in ("done", "failed", "cancelled"):
                    missing.discard(frame["id"])
    return found


def text_of(found: list[dict[str, Any]], name: str = "m") -> str:
    """What stands for a client that was at 0; asserts that every frame continues the one before."""
    cursor, text, parts = 0, "", 0
    for frame in found:
        if frame.get("id") != name:
            continue
        if frame["type"] == "snapshot":
            parts = frame["part"]
            text = frame["text"] if parts == 1 else text + frame["text"]
            cursor = frame["seq"] if frame["last"] else cursor
            continue
        assert frame["after"] == cursor
        if frame["type"] == "attempt" and frame["mode"] != "continue":
            text = ""
        text += frame.get("text", "")
        cursor = frame["seq"]
    return text


def outbound(log: Log, codec: Codec = JSON, limit: int = MAX) -> Outbound:
    return Outbound(codec, log, limit)


# --- control ---------------------------------------------------------------------------------------------------------


def test_answers_overtake_data() -> None:
    log = Log()
    out, message = outbound(log), Message(log)
    message.followed_by(out)
    message.write(attempt())
    out.put({"type": "pong"})
    out.put({"type": "accepted"})
    assert [frame["type"] for frame in drain(out)] == ["pong", "accepted", "attempt"]


async def test_too_many_unread_answers_stop_the_reading() -> None:
    out = outbound(Log())
    for _ in range(CONTROL_FRAMES - 1):
        out.put({"type": "pong"})
        await asyncio.wait_for(out.control_room(), 1)
    out.put({"type": "pong"})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(out.control_room(), 0.001)
    for _ in range(CONTROL_FRAMES // 2 + 1):
        assert out.take()
    await asyncio.wait_for(out.control_room(), 1)


async def test_long_answers_stop_the_reading_sooner() -> None:
    out = outbound(Log())
    for _ in range(5):
        out.put({"type": "pong", "open": "x" * (CONTROL_BYTES // 4)})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(out.control_room(), 0.001)
    drain(out)
    await asyncio.wait_for(out.control_room(), 1)


def test_error_frames_leave_out_what_is_absent() -> None:
    assert error_frame(None, None, {"code": "x"}) == {"type": "error", "error": {"code": "x"}}
    assert error_frame("send", "m", {}) == {"type": "error", "error": {}, "re": "send", "id": "m"}


# --- turns and bounds ------------------------------------------------------------------------------------------------


def test_a_huge_message_does_not_keep_a_small_one_waiting() -> None:
    log = Log()
    out, huge, small = outbound(log), Message(log, "huge"), Message(log, "small")
    huge.followed_by(out)
    small.followed_by(out)
    huge.write(attempt())
    for _ in range(200):
        huge.write([TEXT, "x" * 10_000])
    drained = [frames(out.take() or b"{}") for _ in range(3)]
    small.write([TEXT, "hello"])
    drained += [frames(out.take() or b"{}") for _ in range(2)]
    assert "small" in [frame["id"] for batch in drained[3:] for frame in batch]


def test_load_makes_batches_larger_by_itself() -> None:
    log = Log()
    out, message = outbound(log), Message(log)
    message.followed_by(out)
    message.write([TEXT, "a"])
    assert [f["text"] for f in drain(out)] == ["a"]
    for part in "bcdef":
        message.write([TEXT, part])
    assert drain(out) == [{"type": "delta", "id": "m", "after": 1, "seq": 6, "text": "bcdef"}]
    assert drain(out) == []


@given(
    st.integers(4096, 200_000),
    st.lists(
        st.tuples(st.integers(0, 2), st.text(st.characters(codec="utf-8"), min_size=1, max_size=300)), max_size=60
    ),
    st.sampled_from(sorted(CODECS)),
)
def test_no_websocket_message_is_larger_than_the_limit(limit: int, parts: list[tuple[int, str]], name: str) -> None:
    log, codec = Log(), CODECS[name]
    out = outbound(log, codec, limit)
    messages = [Message(log, f"m{number}") for number in range(3)]
    for message in messages:
        message.followed_by(out)
    event_bytes = text_limit(limit)
    for number, text in parts:
        for at in range(0, len(text), event_bytes // 4):
            messages[number].write([TEXT, text[at : at + event_bytes // 4]])
    found: list[dict[str, Any]] = []
    while (data := out.take()) is not None:
        assert len(data) <= limit
        found += frames(data, codec)
    for number, message in enumerate(messages):
        assert text_of(found, message.id) == "".join(text for which, text in parts if which == number)


def test_control_characters_keep_to_the_limit_too() -> None:
    log = Log()
    out, message = outbound(log, JSON, 4096), Message(log)
    message.followed_by(out)
    for _ in range(100):
        message.write([TEXT, "\x01" * text_limit(4096)])
    sizes = []
    while (data := out.take()) is not None:
        sizes.append(len(data))
    assert max(sizes) <= 4096
    assert len(sizes) == 100


async def test_a_reader_far_behind_costs_one_page() -> None:
    log = Log(page_bytes=2_000)
    out = outbound(log)
    messages = [Message(log, f"m{number}", tail=500) for number in range(5)]
    texts = [message.text(300) for message in messages]
    for message in messages:
        message.write(DONE)
        message.followed_by(out)
    held = 0
    found: list[dict[str, Any]] = []
    async with speaking(out), asyncio.timeout(5):
        ends = 0
        while ends < 5:
            held = max(held, sum(f.page is not None or f.snapshot is not None for f in out.follows.values()))
            if (data := out.take()) is None:
                out.something.clear()
                await out.something.wait()
                continue
            found += frames(data)
            ends = sum(frame["type"] == "done" for frame in found)
    assert held == 1
    assert [text_of(found, message.id) for message in messages] == texts
    assert len({frame["id"] for frame in found[: len(found) // 2]}) == 5  # they take turns


# --- cursors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [JSON, MSGPACK])
async def test_what_the_tail_has_lost_comes_by_the_page(codec: Codec) -> None:
    log = Log()
    out, message = outbound(log, codec), Message(log, tail=300)
    text = message.text(200)
    message.write(DONE)
    message.followed_by(out)
    async with speaking(out):
        found = await hear(out, codec=codec)
    assert text_of(found) == text
    assert log.pages > 3
    assert {frame["type"] for frame in found} == {"delta", "done"}


async def test_an_outage_while_paging_is_waited_out() -> None:
    log = Log()
    out, message = outbound(log), Message(log, tail=100)
    text = message.text(20)
    message.write(DONE)
    log.failures = 1
    message.followed_by(out)
    async with speaking(out):
        assert text_of(await hear(out)) == text


@pytest.mark.parametrize("cursor", [5, 500, 2**40])
async def test_a_cursor_that_was_never_an_event_gets_a_snapshot(cursor: int) -> None:
    log = Log()
    out, message = outbound(log, limit=4096), Message(log, tail=1)
    message.write(attempt(), [TEXT, "x" * 400], [TEXT, "y" * 400])
    message.write([TEXT, "z" * 400], jump=1000)
    message.write(DONE)
    message.followed_by(out, cursor)
    async with speaking(out):
        found = await hear(out)
    parts = [frame for frame in found if frame["type"] == "snapshot"]
    assert [part["part"] for part in parts] == list(range(1, len(parts) + 1))
    assert [part["last"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert {part["seq"] for part in parts} == {1004}
    assert len(parts) > 1
    assert text_of(found) == "x" * 400 + "y" * 400 + "z" * 400
    assert [frame["type"] for frame in found[len(parts) :]] == ["done"]


async def test_a_hole_does_not_stop_the_pages_of_other_messages() -> None:
    log = Log()
    out, holed, fine = outbound(log), Message(log, "holed", tail=1), Message(log, "fine", tail=1)
    holed.write(attempt(), [TEXT, "a"])
    holed.write([TEXT, "b"], jump=50)
    holed.write(DONE)
    text = fine.text(50)
    fine.write(DONE)
    holed.followed_by(out, 20)
    fine.followed_by(out)
    async with speaking(out):
        found = await hear(out, ("holed", "fine"))
    assert text_of(found, "fine") == text
    assert text_of(found, "holed") == "ab"


async def test_dropping_a_message_lets_the_next_one_page() -> None:
    log = Log()
    out, first, second = outbound(log), Message(log, "a", tail=1), Message(log, "b", tail=1)
    first.text(50)
    text = second.text(50)
    second.write(DONE)
    first.followed_by(out)
    async with speaking(out), asyncio.timeout(5):
        assert out.take() is None  # it wants a page
        await out.something.wait()
        out.something.clear()
        await eventually(lambda: out.follows["a"].page is not None)
        out.drop("a")
        second.followed_by(out)
        found = await hear(out, ("b",))
    assert text_of(found, "b") == text
    assert not [frame for frame in found if frame["id"] == "a"]


async def test_a_reopened_failure_at_the_end_of_a_page_is_passed_over() -> None:
    log = Log(page_bytes=1)
    out, message = outbound(log), Message(log, tail=1)
    message.write(attempt(), [TEXT, "old"], [END, "failed", {}])
    message.write(attempt("restart", 2), [TEXT, "new"])
    message.write(DONE)
    message.followed_by(out)
    async with speaking(out):
        found = await hear(out)
    assert [frame["type"] for frame in found] == ["attempt", "delta", "attempt", "delta", "done"]
    assert text_of(found) == "new"
    assert log.pages < 10


async def test_only_the_receipt_for_who_only_asked_for_a_stop() -> None:
    log = Log()
    out, message = outbound(log), Message(log)
    message.write(attempt(), [TEXT, "a"])
    message.followed_by(out, 1, receipt_only=True)
    async with speaking(out):
        message.write([TEXT, "b"])
        assert drain(out) == []
        message.write([END, "cancelled", {"text_bytes": 2}])
        found = await hear(out)
    assert [frame["type"] for frame in found] == ["cancelled"]
    assert [follow.id for follow in out.finished] == ["m"]


def test_after_the_end_the_message_is_let_go_once() -> None:
    log = Log()
    out, message = outbound(log), Message(log)
    message.followed_by(out)
    message.write(attempt(), [TEXT, "a"], DONE)
    drain(out)
    assert [follow.tag for follow in out.finished] == ["m"]
    assert (out.follows, out.by_id) == ({}, {})
    message.channel.wake()
    assert drain(out) == []


def test_following_again_replaces_the_cursor() -> None:
    log = Log()
    out, message = outbound(log), Message(log)
    message.followed_by(out)
    message.write(attempt(), [TEXT, "a"], [TEXT, "b"])
    assert text_of(drain(out)) == "ab"
    message.followed_by(out)
    message.followed_by(out)
    found = drain(out)
    assert text_of(found) == "ab"
    assert len(found) == 2


def test_a_dropped_message_says_nothing_more() -> None:
    log = Log()
    out, message = outbound(log), Message(log)
    message.followed_by(out)
    message.write(attempt())
    out.drop("m")
    message.write([TEXT, "a"])
    assert drain(out) == []
    assert out.drop("m") is None


# --- shared encoding -------------------------------------------------------------------------------------------------


def test_followers_at_one_cursor_share_the_encoded_frame() -> None:
    log = Log()
    message = Message(log)
    outs = [outbound(log), outbound(log), outbound(log, MSGPACK), outbound(log, JSON, 4096)]
    for out in outs:
        message.followed_by(out)
    message.write([TEXT, "x" * 300])
    message.write([TEXT, "x" * 300])
    taken = [out.take() for out in outs]
    assert taken[0] is taken[1]
    assert taken[2] is not None
    assert frames(taken[2], MSGPACK)[0]["text"] == "x" * 600
    assert taken[3] is not None
    assert frames(taken[3])[0]["text"] == "x" * 300  # its limit is smaller
    message.write(DONE)
    assert not any(encoded.cursor == 2 for encoded in message.channel.encoded)
    for out, codec in zip(outs, (JSON, JSON, MSGPACK, JSON), strict=True):
        assert drain(out, codec)[-1]["type"] == "done"
        assert len(out.finished) == 1


def test_a_late_reader_is_not_served_an_old_encoding() -> None:
    log = Log()
    message = Message(log)
    one, two = outbound(log), outbound(log)
    for out in (one, two):
        message.followed_by(out)
    message.write([TEXT, "a"])
    assert text_of(drain(one)) == "a"
    message.write([TEXT, "b"])
    assert [frame["text"] for frame in drain(one)] == ["b"]
    assert [(frame["after"], frame["text"]) for frame in drain(two)] == [(0, "ab")]


# --- a message that Redis lost ---------------------------------------------------------------------------------------


async def test_a_claim_made_anew_is_told_by_a_snapshot_though_the_cursor_fits() -> None:
    log = Log()
    out = Outbound(JSON, log, MAX)
    message = Message(log)
    message.channel.belongs_to(b"first")
    message.followed_by(out)
    message.write(attempt())
    message.text(3)
    assert drain(out)[-1]["seq"] == 4
    message.channel.reset(0, False)
    log.journals[message.keys].clear()
    message.channel.belongs_to(b"second")
    message.write(attempt())
    text = message.text(5, size=4)  # the cursor, 4, is one of its events
    message.write(DONE)
    async with speaking(out):
        found = await hear(out)
    assert found[0]["type"] == "snapshot"
    assert "".join(frame.get("text", "") for frame in found) == text


async def test_a_snapshot_that_is_under_way_begins_anew_when_the_claim_is_another() -> None:
    log = Log(page_bytes=50)
    out = Outbound(JSON, log, FRAME_OVERHEAD + 6 * 20)
    message = Message(log)
    message.channel.belongs_to(b"first")
    message.write(attempt())
    message.text(12)
    message.followed_by(out, cursor=99)
    async with speaking(out):
        assert drain(out) == []  # it asks for a snapshot
        await eventually(lambda: out.follows[message.channel.tag].snapshot is not None)
        assert [frame["last"] for frame in drain(out)] == [False]
        message.channel.reset(0, False)
        log.journals[message.keys].clear()
        message.channel.belongs_to(b"second")
        message.write(attempt())
        text = message.text(3)
        message.write(DONE)
        found = await hear(out)
    begins = max(i for i, frame in enumerate(found) if frame.get("part") == 1)
    assert "".join(frame.get("text", "") for frame in found[begins:]) == text


async def test_the_same_claim_is_no_reason_for_a_snapshot() -> None:
    log = Log()
    out = Outbound(JSON, log, MAX)
    message = Message(log)
    message.followed_by(out)
    for _ in range(2):
        message.channel.belongs_to(b"first")
    message.write(attempt())
    assert [frame["type"] for frame in drain(out)] == ["attempt"]
