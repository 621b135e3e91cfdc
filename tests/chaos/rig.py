"""Real nodes, a real Redis and a scripted upstream with its log, for tests that break them."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from redis.asyncio import Redis

from server.ledger.book import Book
from server.ledger.report import LATEST_MS, Query
from tests.chaos.audit import Stored, Tokens, UpstreamLog, Verdict, audit, rows_by_message, stored_messages, unbooked
from tests.processes import ServeProcess, serve_config, serving_processes
from tests.upstreams.scripted import process as scripted
from tests.wire import Wire, eventually

MODEL = "scripted"
LOG_CHARACTERS = 4_000
"""How much of each node's log is shown when a test fails."""
ENDED = ("done", "failed", "cancelled")
BOOKED_SECONDS = 30.0
"""How long the ledger may lag behind what ended."""


def ask(script: str, message_id: str = "") -> list[dict[str, Any]]:
    """The `messages` of a request that the upstream answers by `script`; the id makes it unlike any other."""
    return [{"role": "user", "content": f"script {script}\n{message_id}"}]


@dataclass(slots=True)
class Rig:
    """What a test works with."""

    nodes: list[ServeProcess]
    log: UpstreamLog
    upstream: str
    primaries: list[str]
    """URL of every primary, for looking at what is stored."""
    ledger: str = "sqlite:///:memory:"
    """URL of the ledger that the nodes share."""

    async def stored(self) -> dict[str, Stored]:
        """Every message in Redis, by id."""
        return await stored_messages(self.primaries)

    async def booked(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of the ledger by message."""

        def read() -> list[dict[str, Any]]:
            book = Book.open(self.ledger)
            try:
                return book.rows()
            finally:
                book.close()

        return rows_by_message(await asyncio.to_thread(read))

    async def reported(self) -> dict[str, Tokens]:
        """The ledger's report of everything that was spent: tokens by their source."""

        def read() -> list[dict[str, Any]]:
            book = Book.open(self.ledger)
            try:
                return book.report(Query(("source",), 0, LATEST_MS))
            finally:
                book.close()

        groups = await asyncio.to_thread(read)
        return {group["by_0"]: Tokens(group["input_tokens"], group["output_tokens"]) for group in groups}

    async def all_booked(self) -> dict[str, list[dict[str, Any]]]:
        """The rows of the ledger by message, once every attempt in Redis has its row."""
        async with asyncio.timeout(BOOKED_SECONDS):
            while unbooked((await self.stored()).values(), rows := await self.booked()):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        return rows

    async def settled(self, message_id: str, seconds: float = 10.0) -> Stored:
        """The message once it has ended and no attempt is open; fails after `seconds`."""
        async with asyncio.timeout(seconds):
            while True:
                message = (await self.stored()).get(message_id)
                if message is not None and message.state in ENDED:
                    return message
                await asyncio.sleep(0.05)

    def verdict(self, messages: Sequence[Mapping[str, Any]], stored: Stored | None, forgotten: bool = False) -> Verdict:
        """What the upstream's log says against the records; `forgotten`: see `audit`."""
        return audit(messages, stored, self.log, MODEL, forgotten)

    async def check_once(self, message_id: str, messages: Sequence[Mapping[str, Any]], calls: int = 1) -> Stored:
        """So many calls upstream, all recorded, one of them paid by the user."""
        message = await self.settled(message_id)
        assert len(self.log.calls(messages)) == calls, self.log.calls(messages)
        assert len(message.records) == calls, message.records
        assert self.verdict(messages, message) == Verdict()
        return message

    async def until_end_of(self, call: dict[str, Any], seconds: float = 10.0) -> dict[str, Any]:
        """How a call upstream ended, once the log tells."""
        await eventually(lambda: self.log.end(call) is not None, seconds)
        return self.log.end(call) or {}

    async def hurry(self) -> None:
        """Have the upstream say the rest of its answers at once: what had to happen meanwhile has happened."""
        async with aiohttp.ClientSession() as http, http.delete(f"{self.upstream}/admin/pace") as done:
            assert done.status == 200

    async def called(self, messages: Sequence[Mapping[str, Any]], calls: int, seconds: float = 30.0) -> None:
        """Wait until the upstream was asked so often."""
        await eventually(lambda: len(self.log.calls(messages)) >= calls, seconds)

    async def redis(self, *command: Any) -> Any:
        """One command to the first primary."""
        client = Redis.from_url(self.primaries[0], socket_timeout=5.0)
        try:
            return await client.execute_command(*command)  # type: ignore[no-untyped-call]
        finally:
            await client.aclose()


def told(end: Mapping[str, Any] | None) -> dict[str, Any]:
    """An end frame without what depends on the follower's own cursor."""
    return {name: value for name, value in (end or {}).items() if name != "after"}


def incarnation(node: ServeProcess) -> str:
    """The id under which a node that was just started beats."""
    return re.findall(r'"node":"([0-9a-f]+)","event":"node_started"', node.log.read_text())[-1]


@asynccontextmanager
async def rig(
    redis_url: str,
    count: int = 2,
    primaries: Sequence[str] | None = None,
    target: Mapping[str, Any] | None = None,
    **sections: Mapping[str, Any],
) -> AsyncIterator[Rig]:
    """`count` nodes over the Redis at `redis_url`, and an upstream that logs every call; `target`: more of its keys."""
    with tempfile.TemporaryDirectory(prefix="tidewire-chaos-") as folder:
        log = UpstreamLog(Path(folder) / "upstream.jsonl")
        sections = {"ledger": {"url": f"sqlite:///{folder}/ledger.db"}, **sections}
        async with AsyncExitStack() as stack:
            upstream = await stack.enter_async_context(scripted(log.path))
            config = serve_config(redis_url, upstream, **sections)
            config["targets"][MODEL] |= target or {}
            nodes = await stack.enter_async_context(serving_processes(config, count))
            try:
                yield Rig(nodes, log, upstream, list(primaries or [redis_url]), str(sections["ledger"]["url"]))
            except BaseException:
                for node in nodes:
                    print(f"--- log of the node on port {node.port}", node.log.read_text()[-LOG_CHARACTERS:], sep="\n")
                raise


async def read_until(socket: Wire, message_id: str, characters: int) -> None:
    """Read until so much of a message's text stands."""
    view = socket.view(message_id)
    while len(view.text) < characters:
        await socket.recv()
