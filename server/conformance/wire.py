"""A connection that takes nothing for granted: every frame of the server is checked when it arrives."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from protocol.codec import Codec, DecodeError
from protocol.frames import SERVER_FRAMES, server_frame
from server.conformance.report import CheckFailed

Map = dict[str, Any]
ENDS: Final = ("done", "failed", "cancelled")
JOURNALED: Final = ("attempt", "delta", *ENDS)
MAX_INCOMING_BYTES: Final = 64 * 2**20


def require(condition: object, complaint: str) -> None:
    """Raises `CheckFailed` with `complaint` unless the condition holds."""
    if not condition:
        raise CheckFailed(complaint)


@dataclass(slots=True)
class Story:
    """One message as a connection was told it. Raises `CheckFailed` where the frames contradict each other."""

    id: str
    cursor: int = 0
    text: str = ""
    attempts: list[Map] = field(default_factory=list)
    frames: list[Map] = field(default_factory=list)
    end: Map | None = None
    snapshots: int = 0
    _parts: list[Map] = field(default_factory=list)

    def apply(self, frame: Map) -> None:
        """Take in one frame about this message."""
        kind = frame["type"]
        if kind not in JOURNALED and kind != "snapshot":
            return
        require(self.end is None, f"a {kind} of {self.id} came after its {(self.end or {}).get('type')}")
        self.frames.append(frame)
        if kind == "snapshot":
            self._snapshot(frame)
            return
        require(frame["seq"] > self.cursor, f"{kind} has seq {frame['seq']}, but {self.cursor} was told before")
        before = frame.get("after")
        require(before is None or before == self.cursor, f"{kind} continues {before}, but {self.cursor} was the last")
        self.cursor = frame["seq"]
        if kind == "attempt":
            self.attempts.append(frame)
            if frame["mode"] != "continue":
                self.text = ""
        elif kind == "delta":
            self.text += frame.get("text") or ""
        else:
            self.end = frame
            self._check_hash(frame)

    def _snapshot(self, frame: Map) -> None:
        require(frame["part"] == len(self._parts) + 1, f"part {len(self._parts) + 1} of a snapshot is missing")
        self._parts.append(frame)
        if frame["last"]:
            self.snapshots += 1
            self.text = "".join(part.get("text") or "" for part in self._parts)
            self.cursor = frame["seq"]
            self._parts = []

    def _check_hash(self, frame: Map) -> None:
        if "text_sha256" not in frame:
            return
        data = self.text.encode()
        require(frame["text_bytes"] == len(data), f"text_bytes is {frame['text_bytes']}, the text has {len(data)}")
        require(frame["text_sha256"] == hashlib.sha256(data).hexdigest(), "text_sha256 is not that of the text")


class Wire:
    """One connection to the server under test."""

    def __init__(self, socket: ClientConnection, codec: Codec, seconds: float) -> None:
        self.socket = socket
        self.codec = codec
        self.seconds = seconds
        """How long anything may take."""
        self.stories: dict[str, Story] = {}
        self.welcome: Map = {}
        self._arrived: list[Map] = []
        self._nonce = 0

    async def send(self, *frames: Mapping[str, Any]) -> None:
        """Send frames, several as an array in one message."""
        packed = self.codec.join([self.codec.encode(dict(frame)) for frame in frames])
        await self.raw(packed)

    async def raw(self, data: bytes) -> None:
        """Send one WebSocket message of the codec's kind, whatever is in it."""
        await self.socket.send(data, text=not self.codec.binary)

    async def receive(self) -> Map:
        """The next frame. Raises `CheckFailed` if it is not one, or none comes in time, or the connection closes."""
        while not self._arrived:
            try:
                async with asyncio.timeout(self.seconds):
                    data = await self.socket.recv(decode=False)
            except TimeoutError:
                raise CheckFailed(f"nothing came within {self.seconds:g} s") from None
            except ConnectionClosed as closed:
                raise CheckFailed(f"the connection was closed ({_code(closed)})") from None
            try:
                self._arrived = self.codec.decode(data)
            except DecodeError as error:
                raise CheckFailed(f"what came cannot be decoded: {error}") from None
        frame = self._arrived.pop(0)
        self._check(frame)
        return frame

    def _check(self, frame: Map) -> None:
        kind = frame.get("type")
        require(isinstance(kind, str), f"a frame has no type: {frame}")
        if kind in SERVER_FRAMES:
            try:
                server_frame.validate_python(frame)
            except ValidationError as error:
                raise CheckFailed(f"{kind} does not fit its schema: {error.errors()[0]['msg']}: {frame}") from None
        story = self.stories.get(str(frame.get("id")))
        if story is not None:
            story.apply(frame)

    async def until(self, wanted: Callable[[Map], bool]) -> Map:
        """The next frame that is wanted; the others are only checked."""
        while not wanted(frame := await self.receive()):
            pass
        return frame

    async def type(self, kind: str, message_id: str | None = None) -> Map:
        """The next frame of a type, about a message."""
        return await self.until(
            lambda frame: frame["type"] == kind and (message_id is None or frame.get("id") == message_id)
        )

    async def error(self, message_id: str | None = None) -> Map:
        """The next `error`, about a message; the frame."""
        return await self.type("error", message_id)

    def follow(self, message_id: str, cursor: int = 0, text: str = "") -> Story:
        """Check everything that comes of this message from now on, from what is known of it."""
        story = self.stories[message_id] = Story(message_id, cursor, text)
        return story

    async def ended(self, story: Story) -> Story:
        """Read until the message has ended. Raises `CheckFailed` if the server refuses it instead."""
        while story.end is None:
            frame = await self.receive()
            if frame["type"] == "error" and frame.get("id") == story.id:
                raise CheckFailed(f"the message was answered by {frame['error']['code']}: {frame['error']['message']}")
        return story

    async def alive(self) -> Map:
        """Whether the connection still serves: the answer to a `ping`."""
        self._nonce += 1
        await self.send({"type": "ping", "nonce": self._nonce})
        return await self.until(lambda frame: frame["type"] == "pong" and frame.get("nonce") == self._nonce)

    async def closed(self) -> int:
        """The code with which the server closes. Raises `CheckFailed` if it doesn't."""
        try:
            async with asyncio.timeout(self.seconds):
                while True:
                    await self.socket.recv(decode=False)
        except TimeoutError:
            raise CheckFailed(f"the connection was not closed within {self.seconds:g} s") from None
        except ConnectionClosed as closed:
            return _code(closed)


def _code(closed: ConnectionClosed) -> int:
    return closed.rcvd.code if closed.rcvd is not None else 1006


@asynccontextmanager
async def opened(url: str, codec: Codec, seconds: float) -> AsyncIterator[Wire]:
    """A connection that has said nothing yet. Raises what `websockets` raises if there is none."""
    async with connect(
        url,
        subprotocols=[Subprotocol(codec.subprotocol)],
        compression=None,
        max_size=MAX_INCOMING_BYTES,
        open_timeout=seconds,
        close_timeout=2.0,
        ping_interval=None,
        proxy=None,
    ) as socket:
        yield Wire(socket, codec, seconds)
