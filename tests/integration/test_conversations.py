"""Conversations kept by the server: context, branches, what happens when it is busy, other devices, deletion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import redis.asyncio

from tests.nodes import RunningNode, running_node, settings_for
from tests.upstreams.script import expected_text, message_hash
from tests.upstreams.scripted import ScriptedUpstream, serving
from tests.wire import CODECS, MSGPACK, View, Wire, eventually, wire

MODEL = "scripted"
Frame = dict[str, Any]


@dataclass(slots=True)
class Place:
    """Nodes on one Redis and one scripted upstream."""

    nodes: list[RunningNode]
    upstream: ScriptedUpstream
    redis_url: str

    @property
    def url(self) -> str:
        return self.nodes[0].url


@asynccontextmanager
async def place(redis_url: str, count: int = 1, **overrides: Any) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(serving())
        settings = settings_for(redis_url, upstream.url, overrides)
        nodes = [await stack.enter_async_context(running_node(settings)) for _ in range(count)]
        yield Place(nodes, upstream, redis_url)


@pytest.fixture
async def here(valkey_url: str) -> AsyncIterator[Place]:
    async with place(valkey_url) as found:
        yield found


def user(content: Any) -> Frame:
    return {"role": "user", "content": content}


def answer(messages: list[Frame]) -> Frame:
    return {"role": "assistant", "content": expected_text(messages, MODEL)}


async def say(client: Wire, message_id: str, given: Any, conversation: str = "c1", **fields: Any) -> None:
    frame = {"type": "send", "id": message_id, "conversation": conversation, **fields}
    await client.send(frame if given is None else {**frame, "input": given})


async def chat(client: Wire, message_id: str, given: Any, **fields: Any) -> View:
    await say(client, message_id, given, **fields)
    view = await client.ended(message_id)
    assert view.end is not None
    view.check_hash()
    return view


async def history(client: Wire, conversation: str = "c1", **fields: Any) -> Frame:
    await client.send({"type": "history", "conversation": conversation, **fields})
    return await client.type("history")


async def whole_history(client: Wire) -> Frame:
    """The history once the last answer stands in it: an end is told before the conversation goes on."""
    async with asyncio.timeout(10):
        while True:
            page = await history(client)
            if all("content" in message for message in page["messages"]):
                return page


async def ask(client: Wire, op: str, conversation: str | None = "c1", **fields: Any) -> Frame:
    named = {} if conversation is None else {"conversation": conversation}
    await client.send({"type": "conversation", "op": op, **named, **fields})
    return await client.until(lambda f: f["type"] == "error" or (f["type"] == "conversation" and f["op"] == op))


async def everything_in(redis_url: str) -> bytes:
    """Every key and value in Redis."""
    found = b""
    async with redis.asyncio.Redis.from_url(redis_url) as server:
        async for key in server.scan_iter(count=1000):
            found += key + (await server.dump(key) or b"")
            kind = await server.type(key)
            if kind == b"hash":
                found += repr(await server.hgetall(key)).encode()
            elif kind == b"string":
                found += (await server.get(key)) or b""
            elif kind == b"stream":
                found += repr(await server.xrange(key)).encode()
    return found


def told(upstream: ScriptedUpstream) -> list[str]:
    """What the upstream was asked, by the hash of its messages."""
    return [record["hash"] for record in upstream.records if record["event"] == "start"]


# --- context ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
async def test_only_what_is_new_is_sent_and_the_server_keeps_the_thread(redis_url: str, codec: str) -> None:
    async with place(redis_url) as here, wire(here.url, codec) as client:
        thread: list[Frame] = []
        for number, given in enumerate(
            ["script tokens=5", user("script tokens=6"), [user("a"), user("script tokens=7")]]
        ):
            view = await chat(client, f"m{number}", given)
            thread += [user(given)] if isinstance(given, str) else given if isinstance(given, list) else [given]
            assert view.text == expected_text(thread, MODEL)
            thread.append({"role": "assistant", "content": view.text})
        page = await whole_history(client)
        assert [(m["role"], m["content"]) for m in page["messages"]] == [(m["role"], m["content"]) for m in thread]
        assert [m["parent"] for m in page["messages"]] == [None, *(m["id"] for m in page["messages"][:-1])]
        assert {m["state"] for m in page["messages"]} == {"done"}
        assert page["tip"] == "m2"


async def test_edit_and_regenerate_are_branches_and_one_can_be_chosen(here: Place) -> None:
    async with wire(here.url) as client:
        one = await chat(client, "m1", "script tokens=5 seed=a")
        await chat(client, "m2", "script tokens=6 seed=b")
        first = (await history(client))["messages"]
        again = await chat(client, "m3", None, parent=first[0]["id"])  # regenerate the first answer
        assert again.text == one.text
        page = await history(client)
        assert [m["id"] for m in page["messages"]] == [first[0]["id"], "m3"]
        assert page["messages"][1]["siblings"] == ["m1", "m3"]
        edited = await chat(client, "m4", "script tokens=7", parent="m1")  # edit the second question
        assert edited.text == expected_text(
            [user("script tokens=5 seed=a"), {"role": "assistant", "content": one.text}, user("script tokens=7")], MODEL
        )
        root = await chat(client, "m5", "script tokens=8", parent="c1")  # edit the very first one
        assert root.text == expected_text([user("script tokens=8")], MODEL)
        chosen = await ask(client, "choose", entry="m1")
        assert chosen["op"] == "choose"
        assert (await history(client))["tip"] == "m4"
        await ask(client, "choose", entry="m2")
        assert [m["id"] for m in (await history(client))["messages"]] == [m["id"] for m in first]


async def test_the_same_id_is_answered_once_and_another_input_is_refused(here: Place) -> None:
    async with wire(here.url) as client, wire(here.nodes[0].url) as other:
        await chat(client, "m1", "script tokens=5")
        await chat(other, "m1", "script tokens=5")
        assert here.upstream.count("start") == 1
        await say(client, "m1", "something else")
        assert (await client.error("m1"))["code"] == "idempotency_mismatch"
        assert len((await history(client))["messages"]) == 2
        await say(client, "m9", "x", parent="nothing")
        assert (await client.error("m9"))["code"] == "message_unknown"
        await chat(client, "m9", "the id is free")


async def test_two_users_conversations_of_one_name_are_two(here: Place) -> None:
    async with wire(here.url) as client:
        await chat(client, "m1", "x", conversation="a")
        await chat(client, "m2", "script tokens=4", conversation="b")
        assert len((await history(client, "b"))["messages"]) == 2


# --- busy ------------------------------------------------------------------------------------------------------------


async def test_by_default_inputs_wait_in_order_and_are_told_their_position(here: Place) -> None:
    async with wire(here.url) as client, wire(here.url, MSGPACK) as other:
        await say(client, "m1", "script tokens=20 hang=mid")
        await client.type("delta")
        for number, device in enumerate([client, other, client], 1):
            await say(device, f"q{number}", f"script tokens={number + 3}")
            accepted = await device.type("accepted", f"q{number}")
            assert (accepted["state"], accepted["queue_position"]) == ("queued", number)
        queue = await ask(other, "waiting")
        assert [(w["id"], w["input"]) for w in queue["queue"]] == [
            (f"q{n}", f"script tokens={n + 3}") for n in (1, 2, 3)
        ]
        await client.send({"type": "cancel", "id": "q1"})  # taken back
        assert (await client.ended("q1")).end["type"] == "cancelled"  # type: ignore[index]
        moved = await other.until(lambda f: f.get("id") == "q2" and f.get("queue_position") == 1)
        assert moved["state"] == "queued"
        await client.send({"type": "cancel", "id": "m1"})
        stopped = await client.ended("m1")
        thread = [user("script tokens=20 hang=mid"), {"role": "assistant", "content": stopped.text}]
        for device, name, given in ((other, "q2", "script tokens=5"), (client, "q3", "script tokens=6")):
            view = await device.ended(name)
            thread.append(user(given))
            assert view.text == expected_text(thread, MODEL)
            thread.append({"role": "assistant", "content": view.text})
        page = await whole_history(client)
        assert [m["content"] for m in page["messages"]] == [m["content"] for m in thread]
        assert page["queue"] == []
        assert page["current"] is None


async def test_reject_interrupt_and_rollback(here: Place) -> None:
    async with wire(here.url) as client:
        await say(client, "m1", "script tokens=20 hang=mid")
        await client.type("delta")
        await say(client, "no", "x", on_busy="reject")
        error = await client.error("no")
        assert (error["code"], error["details"]) == ("conversation_busy", {"current": "m1"})
        await say(client, "m2", "script tokens=5 hang=mid", on_busy="interrupt")
        partial = await client.ended("m1")
        assert partial.text
        await client.type("delta", "m2")
        await say(client, "m3", "script tokens=6", on_busy="rollback")
        gone = await client.ended("m2")
        assert gone.end["type"] == "cancelled"  # type: ignore[index]
        view = await client.ended("m3")
        thread = [
            user("script tokens=20 hang=mid"),
            {"role": "assistant", "content": partial.text},
            user("script tokens=5 hang=mid"),
            user("script tokens=6"),
        ]
        assert view.text == expected_text(thread, MODEL)
        page = (await history(client))["messages"]
        assert [(m["role"], m["state"]) for m in page] == [
            ("user", "done"), ("assistant", "interrupted"), ("user", "done"), ("user", "done"), ("assistant", "done"),
        ]  # fmt: skip
        assert page[1]["content"] == partial.text


# --- other devices ---------------------------------------------------------------------------------------------------


async def test_another_device_sees_question_answer_title_and_branch_live(valkey_url: str) -> None:
    async with place(valkey_url, 2) as here, wire(here.url) as laptop, wire(here.nodes[1].url, MSGPACK) as phone:
        await phone.send({"type": "subscribe", "conversation": "c1"})
        assert (await phone.type("conversation"))["op"] == "subscribed"
        await say(laptop, "m1", "script tokens=40 rate=400")
        question = await phone.type("message")
        assert (question["seq"], question["role"], question["content"]) == (1, "user", "script tokens=40 rate=400")
        begins = await phone.type("message")
        assert (begins["seq"], begins["id"], begins["role"], begins["state"]) == (2, "m1", "assistant", "running")
        seen = await phone.ended("m1")
        whole = await laptop.ended("m1")
        assert seen.text == whole.text == expected_text([user("script tokens=40 rate=400")], MODEL)
        await ask(laptop, "rename", title="Tides")
        title = await phone.until(lambda f: f["type"] == "conversation" and f["op"] == "renamed")
        assert title["title"] == "Tides"
        await chat(laptop, "m2", None, parent=question["id"])
        await phone.ended("m2")
        await ask(laptop, "choose", entry="m1")
        assert (await phone.until(lambda f: f["type"] == "conversation" and f["op"] == "chosen"))["tip"] == "m1"


async def test_a_page_and_what_follows_it_make_the_whole_without_gap_or_double(here: Place) -> None:
    async with wire(here.url) as client, wire(here.url) as late:
        for number in range(7):
            await chat(client, f"m{number}", f"script tokens={number + 2}")
        page = await history(late, limit=4)
        assert [m["id"] for m in page["messages"]][1::2] == ["m5", "m6"]
        await say(client, "m7", "script tokens=30 rate=100")
        await late.send({"type": "subscribe", "conversation": "c1", "after": page["seq"]})
        seqs, notice = [], {}
        while notice.get("state") != "done" or notice.get("id") != "m7":
            notice = await late.until(lambda f: "seq" in f and (f["type"] == "message" or f.get("op") == "queue"))
            seqs.append(notice["seq"])
        assert seqs == list(range(page["seq"] + 1, seqs[-1] + 1))
        assert (await late.ended("m7")).text == (await client.ended("m7")).text
        older: list[Frame] = page["messages"]
        while "next" in page:
            page = await history(late, before=page["next"], limit=3)
            older = page["messages"] + older
        assert [m["id"] for m in older if m["role"] == "assistant"] == [f"m{n}" for n in range(7)]
        newer: list[Frame] = older[:1]
        while True:
            page = await history(late, after=newer[-1]["id"], limit=3)
            newer += page["messages"]
            if "newer" not in page:
                break
        assert [m["id"] for m in newer] == [m["id"] for m in (await history(late, limit=200))["messages"]]


async def test_a_device_that_comes_back_is_told_the_answers_it_missed(here: Place) -> None:
    async with wire(here.url) as client:
        views = [await chat(client, f"m{number}", f"script tokens={number + 2}") for number in range(3)]
        await client.send({"type": "subscribe", "conversation": "c1"})
        texts = {}
        while len(texts) < 3:
            notice = await client.type("message")
            if notice["role"] == "assistant" and notice["state"] == "done":
                texts[notice["id"]] = notice["content"]
        assert texts == {view.id: view.text for view in views}


# --- context, tools, parts -------------------------------------------------------------------------------------------


async def test_the_context_is_trimmed_and_an_input_that_cannot_fit_is_refused_with_the_counts(valkey_url: str) -> None:
    limits = {"scripted": {"driver": "openai", "base_url": "", "model": "scripted", "context_tokens": 600}}
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(serving())
        limits["scripted"]["base_url"] = f"{upstream.url}/v1"
        settings = settings_for(valkey_url, upstream.url, {"targets": limits})
        node = await stack.enter_async_context(running_node(settings))
        client = await stack.enter_async_context(wire(node.url))
        thread = [{"role": "system", "content": "be brief"}]
        await chat(client, "m0", [*thread, user("script tokens=3 seed=0\n" + "x" * 300)])
        for number in range(1, 6):
            await chat(client, f"m{number}", f"script tokens=3 seed={number}\n" + "y" * 300)
        await say(client, "big", "z" * 3000)
        error = await client.error("big")
        assert error["code"] == "context_length_exceeded"
        assert error["details"] == {"input_tokens": 1004, "room_tokens": 450}
        last = upstream.records[-1]
        page = (await history(client))["messages"]
        sent = [m for m in page if m["role"] == "system"] + page[-6:][:-1]
        assert told(upstream)[-1] == message_hash(sent), last


async def test_an_input_that_does_not_fit_beside_its_instructions_is_refused_with_the_counts(valkey_url: str) -> None:
    async with serving() as upstream:
        target = {"driver": "openai", "base_url": f"{upstream.url}/v1", "model": "scripted"}
        targets = {"scripted": {**target, "context_tokens": 400}, "larger": {**target, "context_tokens": 600}}
        sections = {"targets": targets, "routes": {"default": {"targets": ["scripted", "larger"]}}}
        async with (
            running_node(settings_for(valkey_url, upstream.url, sections)) as node,
            wire(node.url) as client,
        ):
            await chat(client, "m0", [{"role": "system", "content": "x" * 1050}, user("script tokens=3 seed=0")])
            await say(client, "big", "z" * 900)
            error = (await client.until(lambda f: f["type"] in ("failed", "error") and f.get("id") == "big"))["error"]
            assert (error["code"], error["class"]) == ("context_length_exceeded", "permanent")
            assert error["details"]["room_tokens"] == 450, "the largest target's room"
            assert error["details"]["input_tokens"] > 450
            assert str(error["details"]["input_tokens"]) in error["message"]


async def test_tools_are_answered_by_another_device(valkey_url: str) -> None:
    async with place(valkey_url, 2) as here, wire(here.url) as client, wire(here.nodes[1].url) as other:
        view = await chat(client, "m1", "script tokens=3 tool=weather tools=2 seed=t")
        calls = [call["id"] for call in view.tool_calls]
        assert view.end is not None
        assert (len(calls), view.end["finish_reason"]) == (2, "tool_calls")
        result = [{"role": "tool", "tool_call_id": call, "content": f"sunny {n}"} for n, call in enumerate(calls)]
        await say(client, "m2", result[:1])
        error = await client.error("m2")
        assert (error["code"], error["details"]) == ("invalid_frame", {"missing": [calls[1]]})
        assert (await ask(other, "answer", input=result[1]))["missing"] == [calls[0]]
        assert (await ask(client, "answer", input=result[1]))["missing"] == [calls[0]]  # once
        await say(other, "m3", result[:1])
        await other.ended("m3")
        page = (await history(client))["messages"]
        assert [m["role"] for m in page] == ["user", "assistant", "tool", "tool", "assistant"]
        assert [m.get("tool_call_id") for m in page[2:4]] == [calls[1], calls[0]]
        assert len(page[1]["tool_calls"]) == 2


async def test_lost_answers_to_tool_calls_time_out_for_all_to_see(here: Place) -> None:
    here.nodes[0].node.conversations.tool_seconds = 0.2
    async with wire(here.url) as client:
        await client.send({"type": "subscribe", "conversation": "c1"})
        await say(client, "m1", "script tokens=3 tool=weather seed=t")
        lost = await client.until(lambda f: f["type"] == "message" and f["role"] == "tool")
        assert lost["timed_out"] is True
        view = await chat(client, "m2", "script tokens=3")
        assert view.text


async def test_lost_answers_time_out_though_nobody_watches_and_whoever_comes_next_sees_it(valkey_url: str) -> None:
    async with place(valkey_url, 2) as here:
        first, second = here.nodes
        first.node.conversations.tool_seconds = 0.0  # the other node did not make the calls and knows nothing of it
        for conversation in ("read", "looked-at", "answered", "went-on"):
            async with wire(first.url) as client:
                view = await chat(
                    client, conversation, "script tokens=3 tool=weather tools=2", conversation=conversation
                )
            call = view.tool_calls[0]["id"]
            async with wire(second.url) as other:
                if conversation == "looked-at":
                    assert (await ask(other, "get", conversation))["entries"] == 4
                elif conversation == "answered":  # too late
                    result = {"role": "tool", "tool_call_id": call, "content": "sunny"}
                    assert (await ask(other, "answer", conversation, input=result))["missing"] == []
                    await say(other, "late", [result], conversation=conversation)
                    error = await other.error("late")
                    assert (error["code"], error["details"]) == ("invalid_frame", {"answered": [call]})
                elif conversation == "went-on":
                    await chat(other, "next", "script tokens=3", conversation=conversation)
                page = (await history(other, conversation))["messages"][:4]
            assert [m["role"] for m in page] == ["user", "assistant", "tool", "tool"]
            assert [(m["content"], m["timed_out"]) for m in page[2:]] == [("no result", True)] * 2


async def test_calls_of_later_answers_may_have_the_same_ids(here: Place) -> None:
    async with wire(here.url) as client:
        for number in range(2):
            view = await chat(client, f"m{number}", "script tokens=3 tool=weather seed=t")
            (call,) = view.tool_calls
            result = {"role": "tool", "tool_call_id": call["id"], "content": f"sunny {number}"}
            assert (await ask(client, "answer", input=result))["missing"] == []
        results = [m["content"] for m in (await history(client))["messages"] if m["role"] == "tool"]
        assert results == ["sunny 0", "sunny 1"]


async def test_a_large_part_is_stored_once_and_sent_by_reference(here: Place) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 60_000}}
    async with wire(here.url) as client:
        await chat(client, "m1", [{"type": "text", "text": "script tokens=3"}, image])
        part = (await history(client))["messages"][0]["content"][1]
        assert part["type"] == "image_url"
        by_reference = {"type": "image_url", "ref": part["ref"]}
        await chat(client, "m2", [{"type": "text", "text": "script tokens=4"}, by_reference])
        first = user([{"type": "text", "text": "script tokens=3"}, image])
        second = user([{"type": "text", "text": "script tokens=4"}, image])
        sent = [[first], [first, answer([first]), second]]
        assert told(here.upstream) == [message_hash(messages) for messages in sent], "the upstream gets the data itself"
        got = await ask(client, "part", ref=part["ref"])
        assert (got["total"], got["data"][:30]) == (part["bytes"], '{"type":"image_url","image_url')
        await say(client, "m3", [{"type": "image_url", "ref": "0" * 64}])
        assert (await client.error("m3"))["code"] == "invalid_frame"
        text = "script tokens=3\n" + "long " * 10_000
        view = await chat(client, "m4", text, conversation="c2")
        assert view.text == expected_text([user(text)], MODEL)


# --- keeping and deleting --------------------------------------------------------------------------------------------


async def test_list_create_rename_and_limits(valkey_url: str) -> None:
    tier = {"default": {"conversations": 2, "conversation_entries": 4, "conversation_bytes": 100_000}}
    async with place(valkey_url, tiers=tier) as here, wire(here.url) as client:
        await ask(client, "create", "c1", title="First")
        await chat(client, "m1", "x", conversation="c2")
        found = (await ask(client, "list", None))["conversations"]
        assert [(c["conversation"], c["title"], c["entries"]) for c in found] == [("c2", None, 2), ("c1", "First", 0)]
        await say(client, "m2", "x", conversation="c3")
        assert (await client.error("m2"))["details"] == {"limit": "conversations", "most": 2}
        await chat(client, "m3", "x", conversation="c2")
        await say(client, "m4", "x", conversation="c2")
        assert (await client.error("m4"))["details"]["limit"] == "entries"
        async with wire(here.url) as again:
            await chat(again, "m3", "x", conversation="c2")  # what is there is attached to
        await say(client, "m5", "x" * 100_001, conversation="c1")
        assert (await client.error("m5"))["details"]["limit"] == "bytes"


async def test_a_title_is_made_once_by_a_small_message_of_its_own(here: Place) -> None:
    async with wire(here.url) as client:
        await chat(client, "m1", "script tokens=5 seed=x")
        title = (await ask(client, "title"))["title"]
        assert title
        assert (await ask(client, "title"))["title"] == title
        assert here.upstream.count("start") == 2


async def test_a_title_holds_up_nothing(here: Place) -> None:
    async with wire(here.url) as client:
        await chat(client, "m1", "script tokens=5 first=1.0")  # the title takes as long
        await client.send({"type": "conversation", "op": "title", "conversation": "c1"})
        await client.send({"type": "ping", "nonce": 1})
        wanted = ("pong", "conversation")
        first = await client.until(lambda f: f["type"] in wanted)
        then = await client.until(lambda f: f["type"] in wanted)
        assert (first["type"], then["op"]) == ("pong", "title")


async def test_deletion_really_deletes(here: Place) -> None:
    secret = "swordfish"
    async with wire(here.url) as client, wire(here.url) as other:
        await other.send({"type": "subscribe", "conversation": "c1"})
        await chat(client, "m1", f"script tokens=5\n{secret * 9_000}")
        await chat(client, "m2", f"script tokens=5\n{secret}")
        await say(client, "m3", f"script tokens=20 hang=mid\n{secret}")
        await client.type("delta", "m3")
        await say(client, "m4", f"{secret}")
        await client.type("accepted", "m4")
        assert (await ask(client, "delete"))["op"] == "delete"
        await other.until(lambda f: f["type"] == "conversation" and f["op"] == "deleted")
        text = expected_text([user(f"script tokens=5\n{secret * 9_000}")], MODEL)[10:]
        await eventually(lambda: not here.nodes[0].node.keeper.finishing)
        left = await everything_in(here.redis_url)
        assert secret.encode() not in left
        assert text.encode() not in left
        await client.send({"type": "history", "conversation": "c1"})
        assert (await client.error())["code"] == "conversation_unknown"
        await say(client, "m9", "x")
        assert (await client.error("m9"))["code"] == "conversation_unknown"
        assert (await ask(client, "list", None))["conversations"] == []
        async with wire(here.url) as again:
            await say(again, "m1", f"script tokens=5\n{secret * 9_000}")
            end = (await again.ended("m1")).end
            assert end is not None
            assert (end["type"], end["error"]["code"]) == ("failed", "conversation_unknown")
        assert here.upstream.count("start") == 3


async def test_a_device_that_follows_is_told_its_own_answers_once(here: Place) -> None:
    async with wire(here.url) as client:
        await client.send({"type": "subscribe", "conversation": "c1"})
        for number in range(10):
            name = f"m{number}"
            await say(client, name, "script tokens=4", on_busy="reject")  # an answer that is over is not busy
            ended: set[str] = set()
            while ended != {"notice", "end"}:
                frame = await client.recv()  # asserts that nothing comes twice
                assert frame["type"] != "error", frame
                if frame.get("id") == name and frame["type"] == "done":
                    ended.add("end")
                if frame["type"] == "message" and frame["id"] == name and frame["state"] == "done":
                    ended.add("notice")
        assert all(frame.get("op") == "queue" for frame in await client.quiet())


async def test_a_pinned_entry_stays_in_the_context_of_a_long_branch(valkey_url: str) -> None:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(serving())
        target = {"driver": "openai", "base_url": f"{upstream.url}/v1", "model": "scripted", "context_tokens": 400}
        settings = settings_for(valkey_url, upstream.url, {"targets": {"scripted": target}})
        node = await stack.enter_async_context(running_node(settings))
        client = await stack.enter_async_context(wire(node.url))
        for number in range(8):
            await chat(client, f"m{number}", f"script tokens=2 seed={number}\n" + "y" * 300)
        page = (await history(client))["messages"]
        await ask(client, "pin", entry=page[2]["id"])
        await chat(client, "m8", "script tokens=2")
        page = (await history(client))["messages"]
        assert told(upstream)[-1] == message_hash([page[2], *page[-4:-1]])
