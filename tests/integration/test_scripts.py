"""Every Lua script against a real Valkey and a real Redis 7: every answer it can give, and what it leaves behind."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest
import redis.asyncio

from server.messages.events import pack, unpack
from server.messages.scripts import (
    ALL,
    APPEND,
    CANCEL,
    CLAIM,
    FINALIZE,
    MAX_RUNS,
    PAGE,
    QUEUE,
    RELEASE,
    START_ATTEMPT,
    TAKEOVER,
)
from server.store.keys import MessageKeys
from server.store.store import Script, Store

CLAIM_MS = 60_000
NODE, OTHER = "node-a", "node-b"


class Board:
    """One message's keys, and the scripts as calls."""

    def __init__(self, store: Store, client: Any, keys: MessageKeys) -> None:
        self.store = store
        self.client = client
        self.keys = keys
        self.numbers = itertools.count(1)

    async def run(self, script: Script, keys: list[bytes], *args: Any) -> Any:
        return await self.store.run(script, keys, list(args), seconds=5.0)

    async def claim(
        self,
        fp: str = "fp",
        retry_of: Any = "",
        node: str = NODE,
        salt: str | None = None,
        runs: int = MAX_RUNS,
        jump: int = 0,
    ) -> list[bytes]:
        salt = salt or f"salt{next(self.numbers)}"
        keys = [self.keys.record, self.keys.journal, self.keys.standing]
        reply: list[bytes] = await self.run(
            CLAIM, keys, fp, CLAIM_MS, retry_of, runs, node, salt, jump, "req", b"{}", "id", "m1", "gen", f"gen-{salt}"
        )
        return reply

    async def append(
        self,
        fence: bytes,
        tip: int,
        first: int,
        events: list[Any],
        *,
        base: Any = "",
        attempts: int = 0,
        end: str = "",
        retry: str = "",
    ) -> int:
        entry = pack(tip, first, events)
        last = first + len(events) - 1
        ending = [end, b"END", b"RECORDS", retry] if end else ["", "", "", ""]
        keys = [self.keys.record, self.keys.journal, self.keys.channel]
        answer: int | list[Any] = await self.run(APPEND, keys, fence, first - 1, last, entry, base, attempts, *ending)
        return answer if isinstance(answer, int) else int(answer[0])

    async def release(self, generation: bytes, fence: bytes) -> int:
        answer: int = await self.run(RELEASE, [self.keys.record, self.keys.channel], generation, b"xwhy", fence)
        return answer

    async def finalize(self, generation: bytes, run: int = 1, gathered: bytes = b"all") -> int:
        temporary = self.keys.standing + b":" + generation
        await self.client.set(temporary, gathered)
        keys = [self.keys.record, self.keys.journal, self.keys.standing, temporary]
        lengths = msgpack.packb((len(gathered), 0, 0))
        args = [generation + b":%d" % run, lengths, 5_000, CLAIM_MS, b"gather:" + generation]
        answer: int = await self.run(FINALIZE, keys, *args)
        assert not await self.client.exists(temporary)
        return answer

    async def takeover(self, dead: str, node: str, jump: int = 1000) -> list[bytes]:
        keys = [self.keys.record, self.keys.journal, self.keys.channel]
        reply: list[bytes] = await self.run(TAKEOVER, keys, dead, node, jump, b"t")
        return reply

    async def record(self) -> dict[str, str]:
        found: dict[bytes, bytes] = await self.client.hgetall(self.keys.record)
        return {name.decode(): value.decode() for name, value in found.items()}

    async def journal(self) -> list[tuple[str, list[Any]]]:
        rows = await self.client.xrange(self.keys.journal)
        return [(row.decode(), list(unpack(fields[b"e"]).events)) for row, fields in rows]


@pytest.fixture
async def board(redis_url: str) -> AsyncIterator[Board]:
    store = await Store.connect(redis_url, ALL)
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        yield Board(store, client, MessageKeys.of("a" * 64))
    await store.close()


class Listening:
    """What is published on a message's channel."""

    def __init__(self, pubsub: Any) -> None:
        self.pubsub = pubsub

    async def next(self) -> bytes:
        async with asyncio.timeout(5):
            while (message := await self.pubsub.get_message(timeout=1.0)) is None or message["type"] != "smessage":
                pass
        data: bytes = message["data"]
        return data


