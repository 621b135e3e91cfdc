"""The main job, resume, takeover and cancel over a real cluster of three primaries, and over losing one of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.error
import urllib.request

import pytest

from server.store.keys import GONE, NODES, MessageKeys, active_set, message_tag, quota_clock, quota_tag, user_tag
from server.store.topology import slot_of
from tests.chaos.cluster import SLOTS, cluster
from tests.chaos.rig import Rig, ask, read_until, rig, told
from tests.upstreams.script import expected_text
from tests.wire import View, eventually_true, wire

SPREAD = 12
"""So many ids lie on all three primaries, as good as surely."""
TENANT, KIND, USER = "demo", "anonymous", "demo"
"""Who asks where nobody says who they are."""


def _primary_of(key: bytes) -> int:
    """Number of the primary that holds a key, as `cluster` shares the slots out."""
    return next(n for n in range(3) if slot_of(key) < (n + 1) * SLOTS // 3)


def _readiness(r: Rig, node: int) -> dict[str, str]:
    with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(f"{r.nodes[node].http}/readyz") as answer:
        found: dict[str, str] = json.load(answer)
        return found
    return {}


async def _until_ready(r: Rig, degraded: bool = False) -> None:
    """Until every node says that it is ready, or so with the reservation that some primary is silent."""
    wanted = {"status": "ready"} | ({"reason": "store_degraded"} if degraded else {})

    async def are_ready() -> bool:
        return all([await asyncio.to_thread(_readiness, r, n) == wanted for n in range(len(r.nodes))])

    await eventually_true(are_ready, 20.0)


async def _follow(url: str, message_id: str) -> View:
    async with wire(url) as socket:
        await socket.send({"type": "resume", "id": message_id, "after": 0})
        return await socket.ended(message_id)


async def _main_job(r: Rig) -> None:
    """Ask on one node, follow on the other, repeat: every message once, wherever its slot lies."""
    asked = {f"m{number}": ask("tokens=60 rate=60", f"m{number}") for number in range(SPREAD)}
    async with wire(r.nodes[0].url) as socket, asyncio.TaskGroup() as group:
        for message_id, messages in asked.items():
            await socket.ask(message_id, messages)
        for message_id in asked:
            await read_until(socket, message_id, 5)
        others = [group.create_task(_follow(r.nodes[1].url, message_id)) for message_id in asked]
        for message_id in asked:
            await socket.ended(message_id)
    for (message_id, messages), other in zip(asked.items(), others, strict=True):
        view = other.result()
        assert view.text == socket.view(message_id).text == expected_text(messages, "scripted")
        assert told(view.end) == told(socket.view(message_id).end)
        await r.check_once(message_id, messages)


async def _takeover(r: Rig) -> None:
    doomed, survivor = r.nodes
    asked = {f"t{number}": ask("tokens=120 rate=60", f"t{number}") for number in range(SPREAD)}
    async with wire(doomed.url) as first, wire(survivor.url) as socket:
        for message_id, messages in asked.items():
            await first.ask(message_id, messages)
        for message_id in asked:
            await read_until(first, message_id, 5)
            await socket.send({"type": "resume", "id": message_id, "after": 0})
        for message_id in asked:
            await read_until(socket, message_id, 5)
        killed = asyncio.get_running_loop().time()
        await doomed.kill()
        await socket.until(lambda frame: frame["type"] == "attempt" and frame["attempt"] == 2)
        print(f"first restart {asyncio.get_running_loop().time() - killed:.1f} s after the kill")
        for message_id, messages in asked.items():
            view = await socket.ended(message_id)
            assert view.text == expected_text(messages, "scripted")
            await r.check_once(message_id, messages, calls=2)


async def _cancel(r: Rig) -> None:
    messages = ask("tokens=1000 rate=50", "stop")
    async with wire(r.nodes[0].url) as first, wire(r.nodes[1].url) as other:
        await first.ask("stop", messages)
        await read_until(first, "stop", 20)
        await other.send({"type": "cancel", "id": "stop"})
        receipt = await other.type("cancelled", "stop")
        assert told((await first.ended("stop")).end) == told(receipt)
    assert (await r.until_end_of(r.log.calls(messages)[0]))["client_gone"]
    await r.check_once("stop", messages)


async def _quota_frames(r: Rig) -> None:
    """What one node admits and settles, the user's sessions on the other are told, too."""
    async with wire(r.nodes[0].url) as asking, wire(r.nodes[1].url) as other:
        await asking.ask("told", ask("tokens=1000 rate=50", "told"))
        for socket in (asking, other):
            before = (await socket.quota(lambda now: True))["concurrent_messages"]["remaining"]
            await read_until(asking, "told", 5)
        await other.send({"type": "cancel", "id": "told"})
        for socket in (asking, other):
            await socket.quota(lambda now: now["concurrent_messages"]["remaining"] == before + 1)


