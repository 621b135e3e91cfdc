"""Redis as the rest of the server sees it: scripts and commands, routed to the primary that holds their key."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from redis.asyncio.connection import parse_url

from server.store.link import Address, Link, StoreReply, StoreUnavailable

log = structlog.get_logger("store")

CALL_SECONDS: Final = 0.12
"""How long a caller with a client waiting gives Redis; a refusal must be out within 150 ms."""
START_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script: its version is in its name, its KEYS and ARGV are described at its head."""

    name: str
    source: bytes
    sha: bytes

    @classmethod
    def load(cls, path: Path) -> Script:
        """Read a `.lua` file."""
        source = path.read_bytes()
        return cls(path.stem, source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


class Store:
    """The Redis connection of one process."""

    def __init__(self, address: Address, scripts: Sequence[Script]) -> None:
        self.address = address
        self.scripts = scripts
        self._sources = [script.source for script in scripts]
        self._link = Link(address, self._sources)

    @classmethod
    async def connect(cls, url: str, scripts: Sequence[Script]) -> Store:
        """Connect to the Redis at `url`. Raises `StoreUnavailable` if nothing answers within 10 s."""
        store = cls(address_of(url), scripts)
        try:
            await store._link.ready(START_SECONDS)
        except StoreUnavailable:
            await store.close()
            raise
        return store

    def link(self, key: bytes) -> Link:
        """The link to the primary that holds `key`."""
        return self._link

    def links(self) -> list[Link]:
        """Every primary's link."""
        return [self._link]

    @property
    def available(self) -> bool:
        """Whether every primary answers."""
        return all(link.available for link in self.links())

    def subscriber(self, on_push: Callable[[list[Any]], bool], on_up: Callable[[], None]) -> Link:
        """A second connection, for shard-channel subscriptions."""
        return Link(self.address, (), on_push, on_up)

    def send(self, script: Script, keys: Sequence[bytes], args: Sequence[Any]) -> asyncio.Future[Any]:
        """Start a script on the primary of its first key; see `Link.call` for what it raises."""
        return self.link(keys[0]).call("EVALSHA", script.sha, len(keys), *keys, *args)

    async def run(
        self, script: Script, keys: Sequence[bytes], args: Sequence[Any], seconds: float | None = CALL_SECONDS
    ) -> Any:
        """Run a script and wait for its reply.

        Raises `StoreUnavailable` at once if the primary does not answer anybody, `StoreLost` or `TimeoutError` if it
        stopped answering with this call on the wire (then it may have happened), `StoreReply` for Redis' own errors.
        """
        try:
            return await self._reply(keys[0], seconds, "EVALSHA", script.sha, len(keys), *keys, *args)
        except StoreReply as error:
            if not str(error).startswith("NOSCRIPT"):
                raise
            return await self._reply(keys[0], seconds, "EVAL", script.source, len(keys), *keys, *args)

    async def call(self, key: bytes, *command: Any, seconds: float | None = CALL_SECONDS) -> Any:
        """Run a command on the primary of `key`; raises like `run`."""
        return await self._reply(key, seconds, *command)

    async def _reply(self, key: bytes, seconds: float | None, *command: Any) -> Any:
        link = self.link(key)
        if seconds is not None and not link.available:
            raise StoreUnavailable(f"Redis at {link.address} does not answer")
        return await within(link.call(*command), seconds)

    async def close(self) -> None:
        """Close every connection."""
        for link in self.links():
            await link.close()


async def within(future: asyncio.Future[Any], seconds: float | None) -> Any:
    """The future's result; `TimeoutError` after `seconds` unless it was our own loop that was slow."""
    if seconds is None:
        return await future
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.shield(future)
    except TimeoutError:
        await asyncio.sleep(0)  # one turn of the loop: a reply may lie in the socket already
        if future.done() and not future.cancelled() and future.exception() is None:
            return future.result()
        future.add_done_callback(_forget)
        raise


def _forget(future: asyncio.Future[Any]) -> None:
    """Take a late answer nobody waits for, so that it is not reported as never retrieved."""
    if not future.cancelled():
        future.exception()


def address_of(url: str) -> Address:
    """The address in a `redis://`, `rediss://` or `unix://` URL. Raises `ValueError` for others."""
    parts: dict[str, Any] = dict(parse_url(url))
    tls = None
    if url.startswith("rediss://"):
        import ssl

        tls = ssl.create_default_context(cafile=parts.get("ssl_ca_certs"))
    return Address(
        host=parts.get("host", "127.0.0.1"),
        port=parts.get("port", 6379),
        path=parts.get("path"),
        username=parts.get("username"),
        password=parts.get("password"),
        db=parts.get("db", 0),
        tls=tls,
    )
