"""A server that misbehaves, for clients: it delays, splits, doubles, goes silent and closes in the middle of an answer.

Unlike the vectors it is no script of frames: a client may do whatever the protocol allows, as often as it likes, and
what counts is what it holds in the end (every character, once), how often a generation was asked for (once), and that
it came back, or stayed away, as the close code says.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Literal

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from protocol.codec import Codec, DecodeError
from protocol.errors import CloseCode, ProtocolError
from protocol.frames import parse_client_frame
from server.conformance.clients import Program, started
from server.conformance.report import CheckFailed, Report, chosen, judged
from server.conformance.wire import require

Map = dict[str, Any]
ID: Final = "faulty-1"
REQUEST: Final[Map] = {"messages": [{"role": "user", "content": "?"}]}
TEXT: Final = "Every character of this answer, é, 你 and 😀 as well, arrives once and in its order. " * 3
PIECE_CHARACTERS: Final = 7
FAULT_AT: Final = 12
"""The fault begins behind this event of the journal."""
HEARTBEAT_SECONDS: Final = 1
"""What `welcome` asks for, so that a silent connection is found within seconds."""
ANSWER_SECONDS: Final = 15.0
"""How long a client may take to have the whole answer, reconnects included."""
AWAY_SECONDS: Final = 1.0
"""How long a client has to stay away after a code that reconnecting would not mend: its first waits are shorter."""
GOAWAY_MS: Final = 100
DELAY_SECONDS: Final = 0.02
FRAGMENT_BYTES: Final = 3
LOOK_SECONDS: Final = 0.01


def _journal() -> list[Map]:
    """The one answer, event by event; event number n is at n - 1."""
    events: list[Map] = [{"type": "attempt", "attempt": 1, "target": "t", "model": "m", "mode": "fresh", "after": 0}]
    for at in range(0, len(TEXT), PIECE_CHARACTERS):
        events.append({"type": "delta", "after": len(events), "text": TEXT[at : at + PIECE_CHARACTERS]})
    data = TEXT.encode()
    end: Map = {"type": "done", "after": len(events), "text_bytes": len(data), "finish_reason": "stop", "attempts": 1}
    events.append(end | {"text_sha256": hashlib.sha256(data).hexdigest(), "usage": {}, "model": "m", "target": "t"})
    return [event | {"id": ID, "seq": seq} for seq, event in enumerate(events, 1)]


JOURNAL: Final = _journal()


@dataclass(slots=True)
class Link:
    """One connection to the client, as the faults use it."""

    socket: ServerConnection
    codec: Codec
    number: int
    """From 1."""
    fragments: bool = False
    """Every WebSocket message travels in pieces of a few bytes."""
    silent: bool = False
    """Nothing is answered any more, though the connection stands."""

    async def say(self, *frames: Map) -> None:
        """Send frames in one message."""
        if self.silent:
            return
        data = self.codec.join([self.codec.encode(frame) for frame in frames])
        if self.fragments:
            await self.socket.send(_pieces(data), text=not self.codec.binary)
        else:
            await self.socket.send(data, text=not self.codec.binary)


def _pieces(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), FRAGMENT_BYTES):
        yield data[at : at + FRAGMENT_BYTES]


Stream = Callable[[Link, int], Awaitable[None]]
"""Tells the events after a number."""


async def whole(link: Link, after: int) -> None:
    """Every later event, a frame each."""
    for event in JOURNAL[after:]:
        await link.say(event)


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, and on which connections."""

    about: str
    stream: Stream = whole
    """Tells the answer on the first `connections` connections; the later ones are in order."""
    connections: int = 1
    greet: Callable[[Link], Awaitable[None]] | None = None
    """Before the first `hello` is read."""
    refused: int = 0
    """So many handshakes are answered with 503 at first."""
    stays_away: bool = False
    """The client must not connect again."""
    lose_first_send: Literal["", "arrived", "lost"] = ""
    """The connection breaks before any answer to the request, which had arrived or not."""
    complete: bool = False
    """Nothing is missing, so that nothing has to be asked for again."""


