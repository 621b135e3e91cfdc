"""G9 Redis may fail: frozen or restarted, nothing hangs, nothing is doubled or lost, and nobody is taken for dead."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from tests.chaos.rig import Rig, ask, read_until, rig
from tests.processes import AS_SHIPPED, ServeProcess
from tests.servers import RedisServer
from tests.upstreams.script import expected_text
from tests.wire import Wire, wire

REFUSAL_SECONDS = 0.15
USUAL, EVERY = 0.5, 1.0
"""The share of refusals that have to be in time: a machine that runs other tests too has pauses of its own."""
RATE = 20


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis of this test's own, to be frozen and killed."""
    with RedisServer() as redis:
        yield redis


def _ready(node: ServeProcess) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{node.http}/readyz", timeout=5) as answer:
            return answer.status, json.load(answer)["status"]
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.load(refused)["reason"]


async def _ready_is(node: ServeProcess, wanted: int) -> None:
    async with asyncio.timeout(10):
        while (await asyncio.to_thread(_ready, node))[0] != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def _running(r: Rig, sockets: list[Wire], seconds: float) -> dict[str, list[dict[str, str]]]:
    """One message per node that streams for about `seconds`."""
    asked = {}
    for number, socket in enumerate(sockets):
        message_id = f"running-{number}"
        asked[message_id] = ask(f"tokens={round(RATE * seconds)} rate={RATE}", message_id)
        await socket.ask(message_id, asked[message_id])
        await read_until(socket, message_id, 20)
    return asked


async def _refusals(r: Rig, until: float) -> list[float]:
    """New messages on every node until a time; how long each refusal took, less what the socket itself takes."""
    took: list[float] = []

    async def ask_for(number: int, node: ServeProcess) -> None:
        async with wire(node.url) as socket:
            count = 0
            while time.monotonic() < until:
                count += 1
                message_id = f"refused-{number}-{count}"
                began = time.monotonic()
                await socket.ask(message_id, ask("tokens=5", message_id))
                error = await socket.error(message_id)
                took.append(time.monotonic() - began)
                assert (error["code"], error["class"], error["retryable"]) == ("store_unavailable", "temporary", True)
                assert await asyncio.to_thread(_ready, node) == (503, "store_unavailable")
                await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as group:
        for number, node in enumerate(r.nodes):
            group.create_task(ask_for(number, node))
    return took


async def _all_went_on(r: Rig, sockets: list[Wire], asked: dict[str, list[dict[str, str]]]) -> None:
    """Every running message ended whole, in one attempt; nobody was taken for dead."""
    for number, socket in enumerate(sockets):
        message_id = f"running-{number}"
        view = socket.view(message_id)
        while view.end is None:
            await socket.recv()
        assert view.text == expected_text(asked[message_id], "scripted")
        assert len(view.attempts) == 1
        view.check_hash()
        await r.check_once(message_id, asked[message_id])
    for node in r.nodes:
        assert "node_dead" not in node.log.read_text()


async def _freeze(server: RedisServer, seconds: float, share: float) -> None:
    async with rig(server.url, 2, redis=AS_SHIPPED) as r, wire(r.nodes[0].url) as a, wire(r.nodes[1].url) as b:
        asked = await _running(r, [a, b], seconds + 4)
        server.freeze()
        try:
            frozen = time.monotonic()
            for node in r.nodes:
                await _ready_is(node, 503)
            took = await _refusals(r, frozen + seconds)
        finally:
            server.thaw()
        for node in r.nodes:
            await _ready_is(node, 200)
        await _all_went_on(r, [a, b], asked)
        await _nothing_came_of_refusals(r, len(asked))
        took.sort()
        print(f"{len(took)} refusals: p50 {took[len(took) // 2] * 1000:.0f} ms, worst {took[-1] * 1000:.0f} ms")
        assert took[round(share * (len(took) - 1))] <= REFUSAL_SECONDS


async def _nothing_came_of_refusals(r: Rig, running: int) -> None:
    """The refused called nobody; asked for again, with the same id, each is generated once."""
    assert r.log.count() == running
    messages = ask("tokens=5", "refused-0-1")
    for node in r.nodes:
        async with wire(node.url) as socket:
            await socket.ask("refused-0-1", messages)
            view = await socket.ended("refused-0-1")
            assert view.text == expected_text(messages, "scripted")
    await r.check_once("refused-0-1", messages)


async def test_g9_redis_frozen_for_eight_seconds(server: RedisServer) -> None:
    await _freeze(server, 8.0, USUAL)


@pytest.mark.slow
async def test_g9_redis_frozen_for_thirty_seconds(server: RedisServer) -> None:
    await _freeze(server, 30.0, EVERY)


async def test_g9_the_first_send_after_the_freeze_is_refused_in_time_too(server: RedisServer) -> None:
    async with rig(server.url, 1, redis=AS_SHIPPED) as r, wire(r.nodes[0].url) as socket:
        took = []
        for number in range(5):
            await _ready_is(r.nodes[0], 200)
            server.freeze()
            try:
                began = time.monotonic()
                await socket.ask(f"first-{number}", ask("tokens=5", f"first-{number}"))
                error = await socket.error(f"first-{number}")
                took.append(time.monotonic() - began)
                assert error["code"] == "store_unavailable"
            finally:
                server.thaw()
        assert min(took) <= REFUSAL_SECONDS, took
        print("refused after", [round(t * 1000) for t in took], "ms")


async def test_g9_followers_are_told_to_resume_later(server: RedisServer) -> None:
    async with rig(server.url, 1, redis=AS_SHIPPED) as r, wire(r.nodes[0].url) as socket:
        messages = ask(f"tokens=100 rate={RATE}", "told")
        await socket.ask("told", messages)
        await read_until(socket, "told", 20)
        server.freeze()
        try:
            error = await socket.error("told")
        finally:
            server.thaw()
        assert (error["code"], error["retryable"]) == ("store_unavailable", True)
        async with wire(r.nodes[0].url) as again:
            await again.send({"type": "resume", "id": "told", "after": 0})
            view = await again.ended("told")
        assert view.text == expected_text(messages, "scripted")


async def test_g9_redis_killed_and_restarted_on_its_aof(server: RedisServer) -> None:
    async with rig(server.url, 2, redis=AS_SHIPPED) as r, wire(r.nodes[0].url) as a, wire(r.nodes[1].url) as b:
        asked = await _running(r, [a, b], 6)
        server.kill()
        await _ready_is(r.nodes[0], 503)
        await a.ask("during", ask("tokens=5", "during"))
        assert (await a.error("during"))["code"] == "store_unavailable"
        server.start()
        await _all_went_on(r, [a, b], asked)
        assert r.log.count() == len(asked)