@pytest.fixture
async def channel(board: Board) -> AsyncIterator[Listening]:
    async with board.client.pubsub() as pubsub:
        await pubsub.ssubscribe(board.keys.channel)
        assert (await pubsub.get_message(timeout=5.0))["type"] == "ssubscribe"
        yield Listening(pubsub)


T1, T2, T3 = ["t", "one"], ["t", "two"], ["t", "three"]


# --- claim -----------------------------------------------------------------------------------------------------------


async def test_the_first_claim_creates_and_the_next_finds(board: Board) -> None:
    assert await board.claim(salt="x") == [b"new", b"1:node-a:x"]
    record = await board.record()
    assert (record["state"], record["head"], record["run"], record["owner"]) == ("admitting", "0", "1", NODE)
    assert 0 < await board.client.pttl(board.keys.record) <= CLAIM_MS
    again = await board.claim(node=OTHER)
    assert again == [b"have", b"admitting", b"0", b"gen-x", NODE.encode(), b"1:node-a:x"]
    assert await board.record() == record


async def test_of_many_claims_at_once_one_creates(board: Board) -> None:
    replies = await asyncio.gather(*(board.claim(node=f"n{number}") for number in range(20)))
    assert sorted(reply[0] for reply in replies) == [b"have"] * 19 + [b"new"]


async def test_what_somebody_has_attached_to_is_not_released(board: Board) -> None:
    """While it is being admitted one may attach and wait; once it looks admitted, attaching is a promise."""
    for state, released in (("admitting", 1), ("queued", 0), ("streaming", 0)):
        _, fence = await board.claim(salt=state)
        if state == "queued":
            await board.run(QUEUE, [board.keys.record], fence)
        elif state == "streaming":
            await board.run(START_ATTEMPT, [board.keys.record], fence, 1, b"target")
        assert (await board.claim(node=OTHER))[:2] == [b"have", state.encode()]
        assert await board.release(f"gen-{state}".encode(), fence) == released
        await board.client.delete(board.keys.record)


@pytest.mark.parametrize("state", ["queued", "streaming"])
async def test_what_was_given_up_halfway_is_released(board: Board, state: str) -> None:
    _, fence = await board.claim(salt="x")
    script, args = (QUEUE, [fence]) if state == "queued" else (START_ATTEMPT, [fence, 1, b"target"])
    await board.run(script, [board.keys.record], *args)
    assert (await board.claim(fp="other"))[0] == b"mismatch"  # it attaches to nothing
    assert await board.release(b"gen-x", fence) == 1


async def test_another_fingerprint_is_a_mismatch_and_changes_nothing(board: Board) -> None:
    await board.claim()
    before = await board.record()
    assert await board.claim(fp="other") == [b"mismatch"]
    assert await board.claim(fp="other", retry_of=0) == [b"mismatch"]
    assert await board.record() == before


async def failed(board: Board, retry: str = "1") -> tuple[bytes, bytes]:
    """A message that failed at seq 2; its fence and generation."""
    _, fence = await board.claim(salt="x")
    await board.run(START_ATTEMPT, [board.keys.record], fence, 1, b"target")
    assert await board.append(fence, 0, 1, [T1], base=1) == 1
    assert await board.append(fence, 1, 2, [["e", "failed", {}]], end="failed", retry=retry) == 1
    return fence, b"gen-x"


async def test_a_temporary_failure_is_reopened_once_by_its_seq(board: Board) -> None:
    fence, generation = await failed(board)
    assert await board.finalize(generation) == 1
    assert (await board.claim())[0] == b"have"
    assert (await board.claim(retry_of=1))[0] == b"have"
    replies = await asyncio.gather(*(board.claim(retry_of=2, node=f"n{n}", salt=f"s{n}") for n in range(10)))
    reopened = [reply for reply in replies if reply[0] == b"reopened"]
    assert len(reopened) == 1
    assert all(reply[0] == b"have" for reply in replies if reply not in reopened)
    _, new_fence, head, attempts, gen, run, records, request, origin, tip = reopened[0]
    assert (request, origin, tip) == (b"{}", b"", b"2")
    assert (head, attempts, gen, run, records) == (b"2", b"1", generation, b"2", b"RECORDS")
    assert new_fence.startswith(b"2:")
    record = await board.record()
    assert (record["state"], record["run"], record["fence"].encode()) == ("admitting", "2", new_fence)
    assert not {"end", "retry", "cancel", "standing"} & record.keys()
    assert record["records"] == "RECORDS"  # should the new owner die, another must still know what was billed
    assert await board.client.ttl(board.keys.journal) == -1  # a running message is never trimmed
    assert not await board.client.exists(board.keys.standing)
    assert await board.append(fence, 2, 3, [T2]) == -1  # the old owner cannot write any more
    assert await board.append(new_fence, 2, 3, [T2]) == 1


