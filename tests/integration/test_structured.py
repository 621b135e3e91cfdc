"""Structured output: what does not fit is a failed attempt, whose text is withdrawn; what never fits is an error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from tests.integration.http.client import Place, refused
from tests.integration.http.client import place as http_place
from tests.nodes import RunningNode, running_node, settings_for
from tests.upstreams.scripted import ScriptedUpstream, serving
from tests.wire import Frame, wire

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
GOOD, BAD = '{"age":3}', '{"age":"three"}'


@asynccontextmanager
async def targets(redis_url: str, *says: str, **route: Any) -> AsyncIterator[tuple[RunningNode, ScriptedUpstream]]:
    """A node whose route has one target for each of these answers."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(serving())
        models = {f"t{n}": f"scripted?say={said}" for n, said in enumerate(says)}
        sections = {
            "targets": {
                name: {"driver": "openai", "base_url": f"{upstream.url}/v1", "model": model}
                for name, model in models.items()
            },
            "routes": {"default": {"targets": list(models), **route}},
        }
        node = await stack.enter_async_context(running_node(settings_for(redis_url, upstream.url, sections)))
        yield node, upstream


def send(message_id: str, response_format: Any = FORMAT) -> Frame:
    messages = [{"role": "user", "content": "how old?"}]
    return {"type": "send", "id": message_id, "messages": messages, "response_format": response_format}


async def test_an_answer_that_does_not_fit_is_withdrawn_and_the_next_target_is_asked(valkey_url: str) -> None:
    async with targets(valkey_url, BAD, GOOD) as (node, _), wire(node.url) as client:
        await client.send(send("m1"))
        view = await client.ended("m1")
        assert view.end is not None
        assert (view.end["type"], view.text, view.end["target"]) == ("done", GOOD, "t1")
        view.check_hash()
        assert [(a["target"], a["mode"]) for a in view.attempts] == [("t0", "fresh"), ("t1", "restart")]
        reason = view.attempts[1]["reason"]
        assert reason["code"] == "output_invalid"
        assert "at $.age: `type`" in reason["message"]
        assert "three" not in reason["message"]


async def test_a_route_that_never_fits_ends_with_an_error_that_may_be_tried_again(valkey_url: str) -> None:
    async with targets(valkey_url, BAD) as (node, upstream), wire(node.url) as client:
        await client.send(send("m1"))
        end = (await client.ended("m1")).end
        assert end is not None
        error = end["error"]
        assert (end["type"], error["code"], error["status"], error["retryable"]) == (
            "failed",
            "output_invalid",
            502,
            True,
        )
        assert "at $.age" in error["message"]
        await client.send(send("m2", {"type": "json_object"}))  # this is all that json_object asks for
        assert (await client.ended("m2")).text == BAD
        assert upstream.count("start") == 2


async def test_a_route_that_only_fails_keeps_what_stands(valkey_url: str) -> None:
    async with (
        targets(valkey_url, BAD, GOOD, on_midstream_failure="fail") as (node, upstream),
        wire(node.url) as client,
    ):
        await client.send(send("m1"))
        view = await client.ended("m1")
        assert view.end is not None
        assert (view.end["type"], view.end["partial"], view.text) == ("failed", True, BAD)
        assert upstream.count("start") == 1


async def test_a_fitting_answer_is_untouched_and_breakers_do_not_care(valkey_url: str) -> None:
    async with targets(valkey_url, GOOD, BAD) as (node, _), wire(node.url) as client:
        await client.send(send("m1"))
        view = await client.ended("m1")
        assert view.text == GOOD
        assert len(view.attempts) == 1


async def test_a_schema_that_is_none_is_refused_before_anything_is_claimed(valkey_url: str) -> None:
    async with targets(valkey_url, GOOD) as (node, upstream), wire(node.url) as client:
        bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}}
        await client.send(send("m1", bad))
        error = await client.error("m1")
        assert error["code"] == "invalid_frame"
        assert "$.type" in error["message"]
        await client.send(send("m1"))  # the id is free
        assert (await client.ended("m1")).text == GOOD
        assert upstream.count("start") == 1


async def test_over_http_it_is_the_status(valkey_url: str) -> None:
    here: Place
    async with http_place(valkey_url) as here:
        async with here.ask(f"script say={BAD}", "m1", response_format=FORMAT) as answer:
            await refused(answer, 502, "output_invalid")
        async with here.ask(f"script say={GOOD}", "m2", response_format=FORMAT) as answer:
            assert (await answer.json())["choices"][0]["message"]["content"] == GOOD
        async with here.ask("x", "m3", response_format={"type": "xml"}) as answer:
            await refused(answer, 400, "invalid_frame")
