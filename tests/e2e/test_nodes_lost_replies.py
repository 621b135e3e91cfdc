"""G1 and G4 when the reply of a script is lost: what happened in Redis must neither be undone twice nor forgotten.

Each test takes the node through one interleaving, step by step, in this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgpack
import pytest

from protocol.errors import ProtocolError
from protocol.frames import Send
from server.access.identity import Principal
from server.messages.claim import Made
from server.messages.hub import NOTE_OWNER
from server.messages.openlist import OpenList
from server.messages.origin import Origin
from server.messages.request import fingerprint, stored
from server.messages.scripts import START_ATTEMPT, TAKEOVER
from server.messages.service import Wish, _claimed
from server.node import Node
from server.store.keys import GONE, MessageKeys, message_tag, open_set
from tests.chaos.audit import UpstreamLog, Verdict, audit, stored_messages
from tests.chaos.rig import ENDED, MODEL, ask
from tests.nodes import running_node, settings_for
from tests.processes import AS_SHIPPED
from tests.servers import RedisServer
from tests.upstreams.script import expected_text
from tests.upstreams.scripted import process as scripted
from tests.wire import eventually, wire

WHO = Principal("demo", "anonymous", "demo", "free", frozenset(), None)
ORIGIN = Origin("ws", "s1")
DEAD = "deadbeefdeadbeef"


@dataclass
class Bench:
    """One node in this process and what it works with."""

    node: Node
    url: str
    redis: RedisServer
    log: UpstreamLog

    def __post_init__(self) -> None:
        self.send = Send.model_validate({"type": "send", "id": "m", "messages": self.messages})
        self.tag = message_tag(WHO.tenant, WHO.kind, WHO.user, "m")
        self.keys = MessageKeys.of(self.tag)

    @property
    def messages(self) -> list[dict[str, str]]:
        return ask("tokens=60 rate=60", "m")

    def wish(self, owner: str) -> Wish:
        """What `owner` is asked for."""
        made = Made(owner, fingerprint(self.send), 0.0, self.node.keeper.times.claim_seconds)
        return Wish(WHO, self.send, ORIGIN, stored(self.send), self.tag, self.keys, made)

    async def claim(self, owner: str, attempts: int = 0) -> bytes:
        """A claim in Redis as `owner` would have made it; its generation."""
        reply = await self.node.messages._claim(self.wish(owner), b"gen")
        assert reply[0] == b"new"
        if attempts:
            description = msgpack.packb({"target": "scripted", "model": MODEL, "started_at": 0.0})
            await self.node.store.run(START_ATTEMPT, [self.keys.record], [reply[1], attempts, description])
        return b"gen"

    async def takeover_whose_reply_is_lost(self) -> None:
        args = [DEAD, self.node.id, 2**20, NOTE_OWNER]
        await self.node.store.run(TAKEOVER, [self.keys.record, self.keys.journal, self.keys.channel], args)

    async def thawed(self) -> None:
        """Wait until the node trusts its Redis."""
        await eventually(lambda: self.node.store.available)

    async def ends_well(self, calls: int, records: int) -> None:
        """The message goes to its end by itself; so many calls and records."""
        await self.thawed()
        async with wire(self.url) as socket:
            await socket.send({"type": "resume", "id": "m", "after": 0})
            view = await socket.ended("m")
        assert view.text == expected_text(self.messages, MODEL)
        await eventually(lambda: not self.node.keeper.has(self.tag))
        stored = (await stored_messages([self.redis.url]))["m"]
        assert stored.state in ENDED
        assert (len(self.log.calls(self.messages)), len(stored.records)) == (calls, records)
        assert audit(self.messages, stored, self.log, MODEL) == Verdict()


@pytest.fixture
async def bench(valkey_server: RedisServer, tmp_path: Path) -> AsyncIterator[Bench]:
    log = UpstreamLog(tmp_path / "upstream.jsonl")
    async with (
        scripted(log.path) as upstream,
        running_node(settings_for(valkey_server.url, upstream, {"redis": AS_SHIPPED})) as running,
    ):
        yield Bench(running.node, running.url, valkey_server, log)


async def test_undoing_a_claim_that_was_adopted_meanwhile_leaves_the_message_alone(bench: Bench) -> None:
    """The claim's reply came too late; a repeat on the same node adopted it; only then comes the undo."""
    generation = await bench.claim(bench.node.id)
    found = await bench.node.messages.ask(WHO, bench.send, ORIGIN)
    assert found.state == "streaming"
    await bench.node.messages._undo(bench.keys, generation)
    await bench.ends_well(calls=1, records=1)


