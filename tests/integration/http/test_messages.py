"""A message as a resource: looked at, stopped; models, tokens, who may ask, and from which page."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from server.http.api_models import Message
from tests.integration.http.client import CHAT, MODEL, Place, events, place, refused, turns
from tests.nodes import running_node, settings_for
from tests.processes import AS_SHIPPED
from tests.servers import VALKEY, RedisServer
from tests.upstreams.script import expected_reasoning, expected_text, expected_tool_calls
from tests.wire import eventually_true, wire

SECRET = "a secret of at least thirty-two bytes, for tests"
KEY, PLAIN_KEY = "tw_key-of-the-backend", "tw_key-without-tokens"


def sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
async def guarded(valkey_url: str, tmp_path: Path) -> AsyncIterator[Place]:
    """A node that wants credentials and signs tokens."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    keys = [
        {"name": "backend", "tenant": "acme", "tier": "pro", "sha256": sha(KEY)},
        {"name": "plain", "tenant": "acme", "sha256": sha(PLAIN_KEY), "scopes": ["chat"]},
    ]
    auth = {"anonymous": False, "api_keys": keys, "jwt_secret_file": str(secret)}
    tiers: dict[str, Any] = {"default": {}, "pro": {}}
    async with place(valkey_url, {"auth": auth, "tiers": tiers}) as found:
        yield found