async def _half(link: Link, after: int = 0) -> None:
    for event in JOURNAL[after:FAULT_AT]:
        await link.say(event)


def closing(code: int) -> Stream:
    """Half an answer, then a close frame with `code`."""

    async def stream(link: Link, after: int) -> None:
        await _half(link, after)
        await link.socket.close(code, "as the fault wants")

    return stream


async def abort(link: Link, after: int) -> None:
    """Half an answer, then the TCP connection is gone."""
    await _half(link, after)
    link.socket.transport.abort()


async def silence(link: Link, after: int) -> None:
    """Half an answer, then nothing, for as long as the client stays."""
    await _half(link, after)
    link.silent = True


async def slow(link: Link, after: int) -> None:
    """Each frame late."""
    for event in JOURNAL[after:]:
        await link.say(event)
        await asyncio.sleep(DELAY_SECONDS)


async def doubled(link: Link, after: int) -> None:
    """Each frame twice, and some once more, later."""
    for event in JOURNAL[after:]:
        await link.say(event, event)
        if event["seq"] > FAULT_AT:
            await link.say(JOURNAL[event["seq"] - FAULT_AT])


async def gap(link: Link, after: int) -> None:
    """Some frames never come, unless they are asked for."""
    for event in JOURNAL[after:]:
        if after > 0 or event["seq"] % FAULT_AT:
            await link.say(event)


async def fragmented(link: Link, after: int) -> None:
    """Messages in pieces."""
    link.fragments = True
    await whole(link, after)


async def bunched(link: Link, after: int) -> None:
    """Everything in one message."""
    if JOURNAL[after:]:
        await link.say(*JOURNAL[after:])


async def goaway(link: Link, after: int) -> None:
    """A notice, more of the answer, and the close behind it."""
    await _half(link, after)
    await link.say({"type": "goaway", "reason": "drain", "reconnect_after_ms": GOAWAY_MS})
    for event in JOURNAL[FAULT_AT : FAULT_AT + 3]:
        await link.say(event)


async def noise(link: Link, after: int) -> None:
    """What is no frame of any protocol."""
    await _half(link, after)
    await link.socket.send(b"\xc1\xff{" if link.codec.binary else "{not a frame")


async def snapshots(link: Link, after: int) -> None:
    """Half an answer, then all that stands at once, in two parts."""
    await _half(link, after)
    seq = JOURNAL[-1]["seq"] - 1
    whole_text = {"type": "snapshot", "id": ID, "seq": seq, "attempt": 1}
    await link.say(whole_text | {"part": 1, "last": False, "text": TEXT[:50]})
    await link.say(whole_text | {"part": 2, "last": True, "text": TEXT[50:]}, JOURNAL[-1])


async def wrong(link: Link, after: int) -> None:
    """Text that is not what its hash says; told anew it is right."""
    for event in JOURNAL[after:]:
        await link.say(event | {"text": "!" * PIECE_CHARACTERS} if event["seq"] == FAULT_AT else event)


async def _kick(link: Link) -> None:
    await link.socket.close(CloseCode.TRY_AGAIN_LATER)


AWAY: Final = (
    CloseCode.MALFORMED,
    CloseCode.UNAUTHENTICATED,
    CloseCode.FORBIDDEN_ORIGIN,
    CloseCode.TOO_MANY_CONNECTIONS,
)
BACK: Final = (CloseCode.GOING_AWAY, CloseCode.INTERNAL, CloseCode.SERVICE_RESTART, CloseCode.TRY_AGAIN_LATER)
FAULTS: Final[dict[str, Fault]] = {
    "none": Fault("nothing goes wrong", complete=True),
    "delays": Fault("every frame comes late", slow, complete=True),
    "fragments": Fault("every message comes in pieces of a few bytes", fragmented, complete=True),
    "bunched": Fault("the whole answer comes in one message", bunched, complete=True),
    "doubled": Fault("every frame comes twice, some again later", doubled, complete=True),
    "gaps": Fault("some frames are left out", gap),
    "snapshot": Fault("text is replaced by a snapshot in parts", snapshots),
    "wrong_text": Fault("the text is not what its hash says", wrong),
    "noise": Fault("what is no frame comes in mid-answer", noise),
    "cut": Fault("the connection is gone in mid-answer", abort),
    "cut_thrice": Fault("three connections in a row break in mid-answer", abort, connections=3),
    "cut_before_accepted": Fault(
        "the request arrives, the connection is gone before the answer", lose_first_send="arrived"
    ),
    "request_lost": Fault("the connection is gone before the request arrives", lose_first_send="lost"),
    "half_open": Fault("the server falls silent in mid-answer, the connection stands", silence),
    "goaway": Fault("the server drains in mid-answer", goaway),
    "handshake_503": Fault("the first two handshakes are refused", refused=2),
    "closed_at_once": Fault("the first connection is closed before its greeting", greet=_kick),
    **{f"close_{code:d}": Fault(f"close code {code:d}: come back", closing(code)) for code in BACK},
    **{f"close_{code:d}": Fault(f"close code {code:d}: stay away", closing(code), stays_away=True) for code in AWAY},
}


