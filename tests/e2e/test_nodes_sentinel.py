"""The main job over a real Sentinel group, while its primary is killed and its replica promoted."""

from __future__ import annotations

import asyncio

from tests.chaos.cluster import sentinels
from tests.chaos.rig import ask, read_until, rig
from tests.upstreams.script import expected_text
from tests.wire import wire

MESSAGES = 6


async def test_sentinel_messages_go_on_when_the_replica_is_promoted() -> None:
    with sentinels() as group:
        async with rig(group.url, 2, group.urls()) as r, wire(r.nodes[0].url) as a, wire(r.nodes[1].url) as b:
            asked = {f"s{number}": ask("tokens=400 rate=50", f"s{number}") for number in range(MESSAGES)}
            for number, (message_id, messages) in enumerate(asked.items()):
                socket = (a, b)[number % 2]
                await socket.ask(message_id, messages)
                await read_until(socket, message_id, 20)
            await asyncio.to_thread(group.fail_over)
            r.primaries[:] = group.urls()
            for number, (message_id, messages) in enumerate(asked.items()):
                socket = (a, b)[number % 2]
                view = socket.view(message_id)
                while view.end is None:
                    await socket.recv()
                assert view.text == expected_text(messages, "scripted")
                view.check_hash()
                stored = await r.settled(message_id)
                assert len(stored.payers) == 1
            for node in r.nodes:
                assert "node_dead" not in node.log.read_text()
            # resume, cancel and takeover on the promoted one
            messages = ask("tokens=150 rate=50", "taken")
            await a.ask("taken", messages)
            await read_until(a, "taken", 10)
            await b.send({"type": "resume", "id": "taken", "after": 0})
            await read_until(b, "taken", 10)
            await r.nodes[0].kill()
            await r.called(messages, 2)
            await r.hurry()
            view = await b.ended("taken")
            assert view.text == expected_text(messages, "scripted")
            await r.check_once("taken", messages, calls=2)
            await b.ask("stop", ask("tokens=1000 rate=50", "stop"))
            await read_until(b, "stop", 10)
            await b.send({"type": "cancel", "id": "stop"})
            await b.type("cancelled", "stop")
