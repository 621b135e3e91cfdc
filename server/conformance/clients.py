"""A scripted server that plays the vectors to a client over a real socket, cuts it off where they say so, and checks.

The client under test is any program: it is started once, gets one instruction a line (JSON) on standard input, and
answers each with one line on standard output. docs/clients.md has the instructions; `tests/clients` two such programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from protocol.codec import Codec, DecodeError
from protocol.errors import ProtocolError
from protocol.frames import parse_client_frame
from server.conformance.report import CheckFailed, Report, chosen, judged
from server.conformance.script import vectors
from server.conformance.wire import require

Map = dict[str, Any]
STEP_SECONDS: Final = 5.0
"""How long a client may take for what a step wants, beyond the waits that the script itself tells it."""
CONNECT_SECONDS: Final = 20.0
"""How long it may take to (re)connect: its backoff grows."""
QUIET_SECONDS: Final = 0.005
"""How long nothing may come where nothing should, once the client has had everything."""
GOAWAY_MS: Final = 300
"""The soonest reconnect that is asked for, so that what comes right behind `goaway` is still read."""
LINE_BYTES: Final = 2**20
OPEN_STATES: Final = frozenset({"resyncing", "stalled"})
"""What a client may call a message that it follows."""


class NoClient(Exception):
    """The program of the client cannot be started or does not answer; the text says why."""


class Program:
    """The client under test."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    async def tell(self, **instruction: Any) -> Map:
        """Give an instruction; the answer. Raises `CheckFailed` if there is none, or it tells of an error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(instruction).encode() + b"\n")
            await self._process.stdin.drain()
            async with asyncio.timeout(STEP_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise CheckFailed(f"the client did not answer {instruction}") from None
        except OSError as error:
            raise NoClient(f"the client is gone: {error}") from None
        if not line:
            raise NoClient(f"the client ended at {instruction}")
        try:
            answer = json.loads(line)
        except ValueError:
            raise NoClient(f"the client answered {line[:200]!r}, which is no JSON") from None
        require(isinstance(answer, dict), f"the client answered {answer!r}, not a map")
        require("error" not in answer, f"the client could not do {instruction}: {answer.get('error')}")
        return dict(answer)


class Stage:
    """The server's side of one vector. Connections wait at the gate until the script opens one."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._gate = asyncio.Event()
        self._waiting: asyncio.Queue[ServerConnection] = asyncio.Queue()
        self._over = asyncio.Event()
        self._socket: ServerConnection | None = None
        self._arrived: list[Map] = []
        self._nonce: Any = None

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Listen; the address."""
        options: Map = {"compression": None, "ping_interval": None, "open_timeout": None, "close_timeout": 0.5}
        subprotocols = [Subprotocol(self.codec.subprotocol)]
        async with serve(
            self._handle, "127.0.0.1", 0, process_request=self._hold, subprotocols=subprotocols, **options
        ) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            try:
                yield f"ws://127.0.0.1:{port}/v1/ws"
            finally:
                self._over.set()
                self._gate.set()

    async def _hold(self, connection: ServerConnection, request: Any) -> None:
        await self._gate.wait()

    async def _handle(self, socket: ServerConnection) -> None:
        if not self._over.is_set():
            self._waiting.put_nowait(socket)
            with contextlib.suppress(ConnectionClosed):
                await self._over.wait()

    async def connect(self) -> None:
        """Let a connection in."""
        self._gate.set()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._socket = await self._waiting.get()
        except TimeoutError:
            raise CheckFailed(f"the client did not connect within {CONNECT_SECONDS:g} s") from None
        finally:
            self._gate.clear()
        self._arrived = []

    def disconnect(self) -> None:
        """Cut the connection, without a close frame."""
        if self._socket is not None:
            self._socket.transport.abort()
        self._socket = None

    async def say(self, frames: Sequence[Map], *, array: bool) -> None:
        """Send frames, each in its own message or all in one."""
        if self._socket is None:
            return
        encoded = [self.codec.encode(self._fitted(frame)) for frame in frames]
        with contextlib.suppress(ConnectionClosed):  # a client may leave at `goaway` before the script goes on
            for batch in [encoded] if array else [[one] for one in encoded]:
                await self._socket.send(self.codec.join(batch), text=not self.codec.binary)

    def _fitted(self, frame: Map) -> Map:
        if frame.get("type") == "pong" and self._nonce is not None:
            return frame | {"nonce": self._nonce}
        if frame.get("type") == "goaway":
            return frame | {"reconnect_after_ms": max(GOAWAY_MS, frame["reconnect_after_ms"])}
        return frame

    async def expect(self, frames: Sequence[Map], seconds: float) -> None:
        """These frames come next, in this order; the client's own heartbeats may come between."""
        for frame in frames:
            found = await self._next(seconds, heartbeat=frame["type"] == "ping")
            if found is None:
                raise CheckFailed(f"nothing came within {seconds:g} s; wanted: {_shown(frame)}")
            if frame["type"] == "ping":
                self._nonce = found.get("nonce")
                continue
            require(_comparable(found) == _comparable(frame), f"came: {_shown(found)}\nwanted: {_shown(frame)}")

    async def quiet(self) -> None:
        """Nothing comes, though the client has had everything."""
        if self._socket is None:
            return
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(STEP_SECONDS):
                await (await self._socket.ping())
        found = await self._next(QUIET_SECONDS, heartbeat=False)
        if found is not None:
            raise CheckFailed(f"came: {_shown(found)}\nwanted: nothing")

    async def _next(self, seconds: float, *, heartbeat: bool) -> Map | None:
        """The next frame, or the next heartbeat; None if there is none in time."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    frame = await self._read()
                    if heartbeat or frame["type"] != "ping":
                        return frame
        except (TimeoutError, ConnectionClosed):
            return None

    async def _read(self) -> Map:
        while not self._arrived:
            if self._socket is None:
                await asyncio.Event().wait()
            assert self._socket is not None
            data = await self._socket.recv(decode=False)
            try:
                self._arrived = self.codec.decode(data)
                for frame in self._arrived:
                    parse_client_frame(frame)
            except (DecodeError, ProtocolError) as error:
                raise CheckFailed(f"the client sent what is no frame of this protocol: {error}") from None
        return self._arrived.pop(0)


def _comparable(frame: Map) -> Map:
    """Without what vectors leave open."""
    if frame["type"] != "hello":
        return frame
    return {"resume": [], **{key: value for key, value in frame.items() if key not in ("client", "token")}}


def _shown(frame: Map) -> str:
    return json.dumps(_comparable(frame), ensure_ascii=False)


async def play(vector: Map, codec: Codec, program: Program, name: str) -> None:
    """One vector, from its first step to what must stand at its end. Raises `CheckFailed`."""
    stage = Stage(codec)
    async with stage.serving() as url:
        await program.tell(do="begin", url=url, subprotocol=codec.subprotocol, vector=name)
        try:
            wait = 0.0
            for number, step in enumerate(vector["steps"]):
                try:
                    wait = await _step(stage, program, step, wait)
                except CheckFailed as failure:
                    raise CheckFailed(f"step {number}, {_told(step)}\n{failure}") from None
            _compare(vector, await program.tell(do="report"))
        finally:
            stage.disconnect()
            await program.tell(do="end")


async def _step(stage: Stage, program: Program, step: Map, wait: float) -> float:
    """One step; how long the client may now wait by what it was told, in seconds."""
    match step.get("do"):
        case None:
            await stage.say(step["server"], array=step.get("array", False))
            wait = max((_wait_of(frame) for frame in step["server"]), default=0.0)
        case "connect":
            await stage.connect()
        case "disconnect":
            stage.disconnect()
        case _:
            await program.tell(**{key: value for key, value in step.items() if key not in ("out", "told")})
    await stage.expect(step["out"], STEP_SECONDS + wait)
    await stage.quiet()
    if "server" in step:
        await program.tell(do="report")  # it has had time to read what came
    return wait


def _wait_of(frame: Map) -> float:
    return float((frame.get("error") or {}).get("retry_after_ms") or 0) / 1000


def _told(step: Map) -> str:
    if "server" in step:
        return "the server says " + ", ".join(frame["type"] for frame in step["server"])
    return json.dumps({key: value for key, value in step.items() if key != "out"}, ensure_ascii=False)


def _compare(vector: Map, report: Map) -> None:
    """What the client holds in the end against what it must hold."""
    held: Map = report.get("messages", {})
    require(held.keys() == vector["final"].keys(), f"it holds {sorted(held)}, not {sorted(vector['final'])}")
    for message_id, wanted in vector["final"].items():
        found = dict(held[message_id])
        if found.get("state") in OPEN_STATES:
            found["state"] = "following"
        for field, value in wanted.items():
            require(found.get(field) == value, f"{message_id}: {field} is {found.get(field)!r}, not {value!r}")
    if "told" in report:
        told = [frame for step in vector["steps"] for frame in step.get("told", ())]
        require(report["told"] == told, f"the application was told {report['told']}, not {told}")
    for name, cursor in vector.get("conversations", {}).items() if "conversations" in report else ():
        found_cursor = report["conversations"].get(name)
        require(found_cursor == cursor, f"the cursor of {name} is {found_cursor}, not {cursor}")


async def check_client(
    command: str, codecs: Sequence[Codec], only: Sequence[str] = (), *, conversations: bool = True
) -> Report:
    """Play every vector, or those named, to the program. Raises `NoClient`, and `ValueError` for an unknown name."""
    known = {name: vector for name, vector in vectors().items() if conversations or "/" not in name}
    wanted = chosen(known, only, "vector", listed=False)
    async with started(command) as program:
        results = [
            await judged(name, codec.subprotocol, vector["description"], play(vector, codec, program, name))
            for codec in codecs
            for name, vector in wanted.items()
        ]
    return Report(command, results)


@asynccontextmanager
async def started(command: str) -> AsyncIterator[Program]:
    """The program, from its start to its end; what it writes on standard error is shown."""
    try:
        words = shlex.split(command)
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE_BYTES
        )
    except (OSError, ValueError, TypeError) as error:
        raise NoClient(f"cannot start {command!r}: {error}") from None
    try:
        yield Program(process)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(STEP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