@dataclass(slots=True)
class FaultServer:
    """Serves one message to one client, with one fault."""

    codec: Codec
    fault: Fault
    generations: int = 0
    """How often a generation would have begun."""
    connections: int = 0
    complaints: list[str] = field(default_factory=list)
    """What the client sent that the protocol forbids."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """The first connection has ended."""
    _refused: int = 0
    _known: bool = False
    _lose: str = field(init=False)

    def __post_init__(self) -> None:
        self._lose = self.fault.lose_first_send

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Listen; the address."""
        options: Map = {"compression": None, "ping_interval": None, "close_timeout": 0.2}
        async with serve(
            self._handle,
            "127.0.0.1",
            0,
            process_request=self._admit,
            subprotocols=[Subprotocol(self.codec.subprotocol)],
            **options,
        ) as server:
            yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/v1/ws"

    def _admit(self, socket: ServerConnection, request: Request) -> Response | None:
        if self._refused >= self.fault.refused:
            return None
        self._refused += 1
        return socket.respond(HTTPStatus.SERVICE_UNAVAILABLE, "not now\n")

    async def _handle(self, socket: ServerConnection) -> None:
        self.connections += 1
        link = Link(socket, self.codec, self.connections)
        try:
            if self.fault.greet is not None and link.number == 1:
                await self.fault.greet(link)
            async for data in socket:
                for frame in self._frames(data):
                    await self._take(link, frame)
        except ConnectionClosed:
            pass
        finally:
            if link.number == 1:
                self.closed.set()

    def _frames(self, data: str | bytes) -> Sequence[Map]:
        try:
            frames = self.codec.decode(data.encode() if isinstance(data, str) else data)
            for frame in frames:
                parse_client_frame(frame)
        except (DecodeError, ProtocolError) as error:
            self.complaints.append(f"the client sent what is no frame of this protocol: {error}")
            return ()
        return frames

    async def _take(self, link: Link, frame: Map) -> None:
        match frame["type"]:
            case "hello":
                await self._welcome(link, frame)
            case "send":
                await self._send(link, frame)
            case "resume":
                await self._resume(link, frame)
            case "ping":
                heads = [{"id": ID, "seq": JOURNAL[-1]["seq"]}] if self._known else []
                await link.say({"type": "pong", "nonce": frame.get("nonce"), "open": heads})

    async def _welcome(self, link: Link, hello: Map) -> None:
        points = [point for point in hello.get("resume") or () if self._known and point["id"] == ID]
        heads = [{"id": ID, "state": "streaming", "seq": JOURNAL[-1]["seq"]} for _ in points]
        await link.say(
            {
                "type": "welcome", "session": f"s{link.number}", "user": "u", "tier": "free",
                "heartbeat_seconds": HEARTBEAT_SECONDS, "max_frame_bytes": 2**20, "resumed": heads, "active": [],
                "server_time": time.time(),
            }
        )  # fmt: skip
        for point in points:
            await self._stream(link, point.get("after", 0))
        for point in hello.get("resume") or ():
            if point not in points:
                await link.say({"type": "error", "re": "resume", "id": point["id"], "error": UNKNOWN})

    async def _send(self, link: Link, frame: Map) -> None:
        if frame["id"] != ID:
            self.complaints.append(f"the client asked under another id, {frame['id']}: that is billed again")
        lose, self._lose = self._lose, ""
        if lose == "lost":
            link.socket.transport.abort()
            return
        replay, self._known = self._known, True
        self.generations += not replay
        if lose == "arrived":
            link.socket.transport.abort()
            return
        head = JOURNAL[-1]["seq"] if replay else 0
        await link.say({"type": "accepted", "id": ID, "replay": replay, "state": "streaming", "seq": head})
        await self._stream(link, frame.get("after", 0))

    async def _resume(self, link: Link, frame: Map) -> None:
        if self.fault.complete:
            self.complaints.append("the client asked again, though nothing was missing")
        if not self._known:
            await link.say({"type": "error", "re": "resume", "id": frame["id"], "error": UNKNOWN})
            return
        head = JOURNAL[-1]["seq"]
        await link.say({"type": "accepted", "id": ID, "replay": True, "state": "streaming", "seq": head})
        tell = whole if link.number == 1 else self._stream  # asked again on the faulty connection, it tells all
        await tell(link, frame.get("after", 0))

    async def _stream(self, link: Link, after: int) -> None:
        faulty = link.number <= self.fault.connections
        await (self.fault.stream if faulty else whole)(link, after)


