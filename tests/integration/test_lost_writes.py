"""Redis loses what it had acknowledged, as in a crash or a failover, while the owner lives: what becomes of it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any, Final

import msgpack
import pytest
from redis.asyncio import Redis

from protocol.client.aio import connect
from protocol.client.failures import MessageLost
from server.messages.events import unpack
from server.store.keys import MessageKeys, active_set, message_tag, user_tag
from tests.integration.test_main_job import Place, place, whole
from tests.nodes import running_node, settings_for
from tests.upstreams.script import expected_text
from tests.wire import Frame, Wire, eventually, eventually_true, wire

LOSE = """
-- Forget the newest entries of a journal (ARGV[1] of them, and all from seq ARGV[2] on), and what the record says of
-- them.
local rows = redis.call('XRANGE', KEYS[2], '-', '+')
redis.call('DEL', KEYS[2])
local tip = '0'
for i = 1, #rows - tonumber(ARGV[1]) do
  local last = string.match(rows[i][1], '^(%d+)-')
  if tonumber(last) >= tonumber(ARGV[2]) then
    break
  end
  redis.call('XADD', KEYS[2], rows[i][1], unpack(rows[i][2]))
  tip = last
end
redis.call('HSET', KEYS[1], 'head', tip, 'tip', tip)
return tonumber(tip)
"""


@pytest.fixture
async def server(valkey_url: str) -> AsyncIterator[Any]:
    client = Redis.from_url(valkey_url)
    yield client
    await client.aclose()


async def lose(server: Any, keys: MessageKeys, entries: int, since: int = 2**40) -> int:
    """Lose the newest entries, and all from `since` on; the seq of the last event that is left."""
    return int(await server.eval(LOSE, 2, keys.record, keys.journal, entries, since))


async def told_to(client: Wire, message_id: str, seq: int) -> Frame:
    """Read until the message has come so far."""
    return await client.until(lambda frame: frame.get("id") == message_id and frame.get("seq", 0) >= seq)


def calls(here: Place) -> int:
    """How often the upstream was called."""
    return sum(record["event"] == "start" for record in here.upstream.records)


async def entries_of(server: Any, keys: MessageKeys) -> list[tuple[int, int, int]]:
    rows = await server.xrange(keys.journal)
    return [(entry.prev, entry.first, entry.last) for entry in (unpack(fields[b"e"]) for _, fields in rows)]


@pytest.mark.parametrize("entries", [1, 12])
async def test_the_owner_writes_lost_entries_again(valkey_url: str, server: Any, entries: int) -> None:
    async with place(valkey_url) as here, wire(here.node.url) as client:
        messages = await client.ask("m", "script tokens=160 rate=80")
        await told_to(client, "m", 40)
        keys = here.keys("m")
        assert await lose(server, keys, entries, since=40) < 40  # which the client has seen
        whole(await client.ended("m"), messages)
        view = client.view("m")
        assert (view.snapshots, len(view.attempts), calls(here)) == (0, 1, 1)
        journal = await entries_of(server, keys)
        assert journal[0][:2] == (0, 1)
        assert all(after[0] == before[2] and after[1] == before[2] + 1 for before, after in itertools.pairwise(journal))


async def test_readers_elsewhere_see_a_snapshot_at_most(valkey_url: str, server: Any) -> None:
    async with place(valkey_url) as here:
        settings = settings_for(valkey_url, here.upstream.url)
        async with running_node(settings) as other, wire(here.node.url) as client, wire(other.url) as reader:
            messages = await client.ask("m", "script tokens=240 rate=80")
            await told_to(client, "m", 20)
            await reader.send({"type": "resume", "id": "m", "after": 0})
            await told_to(reader, "m", 60)
            await lose(server, here.keys("m"), 8)
            whole(await reader.ended("m"), messages)
            whole(await client.ended("m"), messages)
            assert (len(reader.view("m").attempts), calls(here)) == (1, 1)
            assert reader.view("m").snapshots <= 1


async def test_what_the_tail_does_not_hold_restarts_visibly(valkey_url: str, server: Any) -> None:
    async with place(valkey_url) as here, wire(here.node.url) as client:
        messages = await client.ask("m", "script tokens=160 rate=80")
        await told_to(client, "m", 40)
        tag = message_tag("demo", "anonymous", "demo", "m")
        channel = here.node.node.hub.channels[tag]
        channel.reset(channel.head, False)  # as after 256 KiB more
        await lose(server, here.keys("m"), 12)
        whole(await client.ended("m"), messages)
        attempts = client.view("m").attempts
        assert [(a["attempt"], a["mode"]) for a in attempts] == [(1, "fresh"), (2, "restart")]
        assert attempts[1]["reason"]["code"] == "owner_lost"
        assert attempts[1]["seq"] > 2**20
        assert calls(here) == 2


LOST_ATTEMPT: dict[str, str | int] = {"attempts": 0, "state": "admitting"}
"""What a record says before its first attempt is allocated."""


@pytest.mark.parametrize(("conversation", "made"), [(None, 1), ("c", 2)], ids=["alone", "in-a-conversation"])
async def test_an_attempt_that_was_lost_is_allocated_again(
    valkey_url: str, server: Any, conversation: str | None, made: int
) -> None:
    """Not in a conversation, which may have lost that it was the message's turn: there it takes its turn anew."""
    async with place(valkey_url) as here, wire(here.node.url) as client:
        messages = [{"role": "user", "content": "script tokens=160 rate=80"}]
        asked = {"conversation": conversation, "input": messages[0]} if conversation else {"messages": messages}
        await client.send({"type": "send", "id": "m", **asked})
        await told_to(client, "m", 40)
        keys = here.keys("m")
        async with server.pipeline() as both:
            both.hset(keys.record, mapping=LOST_ATTEMPT)
            both.hdel(keys.record, "attempt:1")
            both.eval(LOSE, 2, keys.record, keys.journal, 3, 2**40)
            await both.execute()
        whole(await client.ended("m"), messages)
        assert (len(client.view("m").attempts), calls(here)) == (made, made)
        attempts, described = await server.hmget(keys.record, "attempts", "attempt:1")
        assert attempts == b"1"
        assert described is not None


