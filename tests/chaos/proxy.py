"""A TCP proxy for client connections that breaks them on command.

It stands where a load balancer would: every connection goes to one of the backends that accepts it. A `Link` is one
connection; it can be cut by a reset, closed on one side only, delayed, slowed down, or turned into a black hole that
takes everything and gives nothing.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Literal

CHUNK_BYTES: Final = 16_384
SLOW_CHUNK_BYTES: Final = 512
CONNECT_SECONDS: Final = 1.0
CLOSE_SECONDS: Final = 1.0

Side = Literal["client", "node"]
Backends = Callable[[], Sequence[int]]
"""The ports that connections may go to now, in order of preference."""


class Link:
    """One proxied connection."""

    def __init__(self, client: asyncio.StreamWriter, node: asyncio.StreamWriter, port: int) -> None:
        self.port = port
        """Where it leads."""
        self.delay_seconds = 0.0
        """How long each piece is held, in both directions."""
        self.bytes_per_second = 0.0
        """How fast the client reads; 0: as fast as it can."""
        self._writers: dict[Side, asyncio.StreamWriter] = {"client": client, "node": node}
        self._flowing = asyncio.Event()
        self._flowing.set()

    def cut(self) -> None:
        """Reset both sides."""
        for writer in self._writers.values():
            sock = writer.transport.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self._flowing.set()

    def half_close(self, side: Side) -> None:
        """Tell one side that nothing more comes, and go on taking what it sends."""
        writer = self._writers[side]
        if not writer.transport.is_closing() and writer.can_write_eof():
            writer.write_eof()

    def black_hole(self) -> None:
        """From here on nothing passes, and nobody is told."""
        self._flowing.clear()

    def heal(self) -> None:
        """Let everything pass again."""
        self.delay_seconds = self.bytes_per_second = 0.0
        self._flowing.set()

    async def pump(self, reader: asyncio.StreamReader, to: Side) -> None:
        """Pass on what one side sends until it ends."""
        writer = self._writers[to]
        while True:
            slow = self.bytes_per_second if to == "client" else 0.0
            data = await reader.read(SLOW_CHUNK_BYTES if slow else CHUNK_BYTES)
            await self._flowing.wait()
            if not data:
                break
            if self.delay_seconds or slow:
                await asyncio.sleep(self.delay_seconds + (len(data) / slow if slow else 0.0))
            if writer.transport.is_closing() or writer.transport.get_extra_info("socket") is None:
                break
            try:
                writer.write(data)
            except RuntimeError:  # half-closed meanwhile: what comes is swallowed
                continue
            await writer.drain()
        self.half_close(to)


class Proxy:
    """Listens on loopback; `links` are the connections there are."""

    def __init__(self, backends: Backends, on_link: Callable[[Link], None] = lambda link: None) -> None:
        self.backends = backends
        self.on_link = on_link
        """Told of every new connection, to delay or slow it from its start."""
        self.links: set[Link] = set()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where WebSocket clients connect."""
        return f"ws://127.0.0.1:{self.port}/v1/ws"

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Cut everything and stop."""
        assert self._server is not None
        self._server.close()
        for link in tuple(self.links):
            link.cut()
        if self._handlers:
            for task in self._handlers:
                task.cancel()
            await asyncio.wait(self._handlers, timeout=CLOSE_SECONDS)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # one of the sides is gone, or all of this ends
        finally:
            self._handlers.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node = await self._reach()
        if node is None:
            return
        node_reader, node_writer, port = node
        link = Link(writer, node_writer, port)
        self.links.add(link)
        try:
            self.on_link(link)
            async with asyncio.TaskGroup() as group:
                group.create_task(_quietly(link.pump(reader, "node"), link))
                group.create_task(_quietly(link.pump(node_reader, "client"), link))
        finally:
            self.links.discard(link)
            node_writer.transport.abort()

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int] | None:
        """The first backend that accepts."""
        for port in self.backends():
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    return *(await asyncio.open_connection("127.0.0.1", port)), port
            except (OSError, TimeoutError):
                continue
        return None


async def _quietly(pumping: object, link: Link) -> None:
    try:
        await pumping  # type: ignore[misc]
    except OSError:
        link.cut()


@asynccontextmanager
async def proxying(backends: Backends, on_link: Callable[[Link], None] = lambda link: None) -> AsyncIterator[Proxy]:
    """A proxy for a block."""
    proxy = Proxy(backends, on_link)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()


def shuffled(ports: Sequence[int], chance: random.Random) -> list[int]:
    """The ports in random order, as a load balancer without memory picks them."""
    mixed = list(ports)
    chance.shuffle(mixed)
    return mixed