@pytest.mark.parametrize("repeats", [True, False])
async def test_a_claim_whose_first_attempt_was_given_up_is_undone_unless_somebody_attached(
    bench: Bench, repeats: bool
) -> None:
    """Redis allocated the attempt and its reply was lost: who asked was refused, and the claim is about to go. A repeat
    on another node finds it `streaming` and says that it is accepted: then it must run."""
    generation = await bench.claim(bench.node.id, attempts=1)
    keeper = bench.node.keeper
    if repeats:
        reply = await bench.node.messages._claim(bench.wish("another"), b"other")
        assert (reply[0], reply[1]) == (b"have", b"streaming")
    fence = keeper._first_fence(generation)
    released = await keeper.release(bench.keys, generation, fence, ProtocolError("store_unavailable", "no"))
    assert released is not repeats
    if repeats:
        await keeper.adopt(bench.tag, bench.node.id)  # as it does with what it can't release
        await bench.ends_well(calls=1, records=2)
    else:
        assert await bench.node.reader.record(bench.keys) is None
        assert not bench.log.calls(bench.messages)


async def test_a_takeover_whose_reply_was_lost_is_repeated(bench: Bench) -> None:
    """The node owns the message and does not know it; the next look at the dead node's list must tell."""
    await bench.claim(DEAD, attempts=1)
    await bench.takeover_whose_reply_is_lost()
    assert await bench.node.keeper.adopt(bench.tag, DEAD)
    assert bench.node.keeper.has(bench.tag)
    await bench.ends_well(calls=1, records=2)


async def test_what_a_node_gave_away_as_it_died_is_adopted_though_only_its_own_list_has_it(bench: Bench) -> None:
    """It gave a message to an heir, and died before it listed it under the heir's name once more."""
    heir, store = "cafecafecafecafe", bench.node.store
    await bench.claim(heir, attempts=1)
    await store.call(GONE, "SADD", GONE, heir)
    await OpenList(store, DEAD).add(bench.tag)
    assert await bench.node.keeper.adopt(bench.tag, DEAD)
    assert bench.node.keeper.has(bench.tag)
    await bench.ends_well(calls=1, records=2)


async def test_a_stray_that_may_have_been_paid_for_is_adopted_not_released(bench: Bench) -> None:
    """Owned and not run, without a word in the journal, but an attempt of the dead owner was allocated."""
    await bench.claim(DEAD, attempts=1)
    await bench.takeover_whose_reply_is_lost()
    key = open_set(bench.node.id, "hb0")
    await bench.node.store.call(key, "SADD", key, bench.tag)
    await bench.node.keeper.reconcile()
    await bench.ends_well(calls=1, records=2)


async def test_an_adopted_message_waits_for_redis_instead_of_being_refused(bench: Bench) -> None:
    """Redis freezes between the takeover and its first attempt: that refuses nobody and forgets nothing."""
    await bench.claim(DEAD, attempts=1)
    keeper = bench.node.keeper
    begin = keeper.begin

    def freeze_first(claim):  # type: ignore[no-untyped-def]
        bench.redis.freeze()
        asyncio.get_running_loop().call_later(1.0, bench.redis.thaw)
        return begin(claim)

    keeper.begin = freeze_first  # type: ignore[method-assign]
    await keeper.adopt(bench.tag, DEAD)
    running = keeper.running[bench.tag]
    keeper.begin = begin  # type: ignore[method-assign]
    await eventually(lambda: not bench.node.store.available)
    assert running.life.refusal is None
    await bench.ends_well(calls=1, records=2)


