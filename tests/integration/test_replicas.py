"""Waiting for a replica: a real primary with a real replica, which is stopped and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from server.store import replicas as waiting
from server.store.replicas import LOOK_SECONDS, Replicas
from server.store.store import Store
from tests.integration.test_main_job import place, whole
from tests.servers import RedisServer
from tests.wire import eventually, eventually_true, wire

KEY = b"tw:{x}:m"


@pytest.fixture
def pair() -> Iterator[tuple[RedisServer, RedisServer]]:
    """A primary and its replica."""
    with RedisServer() as primary:
        follows = ("--replicaof", "127.0.0.1", str(primary.port), "--repl-diskless-sync-delay", "0")
        with RedisServer(options=follows) as replica:
            yield primary, replica
            replica.thaw()


@pytest.fixture
async def replicas(pair: tuple[RedisServer, RedisServer]) -> AsyncIterator[Replicas]:
    """Of a process that has seen the replica online."""
    store = await Store.connect(pair[0].url, ())
    found = Replicas(store)
    await found.start()
    await eventually(lambda: any(lane.count for lane in found._lanes.values()), 10.0)
    yield found
    await found.close()
    await store.close()


async def test_what_is_confirmed_is_on_the_replica(pair: tuple[RedisServer, RedisServer], replicas: Replicas) -> None:
    async with Redis.from_url(pair[1].url) as replica:
        for number in range(200):
            await replicas.store.call(KEY, "SET", KEY, number)
            assert await replicas.confirmed(KEY)
            assert await replica.get(KEY) == b"%d" % number


async def test_many_who_ask_share_a_round(pair: tuple[RedisServer, RedisServer], replicas: Replicas) -> None:
    async with Redis.from_url(pair[0].url) as primary:
        before = int(await primary.get("tw:{hb0}:waited") or 0)
        assert all(await asyncio.gather(*(replicas.confirmed(KEY) for _ in range(100))))
        assert int(await primary.get("tw:{hb0}:waited")) - before <= 2


async def test_a_replica_that_lags_holds_nobody_up(pair: tuple[RedisServer, RedisServer], replicas: Replicas) -> None:
    loop = asyncio.get_running_loop()
    pair[1].freeze()
    began = loop.time()
    assert not await replicas.confirmed(KEY)
    assert loop.time() - began < 10.0
    assert replicas.confirmed(KEY).done(), "while it lags nobody waits"
    assert not await replicas.have(KEY, 5.0)
    pair[1].thaw()

    async def keeps_up() -> bool:
        return await replicas.confirmed(KEY)

    await eventually_true(keeps_up, 3 * LOOK_SECONDS + 5.0)
    assert await replicas.have(KEY, 5.0)


async def test_without_replicas_nobody_waits(valkey_url: str) -> None:
    store = await Store.connect(valkey_url, ())
    replicas = Replicas(store)
    await replicas.start()
    assert replicas.confirmed(KEY).result() is True
    assert await replicas.have(KEY, 1.0)
    await replicas.close()
    await store.close()


async def test_what_is_accepted_is_known_to_a_replica(
    pair: tuple[RedisServer, RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "ROUND_MS", 5_000)  # on a busy machine one that keeps up may take more than 80 ms
    monkeypatch.setattr(waiting, "ANSWER_SECONDS", 6.0)
    async with place(pair[0].url) as here, Redis.from_url(pair[1].url) as replica:
        lanes = here.node.node.replicas._lanes
        await eventually(lambda: any(lane.count for lane in lanes.values()), 10.0)
        async with wire(here.node.url) as client:
            for number in range(20):
                message_id = f"m{number}"
                messages = await client.ask(message_id, f"script tokens=3 rate=1000 seed={number}")
                await client.type("accepted", message_id)
                assert await replica.exists(here.keys(message_id).record), "accepted, and the replica does not know it"
                whole(await client.ended(message_id), messages)


async def test_a_message_goes_on_without_a_replica_that_answers(pair: tuple[RedisServer, RedisServer]) -> None:
    async with place(pair[0].url) as here, wire(here.node.url) as client:
        lanes: dict[Any, Any] = here.node.node.replicas._lanes
        await eventually(lambda: any(lane.count for lane in lanes.values()), 10.0)
        pair[1].freeze()
        for message_id in ("m1", "m2"):
            messages = await client.ask(message_id, "script tokens=20 rate=1000")
            whole(await client.ended(message_id), messages)
        assert any(lane.lagging for lane in lanes.values())
