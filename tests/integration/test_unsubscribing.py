"""Who does not follow any more is told nothing more, and what nobody follows the node does not listen to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import redis.asyncio

from server.store.keys import MessageKeys, message_tag
from tests.integration.test_conversations import Frame, ask, place
from tests.nodes import RunningNode
from tests.wire import Wire, eventually_true, wire


def listeners(redis_url: str, channel: bytes, count: int) -> Callable[[], Awaitable[bool]]:
    """Whether so many connections have the shard channel subscribed."""

    async def asked() -> bool:
        async with redis.asyncio.Redis.from_url(redis_url) as server:
            found = await server.execute_command("PUBSUB", "SHARDNUMSUB", channel)
        return bool(found[1] == count)

    return asked


async def follow(client: Wire) -> None:
    await client.send({"type": "subscribe", "conversation": "c1", "after": 0})
    await client.until(lambda f: f["type"] == "conversation" and f["op"] == "subscribed")


def renamed(title: str) -> Callable[[Frame], bool]:
    return lambda f: f["type"] == "conversation" and f["op"] == "renamed" and f["title"] == title


def channel_of(node: RunningNode, conversation: str) -> bytes:
    who = next(iter(node.node.sessions)).principal
    return node.node.conversations.place(who, conversation).keys.channel


async def test_a_device_that_unsubscribes_from_a_conversation_is_told_nothing_more(valkey_url: str) -> None:
    async with place(valkey_url, 2) as here:
        first, second = here.nodes
        async with wire(first.url) as one, wire(first.url) as two, wire(second.url) as asker:
            await ask(asker, "create", "c1")
            channel = channel_of(first, "c1")
            await eventually_true(listeners(valkey_url, channel, 0))
            for client in (one, two):
                await follow(client)
            await ask(asker, "rename", "c1", title="heard by both")
            for client in (one, two):
                await client.until(renamed("heard by both"))
            await eventually_true(listeners(valkey_url, channel, 1))
            await one.send({"type": "unsubscribe", "conversation": "c1"})
            assert await one.quiet() == []
            await ask(asker, "rename", "c1", title="heard by one")
            await two.until(renamed("heard by one"))
            assert await one.quiet() == []
            assert await listeners(valkey_url, channel, 1)(), "the other device still follows"
            await two.send({"type": "unsubscribe", "conversation": "c1"})
            await eventually_true(listeners(valkey_url, channel, 0))
            await ask(asker, "rename", "c1", title="heard by nobody")
            assert await one.quiet() == await two.quiet() == []


async def test_a_device_that_detaches_from_a_message_is_told_nothing_more(valkey_url: str) -> None:
    async with place(valkey_url, 2) as here:
        first, second = here.nodes
        async with wire(first.url) as one, wire(first.url) as two, wire(second.url) as asker:
            await asker.ask("m1", "script tokens=400 rate=100")
            await asker.type("delta", "m1")
            who = next(iter(first.node.sessions)).principal
            channel = MessageKeys.of(message_tag(who.tenant, who.kind, who.user, "m1")).channel
            async with redis.asyncio.Redis.from_url(valkey_url) as server:
                at_home = (await server.execute_command("PUBSUB", "SHARDNUMSUB", channel))[1]
            for client in (one, two):
                await client.send({"type": "resume", "id": "m1", "after": 0})
                await client.type("delta", "m1")
            await eventually_true(listeners(valkey_url, channel, at_home + 1))
            await one.send({"type": "detach", "id": "m1"})
            await one.quiet()  # what was on its way
            await two.type("delta", "m1")
            assert await one.quiet() == []
            await two.send({"type": "detach", "id": "m1"})
            await eventually_true(listeners(valkey_url, channel, at_home))
            view = await asker.ended("m1")
            view.check_hash()
            assert await one.quiet() == []
