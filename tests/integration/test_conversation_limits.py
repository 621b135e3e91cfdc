"""The limits of a tier: with many devices on several nodes at once exactly what is allowed is kept, and of what is
refused nothing is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import redis.asyncio

from server.messages.place import Place as Conversation
from tests.integration.test_conversations import Place, ask, chat, everything_in, place, say, whole_history
from tests.wire import Wire, eventually_true, wire

Frame = dict[str, Any]
DEVICES = 8
LARGE = 40_000
"""More than what is stored as a part of its own."""
TAGGED = len(Conversation.of("", "").keys.meta.partition(b"}")[0])
"""The tag of a message has one character less, and may begin like that of a conversation."""


def marked(number: int) -> str:
    return f"script tokens=3 seed=marker-{number}-"


def large(number: int) -> list[Frame]:
    return [{"type": "text", "text": "script tokens=3"}, {"type": "text", "text": marked(number).ljust(LARGE, "x")}]


@asynccontextmanager
async def devices(here: Place) -> AsyncIterator[list[Wire]]:
    """Connections, to the nodes in turns."""
    async with AsyncExitStack() as stack:
        urls = [here.nodes[number % len(here.nodes)].url for number in range(DEVICES)]
        yield [await stack.enter_async_context(wire(url)) for url in urls]


async def answer_to(client: Wire, message_id: str) -> Frame | None:
    """None if the message is accepted; else why not."""
    frame = await client.until(lambda f: f["type"] in ("accepted", "error") and f.get("id") == message_id)
    error: Frame | None = frame.get("error")
    return error


async def send_all(
    clients: list[Wire], given: Callable[[int], Any], name: Callable[[int], str] = "c1".format
) -> list[Frame | None]:
    """Every device sends its own input at the same moment; the answers."""
    for number, client in enumerate(clients):
        await say(client, f"m{number}", given(number), conversation=name(number))
    return await asyncio.gather(*(answer_to(client, f"m{number}") for number, client in enumerate(clients)))


async def conversations_in(redis_url: str) -> set[bytes]:
    """The hash tags of all conversations of which there is any key."""
    async with redis.asyncio.Redis.from_url(redis_url) as server:
        found = {key.partition(b"}")[0] async for key in server.scan_iter(match="tw:{c*}:*")}
    return {tag for tag in found if len(tag) == TAGGED}


async def check_refusals(here: Place, answers: list[Frame | None], limit: Frame) -> None:
    """Who was refused was told the limit, and nothing of it is in Redis; what was accepted is."""
    for error in answers:
        assert error is None or (error["code"], error["details"]) == ("conversation_limit", limit)
    found = await everything_in(here.redis_url)
    kept = [marked(number).encode() in found for number in range(DEVICES)]
    assert kept == [error is None for error in answers]


@pytest.mark.parametrize("busy", [True, False])
async def test_sends_at_once_fill_a_conversation_to_its_last_entry_and_no_further(valkey_url: str, busy: bool) -> None:
    """Those that wait count like those that have entered."""
    async with place(valkey_url, 2, tiers={"default": {"conversation_entries": 8}}) as here, devices(here) as clients:
        if busy:
            await say(clients[0], "first", "script tokens=20 hang=mid")
            await clients[0].type("delta", "first")
        answers = await send_all(clients, marked)
        assert answers.count(None) == (3 if busy else 4)
        await check_refusals(here, answers, {"limit": "entries", "most": 8})
        if busy:
            await clients[0].send({"type": "cancel", "id": "first"})
        for number, client in enumerate(clients):
            if answers[number] is None:
                await client.ended(f"m{number}")
        await whole_history(clients[0])
        assert (await ask(clients[0], "get"))["entries"] == 8


async def test_what_a_full_conversation_refuses_does_not_move_it_on_the_list(valkey_url: str) -> None:
    async with place(valkey_url, tiers={"default": {"conversation_entries": 2}}) as here, wire(here.url) as client:
        for name in ("c1", "c2"):
            await chat(client, f"m-{name}", "script tokens=3", conversation=name)
        await say(client, "more", "x", conversation="c1")
        assert (await client.error("more"))["code"] == "conversation_limit"
        found = (await ask(client, "list", None))["conversations"]
        assert [conversation["conversation"] for conversation in found] == ["c2", "c1"]


async def test_large_parts_are_kept_only_with_what_is_accepted(valkey_url: str) -> None:
    most = 3 * (LARGE + 2_000)
    async with place(valkey_url, 2, tiers={"default": {"conversation_bytes": most}}) as here, devices(here) as clients:
        await say(clients[0], "first", "script tokens=20 hang=mid")
        await clients[0].type("delta", "first")
        answers = await send_all(clients, large)
        assert answers.count(None) == 3
        await check_refusals(here, answers, {"limit": "bytes", "most": most})
        back, tried = answers.index(None), next(number for number, error in enumerate(answers) if error)
        await clients[back].send({"type": "cancel", "id": f"m{back}"})
        await clients[back].ended(f"m{back}")

        async def has_room() -> bool:  # a moment after the end was told
            await say(clients[tried], f"m{tried}", large(tried))
            return await answer_to(clients[tried], f"m{tried}") is None

        await eventually_true(has_room)
        await clients[0].send({"type": "cancel", "id": "first"})
        for number, client in enumerate(clients):
            if number == tried or (answers[number] is None and number != back):
                await client.ended(f"m{number}")
        await whole_history(clients[0])
        async with redis.asyncio.Redis.from_url(valkey_url) as server:
            (key,) = [key async for key in server.scan_iter(match="tw:{c*}:p", count=1000)]
            assert await server.hlen(key) == 3, "that of the message taken back is stored"


@pytest.mark.parametrize("by", ["create", "send"])
async def test_creating_at_once_makes_as_many_conversations_as_are_allowed(valkey_url: str, by: str) -> None:
    async with place(valkey_url, 2, tiers={"default": {"conversations": 3}}) as here, devices(here) as clients:
        if by == "send":
            answers = await send_all(clients, marked, "c{}".format)
        else:
            frames = await asyncio.gather(
                *(ask(client, "create", f"c{n}", title=marked(n)) for n, client in enumerate(clients))
            )
            answers = [frame.get("error") for frame in frames]
        assert answers.count(None) == 3
        await check_refusals(here, answers, {"limit": "conversations", "most": 3})
        assert len(await conversations_in(valkey_url)) == 3
        listed = {found["conversation"] for found in (await ask(clients[0], "list", None))["conversations"]}
        assert listed == {f"c{number}" for number, error in enumerate(answers) if error is None}


async def test_a_refusal_does_not_take_a_conversation_off_the_list_that_another_send_makes(valkey_url: str) -> None:
    async with place(valkey_url, 2, tiers={"default": {"conversations": 1}}) as here, devices(here) as clients:
        for number, client in enumerate(clients):
            nowhere = {"parent": "nothing"} if number % 2 else {}
            await say(client, f"m{number}", marked(number), **nowhere)
        await asyncio.gather(*(answer_to(client, f"m{number}") for number, client in enumerate(clients)))
        found = (await ask(clients[0], "list", None))["conversations"]
        assert [conversation["conversation"] for conversation in found] == ["c1"]
        await say(clients[0], "other", "x", conversation="c2")
        assert await answer_to(clients[0], "other")


async def test_answers_of_tools_stop_at_the_limit_too(valkey_url: str) -> None:
    async with place(valkey_url, 2, tiers={"default": {"conversation_entries": 3}}) as here, devices(here) as clients:
        view = await chat(clients[0], "first", "script tokens=3 tool=weather tools=2 seed=t")
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": marked(n).ljust(LARGE, "x")}
            for n, call in enumerate(view.tool_calls)
        ]
        frames = await asyncio.gather(*(ask(c, "answer", input=r) for c, r in zip(clients, results, strict=False)))
        refused = [frame.get("error") for frame in frames]
        assert refused.count(None) == 1
        for number, error in enumerate(refused):
            assert error is None or error["details"] == {"limit": "entries", "most": 3}
            assert (marked(number).encode() in await everything_in(valkey_url)) == (error is None)