Memory = dict[bytes, bytes]
"""All keys of a Redis, dumped."""


async def remember(server: Any) -> Memory:
    """What Redis has at this moment."""
    keys = [key async for key in server.scan_iter()]
    async with server.pipeline() as all_of_them:
        for key in keys:
            all_of_them.dump(key)
        return {key: data for key, data in zip(keys, await all_of_them.execute(), strict=True) if data is not None}


async def fall_back(server: Any, memory: Memory, lose_attempt: bytes | None = None, hang_up: bool = True) -> None:
    """Redis is as it was then, as after a crash, and those that were connected connect again (if it hangs up)."""
    async with server.pipeline() as all_of_them:
        all_of_them.flushdb()
        for key, data in memory.items():
            all_of_them.restore(key, 0, data)
        if lose_attempt is not None:
            all_of_them.hset(lose_attempt, mapping={**LOST_ATTEMPT, "head": 0, "tip": 0})
            all_of_them.hdel(lose_attempt, "attempt:1", "base")
            all_of_them.delete(lose_attempt[:-1] + b"j")
        if hang_up:
            all_of_them.client_kill_filter(_type="normal", skipme=True)
        await all_of_them.execute()


async def settled_again(server: Any, keys: MessageKeys) -> dict[bytes, bytes]:
    """The record, once it is finalized."""

    async def finalized() -> bool:
        return bool(await server.hexists(keys.record, "standing"))

    await eventually_true(finalized)
    return dict(await server.hgetall(keys.record))


@pytest.mark.parametrize("lost_attempt", [False, True], ids=["since-the-text", "since-the-claim"])
async def test_the_owner_writes_a_lost_end_again(valkey_url: str, server: Any, lost_attempt: bool) -> None:
    """In place of another answer, which would be called for and paid for once more."""
    async with place(valkey_url) as here, running_node(settings_for(valkey_url, here.upstream.url)) as other:
        async with wire(here.node.url) as client:
            messages = await client.ask("m", "script tokens=60 rate=80")
            await told_to(client, "m", 20)
            memory, keys = await remember(server), here.keys("m")
            whole(await client.ended("m"), messages)
            before = await settled_again(server, keys)
            await fall_back(server, memory, keys.record if lost_attempt else None)
            assert not await server.hexists(keys.record, "end")
            async with wire(other.url) as reader:
                await eventually_true(lambda: server.hexists(keys.record, "end"))
                await reader.send({"type": "resume", "id": "m", "after": 0})
                whole(await reader.ended("m"), messages)
                assert reader.view("m").end == client.view("m").end
        after = await settled_again(server, keys)
        assert {name: after[name] for name in (b"records", b"end", b"head", b"fence", b"attempts")} == {
            name: before[name] for name in (b"records", b"end", b"head", b"fence", b"attempts")
        }
        assert calls(here) == 1