UNKNOWN: Final[Map] = {
    "code": "message_unknown", "class": "permanent", "status": 404, "message": "there is none", "retryable": False,
}  # fmt: skip


async def _await_end(program: Program) -> Map:
    """What the client holds once the message has ended; raises `CheckFailed` if it does not."""
    held: Map = {}
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ANSWER_SECONDS):
            while held.get("state") not in ("done", "failed", "lost", "broken", "refused"):
                await asyncio.sleep(LOOK_SECONDS)
                held = (await program.tell(do="report")).get("messages", {}).get(ID, {})
            return held
    raise CheckFailed(f"no end within {ANSWER_SECONDS:g} s; it holds {held}")


async def _stays_away(server: FaultServer, program: Program) -> None:
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            await server.closed.wait()
    except TimeoutError:
        raise CheckFailed(f"the connection did not end within {ANSWER_SECONDS:g} s of its close frame") from None
    await asyncio.sleep(AWAY_SECONDS)
    require(server.connections == 1, f"it connected again, {server.connections - 1} times")
    held: Map = (await program.tell(do="report")).get("messages", {}).get(ID, {})
    text = held.get("text", "")
    require(TEXT.startswith(text), f"it holds {text!r}, which is not the beginning of the answer")
    require(held.get("state") != "done", "it takes the half answer for the whole")


async def inflict(fault: Fault, codec: Codec, program: Program, name: str) -> None:
    """One fault on one message. Raises `CheckFailed`."""
    server = FaultServer(codec, fault)
    async with server.serving() as url:
        await program.tell(do="begin", url=url, subprotocol=codec.subprotocol, vector=name)
        try:
            await program.tell(do="send", id=ID, request=REQUEST)
            if fault.stays_away:
                await _stays_away(server, program)
            else:
                held = await _await_end(program)
                require(held.get("state") == "done", f"it ended as {held.get('state')}: {held.get('error_code')}")
                require(held.get("text") == TEXT, f"it holds {held.get('text')!r}\ninstead of {TEXT!r}")
            require(not server.complaints, "\n".join(server.complaints))
            require(server.generations == 1, f"{server.generations} generations were asked for")
        finally:
            await program.tell(do="end")


async def check_faults(command: str, codecs: Sequence[Codec], only: Sequence[str] = ()) -> Report:
    """Every fault, or those named, on the program. Raises `NoClient`, and `ValueError` for an unknown name."""
    wanted = chosen(FAULTS, only, "fault")
    async with started(command) as program:
        results = [
            await judged(name, codec.subprotocol, fault.about, inflict(fault, codec, program, name))
            for codec in codecs
            for name, fault in wanted.items()
        ]
    return Report(command, results)
