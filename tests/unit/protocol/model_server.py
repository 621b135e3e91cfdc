"""A server made of a list per message: the other side for tests of clients, with and without sockets.

`ModelServer` holds journals and answers client frames as protocol.md says; it is pure. `SocketServer` puts it behind a
real WebSocket and can be told to drop connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from protocol.client.message import ToolCallBuffer
from protocol.codec import CODECS
from protocol.errors import ProtocolError
from protocol.frames import SUBPROTOCOL_JSON

Map = dict[str, Any]
USAGE = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, "cached_tokens": 0, "reasoning_tokens": 0}
ENDS = ("done", "failed", "cancelled")


class Standing:
    """What stands after some events."""

    def __init__(self) -> None:
        self.text, self.reasoning, self.calls, self.attempt = "", "", ToolCallBuffer(), 0

    def apply(self, frame: Map) -> None:
        """One event, as its frame."""
        if frame["type"] == "attempt":
            self.attempt = frame["attempt"]
            if frame["mode"] != "continue":
                self.text, self.reasoning, self.calls = "", "", ToolCallBuffer()
        elif frame["type"] == "delta":
            self.text += frame.get("text", "")
            self.reasoning += frame.get("reasoning", "")
            self.calls.merge(frame.get("tool_calls", []))


class Journal:
    """One message's events, as the frames that tell them."""

    def __init__(self, message_id: str, request: Map | None = None) -> None:
        self.id = message_id
        self.request = request
        self.frames: list[Map] = []
        self.tells_after = True
        """Whether frames that are no deltas carry `after` too."""

    @property
    def head(self) -> int:
        """`seq` of the last event."""
        return self.frames[-1]["seq"] if self.frames else 0

    @property
    def state(self) -> str:
        """As `accepted` tells it."""
        return self.frames[-1]["type"] if self.frames and self.frames[-1]["type"] in ENDS else "streaming"

    def at(self, seq: int) -> Standing:
        """What stands at `seq`."""
        standing = Standing()
        for frame in self.frames:
            if frame["seq"] <= seq:
                standing.apply(frame)
        return standing

    def attempt(self, mode: str = "fresh", jump: int = 0) -> None:
        """Another attempt."""
        number = self.at(self.head).attempt + 1
        self._add("attempt", jump, attempt=number, target="t", model="m", mode=mode)

    def delta(self, **output: Any) -> None:
        """New output."""
        self._add("delta", **output)

    def end(self, kind: str) -> None:
        """`done`, `failed` or `cancelled`."""
        if kind == "failed":
            error = ProtocolError("upstream_unavailable", "broke off").as_dict()
            self._add("failed", error=error, usage=USAGE, partial=bool(self.at(self.head).text))
            return
        data = self.at(self.head).text.encode()
        hashed: Map = {"text_bytes": len(data), "text_sha256": hashlib.sha256(data).hexdigest()}
        more: Map = {"finish_reason": "stop", "model": "m", "target": "t", "attempts": 1} if kind == "done" else {}
        self._add(kind, usage=USAGE, **hashed, **more)

    def _add(self, kind: str, jump: int = 0, **fields: Any) -> None:
        after = {"after": self.head} if kind == "delta" or self.tells_after else {}
        self.frames.append({"type": kind, "id": self.id, "seq": self.head + 1 + jump, **after, **fields})

    def after(self, seq: int) -> list[Map]:
        """What a reader at `seq` is told: later events, or a snapshot in two parts and what follows it."""
        if seq == 0 or any(frame["seq"] == seq for frame in self.frames):
            return [frame for frame in self.frames if frame["seq"] > seq]
        output = [frame for frame in self.frames if frame["type"] not in ENDS]
        at = output[-1]["seq"] if output else 0
        standing = self.at(at)
        half = len(standing.text) // 2
        common = {"type": "snapshot", "id": self.id, "seq": at, "attempt": standing.attempt}
        first = {**common, "part": 1, "last": False, "text": standing.text[:half], "reasoning": standing.reasoning}
        last = {**common, "part": 2, "last": True, "text": standing.text[half:]}
        last["tool_calls"] = [{"index": n, **call} for n, call in enumerate(standing.calls.calls)]
        return [first, last, *(frame for frame in self.frames if frame["seq"] > at)]