async def test_a_reopened_run_begins_further_on(board: Board) -> None:
    """Were Redis to lose it, and the failure to be reopened anew, no seq would stand for two different events."""
    await failed(board)
    reply = await board.claim(retry_of=2, jump=1000)
    assert (reply[2], reply[9]) == (b"2", b"1002")
    record = await board.record()
    assert (record["head"], record["tip"]) == ("2", "1002")
    assert await board.append(reply[1], 2, 3, [T2]) == -3
    assert await board.append(reply[1], 2, 1003, [T2]) == 1
    assert (await board.record())["head"] == "1003"


@pytest.mark.parametrize("retry", ["", "0"])
async def test_a_permanent_failure_is_not_reopened(board: Board, retry: str) -> None:
    await failed(board, retry)
    assert (await board.claim(retry_of=2))[0] == b"have"


@pytest.mark.parametrize("state", ["done", "cancelled"])
async def test_only_failures_are_reopened(board: Board, state: str) -> None:
    _, fence = await board.claim()
    assert await board.append(fence, 0, 1, [["e", state, {}]], end=state, retry="1") == 1
    assert (await board.claim(retry_of=1))[0] == b"have"


async def test_a_message_runs_no_more_often_than_allowed(board: Board) -> None:
    _, fence = await board.claim()
    for seq in (1, 2):
        assert await board.append(fence, seq - 1, seq, [["e", "failed", {}]], end="failed", retry="1") == 1
        reply = await board.claim(retry_of=seq, runs=3)
        assert reply[0] == b"reopened"
        fence = reply[1]
    assert await board.append(fence, 2, 3, [["e", "failed", {}]], end="failed", retry="1") == 1
    assert (await board.claim(retry_of=3, runs=3))[0] == b"have"


# --- append ----------------------------------------------------------------------------------------------------------


async def test_appends_continue_one_another_and_are_published(board: Board, channel: Listening) -> None:
    _, fence = await board.claim()
    assert await board.append(fence, 0, 1, [["a", {"mode": "fresh"}], T1], base=1) == 1
    assert await board.append(fence, 2, 3, [T2, T3]) == 1
    record = await board.record()
    assert (record["head"], record["base"]) == ("4", "1")
    assert [row for row, _ in await board.journal()] == ["2-0", "4-0"]
    assert unpack(await channel.next()).last == 2
    assert unpack(await channel.next()).last == 4


async def test_the_same_bytes_again_are_fine_and_written_once(board: Board, channel: Listening) -> None:
    _, fence = await board.claim()
    for _ in range(3):
        assert await board.append(fence, 0, 1, [T1]) == 1
    assert await board.append(fence, 1, 2, [["e", "done", {}]], end="done") == 1
    assert await board.append(fence, 1, 2, [["e", "done", {}]], end="done") == 1  # also of the end
    assert len(await board.journal()) == 2
    assert [unpack(await channel.next()).last for _ in range(2)] == [1, 2]


async def test_other_bytes_at_a_seq_that_stands_are_a_gap(board: Board) -> None:
    _, fence = await board.claim()
    assert await board.append(fence, 0, 1, [T1]) == 1
    assert await board.append(fence, 0, 1, [T2]) == -3
    assert await board.append(fence, 0, 1, [T1, T2]) == -3
    assert await board.journal() == [("1-0", [T1])]


async def test_an_entry_that_does_not_continue_is_a_gap(board: Board) -> None:
    _, fence = await board.claim()
    assert await board.append(fence, 1, 2, [T1]) == -3
    assert await board.append(fence, 0, 1, [T1]) == 1
    assert await board.append(fence, 2, 3, [T2]) == -3
    assert (await board.record())["head"] == "1"


