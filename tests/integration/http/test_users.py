"""All that is kept of a user: told whole, and really deleted (Redis is scanned for the text)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis.asyncio

from server.http.api_models import ExportLine, Message, UserDeleted
from tests.integration.http.client import CHAT, MODEL, Place, events, place, refused, turns
from tests.integration.http.test_messages import KEY, PLAIN_KEY, SECRET, bearer, sha
from tests.upstreams.script import expected_text
from tests.wire import eventually, eventually_true

Map = dict[str, Any]
OWN = "/v1/me/data"
FOREIGN_KEY = "tw_key-of-another-tenant"
HIDDEN = "swordfish"


@pytest.fixture
async def here(valkey_url: str, tmp_path: Path) -> AsyncIterator[Place]:
    """A node that signs tokens, with keys of two tenants."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    keys = [
        {"name": "backend", "tenant": "acme", "sha256": sha(KEY)},
        {"name": "plain", "tenant": "acme", "sha256": sha(PLAIN_KEY), "scopes": ["chat", "tokens"]},
        {"name": "other", "tenant": "other", "sha256": sha(FOREIGN_KEY)},
    ]
    auth = {"anonymous": False, "api_keys": keys, "jwt_secret_file": str(secret)}
    async with place(valkey_url, {"auth": auth}) as found:
        yield found


async def token(here: Place, user: str) -> str:
    async with here.request("POST", "/v1/tokens", json={"user": user}, **bearer(KEY)) as answer:
        return str((await answer.json())["token"])


