"""The checks of a server: ours passes them all, and one whose frames are tampered with does not."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from protocol.codec import JSON
from server.conformance.checks import CHECKS, Probe
from server.conformance.report import CheckFailed
from server.conformance.run import CODECS, check_server
from tests.integration.http.client import Place, place

Map = dict[str, Any]
Tamper = Callable[[Map], list[Map]]
PROMPT = "script tokens=40 rate=400"
LONG_PROMPT = "script tokens=4000 rate=50"


@pytest.fixture
async def here(valkey_url: str) -> AsyncIterator[Place]:
    """A node with a scripted upstream."""
    async with place(valkey_url) as found:
        yield found


def probe(url: str, seconds: float = 10.0) -> Probe:
    return Probe(url, JSON, prompt=PROMPT, long_prompt=LONG_PROMPT, seconds=seconds)


async def test_our_server_passes(here: Place) -> None:
    report = await check_server(probe(here.node.url), CODECS["both"])
    assert report.exit_code == 0, report.as_table()
    assert report.count("passed") == 2 * len(CHECKS) - 1
    (skipped,) = [result for result in report.results if result.outcome == "skipped"]
    assert (skipped.name, skipped.codec) == ("invalid_utf8", "tidewire.v1.msgpack")


def twice(kind: str) -> Tamper:
    return lambda frame: [frame, frame] if frame["type"] == kind else [frame]


def without(kind: str, field: str) -> Tamper:
    return lambda frame: [{k: v for k, v in frame.items() if k != field}] if frame["type"] == kind else [frame]


def changed(kind: str, **fields: Any) -> Tamper:
    return lambda frame: [frame | fields] if frame["type"] == kind else [frame]


def dropping_one_delta() -> Tamper:
    seen: list[Map] = []

    def tamper(frame: Map) -> list[Map]:
        if frame["type"] == "delta":
            seen.append(frame)
            return [] if len(seen) == 2 else [frame]
        return [frame]

    return tamper


def error_code(code: str) -> Tamper:
    def tamper(frame: Map) -> list[Map]:
        frame = copy.deepcopy(frame)
        if frame["type"] == "error":
            frame["error"]["code"] = code
        return [frame]

    return tamper


@asynccontextmanager
async def tampered(url: str, tamper: Tamper) -> AsyncIterator[str]:
    """A way to the server on which its frames are changed."""

    async def handle(socket: ServerConnection) -> None:
        async with connect(url, subprotocols=[socket.subprotocol], proxy=None) as upstream:  # type: ignore[list-item]

            async def back() -> None:
                async for data in upstream:
                    frames = [told for frame in JSON.decode(data) for told in tamper(frame)]
                    for frame in frames:
                        await socket.send(JSON.encode(frame), text=True)
                await socket.close(upstream.close_code or 1000)

            async with asyncio.TaskGroup() as group:
                reading = group.create_task(back())
                try:
                    async for data in socket:
                        await upstream.send(data)
                except ConnectionClosed:
                    pass
                await upstream.close()
                reading.cancel()

    async with serve(handle, "127.0.0.1", 0, subprotocols=["tidewire.v1.json"]) as server:  # type: ignore[list-item]
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/v1/ws"


@pytest.mark.parametrize(
    ("tamper", "check", "complaint"),
    [
        pytest.param(twice("delta"), "message", "was told before", id="doubled delta"),
        pytest.param(dropping_one_delta(), "message", "was the last", id="lost delta"),
        pytest.param(changed("done", text_sha256="0" * 64), "message", "text_sha256", id="wrong hash"),
        pytest.param(twice("done"), "side_by_side", "came after its done", id="doubled end"),
        pytest.param(changed("accepted", replay=False), "repeat", "as a new message", id="no replay"),
        pytest.param(without("pong", "nonce"), "ping", "came back as None", id="no nonce"),
        pytest.param(without("welcome", "active"), "welcome", "does not fit its schema", id="no field"),
        pytest.param(changed("welcome", active=[]), "cancel", "lacks it", id="hidden message"),
        pytest.param(error_code("internal"), "mismatch", "the error is", id="wrong code"),
        pytest.param(error_code("internal"), "resume_unknown", "the error is", id="wrong code of a resume"),
    ],
)
async def test_what_is_tampered_with_is_found(here: Place, tamper: Tamper, check: str, complaint: str) -> None:
    assert (await check_server(probe(here.node.url), [JSON], [check])).exit_code == 0
    async with tampered(here.node.url, tamper) as url:
        with pytest.raises(CheckFailed, match=complaint):
            await CHECKS[check](probe(url, seconds=2.0))
