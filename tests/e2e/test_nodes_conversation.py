"""Two devices, three nodes, cuts, kills and races: both end with one conversation, as the upstream was asked."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.processes import ServeProcess, serve_config, serving_processes
from tests.upstreams.script import message_hash
from tests.upstreams.scripted import serving
from tests.wire import Wire, wire

Frame = dict[str, Any]
TURNS = 8


class Device:
    """A client that follows a conversation over any number of connections and keeps what it was told."""

    def __init__(self, name: str, urls: list[str], chance: random.Random) -> None:
        self.name = name
        self.urls = urls
        self.chance = chance
        self.cursor = 0
        self.events: list[Frame] = []
        self.ends: dict[str, Frame] = {}
        self.wanted: dict[str, Frame] = {}
        self.asked: asyncio.Queue[Frame] = asyncio.Queue()
        self.cut = asyncio.Event()

    async def run(self) -> None:
        """Connect, and again, for ever."""
        while True:
            with contextlib.suppress(OSError, ConnectionClosed, TimeoutError, EOFError):
                async with wire(self.chance.choice(self.urls), hello=False) as client:
                    await client.hello()
                    await self._serve(client)
            await asyncio.sleep(0.05)

    async def _serve(self, client: Wire) -> None:
        self.cut.clear()
        for frame in list(self.wanted.values()):
            await client.send(frame)  # whatever has not ended is asked for again, under its id
        await client.send({"type": "subscribe", "conversation": "c", "after": self.cursor})
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in (self._read(client), self._ask(client), self._wait_cut())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()

    async def _wait_cut(self) -> None:
        await self.cut.wait()

    async def _ask(self, client: Wire) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._ask_all(client)

    async def _read(self, client: Wire) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._read_all(client)

    async def _ask_all(self, client: Wire) -> None:
        while True:
            frame = await self.asked.get()
            self.wanted[frame["id"]] = frame
            await client.send(frame)

    async def _read_all(self, client: Wire) -> None:
        while True:
            try:
                frame = await client.recv()
            except TimeoutError:
                continue
            if frame["type"] in ("message", "conversation") and "seq" in frame and frame.get("op") != "subscribed":
                assert frame["seq"] == self.cursor + 1, (self.name, self.cursor, frame)
                self.cursor = frame["seq"]
                self.events.append(frame)
                if frame.get("role") == "assistant" and frame["state"] != "running":
                    self.ends[frame["id"]] = frame
                    self.wanted.pop(frame["id"], None)
            elif frame["type"] == "error" and frame.get("id") in self.wanted:
                assert frame["error"]["retryable"], frame
                await asyncio.sleep(0.1)
                await client.send(self.wanted[frame["id"]])


async def page(url: str) -> list[Frame]:
    async with wire(url) as client:
        await client.send({"type": "history", "conversation": "c", "limit": 200})
        found: list[Frame] = (await client.type("history"))["messages"]
        return found


async def disturb(nodes: list[ServeProcess], devices: list[Device], chance: random.Random) -> None:
    """Cut connections; kill one node after another, and start it again."""
    for number in range(6):
        await asyncio.sleep(chance.uniform(0.3, 0.7))
        chance.choice(devices).cut.set()
        if number % 2:
            victim = nodes[number // 2]
            await victim.kill()
            await victim.start()


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_cut_killed_and_raced_both_devices_end_with_what_the_upstream_was_asked(valkey_url: str) -> None:
    chance = random.Random(4)
    async with serving() as upstream:
        config = serve_config(valkey_url, upstream.url, messages={"takeover_seconds": 1.0})
        async with serving_processes(config, 3) as nodes, asyncio.TaskGroup() as group:
            devices = [Device(name, [node.url for node in nodes], chance) for name in ("laptop", "phone")]
            tasks = [group.create_task(device.run()) for device in devices]
            for number in range(TURNS):
                for device in devices:  # they race for every turn
                    content = f"script tokens=30 rate=60 unicode=1\n{device.name} {number}"
                    device.asked.put_nowait(
                        {"type": "send", "id": f"{device.name}-{number}", "conversation": "c", "input": content}
                    )
            await disturb(nodes, devices, chance)
            async with asyncio.timeout(120):
                while any(len(device.ends) < 2 * TURNS for device in devices):
                    await asyncio.sleep(0.1)
                    assert not any(task.done() for task in tasks)
            last = max(device.cursor for device in devices)
            async with asyncio.timeout(20):
                while any(device.cursor < last for device in devices):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            pages = await asyncio.gather(*(page(node.url) for node in nodes))
            for task in tasks:
                task.cancel()
        assert pages[0] == pages[1] == pages[2]
        assert [_bare(e) for e in devices[0].events] == [_bare(e) for e in devices[1].events]
        thread = pages[0]
        assert len(thread) == 4 * TURNS
        for name in ("laptop", "phone"):  # nobody's own order has changed
            own = [m["content"] for m in thread if m["role"] == "user" and f"\n{name} " in m["content"]]
            assert own == [f"script tokens=30 rate=60 unicode=1\n{name} {number}" for number in range(TURNS)]
        asked = [record["hash"] for record in upstream.records if record["event"] == "start"]
        for index, message in enumerate(thread):
            if message["role"] == "assistant":
                assert message["state"] == "done"
                assert message_hash(thread[:index]) in asked, message
                assert message["id"] == thread[index]["id"]
        assert set(asked) == {message_hash(thread[:i]) for i, m in enumerate(thread) if m["role"] == "assistant"}


def _bare(event: Frame) -> Frame:
    """Without what depends on whether the answer streamed to this device."""
    return {k: v for k, v in event.items() if k not in ("content", "truncated") or event.get("role") == "user"}