async def ask(here: Place, who: str, key: str, content: Any, **fields: Any) -> str:
    headers = {"Authorization": f"Bearer {who}", "Idempotency-Key": key}
    async with here.request("POST", CHAT, json={"messages": turns(content), **fields}, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return str((await answer.json())["choices"][0]["message"]["content"])


async def export(here: Place, path: str, who: str) -> list[Map]:
    async with here.request("GET", path, **bearer(who)) as answer:
        assert (answer.status, answer.content_type) == (200, "application/jsonl")
        lines = [json.loads(line) for line in (await answer.read()).splitlines()]
    for line in lines:
        ExportLine.model_validate(line)
    assert lines[0]["object"] == "user"
    assert lines[-1]["object"] == "end"
    return lines


def of(lines: list[Map], kind: str) -> list[Map]:
    return [line for line in lines if line["object"] == kind]


async def dump(url: str) -> bytes:
    """All that Redis holds, in the clear."""
    found = b""
    async with redis.asyncio.Redis.from_url(url) as server:
        async for key in server.scan_iter(count=1000):
            match await server.type(key):
                case b"hash":
                    held: Any = await server.hgetall(key)
                case b"string":
                    held = await server.get(key)
                case b"stream":
                    held = await server.xrange(key)
                case b"set":
                    held = await server.smembers(key)
                case _:
                    held = await server.zrange(key, 0, -1)
            found += key + repr(held).encode()
    return found


async def fill(here: Place, who: str) -> Map:
    """Conversations with branches and a large part, messages of their own, one that runs; texts by message."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 60_000}}
    texts = {
        "m1": await ask(here, who, "m1", f"script tokens=5 seed={HIDDEN}", conversation="trip"),
        "m2": await ask(here, who, "m2", [{"role": "user", "content": [image]}], conversation="trip"),
    }
    texts["m3"] = await ask(here, who, "m3", f"script tokens=7\n{HIDDEN}", conversation="trip", parent="m1")
    texts["m4"] = await ask(here, who, "m4", f"script tokens=8 reasoning=3 tool=weather\n{HIDDEN}")
    return texts


async def test_an_export_tells_everything_once(here: Place) -> None:
    anna = await token(here, "anna")
    texts = await fill(here, anna)
    await ask(here, await token(here, "ben"), "m1", "script tokens=2 seed=ben")
    headers = {"Authorization": f"Bearer {anna}", "Idempotency-Key": "m5"}
    body = {"messages": turns("script tokens=30 hang=mid"), "stream": True}
    async with here.request("POST", CHAT, json=body, headers=headers) as running:
        await anext(events(running))
        lines = await export(here, OWN, anna)
        by_key = await export(here, "/v1/users/anna/data", KEY)
    assert lines[0]["user"] == "anna"
    assert [line["object"] for line in by_key] == [line["object"] for line in lines]
    assert [line["id"] for line in of(lines, "conversation")] == ["trip"]
    entries = of(lines, "entry")
    assert {entry["id"]: entry["content"] for entry in entries if entry["role"] == "assistant"} == {
        name: texts[name] for name in ("m1", "m2", "m3")
    }
    assert len(entries) == 6
    seen: set[str | None] = {None}
    for entry in entries:  # parents first
        assert entry["parent"] in seen
        seen.add(entry["id"])
    (part,) = of(lines, "part")
    assert part["part"]["image_url"]["url"].endswith("A" * 60_000)
    (reference,) = next(entry["content"] for entry in entries if entry.get("message") == "m2")
    assert reference["ref"] == part["ref"]
    messages = {line["id"]: line for line in of(lines, "message")}
    assert messages.keys() == {"m1", "m2", "m3", "m4", "m5"}
    assert messages["m4"]["text"] == texts["m4"] == expected_text(turns(messages["m4"]["request"]["messages"]), MODEL)
    assert messages["m4"]["reasoning"]
    assert messages["m4"]["tool_calls"]
    assert messages["m5"]["state"] == "streaming"
    counts = {"conversations": 1, "entries": 6, "parts": 1, "messages": 5}
    assert lines[-1] == {"object": "end", **counts, "jobs": 0, "job_items": 0, "job_results": 0}


async def test_jobs_are_told_and_deleted_too(here: Place) -> None:
    anna = await token(here, "anna")
    items = [{"messages": turns(f"script tokens=3 seed={HIDDEN}{number}")} for number in range(3)]
    items.append({"messages": turns(f"script tokens=30 hang=mid\n{HIDDEN}")})
    async with here.request("POST", "/v1/jobs", json={"items": items}, **bearer(anna)) as answer:
        assert answer.status == 202, await answer.text()
        job = (await answer.json())["id"]

    async def three_are_done() -> bool:
        async with here.request("GET", f"/v1/jobs/{job}", **bearer(anna)) as answer:
            return bool((await answer.json())["items"]["done"] == 3)

    await eventually_true(three_are_done)
    lines = await export(here, OWN, anna)
    assert [line["id"] for line in of(lines, "job")] == [job]
    assert [HIDDEN in json.dumps(line["input"]) for line in of(lines, "job_item")] == [True]
    assert len(of(lines, "job_result")) >= 3
    async with here.request("DELETE", OWN, **bearer(anna)) as answer:
        assert answer.status == 200, await answer.text()
    await eventually(lambda: not here.node.node.keeper.finishing)
    assert HIDDEN.encode() not in await dump(here.redis_url)
    assert of(await export(here, OWN, anna), "job") == []


@pytest.mark.parametrize("by_key", [False, True])
async def test_deletion_really_deletes_one_user_and_nobody_else(here: Place, by_key: bool) -> None:
    anna, ben = await token(here, "anna"), await token(here, "ben")
    texts = await fill(here, anna)
    kept = await ask(here, ben, "m1", "script tokens=5 seed=ben\nhalibut", conversation="trip")
    body = {"messages": turns(f"script tokens=30 hang=mid\n{HIDDEN}"), "stream": True}
    headers = {"Authorization": f"Bearer {anna}", "Idempotency-Key": "m5"}
    async with here.request("POST", CHAT, json=body, headers=headers) as running:
        await anext(events(running))
        path, who = ("/v1/users/anna/data", KEY) if by_key else (OWN, anna)
        async with here.request("DELETE", path, **bearer(who)) as answer:
            assert answer.status == 200, await answer.text()
            gone = await answer.json()
    UserDeleted.model_validate(gone)
    assert (gone["user"], gone["deleted"], gone["conversations"], gone["messages"]) == ("anna", True, 1, 5)
    await eventually(lambda: not here.node.node.keeper.finishing)
    left = await dump(here.redis_url)
    for text in (HIDDEN, "AAAAAAAA", "weather", *(text[10:] for text in texts.values() if len(text) > 20)):
        assert text.encode() not in left
    assert b"halibut" in left
    assert kept.encode() in left
    lines = await export(here, OWN, anna)
    assert of(lines, "conversation") == of(lines, "entry") == []
    headers["Idempotency-Key"] = "m4"  # a late repeat generates nothing
    body = {"messages": turns(f"script tokens=8 reasoning=3 tool=weather\n{HIDDEN}")}
    async with here.request("POST", CHAT, json=body, headers=headers) as answer:
        await refused(answer, 404, "message_unknown")
    async with here.request("GET", "/v1/messages/m4", **bearer(anna)) as answer:
        shown = Message.model_validate(await answer.json())
        assert (shown.state, shown.text, shown.usage) == ("failed", "", None)
    async with here.request("DELETE", OWN, **bearer(anna)) as answer:  # again: nothing is left to do
        assert (await answer.json())["conversations"] == 0


async def test_a_message_that_does_not_stop_in_time_is_told_and_goes_with_the_next_call(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna = await token(here, "anna")
    monkeypatch.setattr("server.messages.personal.ERASE_SECONDS", 0.0)
    headers = {"Authorization": f"Bearer {anna}", "Idempotency-Key": "m1"}
    body = {"messages": turns(f"script tokens=30 hang=mid\n{HIDDEN}"), "stream": True}
    async with here.request("POST", CHAT, json=body, headers=headers) as running:
        await anext(events(running))
        with monkeypatch.context() as deaf:
            deaf.setattr("server.messages.message.Running.cancel", lambda self: None)
            async with here.request("DELETE", OWN, **bearer(anna)) as answer:
                assert (answer.status, (await answer.json())["left"]) == (202, 1)
    await eventually(lambda: not here.node.node.keeper.running and not here.node.node.keeper.finishing)
    async with here.request("DELETE", OWN, **bearer(anna)) as answer:
        assert (answer.status, (await answer.json())["messages"]) == (200, 1)
    assert HIDDEN.encode() not in await dump(here.redis_url)


async def test_only_a_key_with_the_scope_reaches_users_of_its_own_tenant(here: Place) -> None:
    anna = await token(here, "anna")
    await ask(here, anna, "m1", "script tokens=2")
    for method in ("GET", "DELETE"):
        async with here.request(method, "/v1/users/ben/data", **bearer(anna)) as answer:
            await refused(answer, 403, "forbidden")
        async with here.request(method, "/v1/users/anna/data", **bearer(PLAIN_KEY)) as answer:
            assert (await refused(answer, 403, "forbidden"))["details"] == {"scope": "users"}
        async with here.request(method, "/v1/users/anna/data") as answer:
            await refused(answer, 401, "unauthenticated")
        async with here.request(method, "/v1/users/%0A/data", **bearer(KEY)) as answer:
            assert (await refused(answer, 400, "invalid_request"))["param"] == "user"
    async with here.request("DELETE", "/v1/users/anna/data", **bearer(FOREIGN_KEY)) as answer:
        assert (await answer.json())["messages"] == 0
    assert len(of(await export(here, OWN, anna), "message")) == 1


async def test_a_user_s_id_may_have_slashes(here: Place) -> None:
    name = "team/anna data/data"
    anna = await token(here, name)
    await ask(here, anna, "m1", "script tokens=2")
    lines = await export(here, f"/v1/users/{quote(name, safe='')}/data", KEY)
    assert (lines[0]["user"], lines[-1]["messages"]) == (name, 1)
