"""What strangers send: each thing gets its documented error or close code, the other streams go on, nothing leaks.

`counted` serves, and counts after the test: asyncio tasks, sessions, hub channels, running messages, upstream streams
and Redis keys.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import msgpack
import psutil
import pytest
import redis.asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from protocol.errors import ERRORS
from server.access.origins import OriginPolicy
from tests.integration.test_main_job import KEY_A, KEY_B, SECRET, Place, place, whole
from tests.wire import CODECS, JSON, MSGPACK, eventually, eventually_true, wire

USER = [{"role": "user", "content": "script tokens=5"}]
STAYS = re.compile(r"tw:\{nodes\}|.*:hb:.*|tw:\{q\d+\}:u|tw:\{ledger\}:userkey")
LONG = "script tokens=60 gap=0.25 unicode=1"


@asynccontextmanager
async def counted(
    redis_url: str, overrides: dict[str, Any] | None = None, token: str | None = None
) -> AsyncIterator[Place]:
    """A place; after the block nothing may be left of what happened in it."""
    async with place(redis_url, overrides) as here:
        async with wire(here.node.url, token=token) as client:  # what is made once is made now
            await client.ask("warm-up", "script tokens=3")
            await client.ended("warm-up")
        node = here.node.node
        await eventually(lambda: not node.sessions and not node.keeper.running)
        before = len(asyncio.all_tasks())
        yield here
        await eventually(lambda: not node.sessions)
        await eventually(lambda: not node.keeper.running)
        await eventually(lambda: not node.hub.channels)
        await eventually(lambda: not any(c._stream for c in here.upstream.connections))
        await eventually(lambda: len(asyncio.all_tasks()) <= before)
        assert not node.hub._by_name
        assert node.hub._confirm.keys() <= node.hub._listeners.keys()  # what the node itself listens to stays
        await no_keys_left(redis_url)


async def no_keys_left(redis_url: str) -> None:
    """No hint of a running message is left, and everything goes by itself but what there is once for all users: the
    life signs of nodes, the usage that waits to be drained, the key of pseudonyms."""
    async with redis.asyncio.Redis.from_url(redis_url, decode_responses=True) as store:

        async def no_hints() -> bool:
            return not any(":active" in key or ":open:" in key for key in await store.keys())

        await eventually_true(no_hints, 12)
        for key in await store.keys():
            if not STAYS.fullmatch(key):
                assert await store.pttl(key) > 0, f"{key} stays for ever"


def with_keys(**server: Any) -> dict[str, Any]:
    """API keys for two users and one key that may not chat."""

    def entry(name: str, key: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **more}

    keys = [entry("anna", KEY_A), entry("ben", KEY_B), entry("reports", "tw_reports", scopes=["usage"])]
    return {"auth": {"anonymous": False, "api_keys": keys}, "server": server}


def send(**fields: Any) -> dict[str, Any]:
    return {"type": "send", "id": "bad", "messages": USER, **fields}


BAD_FRAMES: list[tuple[str, dict[str, Any], str, str | None, str | None]] = [
    # name, frame, code, `re`, id
    ("unknown type", {"type": "nonsense", "id": "bad"}, "invalid_frame", "nonsense", "bad"),
    ("no type", {"id": "bad"}, "invalid_frame", None, "bad"),
    ("type is a number", {"type": 5}, "invalid_frame", None, None),
    ("type is a map", {"type": {"a": 1}}, "invalid_frame", None, None),
    ("a server's frame", {"type": "welcome"}, "invalid_frame", "welcome", None),
    ("nothing asked", {"type": "send", "id": "bad"}, "invalid_frame", "send", "bad"),
    ("no id", {"type": "send", "messages": USER}, "invalid_frame", "send", None),
    ("empty messages", send(messages=[]), "invalid_frame", "send", "bad"),
    ("messages is text", send(messages="hello"), "invalid_frame", "send", "bad"),
    ("a message is text", send(messages=["hello"]), "invalid_frame", "send", "bad"),
    ("an unknown role", send(messages=[{"role": "king", "content": "x"}]), "invalid_frame", "send", "bad"),
    ("no content", send(messages=[{"role": "user"}]), "invalid_frame", "send", "bad"),
    ("content is a number", send(messages=[{"role": "user", "content": 5}]), "invalid_frame", "send", "bad"),
    ("no parts", send(messages=[{"role": "user", "content": []}]), "invalid_frame", "send", "bad"),
    ("a part without type", send(messages=[{"role": "user", "content": [{}]}]), "invalid_frame", "send", "bad"),
    ("a part is text", send(messages=[{"role": "user", "content": ["x"]}]), "invalid_frame", "send", "bad"),
    ("a tool nobody called", send(messages=[{"role": "tool", "content": "x"}]), "invalid_frame", "send", "bad"),
    ("65 characters", send(id="x" * 65), "invalid_frame", "send", None),
    ("an empty id", send(id=""), "invalid_frame", "send", ""),
    ("a space in the id", send(id="a b"), "invalid_frame", "send", "a b"),
    ("a line's end in the id", send(id="bad\n"), "invalid_frame", "send", "bad\n"),
    ("id is a number", send(id=5), "invalid_frame", "send", None),
    ("temperature is text", send(temperature="hot"), "invalid_frame", "send", "bad"),
    ("temperature is true", send(temperature=True), "invalid_frame", "send", "bad"),
    ("too hot", send(temperature=2.1), "invalid_frame", "send", "bad"),
    ("below nothing", send(top_p=-0.1), "invalid_frame", "send", "bad"),
    ("no tokens at all", send(max_tokens=0), "invalid_frame", "send", "bad"),
    ("two caps", send(max_tokens=5, max_output_tokens=6), "invalid_frame", "send", "bad"),
    ("the cap is a list", send(max_tokens=[5]), "invalid_frame", "send", "bad"),
    ("the cap is negative", send(max_output_tokens=-1), "invalid_frame", "send", "bad"),
    ("the cap is beyond all", send(max_output_tokens=2**53), "invalid_frame", "send", "bad"),
    ("the cap is a fraction", send(max_output_tokens=5.5), "invalid_frame", "send", "bad"),
    ("the cap is 5.0", send(max_output_tokens=5.0), "invalid_frame", "send", "bad"),
    ("the cap is true", send(max_output_tokens=True), "invalid_frame", "send", "bad"),
    ("the cap is text", send(max_output_tokens="5"), "invalid_frame", "send", "bad"),
    ("tools is a map", send(tools={}), "invalid_frame", "send", "bad"),
    ("seventeen stops", send(stop=["x"] * 17), "invalid_frame", "send", "bad"),
    ("busy how", send(on_busy="wait"), "invalid_frame", "send", "bad"),
    ("metadata is a list", send(metadata=[1]), "invalid_frame", "send", "bad"),
    ("metadata is nested", send(metadata={"feature": {"a": 1}}), "invalid_frame", "send", "bad"),
    ("metadata has too many pairs", send(metadata={str(n): n for n in range(17)}), "invalid_frame", "send", "bad"),
    ("after is negative", send(after=-1), "invalid_frame", "send", "bad"),
    ("after is true", send(after=True), "invalid_frame", "send", "bad"),
    ("an unknown model", send(model="gpt-99"), "model_not_found", "send", "bad"),
    ("model is empty", send(model=""), "invalid_frame", "send", "bad"),
    ("messages and input", send(input="x"), "invalid_frame", "send", "bad"),
    ("input for nobody", {"type": "send", "id": "bad", "input": "x"}, "invalid_frame", "send", "bad"),
    ("nothing to answer", {"type": "send", "id": "bad", "conversation": "c"}, "invalid_frame", "send",
     "bad"),
    ("a second hello", {"type": "hello"}, "invalid_frame", "hello", None),
    ("resume of nothing", {"type": "resume"}, "invalid_frame", "resume", None),
    ("resume after text", {"type": "resume", "id": "good", "after": "1"}, "invalid_frame", "resume", "good"),
    ("resume of the unknown", {"type": "resume", "id": "bad", "after": 2**53}, "message_unknown", "resume", "bad"),
    ("cancel of the unknown", {"type": "cancel", "id": "bad"}, "message_unknown", "cancel", "bad"),
    ("auth without token", {"type": "auth"}, "invalid_frame", "auth", None),
    ("auth with a bad one", {"type": "auth", "token": "tw_nothing"}, "unauthenticated", "auth", None),
    ("auth with no text", {"type": "auth", "token": "\u2028"}, "unauthenticated", "auth", None),
    ("subscribe to nothing", {"type": "subscribe"}, "invalid_frame", "subscribe", None),
    ("history", {"type": "history", "conversation": "c", "limit": 1000}, "invalid_frame", "history", None),
    ("ping of a list", {"type": "ping", "nonce": []}, "invalid_frame", "ping", None),
]  # fmt: skip


@pytest.mark.parametrize("codec", CODECS)
async def test_every_bad_frame_is_answered_and_the_stream_beside_it_goes_on(valkey_url: str, codec: str) -> None:
    async with counted(valkey_url) as here, wire(here.node.url, codec) as client:
        messages = await client.ask("good", LONG)
        await client.type("delta", "good")
        for name, frame, code, re, message_id in BAD_FRAMES:
            await client.send(frame)
            answer = await client.type("error")
            error = answer["error"]
            assert (error["code"], answer.get("re"), answer.get("id")) == (code, re, message_id), name
            row = ERRORS[code]
            assert (error["class"], error["status"], error["retryable"]) == (
                row.error_class, row.status, row.retryable,
            ), name  # fmt: skip
            assert error["message"], name
        whole(await client.ended("good"), messages)
        assert here.upstream.count("start") == 2  # the warm-up and the good one: no bad frame cost anything


async def test_an_unknown_model_s_error_lists_those_there_are(valkey_url: str) -> None:
    async with counted(valkey_url) as here, wire(here.node.url) as client:
        await client.send(send(model="gpt-99"))
        assert (await client.error("bad"))["details"] == {"models": ["default"]}
        messages = await client.ask("bad", "script tokens=4")  # the id is free
        whole(await client.ended("bad"), messages)


SEND = '{"type":"send","id":"bad","messages":[{"role":"user","content":"x"}]'
UNDECODABLE: dict[str, list[str | bytes]] = {
    JSON: [
        "{", "", "nul", "[]", '"x"', "[1]", "\x00", "[[]]",
        '{"type":"send","id":"bad","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        '{"type":"ping","nonce":1e999}', '{"type":"ping","nonce":-Infinity}', '{"type":"ping","type":"ping"}',
        '{"type":"ping","nonce":9007199254740993}',
        f"{SEND},\"max_output_tokens\":{2**63}}}", f"{SEND},\"max_output_tokens\":1e400}}",
        "1" * 5000, '{"a":' * 40 + "1" + "}" * 40, "[" * 100_000,
        b"\xff\xfe{\x00", b"\x00" * 9,
    ],
    MSGPACK: [
        b"", b"\xc1", b"\x81\xa4type", b"\x90", b"\x01", b"\x91\x01", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
        msgpack.packb({"type": "ping", "nonce": float("nan")}), msgpack.packb({"type": "ping", "nonce": b"x"}),
        msgpack.packb({"type": "ping", "nonce": msgpack.ExtType(4, b"x")}), msgpack.packb({1: 2}),
        msgpack.packb({"type": "ping", "nonce": msgpack.Timestamp(1)}), b"\x82\xa1a\x01\xa1a\x02",
        b"\x81\xa1\xff\x01", msgpack.packb({"type": "ping", "nonce": 2**53 + 1}), b"\x91" * 100_000 + b"\x01",
        msgpack.packb({"type": "ping"}) * 2, '{"type":"ping"}',
    ],
}  # fmt: skip


@pytest.mark.parametrize("codec", CODECS)
async def test_what_cannot_be_decoded_is_answered_ten_times(valkey_url: str, codec: str) -> None:
    async with counted(valkey_url) as here:
        payloads = UNDECODABLE[codec]
        for begin in range(0, len(payloads), 10):
            async with wire(here.node.url, codec) as client:
                messages = await client.ask(f"good{begin}", LONG)
                await client.type("delta")
                for data in payloads[begin : begin + 10]:
                    await client.ws.send(data)
                    answer = await client.type("error")
                    assert answer["error"]["code"] == "invalid_frame", data[:60]
                    assert "id" not in answer
                whole(await client.ended(f"good{begin}"), messages)


@pytest.mark.parametrize("codec", CODECS)
async def test_the_eleventh_undecodable_message_closes(valkey_url: str, codec: str) -> None:
    async with counted(valkey_url) as here, wire(here.node.url) as bystander:
        messages = await bystander.ask("good", LONG)
        async with wire(here.node.url, codec) as client:
            for _ in range(11):
                await client.ws.send("{" if codec == JSON else b"\xc1")
            for _ in range(10):
                assert (await client.error())["code"] == "invalid_frame"
            assert await client.closed() == 4400
        whole(await bystander.ended("good"), messages)


@pytest.mark.parametrize("codec", CODECS)
async def test_a_frame_of_two_megabytes_closes_that_socket_and_loses_nothing(valkey_url: str, codec: str) -> None:
    async with counted(valkey_url) as here, wire(here.node.url) as bystander:
        beside = await bystander.ask("beside", LONG)
        async with wire(here.node.url, codec) as client:
            messages = await client.ask("good", LONG)
            await client.type("delta")
            await client.ask("big", "x" * 2_000_000)
            assert await client.closed() == 1009
        async with wire(here.node.url, codec) as client:
            await client.send({"type": "resume", "id": "good"})
            whole(await client.ended("good"), messages)
            await client.send({"type": "resume", "id": "big"})
            assert (await client.error("big"))["code"] == "message_unknown"
        whole(await bystander.ended("beside"), beside)


async def test_invalid_utf8_closes_with_1007(valkey_url: str) -> None:
    async with counted(valkey_url) as here, wire(here.node.url) as client:
        await client.ws.send(b'{"type":"ping","nonce":"\xff"}', text=True)
        assert await client.closed() == 1007


@pytest.mark.parametrize("codec", CODECS)
async def test_frames_before_hello_are_refused_one_by_one(valkey_url: str, codec: str) -> None:
    async with counted(valkey_url) as here, wire(here.node.url, codec, hello=False) as client:
        frames = [
            send(), {"type": "resume", "id": "a"}, {"type": "cancel", "id": "a"}, {"type": "detach", "id": "a"},
            {"type": "ping"}, {"type": "auth", "token": "x"}, {"type": "history", "conversation": "c"},
        ]  # fmt: skip
        for frame in frames:
            await client.send(frame)
            answer = await client.recv()
            assert (answer["type"], answer["re"]) == ("error", frame["type"])
            assert answer["error"]["code"] == "unauthenticated"
        await client.hello()
        messages = await client.ask("good", "script tokens=4")
        whole(await client.ended("good"), messages)


async def test_no_hello_in_time_closes_with_4408(valkey_url: str) -> None:
    async with counted(valkey_url, {"server": {"hello_seconds": 0.1}}) as here:
        async with wire(here.node.url, hello=False) as client:
            await client.send({"type": "ping"})  # anything else is no hello
            assert await client.closed() == 4408
        async with wire(here.node.url) as client:
            messages = await client.ask("good", LONG)  # longer than the deadline, which is over with hello
            whole(await client.ended("good"), messages)


@pytest.mark.parametrize("codec", CODECS)
async def test_a_wrong_token_is_told_and_closes_with_4401(valkey_url: str, codec: str) -> None:
    async with counted(valkey_url, with_keys(), KEY_A) as here:
        for token in (None, "", "tw_wrong", KEY_A + "x", "a.b.c", "é", "x" * 20_000):
            async with wire(here.node.url, codec, hello=False) as client:
                await client.send({"type": "hello", "token": token}, send())
                answer = await client.recv()
                assert (answer["type"], answer["re"], answer["error"]["code"]) == ("error", "hello", "unauthenticated")
                assert (token or "-") not in answer["error"]["message"] or not token
                assert await client.closed() == 4401
        assert here.upstream.count("start") == 1


async def test_a_key_that_may_not_chat_is_forbidden(valkey_url: str) -> None:
    async with counted(valkey_url, with_keys(), KEY_A) as here, wire(here.node.url, hello=False) as client:
        await client.send({"type": "hello", "token": "tw_reports"}, send())
        answer = await client.recv()
        assert (answer["type"], answer["error"]["code"]) == ("error", "forbidden")
        assert await client.closed() == 4403
        assert here.upstream.count("start") == 1


def claims(**more: Any) -> dict[str, Any]:
    return {"sub": "anna", "aud": "tidewire", "exp": time.time() + 3600, **more}


def jwt_auth(folder: Path, **more: Any) -> dict[str, Any]:
    secret = folder / "secret"
    secret.write_text(SECRET)
    return {"auth": {"anonymous": False, "jwt_secret_file": str(secret), **more}}


async def test_forged_and_expired_tokens(valkey_url: str, tmp_path: Path) -> None:
    good = jwt.encode(claims(), SECRET, "HS256")
    unsigned = f"{good.split('.')[0]}.{good.split('.')[1]}."
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    forged = [
        jwt.encode(claims(), "another secret of at least 32 bytes", "HS256"), unsigned,
        f"{none}.{good.split('.')[1]}.", jwt.encode(claims(aud="other"), SECRET, "HS256"),
        jwt.encode({"aud": "tidewire", "exp": time.time() + 9}, SECRET, "HS256"), good[:-2],
    ]  # fmt: skip
    expired = jwt.encode(claims(exp=time.time() - 60), SECRET, "HS256")
    async with counted(valkey_url, jwt_auth(tmp_path), good) as here:
        for token, code in [*((t, "unauthenticated") for t in forged), (expired, "token_expired")]:
            async with wire(here.node.url, hello=False) as client:
                await client.send({"type": "hello", "token": token})
                assert (await client.error())["code"] == code, token
                assert await client.closed() == 4401


async def test_a_token_that_expires_on_an_open_socket(valkey_url: str, tmp_path: Path) -> None:
    """What runs goes on, what is new is refused, `auth` renews; nobody may become somebody else."""
    good = jwt.encode(claims(), SECRET, "HS256")
    async with counted(valkey_url, jwt_auth(tmp_path), good) as here, wire(here.node.url, hello=False) as client:
        expired = jwt.encode(claims(exp=time.time() - 1), SECRET, "HS256")  # within the leeway of clocks
        welcome = await client.hello(good)
        assert welcome["expires_in_seconds"] > 3500
        messages = await client.ask("good", LONG)
        await client.type("delta")
        await client.send({"type": "auth", "token": expired})
        await client.send(send(id="new"))
        assert (await client.error("new"))["code"] == "token_expired"
        await client.send({"type": "auth", "token": jwt.encode(claims(sub="ben"), SECRET, "HS256")})
        assert (await client.error())["code"] == "forbidden"
        await client.send({"type": "auth", "token": good})
        again = await client.ask("new", "script tokens=4")
        whole(await client.ended("new"), again)
        whole(await client.ended("good"), messages)


async def test_unknown_subprotocols_are_refused_at_the_handshake(valkey_url: str) -> None:
    async with counted(valkey_url) as here:
        with pytest.raises(InvalidStatus) as refused:
            await connect(here.node.url, subprotocols=["tidewire.v9.json"], proxy=None)  # type: ignore[list-item]
        assert refused.value.response.status_code == 403
        async with connect(here.node.url, proxy=None) as ws:  # none offered: JSON
            assert ws.subprotocol is None
            await ws.send('{"type":"hello"}')
            assert '"welcome"' in str(await ws.recv())


async def test_a_foreign_page_is_turned_away(valkey_url: str) -> None:
    async with counted(valkey_url) as here:
        for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
            async with connect(here.node.url, origin=origin, proxy=None) as ws:  # type: ignore[arg-type]
                await ws.wait_closed()
                assert ws.close_code == 4403, origin
        own = here.node.http
        assert OriginPolicy().permits(own, own.removeprefix("http://"))
        async with connect(here.node.url, origin=own, proxy=None) as ws:  # type: ignore[arg-type]
            await ws.send('{"type":"hello"}')
            assert '"welcome"' in str(await ws.recv())


async def test_too_many_connections_of_one_user(valkey_url: str) -> None:
    async with counted(valkey_url, with_keys(max_connections_per_user=2), KEY_A) as here:
        async with wire(here.node.url, token=KEY_A), wire(here.node.url, token=KEY_A):
            async with wire(here.node.url, hello=False) as third:
                await third.send({"type": "hello", "token": KEY_A})
                assert (await third.error())["code"] == "rate_limited"
                assert await third.closed() == 4429
            async with wire(here.node.url, token=KEY_B):
                pass
        await eventually(lambda: not here.node.node.sessions)
        async with wire(here.node.url, token=KEY_A):
            pass


async def test_too_many_handshakes_of_one_user(valkey_url: str) -> None:
    async with counted(valkey_url, with_keys(handshakes_per_minute_per_user=1), KEY_B) as here:
        for _ in range(10):
            async with wire(here.node.url, token=KEY_A):
                pass
        async with wire(here.node.url, hello=False) as eleventh:
            await eleventh.send({"type": "hello", "token": KEY_A})
            error = await eleventh.error()
            assert (error["code"], error["retryable"]) == ("rate_limited", True)
            assert 50_000 < error["retry_after_ms"] <= 60_000
            assert await eleventh.closed() == 4429
        async with wire(here.node.url, token=KEY_B):
            pass


async def test_too_many_messages_on_one_connection(valkey_url: str) -> None:
    async with counted(valkey_url, {"server": {"max_open_messages": 2}}) as here, wire(here.node.url) as client:
        asked = {name: await client.ask(name, f"{LONG} seed={name}") for name in ("a", "b", "c")}
        assert (await client.error("c"))["code"] == "too_many_messages"
        for name in ("a", "b"):
            whole(await client.ended(name), asked[name])
        await client.ask("c", asked["c"])
        whole(await client.ended("c"), asked["c"])


async def test_too_many_frames_are_refused_until_the_pace_is_kept(valkey_url: str) -> None:
    async with counted(valkey_url, {"server": {"frames_per_second": 20}}) as here, wire(here.node.url) as client:
        messages = await client.ask("good", LONG)
        await client.type("delta")
        for _ in range(150):
            await client.send({"type": "ping"})
        error = await client.error()
        assert error["code"] == "rate_limited"
        assert error["retry_after_ms"] > 0
        whole(await client.ended("good"), messages)


async def test_many_sockets_give_a_user_no_more_frames(valkey_url: str) -> None:
    async with (
        counted(valkey_url, {"server": {"frames_per_second_per_user": 20}}) as here,
        wire(here.node.url) as one,
        wire(here.node.url) as two,
    ):
        for _ in range(90):
            await one.send({"type": "ping"})
            await one.type("pong")
        await two.send(*({"type": "ping"} for _ in range(300)))  # by itself it might send ten times as many
        error = await two.error()
        assert error["code"] == "rate_limited"
        assert error["retry_after_ms"] > 0


# --- odd but legal ---------------------------------------------------------------------------------------------------


async def test_odd_but_legal_requests_end_like_any_other(valkey_url: str) -> None:
    odd = [
        '"tools":[{"type":"function","function":{"name":"f","x":1e300}}]',
        '"metadata":{"\\ud800":"\\udfff\\u0000"}',
        '"tools":[{"type":"function","\\ud800":1}]',
        '"stop":[]', '"seed":-0', '"temperature":0', '"unknown":{"a":[[[]]]}', '"tools":[]', '"max_tokens":1',
        '"metadata":{"a":1e-320}',
    ]  # fmt: skip
    async with counted(valkey_url) as here, wire(here.node.url) as client:
        good = await client.ask("good", LONG)
        await client.type("delta")
        for number, part in enumerate(odd):
            text = '[{"role":"user","content":"script tokens=3\\n\\ud83d\\ude00 \\ud800"}]'
            await client.ws.send(f'{{"type":"send","id":"odd{number}","messages":{text},{part}}}')
            view = await client.ended(f"odd{number}")
            assert view.end is not None
            assert view.end["type"] == "done", (part, view.end)
            view.check_hash()
        whole(await client.ended("good"), good)


@pytest.mark.parametrize("part", [None, 5, ["x"], {"a": 1}])
async def test_parts_with_a_strange_text_end_somehow(valkey_url: str, part: Any) -> None:
    """The upstream may refuse them; the message must not hang."""
    async with counted(valkey_url) as here, wire(here.node.url) as client:
        content = [{"type": "text", "text": part}, {"type": "text", "text": "script tokens=3"}]
        here.upstream.fail("status=400")
        await client.ask("m1", [{"role": "assistant", "content": content}, {"role": "user", "content": "x"}])
        view = await client.ended("m1")
        assert view.end is not None
        here.upstream.heal()


async def test_a_nul_byte_and_a_very_long_question_survive(valkey_url: str) -> None:
    async with counted(valkey_url) as here, wire(here.node.url, MSGPACK) as client:
        messages = await client.ask("m1", "script tokens=4\n\x00 \u202e " + "\U0001f30a" * 200_000)
        whole(await client.ended("m1"), messages)


# --- clients that vanish or do not read ------------------------------------------------------------------------------


class Raw:
    """A TCP client that shakes hands and then does as it likes. Writes frames as RFC 6455 section 5.2 has them."""

    def __init__(self, here: Place) -> None:
        self.server = here.node.port
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.setblocking(False)

    async def open(self) -> None:
        """Connect, shake hands, say hello, read the welcome."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.sock, ("127.0.0.1", self.server))
        self.port = self.sock.getsockname()[1]
        key = base64.b64encode(os.urandom(16)).decode()
        await loop.sock_sendall(
            self.sock,
            (
                f"GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1:{self.server}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
            ).encode(),
        )
        await self.read_until(b"\r\n\r\n")
        await self.send(b'{"type":"hello"}')
        await self.read_until(b'"welcome"')

    async def read_until(self, mark: bytes) -> None:
        """Read as far as `mark`."""
        got = b""
        while mark not in got:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 4096)
            assert data, got
            got += data

    def frame(self, text: bytes) -> bytes:
        """A masked text frame."""
        size = len(text)
        head = struct.pack("!BB", 0x81, 0x80 | size) if size < 126 else struct.pack("!BBH", 0x81, 0xFE, size)
        return head + b"\0\0\0\0" + text

    async def send(self, text: bytes, cut: int | None = None) -> None:
        """Send a frame, or the beginning of it."""
        await asyncio.get_running_loop().sock_sendall(self.sock, self.frame(text)[:cut])

    def vanish(self, reset: bool) -> None:
        """Close, politely or with a TCP reset."""
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "reset"])
@pytest.mark.parametrize("cut", [1, 9, 60])
async def test_a_client_that_vanishes_mid_frame_leaves_nothing(valkey_url: str, cut: int, reset: bool) -> None:
    async with counted(valkey_url) as here:
        raw = Raw(here)
        await raw.open()
        await raw.send(b'{"type":"send","id":"m1","messages":[{"role":"user","content":"script tokens=30 gap=0.1"}]}')
        await here.upstream.wait_for("start", 2)
        await raw.send(b'{"type":"send","id":"m2","messages":[{"role":"user","content":"script tokens=30"}]}', cut)
        raw.vanish(reset)
        await eventually(lambda: not here.node.node.sessions)
        async with wire(here.node.url) as client:
            await client.send({"type": "resume", "id": "m1"})
            view = await client.ended("m1")
            whole(view, [{"role": "user", "content": "script tokens=30 gap=0.1"}])
            await client.send({"type": "resume", "id": "m2"})
            assert (await client.error("m2"))["code"] == "message_unknown"