async def test_cluster_main_job_resume_cancel_and_takeover() -> None:
    with cluster() as group:
        async with rig(group.url, 2, group.urls()) as r:
            await _main_job(r)
            await _quota_frames(r)
            await _cancel(r)
            await _takeover(r)


async def test_cluster_a_silent_primary_keeps_no_message_of_another_from_running() -> None:
    counted = _primary_of(quota_clock(quota_tag(TENANT)))  # without it the limits are unknown, and all are refused
    others = [_primary_of(key) for key in (NODES, GONE, active_set(user_tag(TENANT, KIND, USER)))] + [0, 1]
    frozen = next(number for number in others if number != counted)
    records = {i: MessageKeys.of(message_tag(TENANT, KIND, USER, i)).record for i in map(str, range(SPREAD))}
    elsewhere = [i for i, record in records.items() if _primary_of(record) != frozen]
    silent = records.keys() - set(elsewhere)
    assert elsewhere
    assert silent
    with cluster() as group:
        async with rig(group.url, 2, group.urls()) as r, wire(r.nodes[0].url) as socket:
            group.seeds[frozen].freeze()
            await _until_ready(r, degraded=True)
            await _ask_and_read(r, elsewhere)
            for message_id in silent:
                await socket.ask(message_id, ask("tokens=5", message_id))
                assert (await socket.error(message_id))["code"] == "store_unavailable"
            group.seeds[frozen].thaw()
            await _until_ready(r)


async def _ask_and_read(r: Rig, ids: list[str]) -> None:
    """Ask on one node, follow on the other."""
    async with wire(r.nodes[0].url) as socket:
        asked = {message_id: await socket.ask(message_id, ask("tokens=20", message_id)) for message_id in ids}
        for message_id, messages in asked.items():
            assert (await socket.ended(message_id)).text == expected_text(messages, "scripted")
            assert (await _follow(r.nodes[1].url, message_id)).text == expected_text(messages, "scripted")


async def test_cluster_one_primary_lost_stops_only_its_messages_and_they_go_on() -> None:
    with cluster(replicas=True) as group:
        async with rig(group.url, 2, group.urls()) as r, wire(r.nodes[0].url) as socket:
            asked = {f"f{number}": ask("tokens=400 rate=50", f"f{number}") for number in range(SPREAD)}
            for message_id, messages in asked.items():
                await socket.ask(message_id, messages)
            for message_id in asked:
                await read_until(socket, message_id, 20)

            async def fail() -> None:
                await asyncio.to_thread(group.fail_over, 1)
                await r.hurry()

            async with asyncio.TaskGroup() as both:
                both.create_task(fail())
                reading = [both.create_task(_follow(r.nodes[1].url, message_id)) for message_id in list(asked)[:2]]
                for message_id in asked:
                    view = socket.view(message_id)
                    while view.end is None:
                        await socket.recv()
            assert all(task.result().end is not None for task in reading)
            r.primaries[:] = group.urls()
            for message_id, messages in asked.items():
                view = socket.view(message_id)
                assert view.text == expected_text(messages, "scripted")
                view.check_hash()
                stored = await r.settled(message_id)
                assert len(stored.payers) == 1
            # the new primary takes new messages
            messages = ask("tokens=5", "after")
            await socket.ask("after", messages)
            assert (await socket.ended("after")).text == expected_text(messages, "scripted")


@pytest.mark.slow
async def test_cluster_takeover_after_a_failover() -> None:
    with cluster(replicas=True) as group:
        async with rig(group.url, 2, group.urls()) as r:
            await asyncio.to_thread(group.fail_over, 0)
            r.primaries[:] = group.urls()
            await _until_ready(r)
            await _takeover(r)
