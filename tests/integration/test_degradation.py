"""What a client sees of breakers, continuation and hedging, over a node, a store and upstreams that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from server.routing.hedging import LEAST_SAMPLES
from tests.nodes import RunningNode, running_node, settings_for
from tests.upstreams.script import expected_text
from tests.upstreams.scripted import ScriptedUpstream, serving
from tests.wire import View, Wire, eventually, wire


@dataclass(slots=True)
class Place:
    """A node with two targets on one upstream."""

    node: RunningNode
    upstream: ScriptedUpstream

    def state(self, target: str) -> str:
        return next(state.state for state in self.node.node.target_states() if state.name == target)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.node.node.metrics.registry.get_sample_value(f"tidewire_{name}", labels)


@asynccontextmanager
async def place(
    redis_url: str,
    route: dict[str, Any] | None = None,
    second: dict[str, Any] | None = None,
    targets: tuple[str, ...] = ("first", "second"),
    **breaker: Any,
) -> AsyncIterator[Place]:
    async with serving() as upstream:
        base = {"driver": "openai", "base_url": f"{upstream.url}/v1", "first_token_seconds": 1.0, "idle_seconds": 1.0}
        overrides: dict[str, Any] = {
            "targets": {"first": {**base, "model": "first"}, "second": {**base, "model": "second", **(second or {})}},
            "routes": {"default": {"targets": list(targets), **(route or {})}},
            "breaker": breaker,
        }
        async with running_node(settings_for(redis_url, upstream.url, overrides)) as node:
            yield Place(node, upstream)


async def outcome(client: Wire, message_id: str) -> dict[str, Any]:
    """The frame that ends a message, or refuses it."""
    async with asyncio.timeout(10):
        while True:
            frame = await client.recv()
            if frame.get("id") == message_id and frame["type"] in ("done", "failed", "error", "cancelled"):
                return dict(frame)


def whole(view: View, text: str) -> None:
    assert view.end is not None
    assert view.end["type"] == "done", view.end
    assert view.text == text
    view.check_hash()


async def test_a_target_that_keeps_failing_is_left_alone_and_nobody_sees_an_error(valkey_url: str) -> None:
    async with place(valkey_url, minimum_calls=5, open_seconds=60.0) as here, wire(here.node.url) as client:
        here.upstream.fail("status=500", "first")
        for number in range(12):
            messages = await client.ask(f"m{number}", f"script tokens=5 seed={number}")
            view = await client.ended(f"m{number}")
            whole(view, expected_text(messages, "second"))
        assert here.state("first") == "open"
        assert sum(r["model"] == "first" for r in here.upstream.records if r["event"] == "start") == 5
        assert here.metric("target_state", target="first", state="open") == 1
        assert here.metric("target_state", target="first", state="closed") == 0
        assert here.metric("target_held_total", target="first", state="open") == 7


async def test_when_everything_is_held_the_refusal_says_when_to_come_back(valkey_url: str) -> None:
    async with place(valkey_url) as here, wire(here.node.url) as client:
        here.upstream.fail("status=429 retry_after=30", "first")
        here.upstream.fail("status=401", "second")
        await client.ask("m1", "script tokens=5")
        end = await outcome(client, "m1")
        assert end["type"] == "failed"
        started = here.upstream.count("start")
        await client.ask("m2", "script tokens=5")
        error = (await outcome(client, "m2"))["error"]
        assert (error["code"], error["status"], error["class"], error["retryable"]) == (
            "all_targets_failed", 503, "temporary", True,
        )  # fmt: skip
        assert 15_000 < error["retry_after_ms"] <= 30_000, "the second target's pause ends first"
        assert {held["target"]: held["state"] for held in error["details"]["held"]} == {
            "first": "throttled",
            "second": "open",
        }
        assert here.upstream.count("start") == started, "the breaker was bypassed"
        await eventually(lambda: not here.node.node.keeper.running)
        await client.send({"type": "resume", "id": "m2"})
        assert (await client.error("m2"))["code"] == "message_unknown", "the id is free again"


async def test_a_failed_message_that_is_retried_while_everything_is_held_fails_again(valkey_url: str) -> None:
    async with place(valkey_url, targets=("first",)) as here, wire(here.node.url) as client:
        here.upstream.fail("status=401", "first")
        messages = await client.ask("m1", "script tokens=5")
        failed = await outcome(client, "m1")
        await client.ask("m1", messages, retry_of=failed["seq"], after=failed["seq"])
        again = await outcome(client, "m1")
        assert again["type"] == "failed"
        assert again["seq"] > failed["seq"]
        assert again["error"]["code"] == "all_targets_failed"
        assert again["error"]["retry_after_ms"] > 10_000
        assert here.upstream.count("start") == 1


async def test_the_next_target_goes_on_where_the_first_broke_off(valkey_url: str) -> None:
    route = {"on_midstream_failure": "continue"}
    async with place(valkey_url, route, {"prefill": True}) as here, wire(here.node.url) as client:
        here.upstream.fail("cut=event", "first")
        messages = await client.ask("m1", "script tokens=60 seed=same unicode")
        view = await client.ended("m1")
        whole(view, expected_text(messages, "first"))
        assert [(a["target"], a["mode"]) for a in view.attempts] == [("first", "fresh"), ("second", "continue")]
        assert view.end is not None
        assert view.end["usage"]["output_tokens"] == 60


@pytest.mark.parametrize(
    "request_",
    [{"response_format": {"type": "json_object"}}, {"tools": [{"type": "function", "function": {"name": "f"}}]}],
)
async def test_structured_output_and_tools_always_restart(valkey_url: str, request_: dict[str, Any]) -> None:
    route = {"on_midstream_failure": "continue"}
    async with place(valkey_url, route, {"prefill": True}) as here, wire(here.node.url) as client:
        here.upstream.fail("cut=event", "first")
        messages = await client.ask("m1", 'script say={"text":"' + "x" * 200 + '"}', **request_)
        view = await client.ended("m1")
        whole(view, expected_text(messages, "second"))
        assert [a["mode"] for a in view.attempts] == ["fresh", "restart"]


async def test_a_target_that_refuses_the_prefill_starts_over(valkey_url: str) -> None:
    route = {"on_midstream_failure": "continue"}
    async with place(valkey_url, route, {"prefill": True}) as here, wire(here.node.url) as client:
        here.upstream.fail("cut=event", "first")
        here.upstream.fail("status=400", "second", times=1)
        messages = await client.ask("m1", "script tokens=60 seed=same")
        view = await client.ended("m1")
        whole(view, expected_text(messages, "second"))
        assert [(a["attempt"], a["target"], a["mode"]) for a in view.attempts] == [
            (1, "first", "fresh"),
            (3, "second", "restart"),
        ]


async def test_an_input_too_long_for_one_target_goes_to_a_larger_one(valkey_url: str) -> None:
    async with place(valkey_url) as here, wire(here.node.url) as client:
        here.upstream.fail("status=400 code=context_length_exceeded", "first")
        messages = await client.ask("m1", "script tokens=5")
        whole(await client.ended("m1"), expected_text(messages, "second"))
        here.upstream.fail("status=400 code=context_length_exceeded", "second")
        await client.ask("m2", "script tokens=5")
        error = (await outcome(client, "m2"))["error"]
        assert (error["code"], error["class"], error["status"]) == ("context_length_exceeded", "permanent", 400)


async def test_a_silent_target_is_hedged_and_the_loser_is_let_go(valkey_url: str) -> None:
    route = {"hedge_after_ms": 50, "hedge_budget": 1.0}
    async with place(valkey_url, route) as here, wire(here.node.url) as client:
        here.upstream.fail("hang=first", "first", times=1)
        messages = await client.ask("m1", "script tokens=30")
        view = await client.ended("m1")
        whole(view, expected_text(messages, "second"))
        (attempt,) = view.attempts
        assert (attempt["attempt"], attempt["target"], attempt["mode"]) == (2, "second", "fresh")
        assert attempt["reason"]["code"] == "hedged"
        await eventually(lambda: here.upstream.count("end") == 2)
        ends = {r["model"]: r for r in here.upstream.records if r["event"] == "end"}
        assert ends["first"]["client_gone"]
        assert here.metric("hedges_total", route="default", winner="second") == 1
        assert here.metric("attempts_total", target="first", outcome="hedged") == 1
        assert here.metric("messages_running") == 0


async def test_a_hedged_message_can_be_stopped_while_both_are_silent(valkey_url: str) -> None:
    async with place(valkey_url, {"hedge_after_ms": 20, "hedge_budget": 1.0}) as here, wire(here.node.url) as client:
        await client.ask("m1", "script hang=first")
        await here.upstream.wait_for("start", 2)
        await client.send({"type": "cancel", "id": "m1"})
        end = await outcome(client, "m1")
        assert end["type"] == "cancelled"
        for record in await here.upstream.wait_for("end", 2):
            assert record["client_gone"]
        assert here.metric("messages_running") == 0


async def test_hedges_keep_to_their_budget(valkey_url: str) -> None:
    async with place(valkey_url, {"hedge_after_ms": 10, "hedge_budget": 0.25}) as here, wire(here.node.url) as client:
        here.upstream.fail("first=0.1", "first")
        for number in range(12):
            await client.ask(f"m{number}", f"script tokens=3 seed={number}")
            await client.ended(f"m{number}")
        asked = [r["model"] for r in here.upstream.records if r["event"] == "start"]
        assert (asked.count("first"), asked.count("second")) == (12, 3)


async def test_a_hedge_waits_as_long_as_most_recent_answers_took(valkey_url: str) -> None:
    async with place(valkey_url, {"hedge_at_p95": True, "hedge_budget": 1.0}) as here, wire(here.node.url) as client:
        here.upstream.fail("first=0.1", "first")
        for number in range(LEAST_SAMPLES):
            await client.ask(f"m{number}", f"script tokens=3 seed={number}")
            await client.ended(f"m{number}")
        assert not [r for r in here.upstream.records if r["model"] == "second"], "nothing was known to wait for"
        state = next(state for state in here.node.node.target_states() if state.name == "first")
        assert state.first_token_p95_ms is not None
        here.upstream.fail("hang=first", "first", times=1)
        await client.ask("silent", "script tokens=3")
        view = await client.ended("silent")
        assert view.attempts[0]["reason"]["code"] == "hedged"
        first, second = [r["t"] for r in here.upstream.records if r["event"] == "start"][-2:]
        assert second - first >= state.first_token_p95_ms / 1000 - 0.03 >= 0.07


async def test_a_recovered_target_is_used_again(valkey_url: str) -> None:
    settings = {"minimum_calls": 3, "open_seconds": 0.2, "ramp_seconds": 0.3}
    async with place(valkey_url, **settings) as here, wire(here.node.url) as client:
        here.upstream.fail("status=503", "first")
        for number in range(4):
            await client.ask(f"m{number}", f"script tokens=3 seed={number}")
            await client.ended(f"m{number}")
        assert here.state("first") == "open"
        here.upstream.heal()
        await eventually(lambda: here.node.node.breakers.wait_seconds("first") == 0.0)
        await client.ask("probe", "script tokens=3")
        view = await client.ended("probe")
        assert view.end is not None
        assert view.end["target"] == "first"
        assert here.metric("probes_total", target="first", outcome="well") == 1
        await eventually(lambda: here.state("first") == "closed")
