"""Two devices, three nodes, cuts, kills and races: both end with one conversation, as the upstream was asked."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.chaos.cluster import cluster
from tests.chaos.proxy import Proxy
from tests.e2e.conversation_devices import (
    CONVERSATION,
    Device,
    LibraryDevice,
    RawDevice,
    Told,
    act,
    disturb,
)
from tests.processes import ServeProcess, serve_config, serving_processes
from tests.upstreams.script import expected_text, message_hash
from tests.upstreams.scripted import ScriptedUpstream, serving
from tests.wire import wire

Frame = dict[str, Any]
MODEL = "scripted"
TURNS = 10
TAKEOVER = {"takeover_seconds": 1.0}


def say(name: str) -> str:
    return f"script tokens=30 rate=60 unicode=1\n{name}"


@asynccontextmanager
async def proxied(nodes: Sequence[ServeProcess], chance: random.Random) -> AsyncIterator[Proxy]:
    """Where a device connects: each time to another node, as behind a load balancer."""
    proxy = Proxy(lambda: chance.sample([node.port for node in nodes], len(nodes)))
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()


async def play(redis_url: str, seed: int) -> None:
    """Everything at once, and what must hold afterwards."""
    chance = random.Random(seed)
    async with serving() as upstream:
        config = serve_config(redis_url, upstream.url, messages=TAKEOVER)
        async with (
            serving_processes(config, 3) as nodes,
            proxied(nodes, chance) as one,
            proxied(nodes, chance) as two,
            asyncio.TaskGroup() as group,
        ):
            phone = LibraryDevice("phone", two)
            devices: list[Device] = [RawDevice("laptop", one), phone]
            running = [group.create_task(device.run()) for device in devices]
            await phone.ready.wait()
            async with asyncio.TaskGroup() as deeds:
                for device in devices:
                    plans = random.Random(f"{seed} {device.name}")
                    deeds.create_task(act(device, TURNS, plans, say))
                deeds.create_task(disturb(nodes[:2], (one, two), chance))
            await settled(devices, running)
            found = [await held_by(node.url, devices[0]) for node in nodes]
            for task in running:
                task.cancel()
    assert devices[0].whole() == devices[1].whole()
    assert (devices[0].tip, devices[0].parents) == (devices[1].tip, devices[1].parents)
    assert found == [devices[0].whole()] * 3
    check_against_the_upstream(devices, upstream)


async def settled(devices: Sequence[Device], running: Sequence[asyncio.Task[None]]) -> None:
    """Until everything asked is over, and both have been told so."""
    async with asyncio.timeout(90):
        while any(device.open for device in devices) or any(device.queue for device in devices):
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in running)
        while len({device.cursor for device in devices}) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        for device in devices:
            await device.complete()


async def held_by(url: str, device: Told) -> dict[str, Frame]:
    """The conversation as `history` tells it: all its branches, page by page."""
    found: dict[str, Frame] = {}
    async with wire(url) as client:
        above = set(device.parents.values())
        for end in (name for name in device.entries if name not in above):
            page: Frame = {"next": None}
            while "next" in page:
                where = {"branch": end, **({"before": page["next"]} if page["next"] else {})}
                await client.send({"type": "history", "conversation": CONVERSATION, "limit": 7, **where})
                page = await client.type("history")
                for entry in page["messages"]:
                    found[entry["id"]] = {k: entry[k] for k in ("id", "parent", "role", "state", "content")}
        await client.send({"type": "history", "conversation": CONVERSATION, "limit": 200})
        page = await client.type("history")
        assert [entry["id"] for entry in page["messages"]] == device.path(device.tip)
        assert (page["tip"], page["current"], page["queue"], page["seq"]) == (device.tip, None, [], device.cursor)
    return found


def check_against_the_upstream(devices: Sequence[Device], upstream: ScriptedUpstream) -> None:
    """Each answer is what the upstream says to its branch, and the upstream was asked nothing else."""
    one = devices[0]
    asked = {record["hash"] for record in upstream.records if record["event"] == "start"}
    whole = one.whole()

    def sent(answer: str) -> list[Frame]:
        above = [whole[name] for name in one.path(answer)[:-1]]
        return [entry for entry in above if entry["content"]]

    answers = [name for name, entry in whole.items() if entry["role"] == "assistant"]
    for name in answers:
        entry = whole[name]
        text = expected_text(sent(name), MODEL)
        if entry["state"] == "done":
            assert entry["content"] == text
            assert message_hash(sent(name)) in asked
        else:
            assert entry["state"] == "interrupted", entry
            assert text.startswith(entry["content"])
    ever = [name for name in one.parents if name in {n for device in devices for n in device.asked}]
    assert asked <= {message_hash(sent(name)) for name in ever}
    refused = {name for device in devices for name in device.refused}
    assert set(ever) == {name for device in devices for name in device.asked} - refused
    inputs = {say(name) for device in devices for name in device.asked}
    assert {entry["content"] for entry in whole.values() if entry["role"] == "user"} <= inputs
    kinds = {entry["state"] for entry in whole.values()}
    print(
        f"{len(whole)} entries, {len(ever)} answers, {len(ever) - len(answers)} rolled back, {len(refused)} refused",
        kinds,
    )


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [4, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (5, 6, 7))])
async def test_cut_killed_and_raced_both_devices_end_with_what_the_upstream_was_asked(
    valkey_url: str, seed: int
) -> None:
    await play(valkey_url, seed)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [14, 15])
async def test_on_three_primaries_too(seed: int) -> None:
    with cluster() as group:
        await play(group.url, seed)