async def test_a_repeat_finds_the_end_that_its_node_wrote(valkey_url: str, server: Any) -> None:
    """Though it comes before the node has looked for what Redis lost."""
    async with place(valkey_url) as here, wire(here.node.url) as client, wire(here.node.url) as again:
        messages = await client.ask("m", "script tokens=60 rate=80")
        await told_to(client, "m", 20)
        memory = await remember(server)
        whole(await client.ended("m"), messages)
        await settled_again(server, here.keys("m"))
        await fall_back(server, memory, hang_up=False)
        await again.ask("m", messages)
        whole(await again.ended("m"), messages)
        assert again.view("m").end == client.view("m").end
        assert calls(here) == 1


async def test_a_reader_that_saw_the_end_and_one_that_had_not_agree(valkey_url: str, server: Any) -> None:
    """Both follow on other nodes, one is slow: Redis falls back between the two."""
    async with (
        place(valkey_url) as here,
        running_node(settings_for(valkey_url, here.upstream.url)) as other,
        wire(here.node.url) as client,
        wire(other.url) as slow,
    ):
        messages = await client.ask("m", "script tokens=60 rate=80")
        await told_to(client, "m", 10)
        await slow.send({"type": "resume", "id": "m", "after": 0})
        await told_to(slow, "m", 20)
        memory = await remember(server)
        whole(await client.ended("m"), messages)
        await fall_back(server, memory)
        whole(await slow.ended("m"), messages)
        assert slow.view("m").end == client.view("m").end
        assert calls(here) == 1


async def test_an_end_whose_text_is_not_kept_is_generated_anew(valkey_url: str, server: Any) -> None:
    async with place(valkey_url, {"messages": {"tail_bytes": 4096}}) as here, wire(here.node.url) as client:
        messages = await client.ask("m", "script tokens=4000 rate=4000")
        await told_to(client, "m", 2)
        memory = await remember(server)
        whole(await client.ended("m"), messages)
        keys = here.keys("m")
        await settled_again(server, keys)
        await fall_back(server, memory)
        await settled_again(server, keys)
        assert calls(here) == 2
        async with wire(here.node.url) as late:
            await late.send({"type": "resume", "id": "m", "after": 0})
            whole(await late.ended("m"), messages)


async def test_an_end_is_not_written_where_the_claim_is_another(valkey_url: str, server: Any) -> None:
    """Redis lost the claim, and the id was asked for anew: nothing of the old run may come into the new one."""
    async with (
        place(valkey_url) as here,
        running_node(settings_for(valkey_url, here.upstream.url)) as other,
        wire(here.node.url) as client,
        wire(other.url) as second,
    ):
        await client.ask("m", "script tokens=20 rate=80")
        await client.ended("m")
        await settled_again(server, here.keys("m"))
        await server.flushdb()
        messages = await second.ask("m", "script tokens=30 rate=80")
        await told_to(second, "m", 5)
        await here.node.node.keeper.endings.write_again(message_tag("demo", "anonymous", "demo", "m"))
        whole(await second.ended("m"), messages)
        assert len(second.view("m").attempts) == 1
        assert calls(here) == 2


async def forget(server: Any, keys: MessageKeys) -> None:
    """Lose a whole claim, with all that followed."""
    await server.delete(keys.record, keys.journal)


async def test_the_owner_makes_a_lost_claim_again(valkey_url: str, server: Any) -> None:
    """Nobody notices, wherever they follow; devices that come later find it, too."""
    async with (
        place(valkey_url) as here,
        running_node(settings_for(valkey_url, here.upstream.url)) as other,
        wire(here.node.url) as client,
        wire(other.url) as reader,
    ):
        messages = await client.ask("m", "script tokens=160 rate=80")
        await told_to(client, "m", 20)
        await reader.send({"type": "resume", "id": "m", "after": 0})
        await told_to(reader, "m", 30)
        keys = here.keys("m")
        before = await server.hgetall(keys.record)
        await forget(server, keys)
        whole(await reader.ended("m"), messages)
        whole(await client.ended("m"), messages)
        assert (client.view("m").snapshots, len(client.view("m").attempts), calls(here)) == (0, 1, 1)
        after = await settled_again(server, keys)
        for_ever = before.keys() - {b"head", b"tip", b"base"}
        assert {name: after[name] for name in for_ever} == {name: before[name] for name in for_ever} | {
            b"state": b"done"
        }
        assert await server.pttl(keys.record) > 0


