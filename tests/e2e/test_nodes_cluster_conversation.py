"""Conversations over a real cluster of three primaries; nodes die at every step, and no queue loses its order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.chaos.cluster import cluster
from tests.chaos.rig import Rig, read_until, rig
from tests.upstreams.script import expected_text
from tests.wire import Wire, wire

MODEL = "scripted"
SPREAD = 6
"""So many conversations lie on all three primaries, and their messages elsewhere."""
QUEUED = 4
Frame = dict[str, Any]
Kill = Callable[[Rig, Wire, str], Awaitable[None]]


def names(step: str) -> list[str]:
    return [f"{step}-{number}" for number in range(SPREAD)]


async def say(client: Wire, conversation: str, number: int, content: str) -> None:
    frame = {"type": "send", "id": f"{conversation}-m{number}", "conversation": conversation, "input": content}
    await client.send(frame)


async def ask(client: Wire, op: str, **fields: Any) -> Frame:
    await client.send({"type": "conversation", "op": op, **fields})
    return await client.until(lambda f: f["type"] == "error" or (f["type"] == "conversation" and f["op"] == op))


async def thread(client: Wire, conversation: str) -> list[Frame]:
    """The conversation, once its turn is free: the end of an answer is told before the conversation hears of it."""
    async with asyncio.timeout(10):
        while True:
            await client.send({"type": "history", "conversation": conversation, "limit": 200})
            page = await client.type("history")
            if page["current"] is None:
                break
            await asyncio.sleep(0.02)
    assert page["queue"] == []
    found: list[Frame] = page["messages"]
    return found


def content(conversation: str, number: int) -> str:
    """A slow first answer, behind which the others queue."""
    return f"script tokens={60 if number == 0 else 5} rate={60 if number == 0 else 0}\n{conversation} {number}"


async def fill_queues(r: Rig, step: str, clients: list[Wire]) -> None:
    """One answer streams in every conversation, and the others wait, asked by way of all nodes in turn."""
    for conversation in names(step):
        await say(clients[0], conversation, 0, content(conversation, 0))
        await read_until(clients[0], f"{conversation}-m0", 2)
        for number in range(1, QUEUED):
            client = clients[number % len(clients)]
            await say(client, conversation, number, content(conversation, number))
            told = await client.type("accepted", f"{conversation}-m{number}")
            assert (told["state"], told["queue_position"]) == ("queued", number)


async def check(r: Rig, step: str, client: Wire) -> None:
    """Every conversation holds every question once, in order, each answered from what stood before it."""
    for conversation in names(step):
        for number in range(QUEUED):
            message_id = f"{conversation}-m{number}"
            await client.send({"type": "resume", "id": message_id, "after": 0})
            assert (await client.ended(message_id)).end is not None
        found = await thread(client, conversation)
        asked = [entry["content"] for entry in found if entry["role"] == "user"]
        assert asked == [content(conversation, number) for number in range(QUEUED)]
        assert [entry["role"] for entry in found] == ["user", "assistant"] * QUEUED
        for index, entry in enumerate(found):
            if entry["role"] == "assistant":
                assert (entry["state"], entry["id"]) == ("done", f"{conversation}-m{index // 2}")
                assert entry["content"] == expected_text(found[:index], MODEL)
                assert r.log.calls(found[:index]), "the upstream was never asked this"


async def kill_the_owner_of_what_streams(r: Rig, client: Wire, step: str) -> None:
    await r.nodes[0].kill()


async def kill_the_owner_of_what_waits(r: Rig, client: Wire, step: str) -> None:
    await r.nodes[1].kill()


async def kill_as_an_answer_ends(r: Rig, client: Wire, step: str) -> None:
    """The end is journaled; the conversation may not have heard of it yet."""
    message_id = f"{names(step)[0]}-m0"
    await client.send({"type": "resume", "id": message_id, "after": 0})
    await client.ended(message_id)
    await r.nodes[0].kill()


async def kill_two_of_three(r: Rig, client: Wire, step: str) -> None:
    await asyncio.gather(r.nodes[0].kill(), r.nodes[1].kill())


KILLS: tuple[Kill, ...] = (
    kill_the_owner_of_what_streams,
    kill_the_owner_of_what_waits,
    kill_as_an_answer_ends,
    kill_two_of_three,
)


async def round_of(r: Rig, kill: Kill) -> None:
    step = kill.__name__.replace("_", "-")[:24]
    async with wire(r.nodes[0].url) as first, wire(r.nodes[1].url) as second, wire(r.nodes[2].url) as third:
        await fill_queues(r, step, [first, second, third])
        await kill(r, third, step)
        async with wire(r.nodes[2].url) as reader:
            await check(r, step, reader)
    for node in r.nodes[:2]:
        if node.process is None or node.process.returncode is not None:
            await node.start()


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_cluster_keeps_conversations_and_their_queues_through_kills() -> None:
    with cluster() as group:
        async with rig(group.url, 3, group.urls(), messages={"takeover_seconds": 1.0}) as r:
            for kill in KILLS:
                await round_of(r, kill)
            async with wire(r.nodes[1].url) as client:
                listed = await ask(client, "list", limit=200)
                assert len(listed["conversations"]) == SPREAD * len(KILLS)
                one = listed["conversations"][0]["conversation"]
                assert (await ask(client, "rename", conversation=one, title="Tides"))["op"] == "rename"
                assert (await ask(client, "get", conversation=one))["title"] == "Tides"
                assert (await ask(client, "delete", conversation=one))["op"] == "delete"
                assert len((await ask(client, "list", limit=200))["conversations"]) == SPREAD * len(KILLS) - 1