async def test_a_message_adopted_back_is_run_by_its_new_owner_self(bench: Bench) -> None:
    """The node slept, lost its message to another one, and takes it back from that one's death before noticing."""
    await bench.node.messages.ask(WHO, bench.send, ORIGIN)
    old = bench.node.keeper.running[bench.tag]
    args = [bench.node.id, DEAD, 2**20, NOTE_OWNER]
    await bench.node.store.run(TAKEOVER, [bench.keys.record, bench.keys.journal, bench.keys.channel], args)
    await bench.node.keeper.adopt(bench.tag, DEAD)
    assert bench.node.keeper.running[bench.tag] is not old
    await bench.ends_well(calls=2, records=2)


async def test_two_who_adopt_at_once_do_it_once(bench: Bench) -> None:
    """Two repeats on the node that owns a given-up claim."""
    await bench.claim(bench.node.id)
    await asyncio.gather(*(bench.node.messages.ask(WHO, bench.send, ORIGIN) for _ in range(5)))
    await bench.ends_well(calls=1, records=1)


async def test_a_reopened_failure_that_could_not_be_admitted_is_not_forgotten(bench: Bench) -> None:
    """`retry_of` was granted, then Redis froze before the attempt: released it can't be, so it goes on."""
    service, keeper = bench.node.messages, bench.node.keeper
    failing = Send.model_validate({"type": "send", "id": "m", "messages": self_healing()})
    found = await service.ask(WHO, failing, ORIGIN)
    await eventually(lambda: not keeper.has(found.tag))
    record = await bench.node.reader.record(found.keys)
    assert record is not None
    assert record.state == "failed"
    begin = keeper.begin

    def freeze_first(claim):  # type: ignore[no-untyped-def]
        bench.redis.freeze()
        asyncio.get_running_loop().call_later(1.0, bench.redis.thaw)
        return begin(claim)

    keeper.begin = freeze_first  # type: ignore[method-assign]
    again = failing.model_copy(update={"retry_of": record.head})
    with pytest.raises(ProtocolError, match="store"):
        await service.ask(WHO, again, ORIGIN)
    keeper.begin = begin  # type: ignore[method-assign]
    await bench.thawed()
    async with wire(bench.url) as socket:
        socket.view("m").cursor = record.head
        await socket.send({"type": "resume", "id": "m", "after": record.head})
        view = await socket.ended("m")
    assert view.end is not None
    assert view.end["type"] == "done"


def self_healing() -> list[dict[str, str]]:
    """A request that fails for now, the first time."""
    return ask("tokens=10 status=503 times=1", "m")


async def test_a_follower_of_a_claim_that_is_gone_is_told_so_and_may_follow_the_next_one(bench: Bench) -> None:
    """The record went (a release whose note was lost, a failover); then the id stands for a new claim elsewhere."""
    await bench.claim(DEAD, attempts=1)
    async with wire(bench.url) as socket:
        await socket.send({"type": "resume", "id": "m", "after": 0})
        await socket.type("accepted", "m")
        await bench.node.store.call(bench.keys.record, "DEL", bench.keys.record)
        assert (await socket.error("m"))["code"] in ("message_unknown", "store_unavailable")
        await bench.claim(DEAD, attempts=1)
        await socket.send({"type": "resume", "id": "m", "after": 0})
        await socket.type("accepted", "m")
        await bench.node.keeper.adopt(bench.tag, DEAD)
        view = await socket.ended("m")
    assert view.text == expected_text(bench.messages, MODEL)


async def test_a_claim_made_while_an_earlier_one_is_taken_off_the_list_is_listed(bench: Bench) -> None:
    """The id was freed and claimed anew; only then the node strikes it off its open set, for the earlier claim."""
    service, keeper = bench.node.messages, bench.node.keeper
    reply = await service._claim(bench.wish(bench.node.id), b"gen")
    await keeper._unlist(bench.tag)
    keeper.begin(_claimed(bench.wish(bench.node.id), b"gen", reply))
    key = open_set(bench.node.id, "hb0")
    async with asyncio.timeout(2.0):  # sooner than the next reconciliation
        while bench.tag.encode() not in await bench.node.store.call(key, "SMEMBERS", key):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await bench.ends_well(calls=1, records=1)
    assert await bench.node.store.call(key, "SMEMBERS", key) in ([], set())