class ModelServer:
    """All journals. `script` fills the journal of a message that is sent for the first time."""

    def __init__(self, script: Callable[[Journal], None]) -> None:
        self.journals: dict[str, Journal] = {}
        self.generations = 0
        self._script = script

    def answer(self, frame: Map) -> list[Map]:
        """Everything that follows from one client frame, to be sent in order."""
        match frame["type"]:
            case "hello":
                return self._welcome(frame.get("resume", []))
            case "send":
                return self._send(frame)
            case "resume" | "cancel" | "detach" as kind:
                journal = self.journals.get(frame["id"])
                if journal is None:
                    return [refusal(kind, "message_unknown", frame["id"])]
                return self._follow(journal, frame["after"]) if kind == "resume" else []
            case "ping":
                heads = [{"id": j.id, "seq": j.head} for j in self.journals.values() if j.state == "streaming"]
                return [{"type": "pong", "nonce": frame.get("nonce"), "open": heads}]
        return []

    def _send(self, frame: Map) -> list[Map]:
        journal = self.journals.get(frame["id"])
        if journal is None:
            self.generations += 1
            journal = self.journals[frame["id"]] = Journal(frame["id"], frame)
            self._script(journal)
            return [accepted(journal, False), *journal.after(0)]
        return self._follow(journal, frame.get("after", 0))

    def _follow(self, journal: Journal, after: int) -> list[Map]:
        return [accepted(journal, True), *journal.after(after)]

    def _welcome(self, points: Sequence[Map]) -> list[Map]:
        known = [(self.journals[p["id"]], p["after"]) for p in points if p["id"] in self.journals]
        resumed = [{"id": j.id, "state": j.state, "seq": j.head} for j, _ in known]
        frames = [welcome(resumed=resumed)]
        for journal, after in known:
            frames += journal.after(after)
        return frames


def welcome(**fields: Any) -> Map:
    """A greeting."""
    return {
        "type": "welcome",
        "session": "s1",
        "user": "u1",
        "tier": "free",
        "heartbeat_seconds": 20,
        "max_frame_bytes": 2**20,
        "resumed": [],
        "active": [],
        "server_time": 1.5,
        "limits": [],
    } | fields


def accepted(journal: Journal, replay: bool) -> Map:
    """The answer to `send` and `resume`."""
    return {"type": "accepted", "id": journal.id, "replay": replay, "state": journal.state, "seq": journal.head}


def refusal(re: str, code: str, message_id: str | None = None, **more: Any) -> Map:
    """An `error` frame."""
    frame = {"type": "error", "re": re, "error": ProtocolError(code, "because", **more).as_dict()}
    return frame if message_id is None else {**frame, "id": message_id}


class SocketServer:
    """A `ModelServer` behind WebSockets, and what goes wrong there.

    `breaks` says, for the first connections one after another, after how many frames the socket is dropped.
    `edit` may replace the frames that answer one client frame.
    """

    def __init__(
        self,
        script: Callable[[Journal], None],
        *,
        breaks: Sequence[int] = (),
        edit: Callable[[Map, list[Map]], list[Map]] | None = None,
    ) -> None:
        self.model = ModelServer(script)
        self.arrived: list[list[Map]] = []
        """Client frames, by connection."""
        self.closes: list[int] = []
        """Close codes received."""
        self.sockets: list[ServerConnection] = []
        self.url = ""
        self._breaks = list(breaks)
        self._edit = edit or (lambda frame, answer: answer)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[SocketServer]:
        """Serve on a free port of this machine."""
        async with serve(
            self._handle, "127.0.0.1", 0, subprotocols=[Subprotocol(name) for name in CODECS], close_timeout=1
        ) as server:
            host, port = server.sockets[0].getsockname()
            self.url = f"ws://{host}:{port}/v1/ws"
            yield self

    async def _handle(self, socket: ServerConnection) -> None:
        self.sockets.append(socket)
        frames: list[Map] = []
        self.arrived.append(frames)
        codec = CODECS[socket.subprotocol or SUBPROTOCOL_JSON]
        left = self._breaks.pop(0) if self._breaks else -1
        try:
            async for data in socket:
                for frame in codec.decode(data):
                    frames.append(frame)
                    for answer in self._edit(frame, self.model.answer(frame)):
                        if left == 0:
                            socket.transport.abort()
                            return
                        left -= 1
                        await socket.send(codec.encode(answer), text=not codec.binary)
                        await asyncio.sleep(0)
        except ConnectionClosed:
            return
        finally:
            if socket.protocol.close_rcvd is not None:
                self.closes.append(socket.protocol.close_rcvd.code)