async def test_a_client_that_never_reads_costs_a_cursor_and_is_dropped(valkey_url: str) -> None:
    async with counted(valkey_url, {"server": {"heartbeat_seconds": 0.6}}) as here, wire(here.node.url) as bystander:
        node = here.node.node
        node.hub.tail_bytes = 8192
        raw = Raw(here)
        await raw.open()
        (session,) = [s for s in node.sessions if not s.out.follows and s.id != bystander.session]
        content = "script bytes=6000000"
        await raw.send(b'{"type":"send","id":"m1","messages":[{"role":"user","content":"%s"}]}' % content.encode())
        await here.upstream.wait_for("start", 2)
        await bystander.send({"type": "resume", "id": "m1"})
        whole(await bystander.ended("m1"), [{"role": "user", "content": content}])
        (follow,) = session.out.follows.values()
        assert follow.cursor < follow.channel.base
        assert sum(entry.size for entry in follow.channel.entries) < 100_000
        await eventually(lambda: session not in node.sessions)  # two pings were not answered
        await eventually(lambda: not connected(here.node.port, raw.port))
        raw.vanish(True)


def connected(server: int, client: int) -> bool:
    """Whether the server's end of a TCP connection stands."""
    return any(
        c.laddr.port == server and c.raddr and c.raddr.port == client and c.status == psutil.CONN_ESTABLISHED
        for c in psutil.Process().net_connections("tcp4")
    )


