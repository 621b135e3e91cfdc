"""When the hub reads what may have been missed: once Redis has confirmed that the next word is heard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from server.messages.hub import Hub
from server.store.keys import MessageKeys

CONTROL, NEWS = b"control", b"news"


class Primary:
    """A link that keeps what it was given to send."""

    address = None

    def __init__(self) -> None:
        self.pushed: list[tuple[Any, ...]] = []

    def push(self, *command: Any) -> None:
        self.pushed.append(command)

    async def close(self) -> None:
        pass


class OneStore:
    """A store with one primary, whose subscribing connection is a test's to break and to answer."""

    def __init__(self, record: list[bytes]) -> None:
        self.primary, self.line = Primary(), Primary()
        self.on_moved: Callable[[], None] = lambda: None
        self.record = record
        self.reads = 0

    def link(self, key: bytes) -> Primary:
        return self.primary

    def subscriber(
        self, link: Primary, on_push: Callable[[list[Any]], bool], on_change: Callable[[bool], None]
    ) -> Primary:
        self.says, self.turns = on_push, on_change
        return self.line

    async def call(self, key: bytes, *command: Any, seconds: float | None = None) -> Any:
        self.reads += 1
        return self.record

    def confirms(self, name: bytes) -> None:
        assert self.says([b"ssubscribe", name, 1])

    def reconnects(self) -> None:
        self.turns(False)
        self.line.pushed.clear()
        self.turns(True)


class Reader:
    """A follower that counts how often it is woken."""

    def __init__(self) -> None:
        self.woken = 0

    def wake(self, tag: str) -> None:
        self.woken += 1

    def replaced(self, tag: str) -> None:
        raise AssertionError(tag)

    def gone(self, tag: str, error: dict[str, Any] | None) -> None:
        raise AssertionError(tag)


async def test_after_a_broken_connection_a_listener_reads_once_it_hears_again() -> None:
    hub = Hub(store := OneStore([]), 1000)  # type: ignore[arg-type]
    await hub.start(CONTROL)
    heard: list[bytes] = []
    confirmed = hub.listen(NEWS, heard.append)
    store.confirms(NEWS)
    await confirmed
    store.reconnects()
    assert ("SSUBSCRIBE", NEWS) in store.line.pushed
    assert heard == [], "what is published until the subscription is in force would be missed"
    store.confirms(NEWS)
    assert heard == [b""]
    store.says([b"smessage", NEWS, b"word"])
    assert heard == [b"", b"word"]
    await hub.close()


async def test_after_a_broken_connection_a_followed_message_is_read_once_it_is_heard_again() -> None:
    hub = Hub(store := OneStore([b"4", b"streaming", b"g"]), 1000)  # type: ignore[arg-type]
    await hub.start(CONTROL)
    keys = MessageKeys.of("tag")
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(hub.follow("tag", keys, reader := Reader(), 4, False))
        await asyncio.sleep(0)
        store.confirms(keys.channel)
    channel = following.result()
    assert (store.reads, reader.woken) == (1, 0)
    store.reconnects()
    await asyncio.sleep(0)
    assert store.reads == 1
    store.record = [b"9", b"streaming", b"g"]  # written before the subscription was in force again
    store.confirms(keys.channel)
    await asyncio.sleep(0)
    assert (channel.head, reader.woken) == (9, 1)
    await hub.close()