async def test_a_gap_tells_where_the_journal_ends_and_how_many_attempts_are_allocated(board: Board) -> None:
    _, fence = await board.claim()
    keys = [board.keys.record, board.keys.journal, board.keys.channel]
    ahead = [fence, 8, 9, pack(8, 9, [T1]), "", 0, "", "", "", ""]
    assert await board.run(APPEND, keys, *ahead) == [-3, b"0", b""]
    assert await board.run(START_ATTEMPT, keys[:1], fence, 1, b"described") == 1
    assert await board.append(fence, 0, 1, [T1]) == 1
    assert await board.run(START_ATTEMPT, keys[:1], fence, 2, b"described") == 1
    assert await board.run(APPEND, keys, *ahead) == [-3, b"1", b"2"]


async def test_what_no_attempt_brought_is_a_gap(board: Board) -> None:
    """Redis lost the attempt, but nothing that was written: were it not told, a survivor would allocate it again."""
    _, fence = await board.claim()
    assert await board.append(fence, 0, 1, [T1], attempts=1) == -3
    assert await board.run(START_ATTEMPT, [board.keys.record], fence, 1, b"described") == 1
    assert await board.append(fence, 0, 1, [T1], attempts=1) == 1
    assert await board.append(fence, 1, 2, [T2], attempts=2) == -3


@pytest.mark.parametrize("fence", [b"", b"1:node-a", b"2:node-a:x", b"1:node-b:x"])
async def test_another_fence_is_refused_whatever_it_writes(board: Board, fence: bytes) -> None:
    _, good = await board.claim(salt="x")
    assert await board.append(good, 0, 1, [T1]) == 1
    assert await board.append(fence, 0, 1, [T1]) == -1
    assert await board.append(fence, 1, 2, [T2]) == -1
    assert await board.append(fence, 1, 2, [T2], end="done") == -1
    assert (await board.record())["state"] == "admitting"


async def test_without_a_record_nothing_is_written_and_it_is_told_to_be_missing(board: Board) -> None:
    assert await board.append(b"1:node-a:x", 0, 1, [T1]) == -4
    assert not await board.client.exists(board.keys.journal, board.keys.record)


@pytest.mark.parametrize("state", ["done", "failed", "cancelled"])
async def test_after_the_end_nothing_is_written(board: Board, state: str) -> None:
    _, fence = await board.claim()
    assert await board.append(fence, 0, 1, [["e", state, {}]], end=state) == 1
    assert await board.append(fence, 1, 2, [T1]) == -2
    assert await board.append(fence, 0, 1, [["e", "done", {"other": 1}]], end="done") == -2
    record = await board.record()
    assert (record["state"], record["end"], record["records"], record["head"]) == (state, "END", "RECORDS", "1")


async def test_a_request_to_cancel_is_told_by_every_append(board: Board) -> None:
    _, fence = await board.claim()
    assert await board.append(fence, 0, 1, [T1]) == 1
    await board.run(CANCEL, [board.keys.record, board.keys.channel], b"c")
    assert await board.append(fence, 0, 1, [T1]) == 2
    assert await board.append(fence, 1, 2, [T2]) == 2


async def test_a_jump_leaves_no_entry_that_continues_it(board: Board) -> None:
    _, fence = await board.claim()
    assert await board.append(fence, 0, 1, [T1]) == 1
    reply = await board.takeover(NODE, OTHER, 1000)
    fields = dict(zip(reply[1::2], reply[2::2], strict=True))
    assert fields[b"tip"] == b"1001"
    new = fields[b"fence"]
    assert await board.append(new, 1, 2, [T2]) == -3  # it must jump
    assert await board.append(fence, 1, 2, [T2]) == -1  # the dead one must not write
    assert await board.append(new, 1, 1002, [T2]) == 1
    assert (await board.record())["head"] == "1002"
    assert await board.append(new, 1, 1002, [T2]) == 1


# --- start an attempt ------------------------------------------------------------------------------------------------