def bearer(token: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {token}"}}


# --- looking --------------------------------------------------------------------------------------------------------


async def test_a_finished_message_tells_everything(redis_url: str) -> None:
    price = {"price_per_million_input": "1", "price_per_million_output": "2"}
    async with place(redis_url) as plain:
        target = {"driver": "openai", "base_url": f"{plain.upstream.url}/v1", "model": MODEL, **price}
        settings = settings_for(redis_url, plain.upstream.url, {"targets": {"scripted": target}})
        async with running_node(settings) as node:
            here = Place(node, plain.upstream, redis_url, plain.http)
            asked = "script tokens=30 unicode=1 reasoning=3 tool=weather"
            async with here.ask(asked, "m1") as answer:
                whole = await answer.json()
            message = await here.message("m1")
    Message.model_validate(message)
    assert (message["id"], message["object"], message["state"], message["model"]) == (
        "m1",
        "message",
        "done",
        "default",
    )
    assert message["text"] == expected_text(turns(asked), MODEL)
    assert message["reasoning"] == expected_reasoning(turns(asked), MODEL)
    assert message["tool_calls"] == expected_tool_calls(turns(asked), MODEL)
    assert message["created"] == whole["created"]
    assert message["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    used = message["usage"]
    assert message["cost_usd"] == pytest.approx((used["input_tokens"] + 2 * used["output_tokens"]) / 1e6)
    (attempt,) = message["attempts"]
    assert (attempt["outcome"], attempt["payer"]) == ("done", "user")
    assert attempt["started_at"] <= attempt["ended_at"]


async def test_a_running_message_shows_what_stands(here: Place) -> None:
    async with here.ask("script tokens=30 hang=mid", "m1", stream=True) as answer:
        stream = events(answer)
        text = ""
        while not text:
            text = (await anext(stream)).data["choices"][0]["delta"].get("content") or ""
        message = await here.message("m1")
        Message.model_validate(message)
        assert message["state"] == "streaming"
        assert message["text"].startswith(text)
        assert [attempt["outcome"] for attempt in message["attempts"]] == ["running"]
        assert "usage" not in message
        async with here.request("POST", "/v1/messages/m1/cancel") as stopped:
            Message.model_validate(await stopped.json())


async def test_a_failed_message_tells_why(here: Place) -> None:
    async with here.ask("script tokens=30 status=400", "m1"):
        pass
    message = await here.message("m1")
    Message.model_validate(message)
    assert (message["state"], message["error"]["code"]) == ("failed", "upstream_rejected")
    assert message["text"] == ""


# --- stopping -------------------------------------------------------------------------------------------------------


async def test_cancel_answers_with_what_stands(valkey_url: str) -> None:
    async with place(valkey_url) as here, running_node(settings_for(valkey_url, here.upstream.url)) as there:
        async with here.ask("script tokens=30 hang=mid", "m1", stream=True) as answer:
            stream = events(answer)
            await anext(stream)
            async with here.http.post(f"{there.http}/v1/messages/m1/cancel") as stopped:
                assert stopped.status == 200
                message = await stopped.json()
            assert message["state"] == "cancelled"
            assert expected_text(turns("script tokens=30 hang=mid"), MODEL).startswith(message["text"])
            assert message["usage"]["output_tokens"] > 0
        async with here.request("POST", "/v1/messages/m1/cancel") as again:
            assert (again.status, await again.json()) == (200, message)
        (end,) = await here.upstream.wait_for("end")
        assert end["client_gone"]


async def test_cancel_of_a_finished_message_changes_nothing(here: Place) -> None:
    async with here.ask("script tokens=3", "m1"):
        pass
    before = await here.message("m1")
    async with here.request("POST", "/v1/messages/m1/cancel") as answer:
        assert await answer.json() == before


# --- who ------------------------------------------------------------------------------------------------------------


async def test_without_credentials_everything_is_401(guarded: Place) -> None:
    for method, path in (
        ("POST", CHAT),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/default"),
        ("GET", "/v1/targets"),
        ("GET", "/v1/messages/m1"),
        ("GET", "/v1/messages/m1/events"),
        ("POST", "/v1/messages/m1/cancel"),
        ("POST", "/v1/tokens"),
    ):
        for headers in ({}, {"Authorization": "Bearer tw_wrong"}, {"Authorization": "Basic YTpi"}):
            async with guarded.request(method, path, headers=headers) as answer:
                error = await refused(answer, 401, "unauthenticated")
                assert error["type"] == "authentication_error"
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert "tw_wrong" not in await answer.text()
    for path in ("/healthz", "/readyz", "/openapi.json"):
        async with guarded.request("GET", path) as answer:
            assert answer.status == 200


async def test_one_user_s_messages_are_not_another_s(guarded: Place) -> None:
    body = {"messages": turns("script tokens=3")}
    headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": "m1"}
    async with guarded.request("POST", CHAT, json=body, headers=headers) as answer:
        assert answer.status == 200
    async with guarded.request("GET", "/v1/messages/m1", **bearer(PLAIN_KEY)) as answer:
        await refused(answer, 404, "message_unknown")
    headers["Authorization"] = f"Bearer {PLAIN_KEY}"
    async with guarded.request("POST", CHAT, json=body, headers=headers) as answer:
        assert answer.status == 200
    assert guarded.upstream.count("start") == 2


async def test_a_key_makes_a_token_that_works_at_both_doors(guarded: Place) -> None:
    wish = {"user": "anna", "tier": "pro", "expires_in": 60}
    async with guarded.request("POST", "/v1/tokens", json=wish, **bearer(KEY)) as answer:
        assert answer.status == 201
        assert answer.headers["Cache-Control"] == "no-store"
        made = await answer.json()
    token = made.pop("token")
    assert made == {"token_type": "Bearer", "expires_in": 60, "user": "anna", "tenant": "acme", "tier": "pro"}
    claims = jwt.decode(token, SECRET, ["HS256"], audience="tidewire")
    assert claims["exp"] - claims["iat"] == 60
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "m1"}
    async with guarded.request("POST", CHAT, json={"messages": turns("script tokens=3")}, headers=headers) as answer:
        assert answer.status == 200
    async with wire(guarded.node.url, hello=False) as client:
        welcome = await client.hello(token, resume=[{"id": "m1", "after": 0}])
        assert (welcome["user"], welcome["tier"]) == ("anna", "pro")
        assert [message["id"] for message in welcome["resumed"]] == ["m1"]
    async with guarded.request("POST", "/v1/tokens", json=wish, **bearer(token)) as answer:
        await refused(answer, 403, "forbidden")


async def test_tokens_are_refused_to_those_without_the_scope_and_for_nonsense(guarded: Place, here: Place) -> None:
    async with guarded.request("POST", "/v1/tokens", json={"user": "anna"}, **bearer(PLAIN_KEY)) as answer:
        error = await refused(answer, 403, "forbidden")
        assert error["details"] == {"scope": "tokens"}
    for wish, param in (
        ({}, "user"),
        ({"user": ""}, "user"),
        ({"user": "a\n"}, "user"),
        ({"user": "anna", "tier": "gold"}, "tier"),
        ({"user": "anna", "expires_in": 0}, "expires_in"),
        ({"user": "anna", "expires_in": 10**6}, "expires_in"),
        ({"user": "anna", "tenant": "other"}, "tenant"),
    ):
        async with guarded.request("POST", "/v1/tokens", json=wish, **bearer(KEY)) as answer:
            assert (await refused(answer, 400, "invalid_request"))["param"] == param
    async with here.request("POST", "/v1/tokens", json={"user": "anna"}) as answer:
        await refused(answer, 403, "forbidden")


async def test_expired_tokens_say_so(guarded: Place) -> None:
    token = jwt.encode({"sub": "anna", "aud": "tidewire", "exp": 1}, SECRET, "HS256")
    async with guarded.request("GET", "/v1/models", **bearer(token)) as answer:
        await refused(answer, 401, "token_expired")


async def test_a_placeholder_is_no_credential_where_anybody_may_ask(here: Place) -> None:
    for token, status in (("sk-placeholder", 200), ("tw_mistyped", 401), ("a.b.c", 401)):
        async with here.request("GET", "/v1/models", **bearer(token)) as answer:
            assert answer.status == status


async def test_models_are_the_routes(guarded: Place) -> None:
    async with guarded.request("GET", "/v1/models", **bearer(KEY)) as answer:
        body = await answer.json()
    assert body["object"] == "list"
    assert [(model["id"], model["object"]) for model in body["data"]] == [("default", "model")]
    async with guarded.request("GET", "/v1/models/nothing", **bearer(KEY)) as answer:
        await refused(answer, 404, "model_not_found")


# --- from where -----------------------------------------------------------------------------------------------------


@pytest.fixture
async def paged(valkey_url: str) -> AsyncIterator[Place]:
    """A node that lets in pages of one origin."""
    async with place(valkey_url, {"server": {"port": 0, "allowed_origins": ["https://app.example"]}}) as found:
        yield found


async def test_a_permitted_page_may_ask(paged: Place) -> None:
    origin = {"Origin": "https://app.example"}
    wish = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"}
    async with paged.request("OPTIONS", CHAT, headers={**origin, **wish}) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert answer.headers["Access-Control-Allow-Headers"] == "authorization,idempotency-key"
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        assert "Origin" in answer.headers["Vary"]
    async with paged.request("POST", CHAT, json={"messages": turns("script tokens=2")}, headers=origin) as answer:
        assert answer.status == 200
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"
        assert "Tidewire-Message-Id" in answer.headers["Access-Control-Expose-Headers"]
    async with paged.request("GET", "/v1/messages/none", headers=origin) as answer:
        await refused(answer, 404, "message_unknown")
        assert answer.headers["Access-Control-Allow-Origin"] == "https://app.example"


async def test_another_page_may_not(paged: Place) -> None:
    for origin in ("https://evil.example", "null", "https://app.example.evil"):
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        for method in ("OPTIONS", "POST"):
            async with paged.request(method, CHAT, headers=headers) as answer:
                await refused(answer, 403, "forbidden")
                assert "Access-Control-Allow-Origin" not in answer.headers
    assert paged.upstream.count("start") == 0


async def test_the_server_s_own_page_may_ask_and_a_rebound_name_may_not(here: Place) -> None:
    async with here.request("GET", "/v1/models", headers={"Origin": here.node.http}) as answer:
        assert answer.status == 200
    async with here.request("GET", "/v1/models", headers={"Host": f"evil.example:{here.node.port}"}) as answer:
        await refused(answer, 403, "forbidden")


# --- without Redis --------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_while_redis_is_frozen_new_requests_are_refused_and_streams_go_on_after() -> None:
    with RedisServer(VALKEY) as server:
        async with place(server.url, {"redis": AS_SHIPPED}) as here:
            asked = "script tokens=40 rate=20"
            async with here.ask(asked, "m1", stream=True) as answer:
                stream = events(answer)
                await anext(stream)
                server.freeze()
                try:
                    loop = asyncio.get_running_loop()
                    began = loop.time()
                    async with here.ask("script tokens=3", "m2") as refusal:
                        error = await refused(refusal, 503, "store_unavailable")
                    assert loop.time() - began < 5.0
                    assert error["retry_after_ms"] > 0
                    async with here.request("GET", "/v1/messages/m1") as refusal:
                        await refused(refusal, 503, "store_unavailable")
                    comment = ""
                    text = ""
                    while not comment:
                        event = await anext(stream)
                        comment = event.comment
                        if event.data is not None:
                            text += event.data["choices"][0]["delta"].get("content") or ""
                    assert comment == "error"
                finally:
                    server.thaw()
                rest = [event.data async for event in stream if event.data is not None]
            assert rest[-1] == "[DONE]"
            text += "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in rest[:-1])
            assert text == expected_text(turns(asked), MODEL)

            async def served() -> bool:
                async with here.ask("script tokens=3", "m2") as answer:
                    return bool(answer.status == 200)

            await eventually_true(served)
        assert here.upstream.count("start") == 2