@pytest.mark.parametrize("batched", [True, False])
async def test_answers_that_are_not_read_stop_the_reading(valkey_url: str, batched: bool) -> None:
    overrides = {"server": {"frames_per_second": 1_000_000, "heartbeat_seconds": 0.5}}
    async with counted(valkey_url, overrides) as here:
        raw = Raw(here)
        await raw.open()
        (session,) = here.node.node.sessions
        ping = b'{"type":"ping","nonce":"' + b"x" * 400 + b'"}'
        data = raw.frame(b"[" + b",".join([ping] * 100) + b"]") * 60 if batched else raw.frame(ping) * 6000
        loop = asyncio.get_running_loop()
        flood = asyncio.ensure_future(loop.sock_sendall(raw.sock, data * 4))  # noqa: TID251 - ended below
        most = 0

        def stuck() -> bool:
            nonlocal most
            most = max(most, len(session.out._control))
            return session not in here.node.node.sessions

        await eventually(stuck, 10)
        assert 0 < most <= 300
        flood.cancel()
        await asyncio.wait([flood])
        if not flood.cancelled():
            flood.exception()
        raw.vanish(True)


async def test_vanishing_while_many_things_are_asked(valkey_url: str) -> None:
    async with counted(valkey_url) as here:
        async with wire(here.node.url) as client:
            for number in range(40):
                await client.ask(f"m{number}", f"script tokens=20 seed={number}")
                await client.send({"type": "resume", "id": f"x{number}"}, {"type": "cancel", "id": f"m{number}"})
            client.ws.transport.abort()
        await eventually(lambda: not here.node.node.sessions)
