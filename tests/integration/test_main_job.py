"""The main job over real parts: a node, Redis, a scripted upstream and a raw WebSocket client, in both codecs."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import jwt
import pytest
import redis.asyncio

from server.store.keys import MessageKeys, message_tag
from tests.nodes import RunningNode, running_node, settings_for
from tests.upstreams.script import expected_reasoning, expected_text, expected_tool_calls
from tests.upstreams.scripted import ScriptedUpstream, serving
from tests.wire import CODECS, JSON, MSGPACK, View, Wire, eventually, eventually_true, told, wire

KEY_A, KEY_B = "tw_key-of-anna", "tw_key-of-ben"
SECRET = "a secret of at least thirty-two bytes, for tests"
MODEL = "scripted"
TAIL_BYTES = 8_192


def _sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(slots=True)
class Place:
    """A node with what it needs around it."""

    node: RunningNode
    upstream: ScriptedUpstream
    redis_url: str

    def keys(self, message_id: str, user: str = "demo") -> MessageKeys:
        """Where the anonymous user's message lies."""
        return MessageKeys.of(message_tag("demo", "anonymous", user, message_id))


@asynccontextmanager
async def place(redis_url: str, overrides: dict[str, Any] | None = None) -> AsyncIterator[Place]:
    """A node on `redis_url` with one scripted upstream."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(serving())
        settings = settings_for(redis_url, upstream.url, overrides)
        node = await stack.enter_async_context(running_node(settings))
        yield Place(node, upstream, redis_url)


@pytest.fixture
async def here(valkey_url: str) -> AsyncIterator[Place]:
    """One place with the defaults, on Valkey."""
    async with place(valkey_url) as found:
        yield found


def whole(view: View, messages: list[dict[str, Any]], model: str = MODEL) -> None:
    """The message is done and every character is right."""
    assert view.end is not None
    assert view.end["type"] == "done", view.end
    assert view.text == expected_text(messages, model)
    view.check_hash()


# --- ask and replay --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
async def test_a_question_is_answered_with_the_exact_text(redis_url: str, codec: str) -> None:
    async with place(redis_url) as here, wire(here.node.url, codec) as client:
        messages = await client.ask("m1", "script tokens=400 rate=4000 unicode=1 reasoning=5 tool=weather tools=2")
        accepted = await client.recv()
        assert len(accepted.pop("generation")) == 16
        assert accepted == {"type": "accepted", "id": "m1", "replay": False, "state": "streaming", "seq": 0}
        view = await client.ended("m1")
        whole(view, messages)
        assert view.reasoning == expected_reasoning(messages, MODEL)
        assert [{k: v for k, v in call.items() if k != "index"} for call in view.tool_calls] == expected_tool_calls(
            messages, MODEL
        )
        assert [a["mode"] for a in view.attempts] == ["fresh"]
        end = view.end
        assert end is not None
        assert (end["finish_reason"], end["model"], end["target"], end["attempts"]) == (
            "tool_calls", MODEL, MODEL, 1,
        )  # fmt: skip
        assert end["usage"]["total_tokens"] == end["usage"]["input_tokens"] + end["usage"]["output_tokens"]
        assert end["usage"]["reasoning_tokens"] == 5


@pytest.mark.parametrize("codec", CODECS)
async def test_sent_again_after_the_end_it_is_replayed_and_not_paid_twice(redis_url: str, codec: str) -> None:
    async with place(redis_url) as here, wire(here.node.url, codec) as client:
        messages = await client.ask("m1", "script tokens=200 unicode=1")
        first = await client.ended("m1")
        async with wire(here.node.url, codec) as other:
            await other.ask("m1", messages)
            accepted = await other.recv()
            assert accepted["replay"] is True
            assert (accepted["state"], accepted["seq"]) == ("done", first.cursor)
            again = await other.ended("m1")
        whole(again, messages)
        assert again.end == first.end
        assert here.upstream.count("start") == 1


async def test_sent_again_during_the_stream_it_attaches(here: Place) -> None:
    async with wire(here.node.url) as client, wire(here.node.url, MSGPACK) as other:
        messages = await client.ask("m1", "script tokens=60 gap=0.2")
        await client.type("delta")
        await other.ask("m1", messages)
        accepted = await other.recv()
        assert (accepted["type"], accepted["replay"], accepted["state"]) == ("accepted", True, "streaming")
        for view in (await client.ended("m1"), await other.ended("m1")):
            whole(view, messages)
        assert here.upstream.count("start") == 1


async def test_sent_at_once_from_many_sockets_it_is_generated_once(here: Place) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(wire(here.node.url, CODECS[number % 2])) for number in range(8)]
        content = [{"role": "user", "content": "script tokens=100 rate=2000 unicode=1"}]
        await asyncio.gather(*(client.ask("m1", content) for client in clients))
        views = await asyncio.gather(*(client.ended("m1") for client in clients))
    for view in views:
        whole(view, content)
    assert sorted(view.frames[0]["replay"] for view in views) == [False] + [True] * 7
    assert here.upstream.count("start") == 1


async def test_sent_on_two_nodes_it_is_generated_once(valkey_url: str) -> None:
    async with place(valkey_url) as one:
        settings = settings_for(valkey_url, one.upstream.url)
        async with running_node(settings) as two, wire(one.node.url) as here, wire(two.url, MSGPACK) as there:
            content = [{"role": "user", "content": "script tokens=100 rate=1000 unicode=1"}]
            await asyncio.gather(here.ask("m1", content), there.ask("m1", content))
            for view in await asyncio.gather(here.ended("m1"), there.ended("m1")):
                whole(view, content)
        assert one.upstream.count("start") == 1


async def test_many_messages_on_one_socket_do_not_mix(here: Place) -> None:
    async with wire(here.node.url, MSGPACK) as client:
        asked = {f"m{n}": await client.ask(f"m{n}", f"script tokens={50 + n} rate=3000 seed={n}") for n in range(20)}
        for message_id, messages in asked.items():
            whole(await client.ended(message_id), messages)


async def test_several_frames_travel_in_one_websocket_message(here: Place) -> None:
    async with wire(here.node.url, hello=False) as client:
        send = {"type": "send", "id": "m1", "messages": [{"role": "user", "content": "script tokens=10"}]}
        await client.ws.send(client.pack([{"type": "hello"}, send, {"type": "ping", "nonce": 7}]))
        assert (await client.recv())["type"] == "welcome"
        kinds = {(await client.recv())["type"], (await client.recv())["type"]}
        assert kinds == {"accepted", "pong"} or "pong" in kinds
        whole(await client.ended("m1"), send["messages"])  # type: ignore[arg-type]


# --- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [True, False], ids=["running", "finished"])
@pytest.mark.parametrize("codec", CODECS)
async def test_resume_from_every_kind_of_cursor(valkey_url: str, codec: str, running: bool) -> None:
    async with place(valkey_url) as here, wire(here.node.url) as client:
        messages = await client.ask("m1", f"script tokens=80 rate=2000 unicode=1 gap={0.4 if running else 0}")
        seqs: list[tuple[int, str]] = [(0, "")]
        view = client.view("m1")
        enough = (lambda: len(seqs) > 2) if running else (lambda: view.end is not None)
        while not enough():
            frame = await client.recv()
            if frame["type"] in ("attempt", "delta"):
                seqs.append((frame["seq"], view.text))
        head = view.cursor
        cursors = [seqs[0], seqs[1], seqs[len(seqs) // 2], seqs[-1], (head + 5000, "lost"), (2**40, "lost")]
        async with AsyncExitStack() as stack:
            for after, text in cursors:
                other = await stack.enter_async_context(wire(here.node.url, codec))
                known = other.view("m1")
                known.cursor, known.text = after, text
                await other.send({"type": "resume", "id": "m1", "after": after})
                accepted = await other.recv()
                assert (accepted["type"], accepted["replay"]) == ("accepted", True)
                whole(await other.ended("m1"), messages)
                assert bool(known.snapshots) == (text == "lost")
        assert here.upstream.count("start") == 1


async def test_resume_at_the_very_head_of_a_finished_message_tells_its_end_again(here: Place) -> None:
    async with wire(here.node.url) as client:
        await client.ask("m1", "script tokens=5")
        head = (await client.ended("m1")).cursor
        await client.send({"type": "resume", "id": "m1", "after": head})
        accepted = await client.recv()
        assert len(accepted.pop("generation")) == 16
        assert accepted == {"type": "accepted", "id": "m1", "replay": True, "state": "done", "seq": head}
        assert told(await client.recv()) == client.view("m1").end


async def test_resume_in_hello_brings_everything_in_one_round_trip(here: Place) -> None:
    async with wire(here.node.url) as client:
        finished = await client.ask("done", "script tokens=20")
        await client.ended("done")
        running = await client.ask("runs", "script tokens=60 gap=0.3")
        await client.type("delta", "runs")
    async with wire(here.node.url, MSGPACK, hello=False) as client:
        resume = [{"id": "done", "after": 0}, {"id": "runs", "after": 0}, {"id": "never", "after": 3}]
        welcome = await client.hello(resume=resume)
        assert [(m["id"], m["state"]) for m in welcome["resumed"]] == [("done", "done"), ("runs", "streaming")]
        assert [m["id"] for m in welcome["active"]] == ["runs"]
        assert (await client.error("never"))["code"] == "message_unknown"
        whole(await client.ended("done"), finished)
        whole(await client.ended("runs"), running)
        assert here.upstream.count("start") == 2


async def test_send_may_say_where_it_stands(here: Place) -> None:
    async with wire(here.node.url) as client:
        messages = await client.ask("m1", "script tokens=30 rate=1000")
        await client.until(lambda f: f["type"] == "delta")
        text, cursor = client.view("m1").text, client.view("m1").cursor
        await client.ended("m1")
    async with wire(here.node.url) as client:
        known = client.view("m1")
        known.text, known.cursor = text, cursor
        await client.ask("m1", messages, after=cursor)
        whole(await client.ended("m1"), messages)
        assert not known.attempts


async def test_a_second_resume_replaces_the_first(here: Place) -> None:
    async with wire(here.node.url) as client:
        messages = await client.ask("m1", "script tokens=60 gap=0.2")
        await client.type("delta")
        await client.send({"type": "resume", "id": "m1", "after": 0})
        await client.until(lambda f: f["type"] == "accepted" and f["replay"])
        client.views["m1"] = View("m1")
        whole(await client.ended("m1"), messages)
        assert not [f for f in await client.quiet() if f.get("id") == "m1"]


# --- detach and cancel -----------------------------------------------------------------------------------------------


async def test_a_detached_message_goes_on_unseen(here: Place) -> None:
    async with wire(here.node.url) as client:
        messages = await client.ask("m1", "script tokens=60 gap=0.2")
        await client.type("delta")
        await client.send({"type": "detach", "id": "m1"})
        await client.quiet()
        await here.upstream.wait_for("end")
        assert await client.quiet() == []
        client.views.clear()
        await client.send({"type": "resume", "id": "m1", "after": 0})
        whole(await client.ended("m1"), messages)


async def test_a_message_outlives_the_socket_that_asked_for_it(here: Place) -> None:
    async with wire(here.node.url) as client:
        messages = await client.ask("m1", "script tokens=60 gap=0.2")
        await client.type("delta")
        client.ws.transport.abort()
    (end,) = await here.upstream.wait_for("end")
    assert end["whole"] is True
    async with wire(here.node.url) as client:
        await client.send({"type": "resume", "id": "m1", "after": 0})
        whole(await client.ended("m1"), messages)


@pytest.mark.parametrize("codec", CODECS)
async def test_cancel_keeps_what_stands_and_reaches_every_follower(valkey_url: str, codec: str) -> None:
    async with place(valkey_url) as here, wire(here.node.url, codec) as client, wire(here.node.url) as other:
        messages = await client.ask("m1", "script tokens=500 hang=mid")
        await client.type("delta")
        await other.send({"type": "resume", "id": "m1", "after": 0})
        await other.type("delta")
        await client.send({"type": "cancel", "id": "m1"})
        views = await client.ended("m1"), await other.ended("m1")
        for view in views:
            assert view.end is not None
            assert view.end["type"] == "cancelled"
            assert view.text
            assert expected_text(messages, MODEL).startswith(view.text)
            view.check_hash()
        assert views[0].end == views[1].end
        (end,) = await here.upstream.wait_for("end")
        assert end["client_gone"] is True


async def test_cancel_without_following_brings_only_the_receipt(here: Place) -> None:
    async with wire(here.node.url) as client, wire(here.node.url) as other:
        await client.ask("m1", "script tokens=50 hang=mid")
        await client.type("delta")
        await other.send({"type": "cancel", "id": "m1"})
        receipt = await other.recv()
        assert (receipt["type"], receipt["id"]) == ("cancelled", "m1")
        assert await other.quiet() == []
        assert (await client.ended("m1")).end == told(receipt)


async def test_cancel_twice_and_of_a_finished_message(here: Place) -> None:
    async with wire(here.node.url) as client:
        await client.ask("m1", "script tokens=50 hang=mid")
        await client.type("delta")
        await client.send({"type": "cancel", "id": "m1"}, {"type": "cancel", "id": "m1"})
        receipt = (await client.ended("m1")).end
        frames = [f for f in await client.quiet() if f["type"] != "pong"]
        assert all(told(f) == receipt for f in frames)  # the second may be answered with the receipt again
        messages = await client.ask("m2", "script tokens=5")
        done = (await client.ended("m2")).end
        client.views.clear()
        client.view("m2").cursor = done["seq"] - 1 if done else 0
        await client.send({"type": "cancel", "id": "m2"})
        assert told(await client.recv()) == done
        client.views.clear()
        await client.send({"type": "resume", "id": "m2"})
        whole(await client.ended("m2"), messages)


async def test_cancel_before_the_first_token(here: Place) -> None:
    async with wire(here.node.url) as client:
        await client.ask("m1", "script tokens=50 hang=first")
        await client.type("accepted")
        await here.upstream.wait_for("start")
        await client.send({"type": "cancel", "id": "m1"})
        view = await client.ended("m1")
        assert view.end is not None
        assert (view.end["type"], view.end["text_bytes"], view.text) == ("cancelled", 0, "")
        view.check_hash()
        (end,) = await here.upstream.wait_for("end")
        assert end["client_gone"] is True


async def test_a_cancelled_message_is_not_generated_again_by_a_resend(here: Place) -> None:
    async with wire(here.node.url) as client:
        messages = await client.ask("m1", "script tokens=50 hang=mid")
        await client.type("delta")
        await client.send({"type": "cancel", "id": "m1"})
        stopped = await client.ended("m1")
        client.views.clear()
        await client.ask("m1", messages, retry_of=stopped.cursor)
        again = await client.ended("m1")
        assert (again.text, again.end) == (stopped.text, stopped.end)
        assert here.upstream.count("start") == 1


async def test_cancel_from_another_node(valkey_url: str) -> None:
    async with place(valkey_url) as one:
        settings = settings_for(valkey_url, one.upstream.url)
        async with running_node(settings) as two, wire(one.node.url) as client, wire(two.url) as other:
            await client.ask("m1", "script tokens=50 hang=mid")
            await client.type("delta")
            await other.send({"type": "cancel", "id": "m1"})
            started = time.monotonic()
            assert (await other.recv())["type"] == "cancelled"
            end = (await client.ended("m1")).end
            assert end is not None
            assert end["type"] == "cancelled"
            assert time.monotonic() - started < 30


# --- ids, users, mismatch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
async def test_unknown_ids_are_answered_and_nothing_more(valkey_url: str, codec: str) -> None:
    async with place(valkey_url) as here, wire(here.node.url, codec) as client:
        for kind in ("resume", "detach", "cancel"):
            await client.send({"type": kind, "id": "nobody-knows"})
            frame = await client.recv()
            assert (frame["type"], frame["re"], frame["id"]) == ("error", kind, "nobody-knows")
            assert (frame["error"]["code"], frame["error"]["status"]) == ("message_unknown", 404)
            assert frame["error"]["retryable"] is False
        async with redis.asyncio.Redis.from_url(here.redis_url) as store:
            assert await store.keys("*:m") + await store.keys("*:active") + await store.keys("*open*") == []


async def test_another_user_s_id_looks_absent(valkey_url: str) -> None:
    auth = {
        "anonymous": False,
        "api_keys": [
            {"name": "anna", "sha256": _sha(KEY_A)},
            {"name": "ben", "sha256": _sha(KEY_B)},
        ],
    }
    async with (
        place(valkey_url, {"auth": auth}) as here,
        wire(here.node.url, token=KEY_A) as anna,
        wire(here.node.url, token=KEY_B) as ben,
    ):
        asked = await anna.ask("m1", "script tokens=30 gap=0.1")
        await anna.type("delta")
        answers = []
        for message_id in ("m1", "m2"):
            for kind in ("resume", "detach", "cancel"):
                await ben.send({"type": kind, "id": message_id})
                frame = await ben.recv()
                answers.append((kind, frame["error"]["message"].replace("m2", "m1"), frame["error"]["code"]))
        assert answers[:3] == answers[3:]  # there is no telling a foreign id from an unused one
        other = await ben.ask("m1", "script tokens=31")
        assert (await ben.recv())["replay"] is False
        whole(await ben.ended("m1"), other)
        whole(await anna.ended("m1"), asked)


async def test_a_user_keeps_messages_across_tokens_and_codecs(valkey_url: str) -> None:
    auth = {"anonymous": False, "jwt_secret_env": "S"}
    # the node of tests/nodes.py has no environment: the secret comes from a file instead
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.write_text(SECRET)
        auth = {"anonymous": False, "jwt_secret_file": str(secret)}
        claims = {"sub": "anna", "tenant": "t", "aud": "tidewire"}
        tokens = [jwt.encode({**claims, "exp": time.time() + 3600 + n}, SECRET, "HS256") for n in range(2)]
        async with place(valkey_url, {"auth": auth}) as here:
            async with wire(here.node.url, hello=False) as client:
                welcome = await client.hello(tokens[0])
                assert (welcome["user"], 3590 < welcome["expires_in_seconds"] <= 3600) == ("anna", True)
                messages = await client.ask("m1", "script tokens=20")
                whole(await client.ended("m1"), messages)
            async with wire(here.node.url, MSGPACK, token=tokens[1]) as client:
                await client.send({"type": "resume", "id": "m1"})
                whole(await client.ended("m1"), messages)


async def test_another_request_under_a_used_id_is_refused(here: Place) -> None:
    async with wire(here.node.url) as client:
        messages = await client.ask("m1", "script tokens=30 gap=0.1", temperature=1, metadata={"feature": "a"})
        await client.type("accepted")
        await client.ask("m1", messages, temperature=0.5)
        body = await client.error("m1")
        assert (body["code"], body["status"], body["class"]) == ("idempotency_mismatch", 422, "permanent")
        whole(await client.ended("m1"), messages)
        client.views.clear()
        await client.ask("m1", messages, temperature=1.0, metadata={"feature": "b"}, on_busy="reject", model="default")
        whole(await client.ended("m1"), messages)
        assert here.upstream.count("start") == 1


# --- failure, retry, fallback ----------------------------------------------------------------------------------------


async def test_a_temporary_failure_is_reopened_by_retry_of_only(here: Place) -> None:
    async with wire(here.node.url) as client:
        messages = await client.ask("m1", "script tokens=40 status=503 times=1")
        failed = await client.ended("m1")
        assert failed.end is not None
        error = failed.end["error"]
        assert (failed.end["type"], error["code"], error["class"], error["status"], error["retryable"]) == (
            "failed", "upstream_unavailable", "temporary", 503, True,
        )  # fmt: skip
        assert failed.end["partial"] is False
        for extra in ({}, {"retry_of": failed.cursor + 1}):  # a plain repeat and a wrong seq replay the failure
            client.views.clear()
            await client.ask("m1", messages, **extra)
            assert (await client.ended("m1")).end == failed.end
        assert here.upstream.count("start") == 1
        await client.ask("m1", messages, retry_of=failed.cursor, after=failed.cursor)
        accepted = await client.type("accepted")
        assert (accepted["replay"], accepted["seq"]) == (False, failed.cursor)
        await client.type("done")
        view = client.view("m1")
        whole(view, messages)
        assert [a["attempt"] for a in view.attempts] == [2]
        assert here.upstream.count("start") == 2


async def test_a_reopened_partial_failure_restarts_visibly(here: Place) -> None:
    async with wire(here.node.url) as client:
        messages = await client.ask("m1", "script tokens=40 cut=event times=1")
        failed = await client.ended("m1")
        assert failed.end is not None
        assert (failed.end["type"], failed.end["partial"], bool(failed.text)) == ("failed", True, True)
        await client.ask("m1", messages, retry_of=failed.cursor, after=failed.cursor)
        await client.type("done")
        whole(failed, messages)
        assert [(a["mode"], a["attempt"]) for a in failed.attempts] == [("fresh", 1), ("restart", 2)]
        assert failed.attempts[1]["reason"]["code"] == "retried"
    async with wire(here.node.url, MSGPACK) as other:  # a new device never sees the failure that was overcome
        await other.send({"type": "resume", "id": "m1"})
        view = await other.ended("m1")
        whole(view, messages)
        assert [f["type"] for f in view.frames if f["type"] == "failed"] == []


async def test_one_of_many_retries_wins_and_the_others_attach(here: Place) -> None:
    content = [{"role": "user", "content": "script tokens=40 status=503 times=1 rate=2000"}]
    async with wire(here.node.url) as client:
        await client.ask("m1", content)
        failed = (await client.ended("m1")).cursor
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(wire(here.node.url)) for _ in range(6)]
        for client in clients:
            client.view("m1").cursor = failed
        await asyncio.gather(*(c.ask("m1", content, retry_of=failed, after=failed) for c in clients))
        for view in await asyncio.gather(*(c.ended("m1") for c in clients)):
            whole(view, content)
    assert here.upstream.count("start") == 2


async def test_a_message_runs_at_most_five_times(here: Place) -> None:
    async with wire(here.node.url) as client:
        messages = await client.ask("m1", "script status=503")
        ends = [(await client.ended("m1")).end]
        for _ in range(6):
            end = ends[-1]
            assert end is not None
            client.views.clear()
            client.view("m1").cursor = end["seq"]
            await client.ask("m1", messages, retry_of=end["seq"], after=end["seq"])
            if (await client.type("accepted"))["replay"]:
                break
            ends.append((await client.ended("m1")).end)
        assert len(ends) == 5
        assert here.upstream.count("start") == 5


async def test_a_permanent_failure_is_final(here: Place) -> None:
    async with wire(here.node.url) as client:
        messages = await client.ask("m1", "script status=400 times=1")
        failed = await client.ended("m1")
        assert failed.end is not None
        assert (failed.end["error"]["code"], failed.end["error"]["class"]) == ("upstream_rejected", "permanent")
        client.views.clear()
        await client.ask("m1", messages, retry_of=failed.cursor)
        assert (await client.ended("m1")).end == failed.end
        assert here.upstream.count("start") == 1


def two_targets(upstream: str, mode: str = "restart", prefill: bool = False) -> dict[str, Any]:
    target = {"driver": "openai", "base_url": f"{upstream}/v1"}
    return {
        "targets": {
            "first": {**target, "model": "first"},
            "second": {**target, "model": "second", "prefill": prefill},
        },
        "routes": {"default": {"targets": ["first", "second"], "on_midstream_failure": mode}},
    }


@asynccontextmanager
async def fallback_place(redis_url: str, mode: str = "restart") -> AsyncIterator[Place]:
    async with serving() as upstream:
        settings = settings_for(redis_url, upstream.url, two_targets(upstream.url, mode))
        async with running_node(settings) as node:
            yield Place(node, upstream, redis_url)


async def test_an_early_failure_falls_back_in_silence(valkey_url: str) -> None:
    async with fallback_place(valkey_url) as here, wire(here.node.url) as client:
        here.upstream.fail("status=500", "first")
        messages = await client.ask("m1", "script tokens=40")
        view = await client.ended("m1")
        whole(view, messages, "second")
        (attempt,) = view.attempts
        assert (attempt["attempt"], attempt["target"], attempt["mode"]) == (2, "second", "fresh")
        assert attempt["reason"]["code"] == "upstream_unavailable"
        assert view.end is not None
        assert (view.end["target"], view.end["attempts"]) == ("second", 2)


@pytest.mark.parametrize("codec", CODECS)
async def test_a_midstream_failure_restarts_visibly(valkey_url: str, codec: str) -> None:
    async with fallback_place(valkey_url) as here, wire(here.node.url, codec) as client:
        here.upstream.fail("cut=event", "first")
        messages = await client.ask("m1", "script tokens=40")
        view = await client.ended("m1")
        whole(view, messages, "second")
        assert [(a["attempt"], a["target"], a["mode"]) for a in view.attempts] == [
            (1, "first", "fresh"),
            (2, "second", "restart"),
        ]
        assert view.attempts[1]["reason"]["code"] == "upstream_unavailable"
        assert view.end is not None
        assert view.end["usage"]["output_tokens"] == 40  # what was withdrawn is the operator's
        async with wire(here.node.url) as late:
            late.view("m1").cursor = 2**40
            await late.send({"type": "resume", "id": "m1", "after": 2**40})
            again = await late.ended("m1")
            whole(again, messages, "second")
            assert [f["attempt"] for f in again.frames if f["type"] == "snapshot"] == [2]


async def test_a_midstream_failure_may_fail(valkey_url: str) -> None:
    async with fallback_place(valkey_url, "fail") as here, wire(here.node.url) as client:
        here.upstream.fail("cut=event", "first")
        messages = await client.ask("m1", "script tokens=40")
        view = await client.ended("m1")
        assert view.end is not None
        assert (view.end["type"], view.end["partial"]) == ("failed", True)
        assert view.text
        assert expected_text(messages, "first").startswith(view.text)
        assert here.upstream.count("start") == 1


async def test_when_every_target_fails_the_error_says_so(valkey_url: str) -> None:
    async with fallback_place(valkey_url) as here, wire(here.node.url) as client:
        here.upstream.fail("status=500")
        await client.ask("m1", "script tokens=40")
        view = await client.ended("m1")
        assert view.end is not None
        error = view.end["error"]
        assert (error["code"], error["class"], error["retryable"]) == ("all_targets_failed", "temporary", True)
        assert [a["target"] for a in error["details"]["attempts"]] == ["first", "second"]
        assert "scripted 500" not in str(error)  # a provider's own words never reach a client


# --- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
async def test_frames_keep_to_a_small_limit(valkey_url: str, codec: str) -> None:
    async with place(valkey_url, {"server": {"max_frame_bytes": 4096}}) as here:
        here.node.node.hub.tail_bytes = TAIL_BYTES
        async with wire(here.node.url, codec) as client:
            messages = await client.ask("m1", "script bytes=100000 unicode=1 reasoning=900 tool=weather tools=5")
            whole(await client.ended("m1"), messages)
            client.views.clear()
            client.view("m1").cursor = 2**40
            await client.send({"type": "resume", "id": "m1", "after": 2**40})
            view = await client.ended("m1")
            whole(view, messages)
            assert view.reasoning == expected_reasoning(messages, MODEL)
            assert len(view.tool_calls) == 5
            assert client.largest <= 4096


async def test_a_reader_that_stops_catches_up_with_every_character(valkey_url: str) -> None:
    async with place(valkey_url) as here:
        here.node.node.hub.tail_bytes = TAIL_BYTES
        async with (
            wire(here.node.url, receive_buffer=4096) as slow,
            wire(here.node.url, MSGPACK) as quick,
        ):
            content = [{"role": "user", "content": "script bytes=5000000 unicode=1"}]
            await slow.ask("m1", content)
            await slow.type("attempt")
            await quick.ask("m1", content)
            whole(await quick.ended("m1"), content)  # the one that stopped delays nobody
            # the session that has just been told the end may still hold its follow for a moment
            follow = min((f for s in here.node.node.sessions for f in s.out.follows.values()), key=lambda f: f.cursor)
            assert follow.cursor < follow.channel.base  # it must be served from Redis from here on
            held = sum(entry.size for entry in follow.channel.entries)
            assert held < TAIL_BYTES + 70_000
            messages = await slow.ask("m2", "script tokens=5")  # and it can still ask
            whole(await slow.ended("m1"), content)
            whole(await slow.ended("m2"), messages)


@pytest.mark.parametrize("max_frame_bytes", [4096, 1_048_576])
@pytest.mark.parametrize("codec", CODECS)
async def test_after_retention_a_snapshot_and_the_end_are_left(
    redis_url: str, codec: str, max_frame_bytes: int
) -> None:
    overrides = {
        "messages": {"retention_seconds": 0.2, "claim_seconds": 60},
        "server": {"max_frame_bytes": max_frame_bytes},
    }
    async with (
        place(redis_url, overrides) as here,
        redis.asyncio.Redis.from_url(redis_url) as store,
        wire(here.node.url, codec) as client,
    ):
        messages = await client.ask("m1", "script bytes=50000 unicode=1 reasoning=800 tool=weather tools=3")
        first = await client.ended("m1")
        keys = here.keys("m1")
        await eventually(lambda: not here.node.node.hub.channels)

        async def expired() -> bool:
            return not await store.exists(keys.journal)

        await eventually_true(expired)
        for after in (0, first.cursor // 2, first.cursor - 1, 2**40):
            client.views.clear()
            view = client.view("m1")
            if after == first.cursor - 1:
                view.text, view.cursor = first.text, after
            else:
                view.cursor = after
            await client.send({"type": "resume", "id": "m1", "after": after})
            view = await client.ended("m1")
            whole(view, messages)
            assert view.end == first.end
            if after != first.cursor - 1:
                assert view.snapshots == 1
                assert view.reasoning == first.reasoning
                assert view.tool_calls == first.tool_calls
            assert client.largest <= max_frame_bytes
        assert await store.pttl(keys.record) > 0
        assert here.upstream.count("start") == 1


async def test_a_hole_in_the_journal_becomes_a_snapshot(here: Place) -> None:
    """A takeover begins beyond a jump; a cursor inside it was never an event."""
    async with wire(here.node.url) as client:
        await client.ask("m1", "script tokens=30")
        first = await client.ended("m1")
        keys = here.keys("m1")
        async with redis.asyncio.Redis.from_url(here.redis_url) as store:
            await eventually(lambda: not here.node.node.hub.channels)
            # the last entry is moved beyond a jump, as a survivor would have written it
            import msgpack

            ((_, fields),) = await store.xrevrange(keys.journal, count=1)
            prev, begin, events = msgpack.unpackb(fields[b"e"])
            jump = 1 << 20
            rows = await store.xrange(keys.journal)
            await store.xdel(keys.journal, rows[-1][0])
            entry = msgpack.packb((prev, begin + jump, events))
            head = begin + jump + len(events) - 1
            await store.xadd(keys.journal, {"f": b"2:x", "e": entry}, id=f"{head}-0")
            await store.hset(keys.record, "head", head)
        for after in (begin + 5, begin + jump - 1, 0):
            client.views.clear()
            view = client.view("m1")
            view.cursor = after
            await client.send({"type": "resume", "id": "m1", "after": after})
            view = await client.ended("m1")
            assert view.text == first.text
            view.check_hash()
            assert view.snapshots == (0 if after == 0 else 1)


# --- what the upstream is asked --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
async def test_images_and_tools_reach_the_upstream_unchanged(valkey_url: str, codec: str) -> None:
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "script tokens=6 🌊"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,BB"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "w", "arguments": '{"a":1.50}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny\u2028"},
        {"role": "user", "content": "script tokens=6", "name": "anna", "x_provider": {"deep": [1, None, 2.5]}},
    ]
    tools = [{"type": "function", "function": {"name": "w", "parameters": {"type": "object", "default": None}}}]
    fields = {
        "tools": tools, "tool_choice": "auto", "temperature": 0.5, "top_p": 1, "stop": ["\n\n"], "seed": -7,
        "response_format": {"type": "text"}, "max_tokens": 100,
    }  # fmt: skip
    bodies: list[dict[str, Any]] = []

    class Noting(ScriptedUpstream):
        def open(self, body: dict[str, Any], headers: dict[str, str]) -> Any:
            bodies.append(body)
            return super().open(body, headers)

    async with (
        serving(kind=Noting) as upstream,
        running_node(settings_for(valkey_url, upstream.url)) as node,
        wire(node.url, codec) as client,
    ):
        await client.ask("m1", turns, **fields)
        whole(await client.ended("m1"), turns)
    (body,) = bodies
    assert body["messages"] == turns
    for name, value in fields.items():
        if name != "max_tokens":
            assert body[name] == value, name
    assert body.get("max_completion_tokens", body.get("max_tokens")) == 100
    assert body["model"] == MODEL
    assert "metadata" not in body


# --- HTTP beside it --------------------------------------------------------------------------------------------------


async def test_health_readiness_models_and_metrics(here: Place) -> None:
    async with wire(here.node.url) as client:
        await client.ask("m1", "script tokens=7")
        await client.ended("m1")
        async with aiohttp.ClientSession(here.node.http) as http:
            async with http.get("/healthz") as answer:
                assert (answer.status, await answer.json()) == (200, {"status": "ok"})
            async with http.get("/readyz") as answer:
                assert answer.status == 200
            async with http.get("/v1/models") as answer:
                assert [m["id"] for m in (await answer.json())["data"]] == ["default"]
            async with http.get("/metrics") as answer:
                lines = dict(
                    line.rsplit(" ", 1) for line in (await answer.text()).splitlines() if not line.startswith("#")
                )
    assert float(lines["tidewire_sessions"]) == 1
    assert float(lines["tidewire_messages_running"]) == 0
    assert float(lines['tidewire_messages_total{state="done"}']) == 1
    assert float(lines['tidewire_attempts_total{outcome="done",target="scripted"}']) == 1
    assert float(lines['tidewire_frames_received_total{type="send"}']) == 1


async def test_draining_is_told_to_clients_and_to_readiness(here: Place) -> None:
    async with (
        wire(here.node.url) as client,
        aiohttp.ClientSession(here.node.http) as http,
    ):
        messages = await client.ask("m1", "script tokens=60 gap=0.3")
        await client.type("delta")
        here.node.stop.set()
        goaway = await client.type("goaway")
        assert goaway["reconnect_after_ms"] >= 0
        async with http.get("/readyz") as answer:
            assert (answer.status, (await answer.json())["reason"]) == (503, "draining")
        await client.ask("m2", "script tokens=3")
        assert (await client.error("m2"))["code"] == "draining"
        whole(await client.ended("m1"), messages)
        assert await client.closed() == 1012


# --- liveness --------------------------------------------------------------------------------------------------------


async def test_pong_tells_the_heads_of_what_is_followed(here: Place) -> None:
    async with wire(here.node.url, JSON) as client:
        await client.ask("m1", "script tokens=10 hang=mid")
        await client.until(lambda f: f["type"] == "delta")
        await client.send({"type": "ping", "nonce": "n"})
        pong = await client.type("pong")
        assert pong["nonce"] == "n"
        (head,) = pong["open"]
        assert head["id"] == "m1"
        assert head["seq"] >= client.view("m1").cursor
        await client.send({"type": "cancel", "id": "m1"})
        await client.ended("m1")
        await client.send({"type": "ping"})
        assert await client.recv() == {"type": "pong", "open": []}


def test_the_wire_refuses_what_breaks_the_rules() -> None:
    """The client of these tests would notice a lost, doubled or misplaced frame."""
    delta = {"type": "delta", "id": "m", "after": 1, "seq": 2, "text": "x"}
    for wrong in ({**delta, "after": 0}, {**delta, "seq": 1}):
        view = View("m", cursor=1)
        with pytest.raises(AssertionError):
            view.apply(wrong)
    view = View("m", cursor=1)
    view.apply(delta)
    with pytest.raises(AssertionError):
        view.apply(delta)
    assert isinstance(Wire, type)


# --- what stands after a retry that came to nothing ------------------------------------------------------------------


async def test_a_retry_that_fails_silently_leaves_the_partial_text_standing(here: Place) -> None:
    async with wire(here.node.url) as client:
        here.upstream.fail("cut=event", times=1)
        messages = await client.ask("m1", "script tokens=40")
        view = await client.ended("m1")
        assert view.end is not None
        assert view.end["partial"] is True
        stood = view.text
        here.upstream.fail("status=503")
        await client.ask("m1", messages, retry_of=view.cursor, after=view.cursor)
        failed = await client.until(lambda f: f["type"] == "failed" and f["seq"] > 3)
        assert view.text == stood  # nothing withdrew it
        assert failed["partial"] is True
    async with wire(here.node.url) as other:
        await other.send({"type": "resume", "id": "m1"})
        assert (await other.ended("m1")).text == stood


async def test_a_retry_that_is_cancelled_before_its_first_token_has_the_right_receipt(here: Place) -> None:
    async with wire(here.node.url) as client:
        here.upstream.fail("cut=event", times=1)
        messages = await client.ask("m1", "script tokens=40")
        view = await client.ended("m1")
        stood = view.text
        here.upstream.fail("hang=first")
        await client.ask("m1", messages, retry_of=view.cursor, after=view.cursor)
        await here.upstream.wait_for("start", 2)
        await client.send({"type": "cancel", "id": "m1"})
        await client.type("cancelled")
        assert view.text == stood
        view.check_hash()


class Defective:
    """A driver with a defect."""

    def stream(self, call: Any) -> Any:
        raise RuntimeError("a defect")

    async def check(self) -> str | None:
        return None

    async def close(self) -> None:
        pass


async def test_a_defect_of_a_driver_ends_the_message_and_does_not_hang(here: Place) -> None:
    means = here.node.node.messages.means
    target = means.targets["scripted"]
    assert isinstance(means.targets, dict)
    means.targets["scripted"] = replace(target, driver=Defective())  # type: ignore[arg-type]
    async with wire(here.node.url) as client:
        await client.ask("m1", "script tokens=3")
        view = await client.ended("m1")
        assert view.end is not None
        assert (view.end["type"], view.end["error"]["code"]) == ("failed", "internal")
        assert "a defect" not in str(view.end)
        means.targets["scripted"] = target
        messages = await client.ask("m2", "script tokens=3")
        whole(await client.ended("m2"), messages)
