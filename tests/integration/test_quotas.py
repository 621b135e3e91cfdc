"""Quotas in a running node: what is reserved, refused, settled, and what the user's sessions are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from fractions import Fraction
from typing import Any

import redis.asyncio

from tests.nodes import RunningNode, running_node, settings_for
from tests.quota_book import Level
from tests.upstreams.scripted import ScriptedUpstream, serving
from tests.wire import Wire, eventually_true, wire


@asynccontextmanager
async def place(url: str, **tier: Any) -> AsyncIterator[tuple[RunningNode, ScriptedUpstream]]:
    """A node whose users have these limits."""
    sections: dict[str, Mapping[str, Any]] = {"tiers": {"default": tier}}
    if "targets" in tier:
        sections["targets"] = tier.pop("targets")
    async with serving() as upstream, running_node(settings_for(url, upstream.url, sections)) as node:
        yield node, upstream


async def holds(url: str) -> list[dict[str, str]]:
    """Every hold in Redis."""
    async with redis.asyncio.Redis.from_url(url, decode_responses=True) as store:
        return [await store.hgetall(key) async for key in store.scan_iter("tw:{q*}:h:*")]  # type: ignore[misc]


async def test_limits_are_told_in_welcome_and_after_every_change(valkey_url: str) -> None:
    limits = {"tokens_per_minute": 6000, "concurrent_messages": 3, "max_output_tokens": 100}
    async with (
        place(valkey_url, **limits) as (node, _),
        wire(node.url, hello=False) as first,
        wire(node.url) as second,
    ):
        welcome = await first.hello()
        told = {limit["name"]: limit["remaining"] for limit in welcome["limits"]}
        assert told == {"tokens_per_minute": 6000, "requests_per_minute": 100_000, "concurrent_messages": 3}
        await first.ask("m1", "script tokens=10 hang=mid")
        for client in (first, second):
            now = await client.quota(lambda now: now["concurrent_messages"]["remaining"] == 2)
            assert now["tokens_per_minute"]["remaining"] <= 6000 - 100
            assert now["tokens_per_minute"]["reset_seconds"] > 0
        await first.type("delta")
        await second.send({"type": "cancel", "id": "m1"})
        for client in (first, second):
            now = await client.quota(lambda now: now["concurrent_messages"]["remaining"] == 3)
            assert now["tokens_per_minute"]["remaining"] > 6000 - 100


async def test_every_session_of_the_user_on_every_node_is_told(valkey_url: str) -> None:
    limits = {"tokens_per_minute": 6000, "concurrent_messages": 3, "max_output_tokens": 100}
    async with place(valkey_url, **limits) as (node, upstream):
        settings = settings_for(valkey_url, upstream.url, {"tiers": {"default": limits}})
        async with (
            running_node(settings) as second,
            running_node(settings) as third,
            wire(node.url) as asking,
            wire(second.url) as one,
            wire(second.url) as two,
            wire(third.url) as far,
        ):
            await asking.ask("m1", "script tokens=10 hang=mid")
            for client in (asking, one, two, far):
                now = await client.quota(lambda now: now["concurrent_messages"]["remaining"] == 2)
                assert now["tokens_per_minute"]["remaining"] <= 6000 - 100
            await far.send({"type": "cancel", "id": "m1"})
            for client in (asking, one, two, far):
                now = await client.quota(lambda now: now["concurrent_messages"]["remaining"] == 3)
                assert now["tokens_per_minute"]["remaining"] > 6000 - 100
            for client in (asking, one, two, far):
                await client.quiet()
                assert len(client.quotas) == 2, "an admission and a settlement, each told once"


async def test_nobody_listens_where_the_user_has_no_session(valkey_url: str) -> None:
    async with (
        place(valkey_url, tokens_per_minute=6000) as (node, _),
        redis.asyncio.Redis.from_url(valkey_url, decode_responses=True) as store,
    ):

        async def listened() -> list[str]:
            found: list[str] = await store.execute_command("PUBSUB SHARDCHANNELS", "tw:{q*}:n:*")
            return found

        async with wire(node.url), wire(node.url):
            assert len(await listened()) == 1

        async def nobody() -> bool:
            return not await listened()

        await eventually_true(nobody)


async def test_after_a_broken_subscription_the_figures_are_told_anew(valkey_url: str) -> None:
    async with place(valkey_url, tokens_per_minute=6000) as (node, _), wire(node.url) as client:
        async with redis.asyncio.Redis.from_url(valkey_url) as store:
            assert await store.execute_command("CLIENT KILL TYPE PUBSUB") > 0
        now = await client.quota(lambda now: True)
        assert now["tokens_per_minute"]["remaining"] == 6000


async def test_a_refusal_frees_the_id_and_the_told_wait_is_enough(valkey_url: str) -> None:
    async with (
        place(valkey_url, tokens_per_minute=6000, max_output_tokens=5900) as (node, upstream),
        wire(node.url) as client,
        wire(node.url) as other,
    ):
        await client.ask("big", "script tokens=2000 seed=x")
        await client.ended("big")
        await client.quota(lambda now: now["tokens_per_minute"]["remaining"] < 4100)
        await client.ask("m2", "script tokens=5", max_output_tokens=4100)
        error = await client.error("m2")
        assert (error["code"], error["class"], error["status"]) == ("quota_exceeded", "temporary", 429)
        assert error["details"]["limit"] == "tokens_per_minute"
        assert 0 < error["retry_after_ms"] < 3000
        assert upstream.count("start") == 1
        await asyncio.sleep(error["retry_after_ms"] / 1000)
        await other.ask("m2", "script tokens=5", max_output_tokens=4100)
        assert (await other.ended("m2")).end is not None


async def test_everybody_who_attached_hears_of_the_refusal(valkey_url: str) -> None:
    async with (
        place(valkey_url, concurrent_messages=1) as (node, upstream),
        wire(node.url) as client,
        wire(node.url) as other,
    ):
        await client.ask("m1", "script tokens=10 hang=mid")
        await client.type("delta")
        await asyncio.gather(client.ask("m2", "script tokens=5"), other.ask("m2", "script tokens=5"))
        for error in (await client.error("m2"), await other.error("m2")):
            assert (error["code"], error["details"]["limit"]) == ("quota_exceeded", "concurrent_messages")
        await client.send({"type": "cancel", "id": "m1"})
        await client.ended("m1")
        await client.quota(lambda now: now["concurrent_messages"]["remaining"] == 1)
        await other.ask("m2", "script tokens=5")
        await other.ended("m2")
        assert upstream.count("start") == 2


async def test_too_large_for_ever_is_said_without_a_retry_hint(valkey_url: str) -> None:
    async with place(valkey_url, tokens_per_minute=1000) as (node, upstream), wire(node.url) as client:
        await client.ask("m1", "script tokens=5", max_output_tokens=1500)
        error = await client.error("m1")
        assert (error["code"], error["retryable"]) == ("request_too_large_for_tier", False)
        assert "retry_after_ms" not in error
        await client.ask("m2", "script tokens=5")  # no wish: the default is cut to what fits
        await client.ended("m2")
        starts = [entry for entry in upstream.records if entry["event"] == "start"]
        assert 900 < starts[0]["max_tokens"] < 1000
        assert not [hold for hold in await holds(valkey_url) if "settled" not in hold]


async def test_the_cap_of_the_tier_goes_upstream(valkey_url: str) -> None:
    async with place(valkey_url, max_output_tokens=7) as (node, upstream), wire(node.url) as client:
        await client.ask("m1", "script tokens=50", max_output_tokens=5000)
        view = await client.ended("m1")
        assert view.end is not None
        assert view.end["usage"]["output_tokens"] == 7
        assert view.end["finish_reason"] == "length"
        assert next(iter(upstream.records))["max_tokens"] == 7


async def test_settled_with_what_was_used_and_released_where_nothing_was(valkey_url: str) -> None:
    async with place(valkey_url, tokens_per_minute=100_000) as (node, upstream), wire(node.url) as client:
        await client.ask("ok", "script tokens=20")
        done = (await client.ended("ok")).end
        upstream.fail("status=500", times=1)
        await client.ask("bad", "script tokens=20")
        assert (await client.ended("bad")).end["type"] == "failed"  # type: ignore[index]

        async def both_settled() -> bool:
            return sum("settled" in hold for hold in await holds(valkey_url)) == 2

        await eventually_true(both_settled)
        assert done is not None
        assert sorted(int(hold["settled"]) for hold in await holds(valkey_url)) == [0, done["usage"]["total_tokens"]]


async def test_a_failed_message_that_is_reopened_is_settled_by_itself(valkey_url: str) -> None:
    async with place(valkey_url, tokens_per_minute=100_000) as (node, upstream), wire(node.url) as client:
        upstream.fail("status=500", times=1)
        messages = await client.ask("m1", "script tokens=20")
        failed = (await client.ended("m1")).end
        assert failed is not None
        await client.ask("m1", messages, retry_of=failed["seq"], after=failed["seq"])
        await client.type("done", "m1")

        async def settled() -> bool:
            return sum("settled" in hold for hold in await holds(valkey_url)) == 2

        await eventually_true(settled)
        assert sorted(int(hold["settled"]) > 0 for hold in await holds(valkey_url)) == [False, True]


async def test_a_reopened_message_that_is_refused_fails_again(valkey_url: str) -> None:
    async with place(valkey_url, requests_per_minute=1) as (node, upstream), wire(node.url) as client:
        upstream.fail("status=500", times=1)
        messages = await client.ask("m1", "script tokens=20")
        failed = (await client.ended("m1")).end
        assert failed is not None
        await client.ask("m1", messages, retry_of=failed["seq"], after=failed["seq"])
        frame = await client.until(lambda f: f["type"] == "failed" and f["seq"] > failed["seq"])
        assert frame["error"]["code"] == "quota_exceeded"
        assert 0 < frame["error"]["retry_after_ms"] <= 60_000
        assert upstream.count("start") == 1


async def test_money_is_held_and_spent(valkey_url: str) -> None:
    price = {"price_per_million_input": 1, "price_per_million_output": 1_000_000}
    target = {"scripted": {"driver": "openai", "model": "scripted", **price}}
    async with serving() as upstream:
        target["scripted"]["base_url"] = f"{upstream.url}/v1"
        tiers = {"default": {"monthly_usd": 100, "max_output_tokens": 60}}
        settings = settings_for(valkey_url, upstream.url, {"tiers": tiers, "targets": target})
        async with running_node(settings) as node, wire(node.url) as client:
            await client.ask("m1", "script tokens=50")
            end = (await client.ended("m1")).end
            assert end is not None
            left = await client.quota(lambda now: now["monthly_usd"]["remaining"] > 45)
            assert round(left["monthly_usd"]["remaining"] + end["cost_usd"], 6) == 100
            await client.ask("m2", "script tokens=50")  # 60 tokens could cost $60, $50 are left
            error = await client.error("m2")
            assert (error["code"], error["details"]["limit"]) == ("quota_exceeded", "monthly_usd")
            await client.ask("m3", "script tokens=50", max_output_tokens=40)
            await client.ended("m3")


ROUTED = {
    "tokens_per_minute": 100_000,
    "requests_per_minute": 10_000,
    "concurrent_messages": 200,
    "max_output_tokens": 20,
    "routes": {"large": {"tokens_per_minute": 4_000, "requests_per_minute": 3_000, "concurrent_messages": 90}},
}


@asynccontextmanager
async def routed(url: str, tier: dict[str, Any], nodes: int) -> AsyncIterator[list[RunningNode]]:
    """Nodes with a route `large` beside the default one, whose tier has limits of its own for it."""
    async with serving() as upstream, AsyncExitStack() as stack:
        sections = {
            "tiers": {"default": tier},
            "routes": {name: {"targets": ["scripted"]} for name in ("default", "large")},
        }
        settings = settings_for(url, upstream.url, sections)
        yield [await stack.enter_async_context(running_node(settings)) for _ in range(nodes)]


async def storm(client: Wire, names: list[str], **more: Any) -> list[str]:
    """Ask for all of them at once; those that were refused."""
    await asyncio.gather(*(client.ask(name, f"script tokens=20 seed={name}", **more) for name in names))
    refused: list[str] = []
    while len(refused) + sum(client.view(name).end is not None for name in names) < len(names):
        frame = await client.recv()
        if frame["type"] == "error":
            assert frame["error"]["code"] == "quota_exceeded", frame
            assert frame["error"]["details"]["limit"] == "tokens_per_minute:large"
            assert frame["error"]["retry_after_ms"] > 0
            refused.append(frame["id"])
    return refused


async def test_g6_a_route_has_buckets_of_its_own_that_hold_under_concurrency(valkey_url: str) -> None:
    async with (
        routed(valkey_url, ROUTED, 2) as (one, two),
        wire(one.url) as first,
        wire(two.url) as second,
        wire(one.url) as other,
    ):
        large = [[f"l{node}-{number}" for number in range(80)] for node in range(2)]
        general = [f"g{number}" for number in range(60)]
        refused, also, none = await asyncio.gather(
            storm(first, large[0], model="large"), storm(second, large[1], model="large"), storm(other, general)
        )
        assert not none, "what one route uses was taken from the others"
        assert refused
        assert also
        log = [hold for hold in await holds(valkey_url) if int(hold["settled"])]
        special = [hold for hold in log if "t3" in hold]
        assert len(log) == 220 - len(refused) - len(also)
        assert len(special) == 160 - len(refused) - len(also)
        assert all("t1" not in hold and "r1" not in hold for hold in special), "it was counted in general, too"
        level = Level(4_000, Fraction(4_000), 0)
        steps = [(int(hold["step"]), int(hold["at"]), -int(hold["t3"])) for hold in special]
        steps += [
            (int(hold["settled_step"]), int(hold["settled_at"]), int(hold["t3"]) - int(hold["settled"]))
            for hold in special
        ]
        for _, at, change in sorted(steps):
            level.add(change, at)
            assert level.level >= 0, "more was admitted than there was"
        now = await first.quota(
            lambda now: (
                now["concurrent_messages:large"]["remaining"] == 90 and now["concurrent_messages"]["remaining"] == 200
            )
        )
        assert now["tokens_per_minute:large"]["remaining"] < 4_000
        assert now["tokens_per_minute:large"]["route"] == "large"


async def test_a_route_s_slots_and_cap_are_its_own(valkey_url: str) -> None:
    tier = {"concurrent_messages": 1, "max_output_tokens": 5, "monthly_usd": 1}
    tier["routes"] = {"large": {"concurrent_messages": 2, "max_output_tokens": 50}}  # type: ignore[assignment]
    async with routed(valkey_url, tier, 1) as (node,), wire(node.url, hello=False) as client:
        welcome = await client.hello()
        assert "concurrent_messages:large" in {limit["name"] for limit in welcome["limits"]}
        for name, model in (("a", "large"), ("b", "large"), ("c", "default")):
            await client.ask(name, f"script tokens=90 hang=mid at=3 seed={name}", model=model)
            await client.type("delta", name)
        for name, model, limit in (
            ("d", "large", "concurrent_messages:large"),
            ("e", "default", "concurrent_messages"),
        ):
            await client.ask(name, f"script tokens=9 seed={name}", model=model)
            assert (await client.error(name))["details"]["limit"] == limit
        await node.node.quotas.renew()  # an extended lease is still none of the general slots
        now = await client.quota(lambda now: True)
        assert (now["concurrent_messages:large"]["remaining"], now["concurrent_messages"]["remaining"]) == (0, 0)
        for name in "abc":
            await client.send({"type": "cancel", "id": name})
            await client.ended(name)
        now = await client.quota(lambda now: now["concurrent_messages:large"]["remaining"] == 2)
        await client.ask("f", "script tokens=90", model="large")
        assert (await client.ended("f")).end["usage"]["output_tokens"] == 50  # type: ignore[index]
        await client.ask("g", "script tokens=90")
        assert (await client.ended("g")).end["usage"]["output_tokens"] == 5  # type: ignore[index]
