"""What must not be done to a conversation: each gets its own error, and nothing is half-done."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from protocol.errors import ERRORS
from tests.integration.test_conversations import (
    Place,
    ask,
    chat,
    everything_in,
    here,
    history,
    place,
    say,
    told,
    user,
    whole_history,
)
from tests.upstreams.script import message_hash
from tests.wire import CODECS, JSON, wire

__all__ = ["here"]
Frame = dict[str, Any]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 60_000}}
NOWHERE = "0" * 64


def op(name: str, conversation: Any = "c1", **fields: Any) -> Frame:
    return {"type": "conversation", "op": name, "conversation": conversation, **fields}


def send(given: Any, **fields: Any) -> Frame:
    return {"type": "send", "id": "bad", "conversation": "c1", "input": given, **fields}


def page(**fields: Any) -> Frame:
    return {"type": "history", "conversation": "c1", **fields}


def follow(conversation: Any = "c1", **fields: Any) -> Frame:
    return {"type": "subscribe", "conversation": conversation, **fields}


def tool(call: str) -> Frame:
    return {"role": "tool", "tool_call_id": call, "content": "sunny"}


BAD_FRAMES: list[tuple[Frame, str]] = [
    (op("create", None), "invalid_frame"),
    (op("create", 5), "invalid_frame"),
    (op("create", "a b"), "invalid_frame"),
    (op("create", "x" * 65), "invalid_frame"),
    (op("create", "new", title="t" * 513), "invalid_frame"),
    (op("create", "new", title=["t"]), "invalid_frame"),
    (op("burn"), "invalid_frame"),
    (op(None), "invalid_frame"),  # type: ignore[arg-type]
    (op("rename"), "invalid_frame"),
    (op("rename", title="t" * 513), "invalid_frame"),
    (op("rename", title={"a": 1}), "invalid_frame"),
    (op("rename", "nothing", title="t"), "conversation_unknown"),
    (op("get", "nothing"), "conversation_unknown"),
    (op("title", "nothing"), "conversation_unknown"),
    (op("title", model="x" * 129), "invalid_frame"),
    (op("delete", "nothing"), "conversation_unknown"),
    (op("waiting", "nothing"), "conversation_unknown"),
    (op("choose"), "invalid_frame"),
    (op("choose", entry="nothing"), "message_unknown"),
    (op("choose", entry="other"), "message_unknown"),  # an entry of another conversation
    (op("choose", entry="."), "invalid_frame"),
    (op("choose", "nothing", entry="m1"), "conversation_unknown"),
    (op("pin", entry="nothing"), "message_unknown"),
    (op("unpin", entry=["m1"]), "invalid_frame"),
    (op("answer"), "invalid_frame"),
    (op("answer", input=[user("not a tool")]), "invalid_frame"),
    (op("answer", input={"role": "tool", "content": "of no call"}), "invalid_frame"),
    (op("answer", input=tool("nobody-called")), "invalid_frame"),
    (op("answer", "nothing", input=tool("nobody-called")), "conversation_unknown"),
    (op("part"), "invalid_frame"),
    (op("part", ref=NOWHERE), "message_unknown"),
    (op("part", ref="../" * 20), "invalid_frame"),
    (op("part", ref="f" * 100_000), "invalid_frame"),
    (op("part", ref=NOWHERE, entry="m1"), "invalid_frame"),
    (op("part", entry="nothing"), "message_unknown"),
    (op("part", "nothing", ref=NOWHERE), "conversation_unknown"),
    (op("part", entry="m1", offset=-1), "invalid_frame"),
    (op("part", entry="m1", offset=2**40), "invalid_frame"),
    (op("list", None, limit=0), "invalid_frame"),
    (op("list", None, limit=201), "invalid_frame"),
    (op("list", None, before="yesterday"), "invalid_frame"),
    (page(before="nothing"), "message_unknown"),
    (page(after="other"), "message_unknown"),
    (page(before="x" * 100_000), "invalid_frame"),
    (page(branch="nothing"), "message_unknown"),
    (page(before="m1", after="m1"), "invalid_frame"),
    (page(limit=True), "invalid_frame"),
    ({"type": "history", "conversation": "nothing"}, "conversation_unknown"),
    ({"type": "history"}, "invalid_frame"),
    (follow(None), "invalid_frame"),
    (follow(after=-1), "invalid_frame"),
    (follow(after="1"), "invalid_frame"),
    ({"type": "unsubscribe"}, "invalid_frame"),
    (send([]), "invalid_frame"),
    (send(5), "invalid_frame"),
    (send([1, 2]), "invalid_frame"),
    (send(["text"]), "invalid_frame"),
    (send([{"role": "king", "content": "x"}]), "invalid_frame"),
    (send([user("x")] * 257), "invalid_frame"),
    (send("x", parent="nothing"), "message_unknown"),
    (send("x", parent="other"), "message_unknown"),  # a branch of another conversation
    (send("x", parent="bad"), "message_unknown"),  # below itself
    (send("x", parent="."), "invalid_frame"),
    (send(None, parent="c1"), "invalid_frame"),  # an answer to nothing
    (send([tool("nobody-called")]), "invalid_frame"),
    (send([{"type": "image_url", "ref": NOWHERE}]), "invalid_frame"),
    (send([{"type": "image_url", "ref": [NOWHERE]}]), "invalid_frame"),
    (send([{"type": "image_url", "ref": "f" * 100_000}]), "invalid_frame"),
]


@pytest.mark.parametrize("codec", CODECS)
async def test_every_bad_frame_is_answered_and_changes_nothing(here: Place, codec: str) -> None:
    async with wire(here.url, codec) as client:
        await chat(client, "m1", "script tokens=3")
        await chat(client, "other", "script tokens=3", conversation="c2")
        await whole_history(client)

        async def everything() -> Any:
            listed = (await ask(client, "list", None))["conversations"]
            return await history(client), sorted(listed, key=repr), await ask(client, "get")

        before = await everything()
        for frame, code in BAD_FRAMES:
            await client.send(frame)
            got = await client.until(lambda f: f["type"] in ("error", "conversation", "history", "accepted"))
            assert got["type"] == "error", frame
            error = got["error"]
            assert (error["code"], got["re"]) == (code, frame["type"]), (frame, error)
            assert (error["class"], error["status"]) == (ERRORS[code].error_class, ERRORS[code].status)
            assert 0 < len(error["message"]) < 1_000
        await client.quiet()
        assert await everything() == before
        assert here.upstream.count("start") == 2
        await chat(client, "bad", "the id is free")


async def test_what_is_no_utf8_ends_the_connection_and_nothing_else(here: Place) -> None:
    async with wire(here.url) as client:
        await chat(client, "m1", "script tokens=3")
        title = '{"type":"conversation","op":"rename","conversation":"c1","title":"Gr\u00f6'.encode()[:-1]
        await client.ws.send(title, text=True)
        assert await client.closed() == 1007
    async with wire(here.url) as client:
        assert (await ask(client, "get"))["title"] is None
        await client.ws.send('{"type":"conversation","op":"rename","conversation":"c1","title":"\\ud800"}')
        await client.until(lambda f: f["type"] == "conversation" and f["op"] == "rename")
        assert (await ask(client, "get"))["title"] == "\ufffd"


async def test_what_is_deleted_answers_nothing_any_more(here: Place) -> None:
    async with wire(here.url) as client, wire(here.url) as other:
        await chat(client, "m1", [{"type": "text", "text": "script tokens=3"}, IMAGE])
        ref = (await history(client))["messages"][0]["content"][1]["ref"]
        await say(client, "m2", "script tokens=20 hang=mid")
        await client.type("delta", "m2")
        first, second = await asyncio.gather(ask(client, "delete"), ask(other, "delete"))  # while it answers
        ended = [f for f in (first, second) if f["type"] == "conversation"]
        assert ended
        assert {f["error"]["code"] for f in (first, second) if f["type"] == "error"} <= {"conversation_unknown"}
        for frame in (
            op("get"), op("rename", title="x"), op("title"), op("create"), op("delete"), op("waiting"),
            op("choose", entry="m1"), op("pin", entry="m1"), op("answer", input=tool("x")), op("part", ref=ref),
            op("part", entry="m1"), page(), follow(), send("x"), send("x", parent="m1"),
            send([{"type": "image_url", "ref": ref}]),
        ):  # fmt: skip
            await other.send(frame)
            got = await other.until(lambda f: f["type"] in ("error", "conversation", "history", "accepted"))
            assert got["type"] == "error", frame
            assert got["error"]["code"] == "conversation_unknown", frame
        assert (await ask(other, "list", None))["conversations"] == []
        await say(other, "m9", [{"type": "image_url", "ref": ref}], conversation="c2")
        assert (await other.error("m9"))["code"] == "invalid_frame", "a part of the deleted one"
        assert (await ask(other, "list", None))["conversations"] == []


async def test_a_conversation_is_deleted_whatever_its_messages_are_called(here: Place) -> None:
    async with wire(here.url) as client:
        await chat(client, "unknown", "script tokens=3\nswordfish")
        assert (await ask(client, "delete"))["type"] == "conversation"
        assert b"swordfish" not in await everything_in(here.redis_url)


async def test_deletion_finds_what_is_in_no_branch(here: Place) -> None:
    """Inputs taken back before their turn, answers that were rolled back, what a title was made of."""
    async with wire(here.url) as client:
        await chat(client, "m1", "script tokens=3\nswordfish one")
        assert (await ask(client, "title"))["title"]
        question = (await history(client))["messages"][0]["id"]
        await say(client, "m2", None, parent=question)
        await client.ended("m2")
        await say(client, "m3", "script tokens=20 hang=mid\nmackerel")
        await client.type("delta", "m3")
        await say(client, "m4", "swordfish two")
        await client.type("accepted", "m4")
        await client.send({"type": "cancel", "id": "m4"})
        await client.ended("m4")
        await say(client, "m5", "script tokens=20 hang=mid", parent=question, on_busy="interrupt")
        await client.ended("m3")
        await client.type("delta", "m5")
        await say(client, "m6", "script tokens=3", on_busy="rollback")
        gone = (await client.ended("m5")).text
        await client.ended("m6")
        assert (await ask(client, "delete"))["op"] == "delete"
        left = await everything_in(here.redis_url)
        for text in ("swordfish one", "swordfish two", "mackerel", gone[10:]):
            assert text.encode() not in left


async def test_a_client_s_word_for_a_stored_part_is_not_taken(here: Place) -> None:
    text = "script tokens=3\n" + "long " * 10_000
    async with wire(here.url) as client:
        await chat(client, "m1", [{"type": "text", "text": "script tokens=3"}, IMAGE])
        await chat(client, "m2", text)
        page = (await whole_history(client))["messages"]
        image, stored = page[0]["content"][1], page[2]["content"][0]
        before = (await ask(client, "get"))["bytes"]
        lies: list[Frame] = [
            {**image, "bytes": -(2**40), "whole": True},
            {**stored, "bytes": "many", "whole": True, "type": "image_url"},
            {"type": "text", "text": "script tokens=3", "whole": True},
        ]
        await chat(client, "m3", lies)
        found = (await history(client))["messages"][-2]["content"]
        whole = stored.pop("whole")
        assert whole is True
        assert found == [image, stored, lies[2]]
        assert (await ask(client, "get"))["bytes"] > before + image["bytes"] + stored["bytes"]
        await chat(client, "m4", [image], conversation="c1")
        sent = [
            user([{"type": "text", "text": "script tokens=3"}, IMAGE]), page[1], user(text), page[3],
            user([IMAGE, {"type": "text", "text": text}, lies[2]]),
        ]  # fmt: skip
        assert message_hash(sent) in told(here.upstream)


async def test_images_beyond_the_limits_are_refused_and_leave_nothing(valkey_url: str) -> None:
    tier = {"default": {"conversation_bytes": 100_000}}
    async with place(valkey_url, tiers=tier) as here, wire(here.url, JSON) as client:
        await chat(client, "m1", [{"type": "text", "text": "script tokens=3"}, IMAGE])
        ref = (await history(client))["messages"][0]["content"][1]
        for given in ([IMAGE], [ref, {"type": "text", "text": "x" * 40_000}]):
            await say(client, "m2", given)
            assert (await client.error("m2"))["details"] == {"limit": "bytes", "most": 100_000}
        await say(client, "m3", [IMAGE, IMAGE], conversation="c2")
        assert (await client.error("m3"))["code"] == "conversation_limit"
        assert [c["conversation"] for c in (await ask(client, "list", None))["conversations"]] == ["c1"]


async def test_refused_inputs_make_no_conversation_and_take_no_place_on_the_list(valkey_url: str) -> None:
    async with place(valkey_url, tiers={"default": {"conversations": 1}}) as here, wire(here.url) as client:
        for number in range(3):
            await say(client, "bad", "x", conversation=f"c{number}", parent="nothing")
            assert (await client.error("bad"))["code"] == "message_unknown"
        await chat(client, "m1", "script tokens=3", conversation="c9")


async def test_results_of_tools_are_taken_as_soon_as_the_calls_are_told(here: Place) -> None:
    """Also where the conversation has not heard of the end yet, and where another branch has been chosen."""
    async with wire(here.url) as client:
        for number in range(8):
            view = await chat(client, f"m{number}", "script tokens=3 tool=weather tools=2 seed=t")
            one, two = (call["id"] for call in view.tool_calls)
            assert (await ask(client, "answer", input=tool(one))).get("missing") == [two]
            await say(client, "bad", [tool(two), tool("nobody-called")])
            assert (await client.error("bad"))["details"] == {"unknown": ["nobody-called"]}
            assert (await ask(client, "answer", input=tool(two)))["missing"] == []
        first = (await history(client, limit=200))["messages"][0]["id"]
        view = await chat(client, "again", "script tokens=3 tool=weather seed=t", parent=first)
        (call,) = (call["id"] for call in view.tool_calls)
        await ask(client, "choose", entry="m7")
        tip = (await ask(client, "get"))["tip"]
        assert (await ask(client, "answer", input=tool(call)))["missing"] == []
        found = await ask(client, "get")
        assert found["tip"] == tip
        branch = (await history(client, branch="again"))["messages"]
        assert [m["role"] for m in branch[-3:]] == ["user", "assistant", "tool"]


async def test_a_title_that_failed_can_be_asked_for_again(here: Place) -> None:
    async with wire(here.url) as client:
        await chat(client, "m1", [{"type": "text", "text": "script tokens=3"}, IMAGE])
        here.upstream.fail("status=503", times=1)
        assert (await ask(client, "title"))["error"]["code"] == "upstream_unavailable"
        assert (await ask(client, "title"))["title"]
