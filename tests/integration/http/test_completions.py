"""`POST /v1/chat/completions` over real parts: the answer, its repeats, its failures."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import tracemalloc
from contextlib import ExitStack
from typing import Any

import aiohttp
import httpx
import orjson
import pytest
from starlette.applications import Starlette

from server.http.routes import routes
from tests.integration.http.client import CHAT, MODEL, Place, Streamed, events, place, refused, streamed, turns
from tests.nodes import running_node, settings_for
from tests.upstreams.script import expected_reasoning, expected_text, expected_tool_calls
from tests.wire import eventually, eventually_true, wire

TWO_TARGETS = {
    "first": {"driver": "openai", "base_url": "", "model": "first?cut=event"},
    "second": {"driver": "openai", "base_url": "", "model": "second", "prefill": True},
}


def two_targets(upstream: str, on_midstream_failure: str) -> dict[str, Any]:
    """A route whose first target breaks off in the middle."""
    targets = {name: {**target, "base_url": f"{upstream}/v1"} for name, target in TWO_TARGETS.items()}
    route = {"targets": ["first", "second"], "on_midstream_failure": on_midstream_failure}
    return {"targets": targets, "routes": {"default": route}}


# --- the answer -----------------------------------------------------------------------------------------------------


async def test_a_streamed_answer_has_every_character(redis_url: str) -> None:
    async with place(redis_url) as here:
        asked = "script tokens=300 rate=3000 unicode=1 reasoning=5 tool=weather tools=2"
        async with here.ask(asked, "m1", stream=True, stream_options={"include_usage": True}) as answer:
            got = await streamed(answer)
            assert answer.headers["Tidewire-Message-Id"] == "m1"
        assert got.text == expected_text(turns(asked), MODEL)
        assert got.reasoning == expected_reasoning(turns(asked), MODEL)
        calls = [{k: v for k, v in call.items() if k != "index"} for call in got.tool_calls]
        assert calls == expected_tool_calls(turns(asked), MODEL)
        assert (got.finish_reason, got.done, got.error) == ("tool_calls", True, None)
        assert got.usage is not None
        assert got.usage["total_tokens"] == got.usage["prompt_tokens"] + got.usage["completion_tokens"]
        assert got.usage["completion_tokens_details"] == {"reasoning_tokens": 5}
        assert len(got.ids) == 1
        assert got.chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert all(chunk["usage"] is None for chunk in got.chunks[:-1])
        assert got.chunks[-1]["choices"] == []


async def test_without_the_option_no_chunk_tells_the_usage(here: Place) -> None:
    async with here.ask("script tokens=5", stream=True) as answer:
        got = await streamed(answer)
    assert all("usage" not in chunk for chunk in got.chunks)


async def test_a_whole_answer_is_the_same_message(here: Place) -> None:
    asked = "script tokens=50 unicode=1 reasoning=3 tool=weather"
    async with here.ask(asked, "m1", stream=True) as answer:
        one = await streamed(answer)
    async with here.ask(asked, "m1") as answer:
        whole = await answer.json()
    (choice,) = whole["choices"]
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == (one.text, one.reasoning)
    assert choice["message"]["tool_calls"] == expected_tool_calls(turns(asked), MODEL)
    assert choice["finish_reason"] == "tool_calls"
    assert {(whole["id"], whole["created"], whole["model"])} == one.ids
    assert here.upstream.count("start") == 1


async def test_a_message_of_either_door_is_found_at_the_other(here: Place) -> None:
    asked = "script tokens=40 rate=400"
    async with wire(here.node.url) as client:
        await client.ask("m1", asked)
        await client.type("delta")
        async with here.ask(asked, "m1", stream=True) as answer:
            got = await streamed(answer)
        assert got.text == (await client.ended("m1")).text == expected_text(turns(asked), MODEL)
    assert here.upstream.count("start") == 1


async def test_a_stopped_answer_ends_properly(here: Place) -> None:
    async with here.ask("script tokens=50 hang=mid", "m1", stream=True) as answer:
        stream = events(answer)
        await anext(stream)
        async with here.request("POST", "/v1/messages/m1/cancel") as stopped:
            assert (stopped.status, (await stopped.json())["state"]) == (200, "cancelled")
        rest = [event.data async for event in stream]
    assert rest[-2]["choices"][0]["finish_reason"] == "cancelled"
    assert rest[-1] == "[DONE]"


async def test_options_reach_the_provider(here: Place) -> None:
    fields: dict[str, Any] = {
        "max_completion_tokens": 3,
        "temperature": 0.5,
        "user": "u-1",
        "n": 1,
        "parallel_tool_calls": False,
        "reasoning_effort": "low",
    }
    async with here.ask("script tokens=9", **fields) as answer:
        body = await answer.json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["message"]["content"] == expected_text(turns("script tokens=9"), MODEL, 3)


# --- one key --------------------------------------------------------------------------------------------------------


async def test_one_key_on_two_nodes_at_once_is_one_generation(valkey_url: str) -> None:
    async with place(valkey_url) as here:
        asked = "script tokens=100 rate=500 unicode=1"

        async def one(number: int, node: Any) -> tuple[str, str]:
            async with here.ask(asked, "k1", node, stream=number % 3 > 0) as answer:
                if number % 3 > 0:
                    got = await streamed(answer)
                    assert got.done
                    ((message_id, _, _),) = got.ids
                    return message_id, got.text
                body = await answer.json()
                return body["id"], body["choices"][0]["message"]["content"]

        async with running_node(settings_for(valkey_url, here.upstream.url)) as there:
            nodes = (here.node, there)
            answers = await asyncio.gather(*(one(number, nodes[number % 2]) for number in range(12)))
        assert set(answers) == {("k1", expected_text(turns(asked), MODEL))}
        assert here.upstream.count("start") == 1


async def test_another_request_under_a_used_key_is_refused(here: Place) -> None:
    async with here.ask("script tokens=3", "k1") as answer:
        assert answer.status == 200
    for stream in (True, False):
        async with here.ask("script tokens=4", "k1", stream=stream) as answer:
            error = await refused(answer, 422, "idempotency_mismatch")
            assert error["retryable"] is False


@pytest.mark.parametrize(
    ("key", "message_id"),
    [
        ("plain_key-1", "plain_key-1"),
        ('"quoted-key"', "quoted-key"),
        ("with a space", hashlib.sha256(b"with a space").hexdigest()),
        ("x" * 65, hashlib.sha256(b"x" * 65).hexdigest()),
    ],
)
async def test_the_key_is_the_message_s_id(here: Place, key: str, message_id: str) -> None:
    async with here.ask("script tokens=3", key) as answer:
        assert (await answer.json())["id"] == answer.headers["Tidewire-Message-Id"] == message_id
    assert (await here.message(message_id))["state"] == "done"


async def test_without_a_key_an_id_is_made_and_told(here: Place) -> None:
    ids = set()
    for _ in range(2):
        async with here.ask("script tokens=3") as answer:
            body = await answer.json()
            assert body["id"] == answer.headers["Tidewire-Message-Id"]
            ids.add(body["id"])
    assert len(ids) == 2
    assert here.upstream.count("start") == 2


async def test_a_bad_key_is_refused(here: Place) -> None:
    async with here.ask("script tokens=3", '""') as answer:
        assert (await refused(answer, 400, "invalid_request"))["param"] == "Idempotency-Key"


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_a_failure_before_any_output_is_the_response_s_status(here: Place, stream: bool) -> None:
    async with here.ask("script tokens=5 status=400", stream=stream) as answer:
        await refused(answer, 400, "upstream_rejected")
        assert answer.headers["Tidewire-Message-Id"]
    async with here.ask("script tokens=5 status=500", stream=stream) as answer:
        error = await refused(answer, 503, "upstream_unavailable")
        assert error["type"] == "server_error"


async def test_a_repeat_of_a_temporary_failure_begins_anew(here: Place) -> None:
    asked = "script tokens=20 status=500 times=1"
    async with here.ask(asked, "k1") as answer:
        error = await refused(answer, 503, "upstream_unavailable")
    await asyncio.sleep(error["retry_after_ms"] / 1000)  # the stated wait: an earlier repeat is refused
    async with here.ask(asked, "k1", stream=True) as answer:
        got = await streamed(answer)
    assert (got.text, got.done) == (expected_text(turns(asked), MODEL), True)
    message = await here.message("k1")
    assert [attempt["outcome"] for attempt in message["attempts"]] == ["upstream_unavailable", "done"]


async def test_many_repeats_of_a_failure_begin_it_once(here: Place) -> None:
    asked = "script tokens=20 status=500 times=1"
    async with here.ask(asked, "k1") as answer:
        error = await refused(answer, 503, "upstream_unavailable")
    await asyncio.sleep(error["retry_after_ms"] / 1000)  # the stated wait: an earlier repeat is refused

    async def again() -> str:
        async with here.ask(asked, "k1", stream=True) as answer:
            return (await streamed(answer)).text

    assert set(await asyncio.gather(*(again() for _ in range(8)))) == {expected_text(turns(asked), MODEL)}
    assert here.upstream.count("start") == 2


async def test_a_repeat_within_the_stated_wait_hears_the_rest_of_it(here: Place) -> None:
    asked = "script tokens=20 status=429 retry_after=1 times=1"
    async with here.ask(asked, "k1") as answer:
        error = await refused(answer, 503, "upstream_unavailable")
        assert error["retry_after_ms"] == 1000
    async with here.ask(asked, "k1", stream=True) as answer:
        error = await refused(answer, 503, "upstream_unavailable")
        assert 0 < error["retry_after_ms"] <= 1000
    assert here.upstream.count("start") == 1

    async def served() -> bool:
        async with here.ask(asked, "k1") as answer:
            return bool(answer.status == 200)

    await eventually_true(served)
    assert here.upstream.count("start") == 2


async def test_a_permanent_failure_is_final(here: Place) -> None:
    asked = "script tokens=20 status=400 times=1"
    for _ in range(2):
        async with here.ask(asked, "k1") as answer:
            await refused(answer, 400, "upstream_rejected")
    assert here.upstream.count("start") == 1


async def test_a_failure_after_output_ends_the_stream_without_done(valkey_url: str) -> None:
    async with place(
        valkey_url, {"routes": {"default": {"targets": ["scripted"], "on_midstream_failure": "fail"}}}
    ) as here:
        asked = "script tokens=20 cut=event times=1"
        async with here.ask(asked, "k1", stream=True) as answer:
            got = await streamed(answer)
        assert not got.done
        assert got.error is not None
        assert (got.error["code"], got.error["type"]) == ("upstream_unavailable", "server_error")
        assert got.text
        assert expected_text(turns(asked), MODEL).startswith(got.text)
        assert got.error["retry_after_ms"] == 1000
        async with asyncio.timeout(10):
            while not (again := await repeated(here, asked)):  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.05)
        assert (again.text, again.done) == (expected_text(turns(asked), MODEL), True)


async def repeated(here: Place, asked: str) -> Streamed | None:
    """What a repeat of a failed answer brings; None: it comes before the wait that it was told is over."""
    async with here.ask(asked, "k1", stream=True) as answer:
        if answer.status == 200:
            return await streamed(answer)
        await refused(answer, 503, "upstream_unavailable")
        assert answer.headers["Retry-After"] == "1"
        return None


async def test_a_restart_after_output_ends_the_response_and_a_repeat_begins_there(here: Place) -> None:
    settings = settings_for(here.redis_url, here.upstream.url)
    settings = settings_for(here.redis_url, here.upstream.url, two_targets(here.upstream.url, "restart"))
    asked = "script tokens=40 rate=200"
    async with running_node(settings) as node:
        async with here.ask(asked, "k1", node, stream=True) as answer:
            got = await streamed(answer)
        assert got.error is not None
        assert (got.error["code"], got.error["retryable"], got.done) == ("answer_restarted", True, False)
        assert got.error["details"]["reason"]["code"] == "upstream_unavailable"
        assert expected_text(turns(asked), "first?cut=event").startswith(got.text)
        async with here.ask(asked, "k1", node, stream=True) as answer:
            again = await streamed(answer)
        assert (again.text, again.done) == (expected_text(turns(asked), "second"), True)
        assert again.ids == got.ids
        async with here.ask(asked, "k1", node) as answer:
            assert (await answer.json())["choices"][0]["message"]["content"] == again.text
    assert here.upstream.count("start") == 2


async def test_an_attempt_that_continues_just_goes_on(here: Place) -> None:
    settings = settings_for(here.redis_url, here.upstream.url, two_targets(here.upstream.url, "continue"))
    asked = "script tokens=40 seed=7"
    async with running_node(settings) as node:
        async with here.ask(asked, "k1", node, stream=True) as answer:
            got = await streamed(answer)
        assert (got.text, got.done, got.error) == (expected_text(turns(asked), "any"), True, None)
        assert got.chunks[-1]["tidewire"] == {"target": "second", "model": "second", "attempts": 2}


async def test_a_failure_before_output_at_the_first_target_is_not_seen(here: Place) -> None:
    overrides = two_targets(here.upstream.url, "restart")
    overrides["targets"]["first"]["model"] = "first?status=500"
    async with running_node(settings_for(here.redis_url, here.upstream.url, overrides)) as node:
        async with here.ask("script tokens=5", node=node, stream=True) as answer:
            got = await streamed(answer)
        assert (got.text, got.done) == (expected_text(turns("script tokens=5"), "second"), True)


# --- the connection -------------------------------------------------------------------------------------------------


async def test_who_goes_away_does_not_stop_the_message(here: Place) -> None:
    asked = "script tokens=40 gap=0.2"
    async with here.ask(asked, "k1", stream=True) as answer:
        await anext(events(answer))
        answer.close()
    async with asyncio.TaskGroup() as tasks:

        async def whole() -> None:
            async with here.ask(asked + " seed=2", "k2") as answer:
                assert answer.status == 200

        task = tasks.create_task(whole())
        await here.upstream.wait_for("start", 2)
        task.cancel()
    ends = await here.upstream.wait_for("end", 2)
    assert all(end["whole"] for end in ends)
    await eventually(lambda: not here.node.node.responses)
    async with here.ask(asked, "k1", stream=True) as answer:
        assert (await streamed(answer)).text == expected_text(turns(asked), MODEL)
    assert here.upstream.count("start") == 2


async def test_silence_is_filled_with_comments(here: Place) -> None:
    app = Starlette(routes=routes(here.node.node, keepalive_seconds=0.02))
    body = {"messages": turns("script tokens=6 first=0.2"), "stream": True}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=_with_scope(app)), base_url="http://test") as client:
        answer = await client.post(CHAT, json=body)
    assert answer.status_code == 200
    assert answer.text.startswith(": keep-alive\n\n")
    assert answer.text.endswith("data: [DONE]\n\n")


def _with_scope(app: Starlette) -> Any:
    from server.access.origins import OriginPolicy
    from server.http.edge import Edge

    return Edge(app, OriginPolicy(), False)


@pytest.mark.slow
async def test_readers_that_stall_cost_no_memory(here: Place) -> None:
    readers, size = 16, 6_000_000
    asked = f"script bytes={size} first=1.5"
    body = orjson.dumps({"messages": turns(asked), "stream": True})
    request = (
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nIdempotency-Key: k1\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    loop, node = asyncio.get_running_loop(), here.node.node
    with ExitStack() as stack:
        for _ in range(readers):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.setblocking(False)
            await loop.sock_connect(one, ("127.0.0.1", here.node.port))
            await loop.sock_sendall(one, request)
        await eventually(lambda: len(node.responses) == readers)
        tracemalloc.start()
        stack.callback(tracemalloc.stop)
        await here.upstream.wait_for("end")
        await eventually(lambda: not node.keeper.running, 30)
        assert len(node.responses) == readers
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 48_000_000, "buffered per reader it would be 96 MB"
    await eventually(lambda: not node.responses)
    async with here.ask(asked, "k1", stream=True) as answer:
        assert len((await streamed(answer)).text.encode()) == size


async def test_a_reader_that_stalls_for_two_heartbeats_is_dropped(valkey_url: str) -> None:
    async with place(valkey_url, {"server": {"port": 0, "heartbeat_seconds": 0.2}}) as here:
        body = orjson.dumps({"messages": turns("script bytes=8000000"), "stream": True})
        small = socket.socket()
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        small.setblocking(False)
        await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", here.node.port))
        reader, writer = await asyncio.open_connection(sock=small, limit=1024)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nIdempotency-Key: k1\r\n"
        writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert b"200 OK" in await reader.readline()
        await here.upstream.wait_for("end")
        await eventually(lambda: not here.node.node.responses)
        rest = await reader.read()  # what the kernel had taken, then the end of the connection
        assert len(rest) < 4_000_000, "it had the whole answer"
        assert not rest.endswith(b"0\r\n\r\n")
        writer.close()
        assert (await here.message("k1"))["state"] == "done"


async def test_more_streams_than_a_user_may_have_are_refused(valkey_url: str) -> None:
    async with place(valkey_url, {"server": {"port": 0, "max_connections_per_user": 1}}) as here:
        first = here.ask("script tokens=5 hang=mid", "k1", stream=True)
        async with first as answer:
            await anext(events(answer))
            async with here.ask("script tokens=5", "k2", stream=True) as second:
                error = await refused(second, 429, "rate_limited")
                assert error["type"] == "rate_limit_error"
                assert error["retry_after_ms"] > 0
            async with here.request("POST", "/v1/messages/k1/cancel"):
                pass


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"frobnicate": 1}, "frobnicate"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, None),
        ({"stream_options": {"include_usage": True}}, None),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages.0.role"),
        ({"messages": "hello"}, "messages"),
        ({"model": ""}, "model"),
    ],
)
async def test_a_wrong_field_is_named(here: Place, fields: dict[str, Any], param: str | None) -> None:
    async with here.ask("script tokens=3", **fields) as answer:
        error = await refused(answer, 400, "invalid_request")
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"
    assert here.upstream.count("start") == 0


async def test_an_unknown_model_is_404(here: Place) -> None:
    async with here.ask("script tokens=3", model="nothing") as answer:
        error = await refused(answer, 404, "model_not_found")
        assert error["details"] == {"models": ["default"]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"messages": [}', "line 1 column 15"),
        (b"", "line 1 column 1"),
        (b"\xff\xfe", "utf-8"),
        (b"[]", "JSON object"),
        (b"7", "a map"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1, "a": 2}', "doubled key"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "deep"),
    ],
)
async def test_what_is_not_json_is_400_and_says_where(here: Place, data: bytes, words: str) -> None:
    headers = {"Content-Type": "application/json"}
    async with here.request("POST", CHAT, data=data, headers=headers) as answer:
        error = await refused(answer, 400, "invalid_request")
        assert words in error["message"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"]
)
async def test_another_content_type_is_415(here: Place, kind: str) -> None:
    async with here.request("POST", CHAT, data=b"{}", headers={"Content-Type": kind}) as answer:
        await refused(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_beyond_the_limit_is_413(valkey_url: str, chunked: bool) -> None:
    async with place(valkey_url, {"server": {"port": 0, "max_frame_bytes": 8192}}) as here:
        data = b'{"messages": "' + b"x" * 300_000 + b'"}'

        async def pieces() -> Any:
            for start in range(0, len(data), 10_000):
                yield data[start : start + 10_000]

        headers = {"Content-Type": "application/json"}
        async with here.request("POST", CHAT, data=pieces() if chunked else data, headers=headers) as answer:
            error = await refused(answer, 413, "body_too_large")
            assert error["details"] == {"limit": 8192}
        async with here.ask("script tokens=3") as answer:
            assert answer.status == 200


async def test_a_client_that_waits_for_leave_need_not_send_what_is_too_large(valkey_url: str) -> None:
    async with place(valkey_url, {"server": {"port": 0, "max_frame_bytes": 8192}}) as here:
        headers = {"Content-Type": "application/json"}
        async with here.request("POST", CHAT, data=b"x" * 9000, headers=headers, expect100=True) as answer:
            await refused(answer, 413, "body_too_large")


async def test_a_wrong_method_or_path_has_the_shape_too(here: Place) -> None:
    async with here.request("DELETE", CHAT) as answer:
        await refused(answer, 405, "method_not_allowed")
        assert answer.headers["Allow"] == "POST"
    async with here.request("GET", "/v1/nothing") as answer:
        await refused(answer, 404, "not_found")


async def test_request_ids_are_echoed_or_made(here: Place) -> None:
    async with here.request("GET", "/v1/models", headers={"X-Request-Id": "r-1"}) as answer:
        assert answer.headers["x-request-id"] == "r-1"
    async with here.request("GET", "/v1/models", headers={"X-Request-Id": "x" * 129}) as answer:
        assert len(answer.headers["x-request-id"]) == 32


async def test_a_refused_connection_is_not_reused_wrongly(here: Place) -> None:
    """A refusal leaves the connection in order: the next request on it is served."""
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(connector=connector) as one:
        for _ in range(3):
            async with one.post(here.node.http + CHAT, json={"n": 2, "messages": turns("script tokens=2")}) as answer:
                assert answer.status == 400
            async with one.post(here.node.http + CHAT, json={"messages": turns("script tokens=2")}) as answer:
                assert answer.status == 200
