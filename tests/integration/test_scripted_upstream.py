"""The scripted upstream itself: where a client leaves at an awkward moment, and where it is told to hurry."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import orjson
import uvloop

from tests.upstreams.scripted import serving

ASK = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "script tokens=3 rate=50"}]}


class Leaving:
    """A transport whose client is found gone while the last piece is written."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def write(self, data: bytes) -> None:
        self.transport.write(data)
        if b"[DONE]" in data:
            self.transport.abort()

    def is_closing(self) -> bool:
        return self.transport.is_closing()


def test_a_client_that_leaves_before_the_end_of_the_body_raises_nothing() -> None:
    raised: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
        async with serving() as upstream:
            host, _, port = upstream.url.removeprefix("http://").partition(":")
            body = orjson.dumps(ASK)
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            await upstream.wait_for("start")
            (connection,) = upstream.connections
            assert connection._stream is not None
            connection._stream._writer._transport = Leaving(connection.transport)  # type: ignore[assignment]
            assert not (await reader.read()).endswith(b"0\r\n\r\n")
            (end,) = await upstream.wait_for("end")
            assert end["client_gone"]
            writer.close()
            await writer.wait_closed()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    assert raised == []


async def test_what_is_being_said_comes_at_once_when_it_is_told_to_hurry() -> None:
    asked = {**ASK, "messages": [{"role": "user", "content": "script tokens=3000 rate=20"}]}
    async with serving() as upstream, aiohttp.ClientSession() as http, asyncio.timeout(60):  # else two minutes and more
        async with http.post(upstream.url + upstream.path, json=asked) as answer:
            await answer.content.readline()
            async with http.delete(f"{upstream.url}/admin/pace") as done:
                assert done.status == 200
            assert (await answer.read()).endswith(b"data: [DONE]\n\n")
        (end,) = await upstream.wait_for("end")
        assert (end["chunks"], end["whole"]) == (3000, True)
