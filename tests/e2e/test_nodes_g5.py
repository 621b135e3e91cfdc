"""G5 bounded: readers that stop reading cost the node cursors, not buffers, and miss nothing."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import psutil
import pytest

from tests.chaos.rig import Rig, ask, rig
from tests.upstreams.script import expected_text
from tests.wire import eventually, wire

MIB = 2**20
BIG_BYTES = 50_000_000
BIG_BOUND = 64 * MIB
"""By how much a node may grow over a reader that stopped: tail, page, socket buffers, and what Python keeps."""
SHARED_MESSAGES = 10
SHARED_BYTES = 5_000_000
SHARED_SECONDS = 240.0
"""How long that may take on a machine that has other things to do."""
SHARED_BOUND = 160 * MIB
RECEIVE_BUFFER = 16_384

Limits = dict[str, dict[str, int]]
SMALL: Limits = {"messages": {"tail_bytes": 4_096}, "server": {"max_frame_bytes": 16_384}}
"""A hub's tail and frames far smaller than what the messages bring between two looks."""
LARGE = {"default": {"max_output_tokens": 1_000_000}}
"""A tier whose answers may be as long as these tests want them."""


def _rss(r: Rig) -> int:
    return int(psutil.Process(r.nodes[0].pid).memory_info().rss)


class _Watch:
    """The most that a node's memory grows while the block runs."""

    def __init__(self, r: Rig) -> None:
        self.rig = r
        self.before = self.most = _rss(r)

    async def run(self) -> None:
        while True:
            self.most = max(self.most, _rss(self.rig))
            await asyncio.sleep(0.05)

    @property
    def grown(self) -> int:
        return self.most - self.before


async def _ended_upstream(r: Rig, messages: list[dict[str, str]], seconds: float) -> None:
    await eventually(lambda: any(r.log.end(call) is not None for call in r.log.calls(messages)), seconds)


async def test_g5_a_client_that_stops_reading_fifty_megabytes_costs_a_cursor(valkey_url: str) -> None:
    async with rig(valkey_url, 1, tiers=LARGE) as r, wire(r.nodes[0].url, receive_buffer=RECEIVE_BUFFER) as socket:
        await socket.ask("warm", ask("tokens=100", "warm"))
        await socket.ended("warm")
        watch = _Watch(r)
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch.run())
            messages = await socket.ask("big", ask(f"bytes={BIG_BYTES}", "big"))
            await socket.type("accepted", "big")
            await _ended_upstream(r, messages, 60.0)  # all of it was read, though nobody takes it
            stored = await r.settled("big", 60.0)
            stalled = watch.grown
            frames = 0
            while socket.view("big").end is None:
                await socket.recv()
                frames += 1
            watching.cancel()
        assert stored.state == "done"
        view = socket.view("big")
        assert view.text == expected_text(messages, "scripted")
        view.check_hash()
        await r.check_once("big", messages)
        told = f"{frames} frames, the largest of {socket.largest} bytes"
        print(
            f"{watch.before / MIB:.0f} MiB before; grew by {stalled / MIB:.1f} MiB while nobody read,"
            f" by {watch.grown / MIB:.1f} MiB until all was told, in {told}"
        )
        assert watch.grown < BIG_BOUND
        assert frames < BIG_BYTES / 50_000, "catching up takes few large frames"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("limits", [{}, SMALL], ids=["default-limits", "small-limits"])
async def test_g5_five_hundred_stalled_readers_share_ten_messages(valkey_url: str, limits: Limits) -> None:
    await _shared(valkey_url, 500, limits)


async def test_g5_a_hundred_stalled_readers_share_ten_messages(valkey_url: str) -> None:
    await _shared(valkey_url, 100, {})


async def _shared(url: str, readers: int, limits: Limits) -> None:
    async with rig(url, 1, tiers=LARGE, **limits) as r, AsyncExitStack() as stack:
        node = r.nodes[0]
        sockets = [
            await stack.enter_async_context(wire(node.url, receive_buffer=RECEIVE_BUFFER)) for _ in range(readers)
        ]
        watch = _Watch(r)
        asked = {}
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch.run())
            for number in range(SHARED_MESSAGES):
                message_id = f"shared-{number}"
                asked[message_id] = await sockets[number].ask(message_id, ask(f"bytes={SHARED_BYTES}", message_id))
                await sockets[number].type("accepted", message_id)
            for number, socket in enumerate(sockets):
                await socket.send({"type": "resume", "id": f"shared-{number % SHARED_MESSAGES}", "after": 0})
            for message_id, messages in asked.items():
                await _ended_upstream(r, messages, SHARED_SECONDS)
                await r.settled(message_id, SHARED_SECONDS)
            stalled = watch.grown
            reading = {f"shared-{number}": sockets[number + SHARED_MESSAGES] for number in range(SHARED_MESSAGES)}
            views = await asyncio.gather(*(socket.ended(message_id) for message_id, socket in reading.items()))
            for view in views:  # one reader of each read on; the others stayed away
                assert view.text == expected_text(asked[view.id], "scripted")
                view.check_hash()
            watching.cancel()
        for socket in sockets:
            socket.ws.transport.abort()  # a close in order waits for what is never read, one socket after another
        print(f"{readers} stalled readers: grew by {stalled / MIB:.1f} MiB, {watch.grown / MIB:.1f} MiB in all")
        assert watch.grown < SHARED_BOUND
        assert r.log.count() == SHARED_MESSAGES
