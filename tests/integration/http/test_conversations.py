"""Conversations as resources, on the same conversations as the socket's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.http.api_models import Conversation, ConversationDeleted, ConversationList, ConversationPage
from tests.integration.http.client import CHAT, MODEL, Place, place, refused, streamed, turns
from tests.integration.http.test_messages import KEY, PLAIN_KEY, bearer, sha
from tests.nodes import running_node, settings_for
from tests.upstreams.script import expected_text
from tests.wire import wire

AT = "/v1/conversations"
Map = dict[str, Any]


async def call(here: Place, method: str, path: str, status: int = 200, **fields: Any) -> Map:
    async with here.request(method, path, **fields) as answer:
        assert answer.status == status, await answer.text()
        found: Map = await answer.json()
        return found


async def say(here: Place, key: str, content: Any, conversation: str = "c1", **fields: Any) -> str:
    async with here.ask(content, key, conversation=conversation, **fields) as answer:
        assert answer.status == 200, await answer.text()
        text: str = (await answer.json())["choices"][0]["message"]["content"]
        return text


async def page(here: Place, conversation: str = "c1", **query: Any) -> Map:
    found = await call(here, "GET", f"{AT}/{conversation}/messages", params=query)
    ConversationPage.model_validate(found)
    return found


def ids(found: Map) -> list[str]:
    return [entry["id"] for entry in found["data"]]


async def test_make_look_rename_and_delete(here: Place) -> None:
    async with here.request("POST", AT, json={"id": "c1", "title": "Tides"}) as answer:
        assert (answer.status, answer.headers["Location"]) == (201, f"{AT}/c1")
        made = await answer.json()
    Conversation.model_validate(made)
    assert (made["id"], made["title"], made["entries"], made["tip"]) == ("c1", "Tides", 0, None)
    again = await call(here, "POST", AT, json={"id": "c1", "title": "Other"})
    assert again["title"] == "Tides"
    assert (await call(here, "GET", f"{AT}/c1"))["created"] == made["created"]
    assert (await call(here, "PATCH", f"{AT}/c1", json={"title": "Ebb"}))["title"] == "Ebb"
    gone = await call(here, "DELETE", f"{AT}/c1")
    ConversationDeleted.model_validate(gone)
    for method, fields in (("GET", {}), ("PATCH", {"json": {"title": "x"}}), ("DELETE", {})):
        async with here.request(method, f"{AT}/c1", **fields) as answer:
            if method != "DELETE":  # what is deleted stays so
                await refused(answer, 404, "conversation_unknown")
    async with here.request("POST", AT, json={"id": "c1"}) as answer:
        await refused(answer, 404, "conversation_unknown")
    assert (await call(here, "GET", AT))["data"] == []


async def test_an_id_is_made_or_is_the_idempotency_key(here: Place) -> None:
    async with here.request("POST", AT, json={}, headers={"Idempotency-Key": "mine"}) as answer:
        assert (await answer.json())["id"] == "mine"
    first = await call(here, "POST", AT, 201, json={})
    assert first["id"] != (await call(here, "POST", AT, 201, json={}))["id"]


async def test_completions_in_a_conversation_take_only_what_is_new(here: Place) -> None:
    first = await say(here, "m1", "script tokens=5")
    second = await say(here, "m2", "script tokens=6")
    asked = turns("script tokens=5")
    assert first == expected_text(asked, MODEL)
    thread = [*asked, {"role": "assistant", "content": first}, *turns("script tokens=6")]
    assert second == expected_text(thread, MODEL)
    assert await say(here, "m2", "script tokens=6") == second  # a repeat
    assert here.upstream.count("start") == 2
    async with here.ask("script tokens=7", "m3", conversation="c1", stream=True) as answer:
        got = await streamed(answer)
    assert got.text == expected_text(
        [*thread, {"role": "assistant", "content": second}, *turns("script tokens=7")], MODEL
    )
    found = await page(here)
    assert [entry["role"] for entry in found["data"]] == ["user", "assistant"] * 3
    assert found["data"][1]["content"] == first
    assert (found["tip"], found["has_more"]) == ("m3", False)
    assert (await here.message("m3"))["conversation"] == "c1"


async def test_pages_both_ways_make_the_whole(here: Place) -> None:
    for number in range(5):
        await say(here, f"m{number}", f"script tokens={number + 2}")
    whole = ids(await page(here))
    assert len(whole) == 10
    found = await page(here, limit=4)
    older = ids(found)
    while found["has_more"]:
        found = await page(here, limit=4, before=found["next"])
        older = ids(found) + older
    assert older == whole
    newer = whole[:1]
    found = await page(here, limit=4, after=whole[0])
    newer += ids(found)
    while found["has_more"]:
        found = await page(here, limit=4, after=found["newer"])
        newer += ids(found)
    assert newer == whole


async def test_a_branch_can_be_paged_and_chosen(here: Place) -> None:
    await say(here, "m1", "script tokens=3")
    await say(here, "m2", "script tokens=4")
    question = ids(await page(here))[0]
    await say(here, "m3", [], parent=question)  # the first question once more
    await say(here, "m4", "script tokens=5")
    assert ids(await page(here))[1::2] == ["m3", "m4"]
    other = await page(here, branch="m1")
    assert ids(other)[1::2] == ["m1", "m2"]
    assert (other["tip"], other["data"][1]["siblings"]) == ("m4", ["m1", "m3"])
    assert ids(await page(here, branch="m1", after="m1")) == ids(other)[2:]
    async with here.request("GET", f"{AT}/c1/messages", params={"after": "m1"}) as answer:
        await refused(answer, 404, "message_unknown")  # not on the chosen branch
    async with here.request("GET", f"{AT}/c1/messages", params={"branch": "nothing"}) as answer:
        await refused(answer, 404, "message_unknown")
    assert (await call(here, "PATCH", f"{AT}/c1", json={"tip": "m1"}))["tip"] == "m2"
    assert ids(await page(here)) == ids(other)


async def test_the_list_is_paged_by_the_last_change_and_misses_none(here: Place) -> None:
    names = [f"c{number}" for number in range(7)]
    await asyncio.gather(*(call(here, "POST", AT, 201, json={"id": name}) for name in names))
    found: list[str] = []
    query: Map = {"limit": 3}
    while True:
        listed = await call(here, "GET", AT, params=query)
        ConversationList.model_validate(listed)
        found += [one["id"] for one in listed["data"]]
        if not listed["has_more"]:
            break
        query["before"] = listed["next"]
    assert sorted(found) == names
    await say(here, "m1", "script tokens=2", "c3")
    assert (await call(here, "GET", AT))["data"][0]["id"] == "c3"


async def test_a_title_is_made(here: Place) -> None:
    await say(here, "m1", "script tokens=3")
    titled = await call(here, "POST", f"{AT}/c1/title", json={})
    assert titled["title"]
    assert (await call(here, "POST", f"{AT}/c1/title", json={}))["title"] == titled["title"]
    assert here.upstream.count("start") == 2


async def test_a_device_on_the_socket_sees_what_comes_over_http(valkey_url: str) -> None:
    async with (
        place(valkey_url) as here,
        running_node(settings_for(valkey_url, here.upstream.url)) as there,
        wire(there.url) as phone,
    ):
        await phone.send({"type": "subscribe", "conversation": "c1"})
        await phone.type("conversation")
        text = await say(here, "m1", "script tokens=20 rate=200")
        assert (await phone.ended("m1")).text == text
        await call(here, "PATCH", f"{AT}/c1", json={"title": "Ebb"})
        renamed = await phone.until(lambda f: f["type"] == "conversation" and f["op"] == "renamed")
        assert renamed["title"] == "Ebb"


async def test_a_busy_conversation_refuses_or_queues(here: Place) -> None:
    async with here.ask("script tokens=30 hang=mid", "m1", conversation="c1", stream=True) as first:
        await first.content.readline()
        async with here.ask("script tokens=3", "m2", conversation="c1", on_busy="reject") as answer:
            error = await refused(answer, 409, "conversation_busy")
            assert error["details"] == {"current": "m1"}
        await say(here, "m3", "script tokens=3", on_busy="interrupt")
    states = [entry["state"] for entry in (await page(here))["data"]]
    assert states == ["done", "interrupted", "done", "done"]


@pytest.mark.parametrize(
    ("method", "path", "fields", "param"),
    [
        ("GET", AT, {"params": {"limit": "0"}}, "limit"),
        ("GET", AT, {"params": {"limit": "x"}}, "limit"),
        ("GET", AT, {"params": {"before": "nan"}}, "before"),
        ("GET", AT, {"params": {"before": "yesterday"}}, "before"),
        ("GET", AT, {"params": [("limit", "1"), ("limit", "2")]}, "limit"),
        ("POST", AT, {"json": {"id": "not an id"}}, "id"),
        ("POST", AT, {"json": {"title": "x" * 513}}, "title"),
        ("POST", AT, {"json": {"name": "x"}}, "name"),
        ("PATCH", f"{AT}/c1", {"json": {}}, None),
        ("GET", f"{AT}/not%20an%20id", {}, "id"),
        ("GET", f"{AT}/c1/messages", {"params": {"before": "a", "after": "b"}}, "after"),
        ("GET", f"{AT}/c1/messages", {"params": {"before": ""}}, "before"),
        ("POST", CHAT, {"json": {"messages": []}}, "messages"),
        ("POST", CHAT, {"json": {"messages": turns("x"), "parent": "m1"}}, None),
    ],
)
async def test_bad_input_is_named(here: Place, method: str, path: str, fields: Map, param: str | None) -> None:
    async with here.request(method, path, **fields) as answer:
        assert (await refused(answer, 400, "invalid_request"))["param"] == param


# --- who --------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def guarded(valkey_url: str) -> AsyncIterator[Place]:
    keys = [
        {"name": "backend", "tenant": "acme", "sha256": sha(KEY)},
        {"name": "plain", "tenant": "acme", "sha256": sha(PLAIN_KEY), "scopes": ["chat"]},
    ]
    async with place(valkey_url, {"auth": {"anonymous": False, "api_keys": keys}}) as found:
        yield found


async def test_a_conversation_is_its_user_s_alone(guarded: Place) -> None:
    await call(guarded, "POST", AT, 201, json={"id": "c1"}, **bearer(KEY))
    assert (await call(guarded, "GET", AT, **bearer(PLAIN_KEY)))["data"] == []
    for method, path, fields in (
        ("GET", f"{AT}/c1", {}),
        ("PATCH", f"{AT}/c1", {"json": {"title": "x"}}),
        ("DELETE", f"{AT}/c1", {}),
        ("GET", f"{AT}/c1/messages", {}),
        ("POST", f"{AT}/c1/title", {"json": {}}),
    ):
        async with guarded.request(method, path, **fields, **bearer(PLAIN_KEY)) as answer:
            await refused(answer, 404, "conversation_unknown")
        async with guarded.request(method, path, **fields) as answer:
            await refused(answer, 401, "unauthenticated")
    await call(guarded, "GET", f"{AT}/c1", **bearer(KEY))