async def test_a_claim_that_is_lost_before_the_first_word_is_made_again(valkey_url: str, server: Any) -> None:
    """There is nothing to write that would find it missing: its owner looks, once Redis is back."""
    async with place(valkey_url) as here, wire(here.node.url) as client:
        messages = await client.ask("m", "script tokens=20 first=1.5")
        await client.until(lambda frame: frame["type"] == "accepted")
        await eventually(lambda: calls(here) == 1)
        await fall_back(server, {})
        keys = here.keys("m")
        await eventually_true(lambda: server.exists(keys.record))
        assert client.view("m").cursor == 0
        active = await server.smembers(active_set(user_tag("demo", "anonymous", "demo")))
        assert active == {b"m"}
        whole(await client.ended("m"), messages)
        assert calls(here) == 1


async def test_an_end_whose_claim_is_lost_is_written_again(valkey_url: str, server: Any) -> None:
    async with place(valkey_url) as here, wire(here.node.url) as client:
        messages = await client.ask("m", "script tokens=40 rate=200")
        whole(await client.ended("m"), messages)
        keys = here.keys("m")
        before = await settled_again(server, keys)
        await fall_back(server, {})
        after = await settled_again(server, keys)
        assert after == before
        assert calls(here) == 1
        async with wire(here.node.url) as late:
            await late.send({"type": "resume", "id": "m", "after": 0})
            whole(await late.ended("m"), messages)
        await eventually_true(lambda: at_rest(server))


async def at_rest(server: Any) -> bool:
    """Whether no node has anything on its list."""
    return not [key async for key in server.scan_iter(match=b"*open*")]


TOO_LONG: Final = {"messages": {"tail_bytes": 1024}}
"""Where only so much text is kept, the claim of a longer one is not made again."""


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_lost_claim_is_asked_for_again_by_the_client_library(
    valkey_url: str, server: Any, elsewhere: bool
) -> None:
    """The text begins anew; the message is generated twice, as nobody can know of the first time, and paid once."""
    async with (
        place(valkey_url, TOO_LONG) as here,
        running_node(settings_for(valkey_url, here.upstream.url, TOO_LONG)) as other,
    ):
        node = other if elsewhere else here.node
        messages = [{"role": "user", "content": "script tokens=200 rate=80"}]
        async with connect(node.url) as asking, connect(here.node.url) as following:
            message = asking.ask(id="m", messages=messages)
            await eventually(lambda: message.view.cursor > 20)
            followed = following.resume("m")
            await eventually(lambda: followed.view.cursor > 80)
            keys = here.keys("m")
            await forget(server, keys)
            assert (await message.done()).text == expected_text(messages, "scripted")
            assert message.view.asked_anew == 1
            assert [a.attempt for a in message.view.attempts] == [1, 1]
        assert calls(here) == 2
        records = msgpack.unpackb(await server.hget(keys.record, "records"))
        assert [(r["attempt"], r["payer"], r["outcome"]) for r in records] == [(1, "user", "done")]


@pytest.mark.parametrize("known", [True, False], ids=["followed-from-the-start", "resumed-afterwards"])
async def test_a_device_that_only_follows_a_lost_message_is_told_so(valkey_url: str, server: Any, known: bool) -> None:
    """Who asked has gone and never asks again: no device that follows may wait for ever, wherever it is connected."""
    async with (
        place(valkey_url, TOO_LONG) as here,
        running_node(settings_for(valkey_url, here.upstream.url, TOO_LONG)) as other,
    ):
        async with wire(here.node.url) as asking:
            await asking.ask("m", "script tokens=400 rate=80")
            await told_to(asking, "m", 80)
        async with connect(here.node.url) as beside, connect(other.url) as elsewhere, asyncio.timeout(10):
            followers = [beside.resume("m"), elsewhere.resume("m")] if known else []
            for follower in followers:
                await eventually(lambda follower=follower: follower.view.cursor > 80)
            keys = here.keys("m")
            await forget(server, keys)
            followers = followers or [beside.resume("m", after=80), elsewhere.resume("m", after=80)]
            for follower in followers:
                with pytest.raises(MessageLost):
                    await follower.done()
                assert follower.view.error is not None
                assert follower.view.error["code"] == "message_unknown"
        await eventually(lambda: not here.node.node.keeper.has(message_tag("demo", "anonymous", "demo", "m")))
        assert not await server.exists(keys.record, keys.journal)
