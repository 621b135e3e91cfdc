"""What is left of the asker's limits, in the headers of answers and refusals alike; and when to come back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import openai
import pytest

from server.quotas.headers import HEADERS
from tests.integration.http.client import events, place, refused, streamed, turns
from tests.nodes import running_node, settings_for
from tests.processes import AS_SHIPPED
from tests.servers import VALKEY, RedisServer

LIMITS = {"tokens_per_minute": 6000, "requests_per_minute": 4, "max_output_tokens": 100}


def left(headers: Mapping[str, str]) -> dict[str, int]:
    """What remains by name, after checking that all headers tell the same."""
    assert {name.lower() for name in HEADERS} <= {name.lower() for name in headers}
    policy = dict(item.split(";", 1) for item in headers["RateLimit-Policy"].split(", "))
    assert policy == {'"tokens_per_minute"': "q=6000;w=60", '"requests_per_minute"': "q=4;w=60"}
    found = {}
    for item in headers["RateLimit"].split(", "):
        name, remaining, reset = item.split(";")
        found[name.strip('"')] = int(remaining.removeprefix("r="))
        assert 0 <= int(reset.removeprefix("t=")) <= 60
    assert headers["x-ratelimit-limit-tokens"] == "6000"
    assert int(headers["x-ratelimit-remaining-tokens"]) == found["tokens_per_minute"]
    assert int(headers["x-ratelimit-remaining-requests"]) == found["requests_per_minute"]
    assert headers["x-ratelimit-reset-requests"].endswith("s")
    return found


@pytest.fixture
def limited() -> dict[str, Any]:
    return {"tiers": {"default": LIMITS}}


async def test_the_route_that_is_asked_tells_its_own_limits(valkey_url: str) -> None:
    tier = {**LIMITS, "routes": {"large": {"requests_per_minute": 2}}}
    routes = {name: {"targets": ["scripted"]} for name in ("default", "large")}
    async with place(valkey_url, {"tiers": {"default": tier}, "routes": routes}) as here:
        async with here.ask("script tokens=5", "m1", model="large") as answer:
            assert answer.headers["x-ratelimit-limit-requests"] == "2"
            assert answer.headers["x-ratelimit-remaining-requests"] == "1"
            assert '"requests_per_minute";r=1' in answer.headers["RateLimit"]
        async with here.ask("script tokens=5", "m2") as answer:
            assert left(answer.headers)["requests_per_minute"] == 3


async def test_answers_and_refusals_tell_what_is_left(valkey_url: str, limited: dict[str, Any]) -> None:
    async with place(valkey_url, limited) as here:
        async with here.ask("script tokens=5", "m1") as answer:
            assert answer.status == 200
            one = left(answer.headers)
        assert one["requests_per_minute"] == 3
        assert 0 < one["tokens_per_minute"] <= 6000 - 100
        async with here.ask("script tokens=5", "m2", stream=True) as answer:
            assert left(answer.headers)["requests_per_minute"] == 2
            assert (await streamed(answer)).done
        async with here.ask("script tokens=5", "m2", stream=True) as again:  # a replay costs nothing
            assert left(again.headers)["requests_per_minute"] == 2
        async with here.ask("script tokens=5 status=500", "m3") as failed:
            await refused(failed, 503, "upstream_unavailable")
            assert left(failed.headers)["requests_per_minute"] == 1
        for path in ("/v1/messages/m1", "/v1/messages/m1/events"):
            async with here.request("GET", path) as got:
                assert got.status == 200
                assert left(got.headers)["requests_per_minute"] == 1
        async with here.request("GET", "/v1/messages/nothing") as unknown:
            await refused(unknown, 404, "message_unknown")
            assert left(unknown.headers)["requests_per_minute"] == 1
        async with here.ask("script tokens=5", "m1", temperature=1) as mismatch:
            await refused(mismatch, 422, "idempotency_mismatch")
            left(mismatch.headers)
        async with here.ask("script tokens=5", "m4"):
            pass
        async with here.ask("script tokens=5", "m5") as full:
            error = await refused(full, 429, "quota_exceeded")
            assert error["details"]["limit"] == "requests_per_minute"
            assert 0 < int(full.headers["retry-after-ms"]) <= 15_000
            assert 0 < int(full.headers["Retry-After"]) <= 15
            assert left(full.headers)["requests_per_minute"] == 0
        async with here.ask("script tokens=5", "m6", max_tokens=7000) as large:
            assert (
                large.status == 429
            )  # the cap of the tier holds it small enough: it waits for a request, not for ever
        async with here.ask(f"script tokens=5 {'x' * 60_000}", "m7") as large:
            error = await refused(large, 400, "request_too_large_for_tier")
            assert "Retry-After" not in large.headers
            left(large.headers)
        async with here.request("GET", "/v1/models") as models:
            assert "RateLimit" not in models.headers


async def test_a_message_of_another_node_tells_the_figures_of_all(valkey_url: str, limited: dict[str, Any]) -> None:
    async with (
        place(valkey_url, limited) as here,
        running_node(settings_for(valkey_url, here.upstream.url, limited)) as there,
        here.ask("script tokens=50 hang=mid", "m1", stream=True) as answer,
    ):
        await anext(events(answer))
        async with here.ask("script tokens=50 hang=mid", "m1", there, stream=True) as attached:
            assert left(attached.headers)["requests_per_minute"] == 3
        async with here.http.post(f"{there.http}/v1/messages/m1/cancel") as stopped:
            assert stopped.status == 200
            assert left(stopped.headers)["requests_per_minute"] == 3


async def test_while_redis_is_silent_a_refusal_is_quick_and_tells_no_figures(limited: dict[str, Any]) -> None:
    with RedisServer(VALKEY) as server:
        async with place(server.url, limited | {"redis": AS_SHIPPED}) as here:
            server.freeze()
            try:
                async with here.ask("script tokens=5", "m1") as answer:
                    await refused(answer, 503, "store_unavailable")
                    assert "RateLimit" not in answer.headers
                    assert int(answer.headers["retry-after-ms"]) > 0
            finally:
                server.thaw()


async def test_who_is_not_let_in_learns_nothing(valkey_url: str) -> None:
    auth = {"anonymous": False, "api_keys": [{"name": "backend", "tenant": "acme", "sha256": "0" * 64}]}
    async with place(valkey_url, {"auth": auth}) as here, here.ask("script tokens=5") as answer:
        assert answer.status == 401
        assert "RateLimit" not in answer.headers


async def test_the_stock_client_finds_the_headers_that_it_knows(valkey_url: str, limited: dict[str, Any]) -> None:
    async with place(valkey_url, limited) as here:
        async with openai.AsyncOpenAI(base_url=f"{here.node.http}/v1", api_key="none", max_retries=0) as client:
            raw = await client.chat.completions.with_raw_response.create(
                model="default",
                messages=turns("script tokens=5"),  # type: ignore[arg-type]
            )
            assert raw.headers["x-ratelimit-remaining-requests"] == "3"
            for _ in range(3):
                await client.chat.completions.create(model="default", messages=turns("script tokens=5"))  # type: ignore[arg-type]
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(model="default", messages=turns("script tokens=5"))  # type: ignore[arg-type]
        assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
        assert int(caught.value.response.headers["retry-after-ms"]) > 0
