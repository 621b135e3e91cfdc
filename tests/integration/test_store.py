"""Redis as the server sees it: scripts, refusals in time, and what comes after a freeze or a restart."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from server.store.link import STALL_SECONDS, StoreLost, StoreReply, StoreUnavailable
from server.store.store import Script, Store, within
from tests.servers import RedisServer, free_port
from tests.wire import eventually


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """One that counts how often it ran."""
    path = tmp_path / "count_v1.lua"
    path.write_text("redis.call('INCRBY', KEYS[1], ARGV[1])\nreturn {KEYS[1], redis.call('GET', KEYS[1])}\n")
    return Script.load(path)


@pytest.fixture
async def store(redis_url: str, script: Script) -> AsyncIterator[Store]:
    found = await Store.connect(redis_url, [script])
    yield found
    await found.close()


@pytest.fixture
def own() -> Iterator[RedisServer]:
    """A server that a test may freeze and kill."""
    with RedisServer() as server:
        yield server
        server.thaw()


async def test_scripts_run_by_their_digest(store: Store, script: Script) -> None:
    assert script.name == "count_v1"
    assert await store.run(script, [b"n"], [2]) == [b"n", b"2"]
    assert await store.send(script, [b"n"], [3]) == [b"n", b"5"]


async def test_a_script_that_redis_forgot_runs_exactly_once(store: Store, script: Script) -> None:
    assert await store.call(b"n", "SCRIPT", "FLUSH") == b"OK"
    assert await store.run(script, [b"n"], [1]) == [b"n", b"1"]
    assert await store.run(script, [b"n"], [1]) == [b"n", b"2"]


async def test_redis_own_errors_are_told_as_such(store: Store, script: Script) -> None:
    await store.call(b"n", "SET", "n", "no number")
    with pytest.raises(StoreReply, match="not an integer"):
        await store.run(script, [b"n"], [1])
    with pytest.raises(StoreReply):
        await store.call(b"n", "NOSUCH")
    assert store.available


async def test_a_frozen_server_is_refused_within_the_promised_time(own: RedisServer, script: Script) -> None:
    store = await Store.connect(own.url, [script])
    assert store.available
    own.freeze()
    started = time.monotonic()
    with pytest.raises((StoreLost, TimeoutError)):
        await store.call(b"n", "GET", "n")
    assert STALL_SECONDS * 0.9 < time.monotonic() - started < STALL_SECONDS + 3
    assert not store.available
    for _ in range(100):  # from now on nobody waits at all
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.run(script, [b"n"], [1])
        assert time.monotonic() - started < STALL_SECONDS
    patient = asyncio.ensure_future(store.call(b"n", "INCRBY", "n", 5, seconds=None))  # noqa: TID251 - awaited below
    own.thaw()
    async with asyncio.timeout(5):
        assert await patient == 5
    await eventually(lambda: store.available)
    assert await store.run(script, [b"n"], [1], seconds=2.0) == [b"n", b"6"]  # no refused call has happened
    await store.close()


async def test_killed_and_restarted_it_is_used_again(own: RedisServer, script: Script) -> None:
    store = await Store.connect(own.url, [script])
    assert await store.run(script, [b"n"], [7]) == [b"n", b"7"]
    assert await store.call(b"n", "WAITAOF", 1, 0, 2000, seconds=3.0) == [1, 0]
    own.kill()
    await eventually(lambda: not store.available)
    with pytest.raises((StoreUnavailable, StoreLost)):
        await store.run(script, [b"n"], [1])
    await asyncio.to_thread(own.start)
    await eventually(lambda: store.available)
    assert await store.run(script, [b"n"], [1], seconds=2.0) == [b"n", b"8"]
    await store.close()


async def test_connecting_to_nothing_says_so_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    with pytest.raises((StoreUnavailable, TimeoutError)):
        async with asyncio.timeout(0.3):
            await Store.connect(f"redis://127.0.0.1:{free_port()}/0", ())
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("url", ["", "http://127.0.0.1", "redis+sentinel://127.0.0.1:1", "redis+cluster://"])
async def test_urls_that_cannot_be_read(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        await Store.connect(url, ())


async def test_a_late_answer_is_dropped_and_a_ready_one_is_not() -> None:
    loop = asyncio.get_running_loop()
    late: asyncio.Future[int] = loop.create_future()
    with pytest.raises(TimeoutError):
        await within(late, 0.001)
    late.set_exception(StoreLost("late"))  # nobody waits any more; nothing may be reported as never retrieved
    ready: asyncio.Future[int] = loop.create_future()
    loop.call_later(0.001, ready.set_result, 5)
    loop.call_soon(time.sleep, 0.02)  # it is our own loop that is slow
    assert await within(ready, 0.002) == 5
    failed: asyncio.Future[int] = loop.create_future()
    failed.set_exception(StoreLost("gone"))
    with pytest.raises(StoreLost):
        await within(failed, 1.0)


async def test_a_caller_that_is_cancelled_leaves_the_reply_alone() -> None:
    reply: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(within(reply, 5.0))
        await asyncio.sleep(0)
        waiting.cancel()
    assert waiting.cancelled()
    assert not reply.cancelled()
    reply.set_exception(StoreLost("late"))  # which may not be reported as never retrieved either


async def test_slots_lead_to_the_only_primary(store: Store) -> None:
    assert store.link(b"a") is store.link(b"tw:{x}:m") is store.links()[0]
