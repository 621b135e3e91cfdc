"""A raw WebSocket client for tests: the wire as it is, every rule of the protocol asserted on every frame.

It shares nothing with `protocol/client/`, so that a mistake there cannot hide one in the server. Reading happens only
in `recv`: a test that does not ask is a client that does not read.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import socket as sockets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import msgpack
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

JSON: Final = "tidewire.v1.json"
MSGPACK: Final = "tidewire.v1.msgpack"
CODECS: Final = (JSON, MSGPACK)
END: Final = frozenset({"done", "failed", "cancelled"})
RECV_SECONDS: Final = 10.0

Frame = dict[str, Any]


@dataclass(slots=True)
class View:
    """What stands of one message, as a client that keeps to the rules sees it."""

    id: str
    cursor: int = 0
    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    attempts: list[Frame] = field(default_factory=list)
    snapshots: int = 0
    end: Frame | None = None
    """The end frame, without `after`."""
    frames: list[Frame] = field(default_factory=list)
    _parts: list[Frame] = field(default_factory=list)

    def apply(self, frame: Frame) -> None:
        """Take one frame of this message; asserts that it may follow what was there."""
        self.frames.append(frame)
        kind = frame["type"]
        if kind in ("accepted", "error"):
            return
        if kind == "snapshot":
            self._snapshot(frame)
            return
        if self.end is not None and told(frame) == self.end:
            return  # an end may be told again
        assert not self._parts, f"{kind} between the parts of a snapshot"
        assert self.end is None or self.end["type"] == "failed", f"{kind} after {self.end}"
        assert frame["seq"] > self.cursor, f"seq {frame['seq']} does not rise from {self.cursor}"
        if not (kind in END and self.only_receipt):
            assert frame["after"] == self.cursor, f"{kind} after {frame['after']} for a client at {self.cursor}"
        if kind == "delta":
            self._add(frame)
        elif kind == "attempt":
            self.end = None
            self.attempts.append(frame)
            if frame["mode"] != "continue":
                self.text, self.reasoning, self.tool_calls = "", "", []
        else:
            assert kind in END, frame
            self.end = told(frame)
        self.cursor = frame["seq"]

    @property
    def only_receipt(self) -> bool:
        """Whether nothing but an end is expected: a stop was asked for without following."""
        return not self.cursor and not self.attempts

    def _snapshot(self, frame: Frame) -> None:
        if frame["part"] == 1:
            self._parts.clear()
        assert frame["part"] == len(self._parts) + 1, "a part of a snapshot is missing"
        self._parts.append(frame)
        if not frame["last"]:
            return
        self.text, self.reasoning, self.tool_calls = "", "", []
        for part in self._parts:
            assert part["seq"] == frame["seq"]
            self._add(part)
        self._parts.clear()
        self.cursor = frame["seq"]
        self.snapshots += 1

    def _add(self, frame: Frame) -> None:
        self.text += frame.get("text") or ""
        self.reasoning += frame.get("reasoning") or ""
        for delta in frame.get("tool_calls") or ():
            call = next((c for c in self.tool_calls if c["index"] == delta["index"]), None)
            if call is None:
                self.tool_calls.append({**delta, "function": dict(delta.get("function") or {})})
                continue
            function = call["function"]
            function["arguments"] = function.get("arguments", "") + delta["function"].get("arguments", "")

    def check_hash(self) -> None:
        """What stands is what the end frame says."""
        assert self.end is not None
        data = self.text.encode()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (self.end["text_bytes"], self.end["text_sha256"])


def told(frame: Frame) -> Frame:
    """A frame without where it continues from, which is the reader's."""
    return {name: value for name, value in frame.items() if name != "after"}


