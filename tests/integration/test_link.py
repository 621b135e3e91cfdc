"""One connection to one Redis: order, loss, silence and return. Servers here are started, frozen and killed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from server.store.link import STALL_SECONDS, Address, Link, StoreLost, StoreReply, StoreUnavailable
from server.store.topology import address_of
from tests.servers import RedisServer, free_port
from tests.wire import eventually

ECHO = b"return ARGV[1]"


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[Link]:
    found = Link(address_of(redis_url))
    await found.ready(5)
    yield found
    await found.close()


@pytest.fixture(scope="module")
def _own_process() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def own(_own_process: RedisServer) -> Iterator[RedisServer]:
    """A server that a test may freeze and kill."""
    yield _own_process
    _own_process.thaw()
    if _own_process.process is not None and _own_process.process.poll() is not None:
        _own_process.start()
    _own_process.flush()


async def within(seconds: float, future: Any) -> Any:
    async with asyncio.timeout(seconds):
        return await future


async def test_replies_come_to_their_own_callers_in_order(link: Link) -> None:
    done: list[int] = []

    async def one(number: int) -> None:
        assert await link.call("ECHO", str(number)) == str(number).encode()
        done.append(number)

    await asyncio.gather(*(one(number) for number in range(2000)))
    assert done == sorted(done)


async def test_every_kind_of_reply_and_argument(link: Link) -> None:
    value = bytes(range(256)) * 5000
    assert await link.call("SET", b"k", value) == b"OK"
    assert await link.call("GET", "k") == value
    assert await link.call("GET", "nothing") is None
    assert await link.call("INCRBY", "n", 2**53) == 2**53
    assert await link.call("EVAL", "return {1, {'a', false}, {}}", 0) == [1, [b"a", None], []]


async def test_an_error_reaches_only_its_own_caller(link: Link) -> None:
    calls = [link.call("ECHO", "a"), link.call("NOSUCH"), link.call("INCR", "n"), link.call("ECHO", "b")]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert (results[0], results[2], results[3]) == (b"a", 1, b"b")
    assert isinstance(results[1], StoreReply)
    assert "unknown command" in str(results[1])


async def test_a_caller_who_gives_up_shifts_nobody_s_reply(link: Link) -> None:
    calls = [link.call("ECHO", str(number)) for number in range(10)]
    calls[3].cancel()
    calls[7].cancel()
    for number, call in enumerate(calls):
        if number not in (3, 7):
            assert await call == str(number).encode()


async def test_a_command_that_cannot_be_packed_shifts_nobody_s_reply(link: Link) -> None:
    with pytest.raises(TypeError):
        link.call("SET", "k", None)  # type: ignore[arg-type]
    assert await within(2, link.call("ECHO", "a")) == b"a"
    assert await within(2, link.call("ECHO", "b")) == b"b"


async def test_scripts_are_there_from_the_first_command_on(redis_url: str) -> None:
    import hashlib

    sha = hashlib.sha1(ECHO, usedforsecurity=False).hexdigest()
    found = Link(address_of(redis_url), [ECHO])
    await found.ready(5)
    assert await found.call("EVALSHA", sha, 0, "x") == b"x"
    await found.close()


async def test_a_lost_connection_fails_what_was_on_it_and_comes_back(link: Link) -> None:
    changes: list[bool] = []
    link.on_change = changes.append
    waiting = link.call("BLPOP", "empty", 0)
    other = Link(link.address)
    await other.ready(5)
    await other.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    with pytest.raises(StoreLost):
        await within(2, waiting)
    await eventually(lambda: changes == [False, True])
    assert await link.call("PING") == b"PONG"
    await other.close()


async def test_without_a_server_calls_fail_at_once_and_ready_says_why() -> None:
    link = Link(Address(port=free_port()))
    assert (link.connected, link.available) == (False, False)
    with pytest.raises(StoreUnavailable):
        link.call("PING")
    with pytest.raises(StoreUnavailable, match=r"[Cc]onnect"):
        await link.ready(0.15)
    await link.close()


async def test_a_server_that_starts_late_is_found(own: RedisServer) -> None:
    own.kill()
    link = Link(address_of(own.url))
    with pytest.raises(StoreUnavailable):
        await link.ready(0.05)
    await asyncio.to_thread(own.start)
    await link.ready(5)
    assert await link.call("PING") == b"PONG"
    await link.close()


async def test_a_frozen_server_is_noticed_soon_and_forgiven_at_its_first_reply(own: RedisServer) -> None:
    link = Link(address_of(own.url))
    await link.ready(5)
    assert link.available
    own.freeze()
    started = time.monotonic()
    waiting = [link.call("ECHO", str(number)) for number in range(3)]
    await eventually(lambda: not link.available)
    assert STALL_SECONDS * 0.9 < time.monotonic() - started < STALL_SECONDS + 3
    assert link.connected
    assert not waiting[0].done()
    own.thaw()
    assert [await within(2, call) for call in waiting] == [b"0", b"1", b"2"]
    await eventually(lambda: link.available)
    await link.close()


async def test_a_killed_server_comes_back_with_its_data(own: RedisServer) -> None:
    link = Link(address_of(own.url), [ECHO])
    await link.ready(5)
    assert await link.call("SET", "k", "kept") == b"OK"
    assert await link.call("WAITAOF", 1, 0, 2000) == [1, 0]
    waiting = link.call("BLPOP", "empty", 0)
    own.kill()
    with pytest.raises(StoreLost):
        await within(2, waiting)
    await eventually(lambda: not link.available)
    with pytest.raises(StoreUnavailable):
        link.call("GET", "k")
    await asyncio.to_thread(own.start)
    await link.ready(5)
    assert await link.call("GET", "k") == b"kept"
    await link.close()


async def test_closing_fails_what_is_unanswered_and_leaves_no_task(redis_url: str) -> None:
    before = asyncio.all_tasks()
    link = Link(address_of(redis_url))
    await link.ready(5)
    waiting = link.call("BLPOP", "empty", 0)
    await link.close()
    with pytest.raises(StoreLost):
        await waiting
    assert asyncio.all_tasks() == before
    with pytest.raises(StoreUnavailable):
        link.call("PING")


async def test_credentials_open_the_door_and_wrong_ones_are_told(own: RedisServer) -> None:
    assert own.command(b"ACL SETUSER anna on >secret ~* &* +@all") == b"+OK"
    good = Link(Address(port=own.port, username="anna", password="secret", db=3))
    await good.ready(5)
    assert await good.call("ACL", "WHOAMI") == b"anna"
    assert b"db=3" in await good.call("CLIENT", "INFO")
    await good.close()
    bad = Link(Address(port=own.port, username="anna", password="wrong"))
    with pytest.raises(StoreUnavailable, match="WRONGPASS"):
        await bad.ready(0.3)
    await bad.close()
    assert "secret" not in repr(good.address)


async def test_pushes_go_to_their_listener_and_not_to_callers(redis_url: str) -> None:
    pushed: list[list[Any]] = []

    def on_push(reply: list[Any]) -> bool:
        if reply and reply[0] in (b"ssubscribe", b"smessage", b"sunsubscribe"):
            pushed.append(reply)
            return True
        return False

    listener, speaker = Link(address_of(redis_url), (), on_push), Link(address_of(redis_url))
    await asyncio.gather(listener.ready(5), speaker.ready(5))
    listener.push("SSUBSCRIBE", "channel")
    await eventually(lambda: len(pushed) == 1)
    for number in range(3):
        await speaker.call("SPUBLISH", "channel", str(number))
    await eventually(lambda: len(pushed) == 4)
    assert [reply[2] for reply in pushed[1:]] == [b"0", b"1", b"2"]
    await asyncio.gather(listener.close(), speaker.close())


async def test_a_call_in_the_moment_of_the_loss_is_not_forgotten(link: Link) -> None:
    """Whoever hears of the loss may ask again at once: the call is refused or answered, but it does not hang."""
    waiting = link.call("BLPOP", "empty", 0)
    link.turn_to(link.address)
    with pytest.raises(StoreLost):
        await within(2, waiting)
    with pytest.raises((StoreUnavailable, StoreLost)):
        await within(2, link.call("PING"))


async def test_a_link_follows_its_primary_to_another_address(redis_url: str, own: RedisServer) -> None:
    link = Link(address_of(redis_url))
    await link.ready(5)
    await link.call("SET", "where", "old")
    changes: list[bool] = []
    link.on_change = changes.append
    waiting = link.call("BLPOP", "empty", 0)
    link.turn_to(address_of(own.url))
    with pytest.raises(StoreLost):
        await within(2, waiting)
    await eventually(lambda: changes == [False, True])
    assert await within(2, link.call("GET", "where")) is None
    await link.close()