async def test_an_attempt_is_allocated_before_it_is_dispatched(board: Board) -> None:
    _, fence = await board.claim()
    start = [board.keys.record]
    assert await board.run(START_ATTEMPT, start, fence, 1, b"first") == 1
    assert await board.run(START_ATTEMPT, start, fence, 1, b"first") == 1  # a repeat
    assert await board.run(START_ATTEMPT, start, fence, 2, b"second") == 1
    record = await board.record()
    assert (record["state"], record["attempts"]) == ("streaming", "2")
    assert (record["attempt:1"], record["attempt:2"]) == ("first", "second")
    assert await board.run(START_ATTEMPT, start, fence, 1, b"once more") == 1  # Redis had lost it
    record = await board.record()
    assert (record["attempts"], record["attempt:1"], record["attempt:2"]) == ("2", "once more", "second")
    assert await board.run(START_ATTEMPT, start, b"1:other:x", 3, b"third") == -1
    await board.run(CANCEL, [board.keys.record, board.keys.channel], b"c")
    assert await board.run(START_ATTEMPT, start, fence, 3, b"third") == 2
    assert await board.append(fence, 0, 1, [["e", "cancelled", {}]], end="cancelled") == 2
    assert await board.run(START_ATTEMPT, start, fence, 4, b"late") == -2
    assert "attempt:4" not in await board.record()


# --- cancel ----------------------------------------------------------------------------------------------------------


async def test_cancel_tells_what_stands_and_leaves_a_flag(board: Board, channel: Listening) -> None:
    call = [board.keys.record, board.keys.channel]
    assert await board.run(CANCEL, call, b"c") == []
    assert not await board.client.exists(board.keys.record)
    _, fence = await board.claim()
    for _ in range(2):
        assert (await board.run(CANCEL, call, b"c"))[:2] == [b"admitting", b"0"]
    assert (await board.record())["cancel"] == "1"
    assert await channel.next() == b"c"
    await board.append(fence, 0, 1, [["e", "done", {}]], end="done")
    await board.client.hdel(board.keys.record, "cancel")
    assert (await board.run(CANCEL, call, b"c"))[:2] == [b"done", b"1"]
    assert "cancel" not in await board.record()


# --- release ---------------------------------------------------------------------------------------------------------


async def test_a_claim_that_was_not_admitted_is_taken_back(board: Board, channel: Listening) -> None:
    _, fence = await board.claim(salt="x")
    assert await board.release(b"gen-y", fence) == 0  # another claim under the same id
    assert await board.release(b"gen-x", b"1:node-b:x") == 0
    assert await board.client.exists(board.keys.record)
    assert await board.release(b"gen-x", fence) == 1
    assert not await board.client.exists(board.keys.record)
    assert await channel.next() == b"xwhy"
    assert await board.release(b"gen-x", fence) == 0
    assert (await board.claim(fp="another"))[0] == b"new"  # the id is free


async def test_what_has_written_or_was_reopened_is_not_released(board: Board) -> None:
    _, fence = await board.claim(salt="x")
    assert await board.append(fence, 0, 1, [["e", "failed", {}]], end="failed", retry="1") == 1
    assert await board.release(b"gen-x", fence) == 0
    reply = await board.claim(retry_of=1)
    assert reply[0] == b"reopened"
    assert await board.release(b"gen-x", reply[1]) == 0
    assert (await board.record())["state"] == "admitting"


# --- page ------------------------------------------------------------------------------------------------------------


async def test_a_page_begins_where_it_is_asked_and_keeps_to_its_bytes(board: Board) -> None:
    _, fence = await board.claim()
    entries = 100
    for seq in range(1, entries + 1):
        assert await board.append(fence, seq - 1, seq, [["t", "x" * 100]]) == 1
    size = len(pack(1, 2, [["t", "x" * 100]]))

    async def page(start: str, limit: int) -> list[int]:
        return [unpack(data).last for data in await board.run(PAGE, [board.keys.journal], start, limit)]

    assert await page("0-0", 10**9) == list(range(1, entries + 1))
    assert await page("7-0", 10**9) == list(range(7, entries + 1))
    assert await page("(7-0", 10**9) == list(range(8, entries + 1))
    assert await page("(100-0", 10**9) == []
    assert await page("0-0", 1) == [1]  # never nothing, where there is something
    assert await page("0-0", size * 3) == [1, 2, 3]
    assert len(await page("0-0", size * 40)) in (40, 41)
    cursor, seen = 0, []
    while got := await page(f"({cursor}-0", size * 33):
        seen += got
        cursor = got[-1]
    assert seen == list(range(1, entries + 1))
    assert await board.run(PAGE, [b"tw:{none}:j"], "0-0", 100) == []