class Wire:
    """One connection."""

    def __init__(self, ws: ClientConnection, codec: str) -> None:
        self.ws = ws
        self.codec = codec
        self.views: dict[str, View] = {}
        self.session = ""
        """The id of the session, from `welcome`."""
        self.largest = 0
        """Bytes of the largest WebSocket message that came."""
        self.quotas: list[Frame] = []
        """Every `quota` frame that came: they come between all others, so `recv` puts them here."""
        self._frames: deque[Frame] = deque()

    def pack(self, frame: Any) -> str | bytes:
        """A frame (or an array of them) in the connection's codec."""
        packed: bytes = msgpack.packb(frame)
        return json.dumps(frame) if self.codec == JSON else packed

    async def send(self, *frames: Mapping[str, Any]) -> None:
        """Send frames, each in its own WebSocket message."""
        for frame in frames:
            await self.ws.send(self.pack(frame))

    async def recv(self) -> Frame:
        """The next frame, applied to its message. Raises `ConnectionClosed`, or `TimeoutError` after 10 s."""
        while not self._frames:
            await self._read()
        frame = self._frames.popleft()
        if frame["type"] not in ("error", "message") and "id" in frame:
            self.view(frame["id"]).apply(frame)
        return frame

    async def _read(self) -> None:
        async with asyncio.timeout(RECV_SECONDS):
            data = await self.ws.recv(decode=False)
        self.largest = max(self.largest, len(data))
        got = json.loads(data) if self.codec == JSON else msgpack.unpackb(data)
        for frame in got if isinstance(got, list) else [got]:
            (self.quotas if frame["type"] == "quota" else self._frames).append(frame)

    async def quota(self, wanted: Callable[[dict[str, Frame]], bool]) -> dict[str, Frame]:
        """The newest limits by name, once they are as wanted."""
        while not (self.quotas and wanted({limit["name"]: limit for limit in self.quotas[-1]["limits"]})):
            await self._read()
        return {limit["name"]: limit for limit in self.quotas[-1]["limits"]}

    def view(self, message_id: str) -> View:
        """What stands of a message here."""
        return self.views.setdefault(message_id, View(message_id))

    async def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        """Read until a frame is wanted."""
        while not wanted(frame := await self.recv()):
            pass
        return frame

    async def type(self, kind: str, message_id: str | None = None) -> Frame:
        """Read until a frame of this type (about this message)."""
        return await self.until(lambda f: f["type"] == kind and message_id in (None, f.get("id")))

    async def error(self, message_id: str | None = None) -> Frame:
        """Read until an error (about this message); its body."""
        frame = await self.type("error", message_id)
        body: Frame = frame["error"]
        return body

    async def ended(self, message_id: str) -> View:
        """Read until the message has ended; its view."""
        view = self.view(message_id)
        while view.end is None:
            frame = await self.recv()
            assert frame["type"] != "error" or frame.get("id") != message_id, frame
        return view

    async def hello(self, token: str | None = None, resume: list[Frame] | None = None) -> Frame:
        """Say hello; the `welcome`."""
        frame: Frame = {"type": "hello"}
        if token is not None:
            frame["token"] = token
        if resume is not None:
            frame["resume"] = resume
        await self.send(frame)
        answer = await self.recv()
        assert answer["type"] == "welcome", answer
        self.session = answer["session"]
        return answer

    async def ask(self, message_id: str, content: Any, **fields: Any) -> list[Frame]:
        """Send a message with one user turn (or the turns given); its `messages`."""
        messages = content if isinstance(content, list) else [{"role": "user", "content": content}]
        await self.send({"type": "send", "id": message_id, "messages": messages, **fields})
        return messages

    async def closed(self) -> int:
        """Read until the server closes; the close code."""
        with pytest.raises(ConnectionClosed) as ending:
            await self.until(lambda _: False)
        frame = ending.value.rcvd
        assert frame is not None, "the connection broke off without a close frame"
        return frame.code

    async def quiet(self) -> list[Frame]:
        """Every frame that comes within three more round trips to Redis: what was sent before has been served then."""
        frames: list[Frame] = []
        for _ in range(3):
            barrier = f"barrier-{secrets.token_hex(8)}"
            await self.send({"type": "detach", "id": barrier})
            while (frame := await self.recv()).get("id") != barrier:
                frames.append(frame)
        return frames


@asynccontextmanager
async def wire(
    url: str, codec: str = JSON, *, hello: bool = True, token: str | None = None, receive_buffer: int | None = None
) -> AsyncIterator[Wire]:
    """A connection; with `hello`, past it. `receive_buffer`: bytes that its socket takes in without being read."""
    sock = None
    if receive_buffer is not None:
        host, port = url.removeprefix("ws://").partition("/")[0].split(":")
        sock = sockets.socket()
        sock.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, receive_buffer)
        sock.connect((host, int(port)))
        sock.setblocking(False)
    async with connect(
        url,
        subprotocols=[codec],  # type: ignore[list-item]
        compression=None,
        max_size=None,
        max_queue=2,
        ping_interval=None,
        close_timeout=0.2,  # the answer to a close may lie behind what a test never read
        proxy=None,
        **({} if sock is None else {"sock": sock}),
    ) as ws:
        connection = Wire(ws, codec)
        if hello:
            await connection.hello(token)
        yield connection


async def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for a condition that nothing announces; fails after `seconds`."""

    async def ask() -> bool:
        return condition()

    await eventually_true(ask, seconds)


async def eventually_true(ask: Callable[[], Awaitable[bool]], seconds: float = 5.0) -> None:
    """The same for one that has to be asked for."""
    async with asyncio.timeout(seconds):
        while not await ask():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.005)
