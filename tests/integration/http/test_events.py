"""`GET /v1/messages/{id}/events`: the journal as server-sent events, resumed from anywhere."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.integration.http.client import MODEL, Event, Place, events, place, refused, turns
from tests.nodes import RunningNode, running_node, settings_for
from tests.upstreams.script import expected_text
from tests.wire import View, eventually, wire

END = ("done", "failed", "cancelled")


def follow(
    here: Place, message_id: str, node: RunningNode | None = None, after: int | None = None, **fields: Any
) -> Any:
    """An open response with the events of a message."""
    path = f"/v1/messages/{message_id}/events" + (f"?after={after}" if after is not None else "")
    return here.http.get((node or here.node).http + path, **fields)


def apply(view: View, event: Event) -> None:
    """Take an event as a careful client does."""
    frame = event.data
    assert event.kind == frame["type"]
    whole = frame.get("last", True)
    assert event.id == (str(frame["seq"]) if "seq" in frame and whole else None)
    view.apply(frame)


async def to_the_end(view: View, response: aiohttp.ClientResponse) -> View:
    """Apply every event of a response."""
    async for event in events(response):
        if event.data is not None:
            apply(view, event)
    return view


async def start(here: Place, asked: str, message_id: str = "m1") -> None:
    """Ask for a message and let it run."""
    async with here.ask(asked, message_id, stream=True) as answer:
        await anext(events(answer))
        answer.close()


async def test_every_frame_of_the_journal_comes_as_an_event(redis_url: str) -> None:
    async with place(redis_url) as here, wire(here.node.url) as client:
        asked = "script tokens=200 rate=2000 unicode=1 reasoning=4 tool=weather"
        await start(here, asked)
        async with follow(here, "m1") as answer:
            view = await to_the_end(View("m1"), answer)
        await client.send({"type": "resume", "id": "m1"})
        other = await client.ended("m1")
        assert view.end == other.end
        assert (view.text, view.reasoning, view.tool_calls) == (other.text, other.reasoning, other.tool_calls)
        assert view.text == expected_text(turns(asked), MODEL)
        view.check_hash()


@pytest.mark.parametrize("how", ["header", "query", "other node", "socket"])
async def test_a_dropped_reader_goes_on_where_it_was(valkey_url: str, how: str) -> None:
    async with place(valkey_url) as here:
        asked = "script tokens=120 rate=400 unicode=1"
        await start(here, asked)
        view = View("m1")
        async with follow(here, "m1") as answer:
            async for event in events(answer):
                apply(view, event)
                if len(view.frames) > 10:
                    break
            answer.close()
        assert view.end is None
        cursor = view.cursor
        if how == "socket":
            async with wire(here.node.url) as client:
                client.views["m1"] = view
                await client.send({"type": "resume", "id": "m1", "after": cursor})
                await client.ended("m1")
        elif how == "other node":
            settings = settings_for(valkey_url, here.upstream.url)
            async with running_node(settings) as there:
                answer = await follow(here, "m1", there, headers={"Last-Event-ID": str(cursor)})
                await to_the_end(view, answer)
        elif how == "query":
            async with follow(here, "m1", after=cursor) as answer:
                await to_the_end(view, answer)
        else:
            async with follow(here, "m1", after=0, headers={"Last-Event-ID": str(cursor)}) as answer:
                await to_the_end(view, answer)
        assert view.snapshots == 0
        assert view.text == expected_text(turns(asked), MODEL)
        view.check_hash()
        assert here.upstream.count("start") == 1


async def test_a_cursor_beyond_the_journal_gets_a_snapshot(here: Place) -> None:
    asked = "script tokens=30"
    async with here.ask(asked, "m1"):
        pass
    async with follow(here, "m1", after=10**9) as answer:
        view = await to_the_end(View("m1"), answer)
    assert view.snapshots == 1
    assert view.text == expected_text(turns(asked), MODEL)


async def test_a_snapshot_in_parts_has_its_id_at_the_last(valkey_url: str) -> None:
    async with place(valkey_url, {"server": {"port": 0, "max_frame_bytes": 8192}}) as here:
        asked = "script bytes=9000"
        async with here.ask(asked, "m1"):
            pass
        async with follow(here, "m1", after=10**9) as answer:
            got = [event async for event in events(answer)]
        parts = [event for event in got if event.kind == "snapshot"]
        assert len(parts) > 3
        assert [event.id is not None for event in parts] == [False] * (len(parts) - 1) + [True]
        assert "".join(event.data["text"] for event in parts) == expected_text(turns(asked), MODEL)


async def test_after_the_end_there_is_no_content(here: Place) -> None:
    async with here.ask("script tokens=3", "m1"):
        pass
    head = (await here.message("m1"))["seq"]
    async with follow(here, "m1", after=head) as answer:
        assert answer.status == 204
    async with follow(here, "m1", after=head - 1) as answer:
        (end,) = [event async for event in events(answer)]
        assert (end.kind, end.id) == ("done", str(head))


@pytest.mark.parametrize("value", ["-1", "x", "1.5", "9" * 17, "٣"])
async def test_a_wrong_cursor_is_refused(here: Place, value: str) -> None:
    async with here.ask("script tokens=3", "m1"):
        pass
    async with follow(here, "m1", after=value) as answer:  # type: ignore[arg-type]
        assert (await refused(answer, 400, "invalid_request"))["param"] == "after"


async def test_unknown_messages_are_404_and_bad_ids_400(here: Place) -> None:
    for path in ("", "/events"):
        async with here.request("GET", f"/v1/messages/nobody-knows{path}") as answer:
            await refused(answer, 404, "message_unknown")
        async with here.request("GET", f"/v1/messages/no.id{path}") as answer:
            await refused(answer, 400, "invalid_request")
    async with here.request("POST", "/v1/messages/nobody-knows/cancel") as answer:
        await refused(answer, 404, "message_unknown")


async def test_a_restart_is_visible(here: Place) -> None:
    from tests.integration.http.test_completions import two_targets

    settings = settings_for(here.redis_url, here.upstream.url, two_targets(here.upstream.url, "restart"))
    async with running_node(settings) as node:
        async with here.ask("script tokens=30", "m1", node):
            pass
        async with follow(here, "m1", node) as answer:
            view = await to_the_end(View("m1"), answer)
    assert [attempt["mode"] for attempt in view.attempts] == ["fresh", "restart"]
    assert view.text == expected_text(turns("script tokens=30"), "second")


async def test_a_node_that_drains_sends_its_readers_to_another(valkey_url: str) -> None:
    overrides = {"server": {"port": 0, "drain_seconds": 0.3}, "messages": {"takeover_seconds": 0.5}}
    asked = "script tokens=60 rate=20"
    async with place(valkey_url, overrides) as here:
        async with running_node(settings_for(valkey_url, here.upstream.url, overrides)) as there:
            completion = await here.ask(asked, "m1", stream=True)
            chunks = events(completion)
            await anext(chunks)
            view = View("m1")
            async with follow(here, "m1") as answer:
                stream = events(answer)
                apply(view, await anext(stream))
                here.node.stop.set()
                told = []
                async for event in stream:
                    if event.kind in ("goaway", "error"):
                        told.append(event)
                    else:
                        apply(view, event)
            assert [event.kind for event in told] == ["goaway", "error"]
            assert told[0].retry == told[0].data["reconnect_after_ms"]
            assert told[1].data["error"]["code"] == "draining"
            rest = [event async for event in chunks]
            assert rest[-1].data["error"]["code"] == "draining"
            assert any(event.comment == "goaway" for event in rest)
            assert view.end is None
            async with follow(here, "m1", there, after=view.cursor) as answer:
                await to_the_end(view, answer)
            assert view.text == expected_text(turns(asked), MODEL)
            assert view.attempts[-1]["mode"] == "restart"
            async with here.ask(asked, "m1", there, stream=True) as answer:
                assert answer.status == 200
        completion.close()


async def test_a_claim_that_is_taken_back_is_told(here: Place) -> None:
    """Whoever follows a message that comes to nothing hears of it and is let go."""
    await start(here, "script tokens=30 hang=mid")
    async with follow(here, "m1") as answer:
        stream = events(answer)
        await anext(stream)
        hub = here.node.node.hub
        (channel,) = hub.channels.values()
        for follower in list(channel.followers):
            follower.gone(channel.tag, None)
        rest = [event async for event in stream if event.kind == "error"]
        assert rest[0].data["error"]["code"] == "message_unknown"
        assert rest[0].id is None
    await eventually(lambda: not here.node.node.responses)
    async with here.request("POST", "/v1/messages/m1/cancel") as stopped:
        assert stopped.status == 200


async def test_many_readers_of_one_message(here: Place) -> None:
    asked = "script tokens=150 rate=1500 unicode=1"
    await start(here, asked)

    async def read() -> str:
        async with follow(here, "m1") as answer:
            return (await to_the_end(View("m1"), answer)).text

    assert set(await asyncio.gather(*(read() for _ in range(12)))) == {expected_text(turns(asked), MODEL)}