# --- finalize --------------------------------------------------------------------------------------------------------


async def test_finalize_starts_both_clocks_and_may_be_repeated(board: Board) -> None:
    _, fence = await board.claim(salt="x")
    assert await board.append(fence, 0, 1, [T1, ["e", "done", {}]], end="done") == 1
    assert await board.client.pttl(board.keys.journal) == -1
    for _ in range(2):
        assert await board.finalize(b"gen-x", 1, b"whole text") == 1
        assert await board.client.get(board.keys.standing) == b"whole text"
        assert 0 < await board.client.pttl(board.keys.journal) <= 5_000
        assert 5_000 < await board.client.pttl(board.keys.standing) <= CLAIM_MS
        assert 5_000 < await board.client.pttl(board.keys.record) <= CLAIM_MS
    record = await board.client.hget(board.keys.record, "standing")
    assert msgpack.unpackb(record) == [10, 0, 0]


async def test_finalize_by_a_slower_node_changes_nothing(board: Board) -> None:
    _, fence = await board.claim(salt="x")
    assert await board.append(fence, 0, 1, [T1, ["e", "done", {}]], end="done") == 1
    assert await board.finalize(b"gen-x", 1, b"whole text") == 1
    await board.client.delete(board.keys.journal)  # what the slower one gathers from has expired meanwhile
    assert await board.finalize(b"gen-x", 1, b"") == 1
    assert await board.client.get(board.keys.standing) == b"whole text"
    assert msgpack.unpackb(await board.client.hget(board.keys.record, "standing")) == [10, 0, 0]


async def test_finalize_keeps_the_journal_of_a_failure_that_may_be_reopened(board: Board) -> None:
    _, fence = await board.claim(salt="x")
    assert await board.append(fence, 0, 1, [T1, ["e", "failed", {}]], end="failed", retry="1") == 1
    assert await board.finalize(b"gen-x", 1, b"half") == 1
    assert 5_000 < await board.client.pttl(board.keys.journal) <= CLAIM_MS


async def test_finalize_spares_what_runs_and_what_is_another_s(board: Board) -> None:
    assert await board.finalize(b"gen-x") == 0  # no record at all
    _, fence = await board.claim(salt="x")
    assert await board.finalize(b"gen-x") == 0  # it runs
    assert await board.append(fence, 0, 1, [["e", "failed", {}]], end="failed", retry="1") == 1
    assert await board.finalize(b"gen-y") == 0
    assert await board.finalize(b"gen-x", 2) == 0
    assert (await board.claim(retry_of=1))[0] == b"reopened"
    assert await board.finalize(b"gen-x", 1) == 0  # late, of the run before
    assert await board.client.pttl(board.keys.journal) == -1
    assert not await board.client.exists(board.keys.standing)


# --- takeover --------------------------------------------------------------------------------------------------------


async def test_takeover_is_compare_and_set(board: Board, channel: Listening) -> None:
    assert await board.takeover(NODE, OTHER) == []
    _, fence = await board.claim()
    assert await board.append(fence, 0, 1, [T1]) == 1
    assert unpack(await channel.next()).last == 1
    assert await board.takeover("somebody", OTHER) == [b"other"]
    replies = await asyncio.gather(*(board.takeover(NODE, f"n{n}", 1000 + n) for n in range(5)))
    taken = [reply for reply in replies if reply[0] == b"taken"]
    assert len(taken) == 1
    assert sum(reply == [b"other"] for reply in replies) == 4
    fields = dict(zip(taken[0][1::2], taken[0][2::2], strict=True))
    assert fields[b"fence"].startswith(b"2:")
    assert int(fields[b"tip"]) > 1000
    assert fields[b"head"] == b"1"
    assert await channel.next() == b"t"
    assert await board.append(fence, 1, 2, [T2]) == -1


async def test_takeover_of_an_ended_message_changes_nothing(board: Board) -> None:
    _, fence = await board.claim()
    assert await board.append(fence, 0, 1, [["e", "done", {}]], end="done") == 1
    before = await board.record()
    reply = await board.takeover(NODE, OTHER)
    assert reply[0] == b"ended"
    assert await board.record() == before


async def test_a_script_that_redis_forgot_is_sent_again(board: Board) -> None:
    await board.claim()
    await board.client.script_flush()
    assert (await board.claim())[0] == b"have"
