"""One multiplexed connection to one Redis primary: commands of all callers in one stream, replies in order.

Why not redis-py's own client here: on this path it costs 92 µs of CPU per single command and 13-22 µs in pipelines,
a hand-packed command on one connection 6 µs (docs/performance.md has the benchmark). redis-py still finds the
servers (URLs, Sentinel, cluster slots) and does everything that is not on the hot path.

A `Link` reconnects by itself. It is its own circuit breaker: `available` turns false as soon as the oldest unanswered
command is `stall_seconds` old, and nothing was heard for as long, or there is no connection, and true again with the
next reply, so that callers can refuse at once what a frozen server would keep waiting. Commands whose connection was
lost fail with `StoreLost`: whether they happened is unknown, and every script of ours may be run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import hiredis
import structlog

from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("store")

STALL_SECONDS: Final = 0.1
"""A command unanswered for this long means that the server is not well; refusals must leave within 150 ms. What
`redis.stall_ms` is unless it is set."""
LOST_SECONDS: Final = 5.0
"""A command unanswered for this long means that the connection is of no use any more."""
CONNECT_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 0.1
RETRY_MAX_SECONDS: Final = 1.0
WATCH_SECONDS: Final = 0.025
LAG_SECONDS: Final = 0.02
"""A watch tick this late was held up by our own event loop: it proves nothing about the server."""

Command = tuple[Any, ...]


class StoreError(Exception):
    """Redis could not serve a command."""


class StoreUnavailable(StoreError):
    """There is no healthy connection; nothing was sent."""


class StoreLost(StoreError):
    """The connection broke or hung with the command on it: it may or may not have happened."""


class StoreReply(StoreError):
    """Redis answered with an error; the text is Redis' own."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a primary listens and how to enter. `path` (a Unix socket) wins over host and port."""

    host: str = "127.0.0.1"
    port: int = 6379
    path: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def handshake(self) -> list[Command]:
        """The commands that open a connection."""
        commands: list[Command] = []
        if self.password is not None:
            commands.append(
                ("AUTH", self.username, self.password) if self.username is not None else ("AUTH", self.password)
            )
        if self.db:
            commands.append(("SELECT", self.db))
        return [*commands, ("PING",)]


Pending = deque[tuple[asyncio.Future[Any], float]]
"""Who waits for replies, in the order of the commands, and since when."""


def fail_lost(pending: Pending) -> None:
    """Tell all who wait for replies, which come no more."""
    for future, _ in pending:
        if not future.done():
            future.set_exception(StoreLost("the connection to Redis was lost"))
            future.exception()  # a caller that gave up has nobody to tell


