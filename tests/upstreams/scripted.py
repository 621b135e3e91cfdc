"""A deterministic OpenAI-compatible upstream: what it says is in `script.py`, this is how it says it.

    python -m tests.upstreams.scripted --port 0 [--log FILE]

It prints `listening http://127.0.0.1:PORT` and appends one JSON line per request start and end to FILE (O_APPEND, one
write per line), which tests outside this process take as the truth about what was asked and paid for:

    {"event": "start", "request": "r1", "t": …, "hash": …, "model": …, "stream": true, "user": …, "idempotency_key": …}
    {"event": "end", "request": "r1", "t": …, "chunks": 300, "text_bytes": 1700, "client_gone": false,
     "usage": {"input": 12, "output": 300}, …}

`POST /v1/chat/completions`, `GET /v1/models`, `GET /health`; `GET /admin/requests` answers the log, `PUT /admin/faults`
with `{"model": "primary", "faults": "status=500", "times": 3}` sets faults for a model (`*`: every model) and
`DELETE /admin/faults` takes them back. `DELETE /admin/pace`: what is being said goes on as fast as it is read.

It is written on `asyncio.Protocol` because it also serves benchmarks on the same machine as what they measure: an
event of a stream costs it 1 µs at full speed, and the pace of all streams is kept by one ticker.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import heapq
import os
import signal
import socket
import struct
import sys
import time
import zlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, cast

import orjson

from tests.upstreams import script as scripts
from tests.upstreams.chat_steps import Act, Request, Step, completion, error_body, piece_of_trouble, steps
from tests.upstreams.script import FAULTS, Script, ScriptError

WRITE_BYTES: Final = 32 * 1024
"""How much a stream at full speed writes before others have their turn."""
TICK_SECONDS: Final = 0.001
HTML: Final = b"<!doctype html><title>502 Bad Gateway</title><h1>Bad Gateway</h1>"
_HEX: Final = [b"%x\r\n" % size for size in range(4096)]


@dataclass(slots=True)
class Rule:
    """Faults set from outside for a model."""

    model: str
    faults: dict[str, Any]
    times: int | None = None


class Ticker:
    """One timer for the pace of all streams, at a resolution of `TICK_SECONDS`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for = 0.0
        self._serial = 0

    def at(self, when: float, callback: Callable[[], None]) -> None:
        """Run `callback` once it is `when` (loop time), up to a tick later."""
        self._serial += 1
        heapq.heappush(self._due, (when, self._serial, callback))
        if self._timer is None or when < self._armed_for:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_for = max(self._due[0][0], self._loop.time())
        self._timer = self._loop.call_at(self._armed_for + TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.time()
        due = self._due
        while due and due[0][0] <= now:
            heapq.heappop(due)[2]()
        if due and self._timer is None:
            self._arm()


class ScriptedUpstream:
    """The server: its requests, its log, its faults. Start it with `serving` or from the command line."""

    path = "/v1/chat/completions"

    def __init__(self, log_path: Path | None = None, log_size: int = 10_000) -> None:
        self.records: deque[dict[str, Any]] = deque(maxlen=log_size)
        """The newest lines of the log."""
        self.bodies: deque[dict[str, Any]] = deque(maxlen=64)
        """The newest requests, as they were sent."""
        self.rules: list[Rule] = []
        self.url = ""
        self.connections: set[Connection] = set()
        self.seen: Counter[str] = Counter()
        self.ticker = Ticker(asyncio.get_running_loop())
        self._numbers = 0
        self._changed = asyncio.Event()
        self._log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644) if log_path else None
        self._server: asyncio.Server | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen, and return the address."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(partial(Connection, self), host, port, backlog=4096)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{host}:{port}"
        return self.url

    async def close(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is not None:
            self._server.close()
            for connection in tuple(self.connections):
                connection.transport.abort()
            await self._server.wait_closed()
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def fail(self, faults: str, model: str = "*", times: int | None = None) -> None:
        """Set faults for a model. Raises `ScriptError` for directives that would change the text."""
        found = scripts.directives(faults.split())
        if strange := found.keys() - FAULTS:
            raise ScriptError(f"not faults: {', '.join(sorted(strange))}")
        self.rules.append(Rule(model, found, times))

    def heal(self) -> None:
        """Take back every fault set from outside."""
        self.rules.clear()

    def hurry(self) -> None:
        """Let every answer that is being said go on without its pace."""
        for connection in self.connections:
            connection.hurry()

    def steps(self, request: Request) -> Iterator[Step]:
        """Every step of a streamed answer, its faults included. Ends with an act."""
        return steps(request)

    def completion(self, request: Request, text: str) -> dict[str, Any]:
        """The answer in one piece."""
        return completion(request, text)

    def error(self, message: str, status: int, code: str = "") -> dict[str, Any]:
        """The body of an error."""
        return error_body(message, code)

    def record(self, **entry: Any) -> None:
        """Append to the log."""
        self.records.append(entry)
        if self._log is not None:
            os.write(self._log, orjson.dumps(entry) + b"\n")
        self.notice()

    def notice(self) -> None:
        """Something changed that a test may wait for."""
        self._changed.set()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition on the log or on the connections."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def wait_for(self, event: str, count: int = 1) -> list[dict[str, Any]]:
        """The records of `event` (`start` or `end`), once there are `count` of them."""
        await self.wait_until(lambda: self.count(event) >= count)
        return [entry for entry in self.records if entry["event"] == event]

    def count(self, event: str) -> int:
        """How many records of `event` the log holds."""
        return sum(entry["event"] == event for entry in self.records)

    def open(self, body: dict[str, Any], headers: dict[str, str]) -> Request:
        """Take in a request: number it, script it, log its start. Raises `ScriptError`."""
        messages, model = body.get("messages") or [], str(body.get("model", ""))
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        reply = scripts.reply_to(messages, model, limit)
        self._numbers += 1
        self.bodies.append(body)
        request = Request(f"r{self._numbers}", body, headers, reply, self._faults(reply.script, messages, model))
        self.record(
            event="start",
            request=request.number,
            t=request.started,
            hash=scripts.message_hash(messages),
            model=model,
            stream=bool(body.get("stream")),
            user=body.get("user"),
            idempotency_key=headers.get("idempotency-key"),
            traceparent=headers.get("traceparent"),
            max_tokens=limit,
        )
        return request

    def _faults(self, script: Script, messages: list[dict[str, Any]], model: str) -> Script:
        """The script with the faults from outside, or without faults once they have happened `times` times."""
        for rule in self.rules:
            if rule.model in ("*", model) and rule.times != 0:
                rule.times = None if rule.times is None else rule.times - 1
                script = replace(script, **rule.faults)
        if script.times:
            key = f"{scripts.message_hash(messages)}/{model}"
            self.seen[key] += 1
            if self.seen[key] > script.times:
                whole = Script()
                return replace(script, **{name: getattr(whole, name) for name in FAULTS})
        return script


class Connection(asyncio.Protocol):
    """One client connection: reads requests one after another, owns at most one stream."""

    transport: asyncio.Transport

    def __init__(self, server: ScriptedUpstream) -> None:
        self._server = server
        self._buffer = bytearray()
        self._stream: Stream | None = None
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._stream is not None:
            self._stream.gone()

    def pause_writing(self) -> None:
        self.paused = True
        self._server.notice()

    def resume_writing(self) -> None:
        self.paused = False
        if self._stream is not None:
            self._stream.resume()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._read()

    def hurry(self) -> None:
        """See `ScriptedUpstream.hurry`."""
        if self._stream is not None:
            self._stream.hurry()

    def finished(self) -> None:
        """The stream has ended; the connection is free for the next request."""
        self._stream = None
        self._read()

    def _read(self) -> None:
        while self._stream is None and (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            first, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            size = int(headers.get("content-length", "0"))
            if len(self._buffer) < end + 4 + size:
                return
            body = bytes(self._buffer[end + 4 : end + 4 + size])
            del self._buffer[: end + 4 + size]
            method, path, _ = first.split(" ", 2)
            self._dispatch(method, path, headers, body)

    def _dispatch(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        try:
            match method, path.partition("?")[0]:
                case "POST", self._server.path:
                    self._complete(self._server.open(orjson.loads(body), headers))
                case "GET", "/v1/models":
                    self._answer({"object": "list", "data": [{"id": "scripted", "object": "model"}]})
                case "GET", "/health":
                    self._answer({"status": "ok"})
                case "GET", "/admin/requests":
                    self._answer(list(self._server.records))
                case "PUT", "/admin/faults":
                    wish = orjson.loads(body)
                    self._server.fail(wish["faults"], wish.get("model", "*"), wish.get("times"))
                    self._answer({})
                case "DELETE", "/admin/faults":
                    self._server.heal()
                    self._answer({})
                case "DELETE", "/admin/pace":
                    self._server.hurry()
                    self._answer({})
                case _:
                    self._answer(self._server.error(f"no {method} {path} here", 404, "not_found"), 404)
        except (ScriptError, orjson.JSONDecodeError, KeyError) as wrong:
            self._answer(self._server.error(str(wrong), 400, "invalid_request"), 400)

    def _answer(self, body: Any, status: int = 200, headers: str = "") -> None:
        packed = orjson.dumps(body)
        self.transport.write(_head(status, f"content-type: application/json\r\ncontent-length: {len(packed)}{headers}"))
        self.transport.write(packed)

    def _complete(self, request: Request) -> None:
        script = request.script
        if script.first and (script.status or not request.stream):
            wait = asyncio.get_running_loop().time() + script.first
            self._server.ticker.at(wait, lambda: self._whole(request))
        elif script.status or script.content_type or not request.stream or script.hang == "headers":
            self._whole(request)
        elif script.cut == "headers":
            self._log_end(request, cut=True)
            self.transport.abort()
        else:
            self._stream = Stream(self._server, self, request)

    def _whole(self, request: Request) -> None:
        """Answer in one piece: an error, a page, a JSON completion; or hang."""
        script = request.script
        if self.transport.is_closing():
            self._log_end(request, client_gone=True)
        elif script.hang == "headers":
            self._stream = Stream(self._server, self, request)
        elif script.status:
            headers = f"\r\nretry-after: {_retry_after(script)}" if script.retry_after else ""
            self._log_end(request, status=script.status)
            body = self._server.error(f"scripted {script.status}", script.status, script.code)
            self._answer(body, script.status, headers)
        elif script.content_type == "html":
            self._log_end(request)
            self.transport.write(_head(200, f"content-type: text/html\r\ncontent-length: {len(HTML)}") + HTML)
        else:
            text = "".join(request.reply.tokens)
            body = self._server.completion(request, text)
            self._log_end(request, chunks=len(request.reply.tokens), text_bytes=len(text.encode()), whole=True)
            self._answer(body)

    def _log_end(self, request: Request, **found: Any) -> None:
        entry = {"chunks": 0, "text_bytes": 0, "client_gone": False, "whole": False, "usage": request.told, **found}
        self._server.record(event="end", request=request.number, t=time.time(), model=request.model, **entry)


class Stream:
    """One streamed answer: takes steps when they are due and the client reads them."""

    def __init__(self, server: ScriptedUpstream, connection: Connection, request: Request) -> None:
        self._server = server
        self._connection = connection
        self._request = request
        self._script = request.script
        self._writer = Writer(connection, request.script)
        self._steps = server.steps(request)
        self._next: Step | None = None
        self._loop = asyncio.get_running_loop()
        self._pieces = 0
        """Pieces of text written."""
        self._ended = False
        self._begin = self._loop.time() + self._script.first
        if self._script.hang != "headers":
            self._writer.head(request.number)
            self._server.ticker.at(self._begin, self._run) if self._script.first else self._run()

    def gone(self) -> None:
        """The client closed the connection."""
        self._end(client_gone=True)

    def resume(self) -> None:
        """The client reads again."""
        self._run()

    def hurry(self) -> None:
        """From the next piece on, which comes when it was due, there is no pace."""
        self._script = replace(self._script, rate=0.0, gap=0.0)

    def _run(self) -> None:
        """Write all that is due, then ask to be called again."""
        if self._ended or self._connection.paused or self._connection.transport.is_closing():
            return
        if self._script.hang == "first":
            self._keep_alive()
            return
        out: list[bytes] = []
        act = self._gather(out, self._loop.time() if self._script.rate or self._script.gap else None)
        self._writer.write(out)
        if isinstance(act, Act):
            self._writer.then(partial(self._act, act))
        elif act is not None:
            self._server.ticker.at(act, self._run)
        elif not self._connection.paused:
            self._writer.then(self._run)

    def _gather(self, out: list[bytes], now: float | None) -> Act | float | None:
        """Put what is due into `out`; return what comes then: an act, a time, or None for at once."""
        room = WRITE_BYTES
        step = self._next or next(self._steps)
        while room > 0:
            due, what, pieces = step
            if now is not None and (when := self._when(due)) > now:
                self._next = step
                return when
            if isinstance(what, Act):
                return what
            out.append(what)
            self._pieces += pieces
            room -= len(what)
            step = next(self._steps)
        self._next = step
        return None

    def _when(self, piece: int) -> float:
        when = self._begin + (piece / self._script.rate if self._script.rate else 0.0)
        return when + self._script.gap if self._script.gap and piece >= piece_of_trouble(self._request) else when

    def _act(self, act: Act) -> None:
        transport = self._connection.transport
        if self._ended or transport.is_closing():
            return  # the client left in the turn of the loop since what came before was written
        if act is Act.END:
            self._writer.end()
            self._end(whole=not self._script.cut)
        elif act is Act.HANG:
            self._keep_alive()
        elif act is Act.RESET:
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._end(cut=True)
            transport.abort()
        else:
            self._end(cut=True)
            transport.close()

    def _keep_alive(self) -> None:
        """Hang; if the script says so, with comments."""
        if self._script.keepalive and not self._ended:
            self._writer.write([b": keep-alive\n\n"])
            self._server.ticker.at(self._loop.time() + self._script.keepalive, self._keep_alive)

    def _end(self, **found: Any) -> None:
        if self._ended:
            return
        self._ended = True
        said = "".join(self._request.reply.tokens[: self._pieces])
        self._server.record(
            event="end",
            request=self._request.number,
            t=time.time(),
            model=self._request.model,
            chunks=self._pieces,
            text_bytes=len(said.encode()),
            usage=self._request.told,
            **{"client_gone": False, "whole": False, **found},
        )
        self._connection.finished()


class Writer:
    """The HTTP body of a stream: compression, chunks, and writes that end where it hurts."""

    def __init__(self, connection: Connection, script: Script) -> None:
        self._transport = connection.transport
        self._script = script
        self._packer = zlib.compressobj(wbits=31) if script.gzip else None
        self._held = b""
        """Bytes that wait for the next write."""
        self._slices: deque[bytes] = deque()
        self._size = 1 if script.drip else script.split
        self._after: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()

    def head(self, number: str) -> None:
        """The response's status line and headers."""
        coding = "\r\ncontent-encoding: gzip" if self._packer else ""
        fields = f"content-type: text/event-stream\r\nx-request-id: {number}\r\ntransfer-encoding: chunked{coding}"
        self._transport.write(_head(200, fields))

    def write(self, events: list[bytes]) -> None:
        """Write events now, or byte by byte as the script wishes."""
        if not events:
            return
        if self._packer is not None:
            events = [self._packer.compress(b"".join(events)) + self._packer.flush(zlib.Z_SYNC_FLUSH)]
        elif self._script.one_chunk:
            events = [b"".join(events)]
        raw = b"".join([_frame(event) for event in events])
        if self._script.unicode:
            raw, self._held = _cut_within_character(self._held + raw)
        self._put(raw)

    def then(self, callback: Callable[[], None]) -> None:
        """Call back in a later turn of the loop, when everything is handed to the network."""
        if self._slices:
            self._after = callback
        else:
            self._loop.call_soon(callback)

    def end(self) -> None:
        """The end of the body."""
        tail = _frame(self._packer.flush()) if self._packer is not None else b""
        self._put(self._held + tail + b"0\r\n\r\n")
        self._held = b""

    def _put(self, raw: bytes) -> None:
        if not self._size:
            self._transport.write(raw)
            return
        idle = not self._slices
        self._slices.extend(raw[at : at + self._size] for at in range(0, len(raw), self._size))
        if idle:
            self._loop.call_soon(self._drip)

    def _drip(self) -> None:
        if self._slices and not self._transport.is_closing():
            self._transport.write(self._slices.popleft())
            self._loop.call_soon(self._drip)
        elif self._after is not None:
            callback, self._after = self._after, None
            callback()


def _retry_after(script: Script) -> str:
    kind, _, seconds = script.retry_after.rpartition(":")
    return formatdate(time.time() + float(seconds), usegmt=True) if kind == "date" else seconds


def _head(status: int, fields: str) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Scripted"
    return f"HTTP/1.1 {status} {phrase}\r\n{fields}\r\n\r\n".encode()


def _frame(event: bytes) -> bytes:
    """One HTTP chunk (RFC 9112 section 7.1)."""
    size = len(event)
    if not size:
        return b""
    return (_HEX[size] if size < 4096 else b"%x\r\n" % size) + event + b"\r\n"


def _cut_within_character(raw: bytes) -> tuple[bytes, bytes]:
    """Split behind the first byte of the last character of several bytes, if there is one."""
    for at in range(len(raw) - 2, -1, -1):
        if raw[at] >= 0xC0:
            return raw[: at + 1], raw[at + 1 :]
    return raw, b""


@contextlib.asynccontextmanager
async def serving(
    log_path: Path | None = None, kind: type[ScriptedUpstream] = ScriptedUpstream
) -> AsyncIterator[ScriptedUpstream]:
    """The upstream in this process and event loop."""
    upstream = kind(log_path)
    await upstream.start()
    try:
        yield upstream
    finally:
        await upstream.close()


@contextlib.asynccontextmanager
async def process(log_path: Path | None = None, port: int = 0) -> AsyncIterator[str]:
    """The upstream in a process of its own; yields its address."""
    words = ["-m", "tests.upstreams.scripted", "--port", str(port), *(["--log", str(log_path)] if log_path else [])]
    root = Path(__file__).resolve().parents[2]
    child = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.PIPE, cwd=root)
    assert child.stdout is not None
    try:
        line = await child.stdout.readline()
        yield line.decode().removeprefix("listening").strip()
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


async def _serve(host: str, port: int, log_path: Path | None) -> None:
    upstream = ScriptedUpstream(log_path)
    print(f"listening {await upstream.start(host, port)}", flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    await stop.wait()
    await upstream.close()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="A deterministic OpenAI-compatible upstream.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, default=None)
    wish = parser.parse_args()
    import uvloop

    uvloop.run(_serve(wish.host, wish.port, wish.log))


if __name__ == "__main__":
    main()
