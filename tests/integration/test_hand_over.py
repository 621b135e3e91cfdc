"""A node that leaves gives away at once what waits in a conversation: it begins on another node, and only there."""

from __future__ import annotations

import pytest

from tests.integration.test_conversations import ask, place, say, whole_history
from tests.wire import eventually, wire


@pytest.mark.parametrize("on_the_same_node", [True, False])
async def test_what_waits_is_handed_over_when_the_drain_begins(valkey_url: str, on_the_same_node: bool) -> None:
    async with place(valkey_url, 2, server={"drain_seconds": 60.0}) as here:
        leaving, staying = here.nodes
        async with wire(leaving.url) as there, wire(staying.url) as client:
            first = there if on_the_same_node else client
            await say(first, "m1", "script tokens=20 hang=mid")
            await first.type("delta", "m1")
            for name in ("m2", "m3"):
                await say(there, name, "script tokens=5")
                assert (await there.type("accepted", name))["state"] == "queued"
            await eventually(lambda: leaving.node.ownership.others == staying.node.ownership.others == 1)
            leaving.stop.set()
            await eventually(lambda: {"m2", "m3"} <= {r.claim.id for r in staying.node.keeper.running.values()}, 10.0)
            assert (await ask(client, "get"))["queue"] == ["m2", "m3"]
            assert here.upstream.count("start") == 1, "neither has begun before its turn"
            await client.send({"type": "cancel", "id": "m1"})
            for name in ("m2", "m3"):
                await client.send({"type": "resume", "id": name, "after": 0})
                view = await client.ended(name)
                view.check_hash()
                assert view.end is not None
                assert view.end["type"] == "done"
                assert [attempt["mode"] for attempt in view.attempts] == ["fresh"]
            page = await whole_history(client)
            assert [m["id"] for m in page["messages"] if m["role"] == "assistant"] == ["m1", "m2", "m3"]
            assert here.upstream.count("start") == 3
