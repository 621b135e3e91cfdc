"""What a page and a send cost in conversations of growing length: both must stay flat.

.venv/bin/python -m tests.bench.conversation
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

from tests.nodes import running_node, settings_for
from tests.servers import VALKEY, RedisServer
from tests.upstreams.scripted import serving
from tests.wire import MSGPACK, Wire, wire

SIZES = (100, 1_000, 10_000)
ROUNDS = 100
BATCH = 100
CONTEXT_TOKENS = 20_000
"""The context of a usual model is full long before 10,000 entries."""


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


async def page(client: Wire, conversation: str, before: str | None) -> tuple[float, str | None]:
    """Milliseconds of one page, and the one before it."""
    started = time.perf_counter()
    frame = {"type": "history", "conversation": conversation, "limit": 50}
    await client.send(frame if before is None else {**frame, "before": before})
    answer = await client.type("history")
    return (time.perf_counter() - started) * 1000, answer.get("next")


async def send(client: Wire, conversation: str, number: int) -> float:
    """Milliseconds from a question to the end of its short answer."""
    name = f"{conversation}-s{number}"
    started = time.perf_counter()
    await client.send({"type": "send", "id": name, "conversation": conversation, "input": "script tokens=2"})
    await client.ended(name)
    return (time.perf_counter() - started) * 1000


async def measure() -> int:
    """Print the table; 1 if something is not flat."""
    print("| entries | page, newest (ms) | page, older (ms) | send to end (ms) |\n|---|---|---|---|")
    sends: list[float] = []
    with RedisServer(VALKEY) as redis:
        async with serving() as upstream:
            target = {"driver": "openai", "base_url": f"{upstream.url}/v1", "model": "scripted"}
            settings = settings_for(
                redis.url, upstream.url, {"targets": {"scripted": {**target, "context_tokens": CONTEXT_TOKENS}}}
            )
            async with running_node(settings) as node, wire(node.url, MSGPACK) as client:
                for size in SIZES:
                    name = f"c{size}"
                    await fill(client, name, size)
                    newest = [(await page(client, name, None))[0] for _ in range(ROUNDS)]
                    older: list[float] = []
                    before: str | None = None
                    for _ in range(ROUNDS):
                        took, before = await page(client, name, before)
                        older.append(took)
                    times = [await send(client, name, number) for number in range(ROUNDS // 4)]
                    sends.append(statistics.median(times))
                    row = (statistics.median(newest), statistics.median(older), sends[-1])
                    print(f"| {size} | " + " | ".join(f"{value:.1f}" for value in row) + " |", flush=True)
    return int(sends[-1] > 3 * sends[1])


if __name__ == "__main__":
    sys.exit(asyncio.run(measure()))