class Waiting:
    """What a link is without its socket: who waits for what, and how long. The simulation's links are these, too."""

    def __init__(
        self,
        address: Address,
        scripts: Sequence[bytes] = (),
        on_push: Callable[[list[Any]], bool] | None = None,
        on_change: Callable[[bool], None] | None = None,
    ) -> None:
        self.address = address
        self.scripts = scripts
        self.on_push = on_push
        self.on_change = on_change
        self.stalled = False
        self.last_error: str | None = None
        self._up = asyncio.Event()
        self._impatient: dict[asyncio.Future[Any], None] = {}

    async def ready(self, timeout_seconds: float) -> None:
        """Wait for a connection. Raises `StoreUnavailable` after `timeout_seconds`."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._up.wait()
        except TimeoutError:
            raise self.unavailable(f": {self.last_error}") from None

    def unavailable(self, why: str = "") -> StoreUnavailable:
        """The error of a caller who cannot be served."""
        return StoreUnavailable(f"no connection to Redis at {self.address}{why}")

    def impatient(self, reply: asyncio.Future[Any]) -> None:
        """A client waits for this reply: it fails with `StoreLost` as soon as the server falls silent.

        Not after a fixed time: where it is our own event loop that is behind, Redis must not be blamed for it.
        """
        self._impatient[reply] = None
        reply.add_done_callback(lambda done: self._impatient.pop(done, None))

    def _tell(self, up: bool) -> None:
        if up:
            self._up.set()
        else:
            self._up.clear()
        if self.on_change is not None:
            self.on_change(up)

    def _stalls(self) -> None:
        """Nothing was heard for too long: those who do not wait for such a server are told."""
        self.stalled = True
        for future in tuple(self._impatient):
            if not future.done():
                future.set_exception(StoreLost("Redis stopped answering"))


class _Wire(asyncio.Protocol):
    """The socket of a `Link`: feeds replies to futures in the order in which commands were written."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.reader = hiredis.Reader(notEnoughData=Ellipsis)
        self.pending: Pending = deque()
        self.transport: asyncio.Transport | None = None
        self.heard_at = 0.0
        self.out: list[bytes] = []
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.heard_at = self.link.loop.time()
        self.reader.feed(data)
        try:
            self._deliver()
        except hiredis.ProtocolError as error:
            log.error("store_protocol_error", address=str(self.link.address), error=str(error))
            self.abort()

    def _deliver(self) -> None:
        gets, pending, link = self.reader.gets, self.pending, self.link
        while (reply := gets()) is not Ellipsis:
            if link.on_push is not None and type(reply) is list and link.on_push(reply):
                continue
            future, _ = pending.popleft()
            if future.done():
                continue
            if isinstance(reply, hiredis.ReplyError):
                future.set_exception(StoreReply(str(reply)))
            else:
                future.set_result(reply)
        link.stalled = False

    def connection_lost(self, exc: Exception | None) -> None:
        pending, self.pending = self.pending, deque()
        fail_lost(pending)
        if not self.closed.done():
            self.closed.set_result(None)

    def write(self, command: Command, now: float) -> asyncio.Future[Any]:
        packed = hiredis.pack_command(command)  # raises for what cannot be packed, before a reply is waited for
        future: asyncio.Future[Any] = self.link.loop.create_future()
        self.pending.append((future, now))
        if not self.out:
            self.link.loop.call_soon(self.flush)
        self.out.append(packed)
        return future

    def flush(self) -> None:
        if self.out and self.transport is not None and not self.transport.is_closing():
            self.transport.write(b"".join(self.out))
        self.out.clear()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Link(Waiting):
    """See the module. `scripts` (name → source) are loaded at every connection, before any other command."""

    def __init__(
        self,
        address: Address,
        scripts: Sequence[bytes] = (),
        on_push: Callable[[list[Any]], bool] | None = None,
        on_change: Callable[[bool], None] | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        super().__init__(address, scripts, on_push, on_change)
        self.stall_seconds = stall_seconds
        self.loop = asyncio.get_running_loop()
        self._wire: _Wire | None = None
        self._owner = TaskOwner(f"link {address}")
        self._watch_at = 0.0
        self._turned = asyncio.Event()
        """There is another address to try at once."""
        self._closed = False
        self._owner.start(self._keep_connected(), "connect")
        self._timer = self.loop.call_later(WATCH_SECONDS, self._watch)

    @property
    def _live(self) -> _Wire | None:
        """The connection, unless it is lost already: what is written to a lost one is never answered, nor refused."""
        wire = self._wire
        return None if wire is None or wire.closed.done() else wire

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._live is not None

    @property
    def available(self) -> bool:
        """Whether a command sent now can be expected to be answered soon."""
        return self._live is not None and not self.stalled

    def call(self, *command: bytes | str | int | float) -> asyncio.Future[Any]:
        """Send one command; the future brings the reply.

        Raises `StoreUnavailable` at once if there is no connection. The future raises `StoreReply` or `StoreLost`.
        """
        wire = self._live
        if wire is None:
            raise self.unavailable()
        return wire.write(command, self.loop.time())

    def push(self, *command: Any) -> None:
        """Send a command that is answered by pushes (SSUBSCRIBE), not by a reply; nothing without a connection."""
        wire = self._live
        if wire is not None and wire.transport is not None:
            wire.transport.write(hiredis.pack_command(command))

    async def close(self) -> None:
        """Close the connection; unanswered commands fail with `StoreLost`."""
        self._closed = True
        self._timer.cancel()
        await self._owner.close()
        if self._wire is not None:
            self._wire.flush()
            if self._wire.transport is not None:
                self._wire.transport.close()
            await self._wire.closed
            self._wire = None

    async def _keep_connected(self) -> None:
        delay = RETRY_SECONDS
        while True:
            self._turned.clear()
            try:
                wire = await self._connect()
            except (OSError, TimeoutError, StoreError) as error:
                self.last_error = str(error) or type(error).__name__
                self._tell(False)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._turned.wait()
                delay = RETRY_SECONDS if self._turned.is_set() else min(delay * 2, RETRY_MAX_SECONDS)
                continue
            delay = RETRY_SECONDS
            self._wire, self.stalled = wire, False
            self._tell(True)
            await asyncio.shield(wire.closed)
            self._wire = None
            self._tell(False)
            log.warning("store_connection_lost", address=str(self.address))

    def turn_to(self, address: Address) -> None:
        """The primary is at another address now: connect there, with the same callers."""
        self.address = address
        self._turned.set()
        if self._wire is not None:
            self._wire.abort()

    async def _connect(self) -> _Wire:
        wire = _Wire(self)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                a = self.address
                if a.path is not None:
                    await self.loop.create_unix_connection(lambda: wire, a.path)
                else:
                    await self.loop.create_connection(lambda: wire, a.host, a.port, ssl=a.tls)
                now = self.loop.time()
                commands: list[Command] = a.handshake()
                commands += [("SCRIPT", "LOAD", script) for script in self.scripts]
                for future in [wire.write(command, now) for command in commands]:
                    await future
        except BaseException:
            wire.abort()
            raise
        return wire

    def _watch(self) -> None:
        now = self.loop.time()
        late = now - self._watch_at > WATCH_SECONDS + LAG_SECONDS
        self._watch_at = now
        self._timer = self.loop.call_later(WATCH_SECONDS, self._watch)
        wire = self._wire
        if wire is None or not wire.pending or late:
            return
        silent = now - max(wire.pending[0][1], wire.heard_at)
        if silent > LOST_SECONDS:
            log.warning("store_silent", address=str(self.address), seconds=round(silent, 3))
            wire.abort()
        elif silent > self.stall_seconds:
            self._stalls()
