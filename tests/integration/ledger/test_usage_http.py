"""`GET /v1/usage` on a real node: own data only, sums of what was charged; and what providers are told of users."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from tests.nodes import RunningNode, running_node, settings_for
from tests.upstreams.scripted import ScriptedUpstream, serving

KEYS = {"ann": "acme", "bob": "acme", "eve": "evil", "boss": "acme"}


@dataclass
class Place:
    node: RunningNode
    http: aiohttp.ClientSession
    bodies: list[dict[str, Any]]

    async def ask(self, user: str, feature: str, model: str = "default") -> dict[str, Any]:
        body = {"model": model, "messages": [{"role": "user", "content": "script tokens=10"}],
                "metadata": {"feature": feature, "team": 7}}  # fmt: skip
        async with self.http.post("/v1/chat/completions", json=body, headers=_as(user)) as answer:
            assert answer.status == 200, await answer.text()
            whole: dict[str, Any] = await answer.json()
            return whole

    async def usage(self, who: str, **query: str) -> tuple[int, dict[str, Any]]:
        async with self.http.get("/v1/usage", params=query, headers=_as(who)) as answer:
            return answer.status, await answer.json()

    async def until_charged(self, user: str, messages: int) -> None:
        async with asyncio.timeout(20):
            while sum(g["messages"] for g in (await self.usage(user))[1]["groups"]) < messages:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


def _as(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer key-of-{user}"}


@asynccontextmanager
async def place(redis_url: str, ledger_url: str) -> AsyncIterator[Place]:
    bodies: list[dict[str, Any]] = []

    class Noting(ScriptedUpstream):
        def open(self, body: dict[str, Any], headers: dict[str, str]) -> Any:
            bodies.append(body)
            return super().open(body, headers)

    def key(user: str, tenant: str) -> dict[str, Any]:
        scopes = ["chat", "usage"] if user == "boss" else ["chat"]
        digest = hashlib.sha256(f"key-of-{user}".encode()).hexdigest()
        return {"name": user, "tenant": tenant, "sha256": digest, "scopes": scopes}

    async with serving(kind=Noting) as upstream:
        target = {"driver": "openai", "base_url": f"{upstream.url}/v1", "price_per_million_output": 1000}
        more = {
            "auth": {"anonymous": False, "api_keys": [key(*one) for one in KEYS.items()]},
            "ledger": {"url": ledger_url},
            "targets": {
                "scripted": {**target, "model": "scripted"},
                "shy": {**target, "model": "shy", "identity": ["safety_identifier"]},
            },
            "routes": {"shy": {"targets": ["shy"]}},
        }
        async with (
            running_node(settings_for(redis_url, upstream.url, more)) as node,
            aiohttp.ClientSession(node.http) as http,
        ):
            yield Place(node, http, bodies)


async def test_everybody_sees_their_own_and_a_tenant_all_of_its_users(valkey_url: str, ledger_url: str) -> None:
    async with place(valkey_url, ledger_url) as here:
        for user, feature in (("ann", "search"), ("ann", "chat"), ("bob", "chat"), ("eve", "chat")):
            await here.ask(user, feature)
        await here.until_charged("boss", 3)
        await here.until_charged("eve", 1)
        status, mine = await here.usage("ann", group_by="feature,model")
        assert status == 200
        assert [(g["feature"], g["model"], g["messages"], g["output_tokens"]) for g in mine["groups"]] == [
            ("chat", "scripted", 1, 10), ("search", "scripted", 1, 10),
        ]  # fmt: skip
        assert mine["from"] < mine["to"]
        assert [g["cost_usd"] for g in mine["groups"]] == [0.01, 0.01]
        _, ours = await here.usage("boss", group_by="user")
        assert {g["user"]: (g["messages"], g["output_tokens"]) for g in ours["groups"]} == {
            "ann": (2, 20),
            "bob": (1, 10),
        }
        _, bobs = await here.usage("boss", user="bob", group_by="tags.team")
        assert [(g["tags.team"], g["messages"]) for g in bobs["groups"]] == [("7", 1)]
        _, theirs = await here.usage("eve", group_by="user")
        assert [g["user"] for g in theirs["groups"]] == ["eve"]
        assert (await here.usage("ann", **{"from": "1999-01-01", "to": "1999-02-01"}))[1]["groups"] == []


@pytest.mark.parametrize(
    ("user", "query", "status", "said"),
    [
        ("ann", {"group_by": "featuer"}, 400, "did you mean 'feature'?"),
        ("ann", {"group_by": "tenant"}, 400, "only operators"),
        ("ann", {"user": "bob"}, 403, "their own usage only"),
        ("ann", {"from": "soon"}, 400, "from: should be a date"),
        ("ann", {"groupby": "model"}, 400, "There is no parameter `groupby`"),
        ("nobody", {}, 401, ""),
    ],
)
async def test_what_cannot_be_asked(
    valkey_url: str, sqlite_url: str, user: str, query: dict[str, str], status: int, said: str
) -> None:
    async with place(valkey_url, sqlite_url) as here:
        found, body = await here.usage(user, **query)
        assert (found, said in body["error"]["message"]) == (status, True), body


async def test_a_database_that_is_away_is_said_to_be(valkey_url: str) -> None:
    async with place(valkey_url, "postgresql://nobody@127.0.0.1:1/none") as here:
        whole = await here.ask("ann", "chat")
        assert whole["usage"]["completion_tokens"] == 10, "messages do not need the ledger"
        status, body = await here.usage("ann")
        assert (status, body["error"]["code"], body["error"]["retryable"]) == (503, "store_unavailable", True)


async def test_providers_are_told_a_pseudonym_and_tags(valkey_url: str, sqlite_url: str) -> None:
    async with place(valkey_url, sqlite_url) as here:
        for user in ("ann", "ann", "bob"):
            await here.ask(user, "chat")
        await here.ask("ann", "chat", "shy")
        first, again, other, shy = here.bodies
        assert first["metadata"] == {"feature": "chat", "team": "7"}
        assert first["user"] == again["user"] != other["user"]
        assert len(first["user"]) == 32
        assert "ann" not in str({**first, "messages": None})
        assert (shy["safety_identifier"], "user" in shy, "metadata" in shy) == (first["user"], False, False)
    async with place(valkey_url, sqlite_url) as there:
        await there.ask("ann", "chat")
        assert there.bodies[0]["user"] == first["user"], "another node knows the user by another name"
