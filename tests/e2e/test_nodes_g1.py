"""G1 once: the same id with the same request gives one generation and one bill, on however many nodes it is sent."""

from __future__ import annotations

import asyncio

from tests.chaos.rig import ask, rig, told
from tests.upstreams.script import expected_text
from tests.wire import View, wire

SENDS = 50


async def _one(url: str, message_id: str, messages: list[dict[str, str]]) -> View:
    async with wire(url) as socket:
        await socket.ask(message_id, messages)
        return await socket.ended(message_id)


async def _all(urls: list[str], message_id: str, messages: list[dict[str, str]]) -> list[View]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_one(urls[n % len(urls)], message_id, messages)) for n in range(SENDS)]
    return [task.result() for task in tasks]


async def test_g1_fifty_sends_of_one_id_over_four_nodes_are_one_call_and_one_bill(valkey_url: str) -> None:
    async with rig(valkey_url, 4) as r:
        urls = [node.url for node in r.nodes]
        for round_, script in enumerate(("tokens=200 rate=100", "tokens=1", "tokens=300 unicode=1")):
            message_id = f"once-{round_}"
            messages = ask(script, message_id)
            views = await _all(urls, message_id, messages)
            stored = await r.check_once(message_id, messages)
            assert len(stored.payers) == 1
            for view in views:
                assert view.text == expected_text(messages, "scripted")
                assert len(view.attempts) == 1
                assert told(view.end) == told(views[0].end)
                view.check_hash()
            # after the end: a repeat replays and calls nobody
            late = await _one(urls[round_], message_id, messages)
            assert (late.text, told(late.end)) == (views[0].text, told(views[0].end))
        assert r.log.count() == 3


async def test_g1_another_request_under_a_used_id_is_refused(valkey_url: str) -> None:
    async with rig(valkey_url, 2) as r:
        messages = ask("tokens=30", "used")
        await _one(r.nodes[0].url, "used", messages)
        async with wire(r.nodes[1].url) as socket:
            await socket.ask("used", ask("tokens=31", "used"))
            error = await socket.error("used")
            assert (error["code"], error["status"], error["retryable"]) == ("idempotency_mismatch", 422, False)
        await r.check_once("used", messages)
        assert r.log.count() == 1
