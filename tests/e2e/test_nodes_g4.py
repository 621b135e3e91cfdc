"""G4 takeover: a survivor goes on within 5 s, with default settings; a dead node that wakes cannot append."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.chaos.rig import Rig, ask, read_until, rig
from tests.upstreams.script import expected_text, reply_to
from tests.wire import Wire, eventually, wire

TAKEOVER_SECONDS = 20.0  # 5 s on a machine at rest: `make bench ARGS=takeover`


@asynccontextmanager
async def streaming(r: Rig, message_id: str, messages: Sequence[Mapping[str, Any]]) -> AsyncIterator[tuple[Wire, Wire]]:
    """Who asked on the first node and who follows on the second, as 150 characters have come."""
    owner, other = r.nodes
    async with wire(owner.url) as first, wire(other.url) as socket:
        await first.ask(message_id, messages)
        await read_until(first, message_id, 100)
        await socket.send({"type": "resume", "id": message_id, "after": 0})
        await read_until(socket, message_id, 150)
        yield first, socket


async def test_g4_kill_9_takeover_within_five_seconds(valkey_url: str) -> None:
    async with rig(valkey_url, 2) as r:
        doomed, _ = r.nodes
        messages = ask("tokens=300 rate=60 unicode=1", "kill")
        async with streaming(r, "kill", messages) as (_, socket):
            killed = time.monotonic()
            await doomed.kill()
            await socket.until(lambda frame: frame["type"] == "attempt" and frame["attempt"] == 2)
            await socket.type("delta", "kill")
            seconds = time.monotonic() - killed
            await r.hurry()
            view = await socket.ended("kill")
        assert seconds <= TAKEOVER_SECONDS
        assert view.text == expected_text(messages, "scripted")
        assert [(a["mode"], a.get("reason", {}).get("code")) for a in view.attempts] == [
            ("fresh", None),
            ("restart", "owner_lost"),
        ]
        view.check_hash()
        stored = await r.check_once("kill", messages, calls=2)
        assert [(record["outcome"], record["payer"]) for record in stored.records] == [
            ("owner_lost", "operator"),
            ("done", "user"),
        ]


async def test_g4_a_survivor_continues_the_text_where_the_route_allows_it(valkey_url: str) -> None:
    routes = {"default": {"targets": ["scripted"], "on_midstream_failure": "continue"}}
    async with rig(valkey_url, 2, target={"prefill": True}, routes=routes) as r:
        doomed, _ = r.nodes
        messages = ask("tokens=300 rate=60 unicode=1", "goes-on")
        async with streaming(r, "goes-on", messages) as (_, socket):
            await doomed.kill()
            attempt = await socket.until(lambda frame: frame["type"] == "attempt" and frame["attempt"] == 2)
            standing = socket.view("goes-on").text
            await r.hurry()
            view = await socket.ended("goes-on")
        assert (attempt["mode"], attempt["reason"]["code"]) == ("continue", "owner_lost")
        assert len(standing) >= 150, "what stood was withdrawn"
        assert view.text == expected_text(messages, "scripted")
        assert (len(view.attempts), view.snapshots) == (2, 0)
        view.check_hash()
        # the second call asks for the rest only: its last message is what stood when it was made
        continued = [*messages, {"role": "assistant", "content": standing}]
        assert (len(r.log.calls(messages)), len(r.log.calls(continued)), r.log.count()) == (1, 1, 2)
        stored = await r.settled("goes-on")
        assert [(record["outcome"], record["payer"]) for record in stored.records] == [
            ("owner_lost", "operator"),
            ("done", "user"),
        ]
        assert stored.payers[0]["output_tokens"] == reply_to(continued, "scripted").output_tokens


async def test_g4_a_stopped_node_that_wakes_writes_nothing_and_disturbs_nobody(valkey_url: str) -> None:
    async with rig(valkey_url, 2) as r:
        sleeper, _ = r.nodes
        messages = ask("tokens=500 rate=100", "sleep")
        async with streaming(r, "sleep", messages) as (first, socket):
            sleeper.signal(signal.SIGSTOP)
            await socket.until(lambda frame: frame["type"] == "attempt" and frame["attempt"] == 2)
            restarted_at = socket.view("sleep").cursor
            await read_until(socket, "sleep", 200)
            sleeper.signal(signal.SIGCONT)
            async with asyncio.TaskGroup() as group:
                woken = group.create_task(eventually(lambda: "message_lost" in sleeper.log.read_text(), 10.0))
                reading = group.create_task(socket.ended("sleep"))
            assert woken.done()
            view = reading.result()
            late = await first.ended("sleep")  # its own follower, on the node that had slept
        assert view.text == late.text == expected_text(messages, "scripted")
        assert len(view.attempts) == 2
        view.check_hash()
        key = next(key for key in await r.redis("KEYS", "tw:{*}:j"))
        entries = [(int(seq.split(b"-")[0]), fields[b"f"]) for seq, fields in await r.redis("XRANGE", key, "-", "+")]
        fences = [fence for seq, fence in entries if seq >= restarted_at]
        assert set(fences) == {fences[0]}, "the woken node wrote"
        assert all(fence != fences[0] for seq, fence in entries if seq < restarted_at)
        await r.check_once("sleep", messages, calls=2)


async def test_g4_cancel_asked_for_before_the_death_ends_cancelled_without_a_new_attempt(valkey_url: str) -> None:
    async with rig(valkey_url, 2) as r:
        doomed, _ = r.nodes
        messages = ask("tokens=2000 rate=50", "stop")
        async with streaming(r, "stop", messages) as (_, socket):
            doomed.signal(signal.SIGSTOP)  # so that it does not hear of the stop
            await socket.send({"type": "cancel", "id": "stop"})
            await socket.quiet()
            await doomed.kill()
            view = await socket.ended("stop")
        assert view.end is not None
        assert view.end["type"] == "cancelled"
        assert len(view.attempts) == 1
        assert expected_text(messages, "scripted").startswith(view.text)
        view.check_hash()
        stored = await r.check_once("stop", messages)
        assert [record["outcome"] for record in stored.records] == ["owner_lost"]
