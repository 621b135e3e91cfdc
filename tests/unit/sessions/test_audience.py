"""Who is told of a user's limits, and for how long a node listens for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from server.quotas.base import Payer
from server.sessions.audience import ORDER_US, Audience

WHO = Payer("acme", "u1", "free")


class Radio:
    """Shard channels that confirm when they are told to."""

    def __init__(self) -> None:
        self.heard: dict[bytes, Callable[[bytes], None]] = {}
        self.confirmed: dict[bytes, asyncio.Future[None]] = {}

    def listen(self, name: bytes, heard: Callable[[bytes], None]) -> asyncio.Future[None]:
        self.heard[name] = heard
        self.confirmed[name] = asyncio.get_running_loop().create_future()
        return self.confirmed[name]

    def unlisten(self, name: bytes) -> None:
        del self.heard[name]
        self.confirmed.pop(name).cancel()


class Source:
    """Limits that are never asked for twice."""

    def __init__(self) -> None:
        self.say: Any = None
        self.news: list[tuple[str, bytes]] = []
        self.viewed = 0

    def channel(self, payer: Payer) -> bytes:
        return payer.user.encode()

    def heard(self, payer: Payer, data: bytes) -> None:
        self.news.append((payer.user, data))

    async def standing(self, payer: Payer) -> tuple[list[dict[str, Any]], int]:
        self.viewed += 1
        return [{"name": "left"}], 7


class Listener:
    """A session that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[list[dict[str, Any]]] = []

    def tell_limits(self, limits: list[dict[str, Any]]) -> None:
        self.told.append(limits)


async def test_a_channel_is_heard_for_as_long_as_the_user_has_sessions() -> None:
    audience = Audience(radio := Radio(), source := Source())
    one, two = Listener(), Listener()
    audience.join(WHO, one)
    audience.join(WHO, two)
    audience.join(WHO, one)
    radio.heard[b"u1"](b"news")
    assert source.news == [("u1", b"news")]
    audience.leave("u1", one)
    assert set(radio.heard) == {b"u1"}
    audience.leave("u1", two)
    audience.leave("u1", two)
    assert not radio.heard


async def test_a_welcome_waits_for_the_subscription_but_not_for_ever() -> None:
    audience = Audience(radio := Radio(), source := Source())
    audience.join(WHO, session := Listener())
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(audience.limits(WHO, session))
        await asyncio.sleep(0)
        assert source.viewed == 0
        radio.confirmed[b"u1"].set_result(None)
    assert waiting.result() == [{"name": "left"}]
    source.say(WHO, [{"name": "older than the welcome"}], 6)
    source.say(WHO, [{"name": "newer"}], 8)
    assert [limits[0]["name"] for limits in session.told] == ["newer"]
    other = Payer("acme", "u2", "free")
    audience.join(other, session)
    assert await audience.limits(other, session) == [{"name": "left"}]  # nobody confirms in time
    assert source.news == []
    radio.confirmed[b"u2"].set_result(None)
    await asyncio.sleep(0)
    assert source.news == [("u2", b"")], "what was changed before the subscription is looked for"


async def test_a_subscription_that_is_given_up_is_not_looked_after() -> None:
    audience = Audience(Radio(), source := Source())
    audience.join(WHO, session := Listener())
    await audience.limits(WHO, session)
    audience.leave("u1", session)
    await asyncio.sleep(0)
    assert source.news == []


async def test_words_of_two_nodes_that_overtake_each_other_do_not_turn_time_back() -> None:
    audience = Audience(Radio(), source := Source())
    listener = Listener()
    audience.join(WHO, listener)
    start = 2 * ORDER_US
    for at, name in ((start, "first"), (start + 9, "third"), (start + 8, "second"), (start + 9, "fourth")):
        source.say(WHO, [{"name": name}], at)
    source.say(WHO, [{"name": "Redis lost its clock"}], start - ORDER_US)
    source.say(Payer("acme", "nobody here", "free"), [], start)
    assert [limits[0]["name"] for limits in listener.told] == ["first", "third", "fourth", "Redis lost its clock"]
