"""A real node, from the send to the row: who, what for, at what price, who pays; sums as the upstream counts them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from server.ledger.book import Book
from tests.chaos.rig import ask
from tests.nodes import RunningNode, running_node, settings_for
from tests.upstreams.script import reply_to
from tests.upstreams.scripted import ScriptedUpstream, serving
from tests.wire import Wire, wire

PRICES = {"price_per_million_input": 3, "price_per_million_output": 15, "price_per_million_cached_input": 0.3}


@asynccontextmanager
async def priced(redis_url: str, ledger_url: str) -> AsyncIterator[tuple[RunningNode, ScriptedUpstream]]:
    """A node with two targets, of which the second goes on where the first broke off."""
    async with serving() as upstream:
        target = {"driver": "openai", "base_url": f"{upstream.url}/v1", "prefill": True, **PRICES}
        more = {
            "ledger": {"url": ledger_url},
            "targets": {name: {**target, "model": name} for name in ("scripted", "second")},
            "routes": {"both": {"targets": ["scripted", "second"], "on_midstream_failure": "continue"}},
        }
        async with running_node(settings_for(redis_url, upstream.url, more)) as node:
            yield node, upstream


async def recorded(ledger_url: str, count: int) -> list[dict[str, Any]]:
    """The rows, once there are so many and no more follow."""
    book = Book.open(ledger_url)
    try:
        async with asyncio.timeout(20):
            while len(rows := book.rows()) < count:  # noqa: ASYNC110 - the database tells nobody
                await asyncio.sleep(0.1)
        assert len(rows) == count
        return rows
    finally:
        book.close()


async def test_a_row_says_who_asked_for_what_and_what_it_cost(valkey_url: str, sqlite_url: str) -> None:
    async with priced(valkey_url, sqlite_url) as (node, _), wire(node.url) as client:
        messages = ask("tokens=40 reasoning=5", "m1")
        await client.ask("m1", messages, metadata={"feature": "search", "team": 7})
        end = (await client.ended("m1")).end
        assert end is not None
        session = client.session
        (row,) = await recorded(sqlite_url, 1)
    usage = end["usage"]
    about = {
        "message_id": "m1", "tenant": "demo", "user_kind": "anonymous", "user_id": "demo", "tier": "default",
        "feature": "search", "tags": {"team": "7"}, "door": "ws", "session_id": session, "job_id": None,
        "conversation_id": None, "prompt": None, "route": "default", "target": "scripted", "provider": "127.0.0.1",
        "outcome": "done", "payer": "user", "pays_input": True, "source": "provider", "attempt": 1, "run": 1,
    }  # fmt: skip
    assert {name: row[name] for name in about} == about
    tokens = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")
    assert {name: row[name] for name in tokens} == {name: usage[name] for name in tokens}
    fresh = usage["input_tokens"] - usage["cached_tokens"]
    nano = fresh * 3000 + usage["cached_tokens"] * 300 + usage["output_tokens"] * 15000
    assert row["cost_nano_usd"] == row["charged_nano_usd"] == nano
    assert end["cost_usd"] == nano / 1e9
    assert row["price_version"].startswith("config+")
    assert row["started_ms"] <= row["started_ms"] + row["first_token_ms"] <= row["ended_ms"] + 1  # each is rounded


async def test_sums_are_the_upstream_s_own(valkey_url: str, ledger_url: str) -> None:
    """Whole answers, failures before and after the first token, stops at a point where nothing is on the way."""
    async with priced(valkey_url, ledger_url) as (node, upstream), wire(node.url) as client:
        expected = 0
        for number in range(12):
            messages = ask(f"tokens={20 + number} seed={number}", f"m{number}")
            await client.ask(f"m{number}", messages)
            expected += reply_to(messages, "scripted").output_tokens
            assert (await client.ended(f"m{number}")).end["type"] == "done"  # type: ignore[index]
        stopped = await _stop_in_the_middle(client, "stopped")
        upstream.fail("status=400", times=1)
        await client.ask("refused", "script tokens=5")
        assert (await client.ended("refused")).end["type"] == "failed"  # type: ignore[index]
        rows = await recorded(ledger_url, 14)
    done = [row for row in rows if row["outcome"] == "done"]
    assert sum(row["output_tokens"] for row in done) == expected
    by_id = {row["message_id"]: row for row in rows}
    assert by_id["stopped"]["output_tokens"] == stopped["usage"]["output_tokens"] > 0
    assert (by_id["stopped"]["outcome"], by_id["stopped"]["source"]) == ("cancelled", "counted")
    assert (by_id["refused"]["payer"], by_id["refused"]["output_tokens"]) == ("operator", 0)


async def _stop_in_the_middle(client: Wire, message_id: str) -> dict[str, Any]:
    await client.ask(message_id, ask("tokens=30 hang=mid", message_id))
    view = client.view(message_id)
    while len(view.text) < 40:
        await client.recv()
    await client.send({"type": "cancel", "id": message_id})
    end = (await client.ended(message_id)).end
    assert end is not None
    assert end["type"] == "cancelled"
    return end


async def test_what_a_retry_withdraws_the_operator_pays(valkey_url: str, sqlite_url: str) -> None:
    async with priced(valkey_url, sqlite_url) as (node, upstream), wire(node.url) as client:
        upstream.fail("cut=event", times=1)
        messages = await client.ask("m1", ask("tokens=40 seed=1", "m1"))
        failed = (await client.ended("m1")).end
        assert failed is not None
        assert (failed["type"], failed["partial"]) == ("failed", True)
        (before,) = await recorded(sqlite_url, 1)
        assert before["payer"] == "user"
        await client.ask("m1", messages, retry_of=failed["seq"], after=failed["seq"], metadata={"feature": "other"})
        done = await client.type("done", "m1")
        first, second = await recorded(sqlite_url, 2)
        async with asyncio.timeout(20):
            while first["payer"] == "user":
                await asyncio.sleep(0.1)
                first, second = await recorded(sqlite_url, 2)
    kept = {"payer": "operator", "pays_input": False, "charged_nano_usd": 0, "withdrawn_in": 2}
    assert first == {**before, **kept}
    assert (second["payer"], second["run"], second["session_id"]) == ("user", 2, first["session_id"])
    assert second["charged_nano_usd"] == round(done["cost_usd"] * 1e9)


async def test_a_continuation_is_charged_its_input_once(valkey_url: str, sqlite_url: str) -> None:
    async with priced(valkey_url, sqlite_url) as (node, upstream), wire(node.url) as client:
        upstream.fail("cut=event", "scripted", times=1)
        await client.ask("m1", ask("tokens=60 seed=1", "m1"), model="both")
        end = (await client.ended("m1")).end
        assert end is not None
        assert end["type"] == "done"
        first, second = sorted(await recorded(sqlite_url, 2), key=lambda row: row["attempt"])
    assert [(row["payer"], row["pays_input"], row["target"]) for row in (first, second)] == [
        ("user", True, "scripted"), ("user", False, "second"),
    ]  # fmt: skip
    assert first["output_tokens"] + second["output_tokens"] == end["usage"]["output_tokens"] == 60
    assert first["input_tokens"] == end["usage"]["input_tokens"]
    assert second["charged_nano_usd"] == second["output_tokens"] * 15000 < second["cost_nano_usd"]
    assert end["cost_usd"] == (first["charged_nano_usd"] + second["charged_nano_usd"]) / 1e9
