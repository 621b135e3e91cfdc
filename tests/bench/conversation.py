"""What a page and a send cost in conversations of growing length: both must stay flat.

The context of the target is full in all of them, so that a model is sent as much of 100 entries as of 10,000.
What is compared is CPU time of the node and its client, in turns in one run: other work on the machine hits all alike.

.venv/bin/python -m tests.bench.conversation
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.nodes import running_node, settings_for
from tests.servers import VALKEY, RedisServer
from tests.upstreams.scripted import serving
from tests.wire import MSGPACK, Wire, wire

SIZES = (100, 1_000, 10_000)
ROUNDS = 100
BATCH = 50
TIER = {"tokens_per_minute": 10**9, "requests_per_minute": 10**6}
CONTEXT_TOKENS = 2_400
"""Less than 100 entries have, so that a model is sent equally much of all three."""
MOST_PAGE = 1.5
"""Most cost of a page at 10,000 entries, as a multiple of that at 100."""
MOST_SEND = 1.5
"""The same for a send, from the question to the end of its answer."""


async def fill(client: Wire, conversation: str, entries: int) -> None:
    """Import turns until there are about so many entries."""
    for begin in range(0, entries, BATCH):
        count = min(BATCH, entries - begin) - 2
        turns = [
            {"role": ("user", "assistant")[n % 2], "content": f"{begin + n}: what was said before " * 2}
            for n in range(count)
        ]
        given = [*turns, {"role": "user", "content": "script tokens=2"}]
        name = f"{conversation}-{begin}"
        await client.send({"type": "send", "id": name, "conversation": conversation, "input": given})
        await client.ended(name)


@dataclass(slots=True)
class Spent:
    """Milliseconds of one kind of request at one size, one figure a request."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    @asynccontextmanager
    async def measured(self) -> AsyncIterator[None]:
        """What happens in this block."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.cpu.append((time.process_time() - cpu) * 1000)
        self.wall.append((time.perf_counter() - wall) * 1000)


@dataclass(slots=True)
class Size:
    """A conversation of so many entries, and what was spent in it."""

    entries: int
    newest: Spent = field(default_factory=Spent)
    older: Spent = field(default_factory=Spent)
    send: Spent = field(default_factory=Spent)
    before: str | None = None
    """Where the next older page ends."""
    sent: int = 0

    @property
    def name(self) -> str:
        """The conversation's id."""
        return f"c{self.entries}"

    async def page(self, client: Wire, before: str | None = None) -> str | None:
        """Ask for a page; the one before it."""
        frame = {"type": "history", "conversation": self.name, "limit": 20}
        await client.send(frame if before is None else {**frame, "before": before})
        following: str | None = (await client.type("history")).get("next")
        return following

    async def round(self, client: Wire) -> None:
        """One of each."""
        async with self.newest.measured():
            await self.page(client)
        async with self.older.measured():
            self.before = await self.page(client, self.before)
        name, self.sent = f"{self.name}-s{self.sent}", self.sent + 1
        async with self.send.measured():
            await client.send({"type": "send", "id": name, "conversation": self.name, "input": "script tokens=2"})
            await client.ended(name)


async def conversations() -> list[Size]:
    """Fill them, then measure them in turns."""
    sizes = [Size(entries) for entries in SIZES]
    with RedisServer(VALKEY) as redis:
        async with serving() as upstream:
            target = {"driver": "openai", "base_url": f"{upstream.url}/v1", "model": "scripted"}
            targets = {"scripted": {**target, "context_tokens": CONTEXT_TOKENS}}
            settings = settings_for(redis.url, upstream.url, {"targets": targets, "tiers": {"default": TIER}})
            async with running_node(settings) as node, wire(node.url, MSGPACK) as client:
                for size in sizes:
                    await fill(client, size.name, size.entries)
                for _ in range(ROUNDS):
                    for size in sizes:
                        await size.round(client)
    return sizes


def ratio(sizes: list[Size], kind: Callable[[Size], Spent]) -> float:
    """The CPU time at the most entries over that at the fewest."""
    least, most = (statistics.median(kind(size).cpu) for size in (sizes[0], sizes[-1]))
    return least and most / least


def report(sizes: list[Size]) -> bool:
    """Print the table; whether everything is flat."""
    print("| entries | page, newest (ms CPU / ms) | page, older | send to end |\n|---|---|---|---|")
    for size in sizes:
        cells = [
            f"{statistics.median(spent.cpu):.2f} / {statistics.median(spent.wall):.1f}"
            for spent in (size.newest, size.older, size.send)
        ]
        print(f"| {size.entries:,} | " + " | ".join(cells) + " |")
    newest, older = ratio(sizes, lambda s: s.newest), ratio(sizes, lambda s: s.older)
    send = ratio(sizes, lambda s: s.send)
    print(f"| ratio, CPU | {newest:.2f} (at most {MOST_PAGE}) | {older:.2f} ({MOST_PAGE}) | {send:.2f} ({MOST_SEND}) |")
    return max(newest, older) <= MOST_PAGE and send <= MOST_SEND


def main() -> int:
    """Run from the command line."""
    return int(not report(asyncio.run(conversations())))


if __name__ == "__main__":
    sys.exit(main())
