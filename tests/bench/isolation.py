"""`python -m tests.bench isolation`: what a neighbour on the same socket does to the rhythm of the others.

One node as it is shipped, Valkey and a scripted upstream, each a process of its own. Five messages of 50 pieces a
second stream on one socket, alone and beside a sixth of 1 MB/s, or one that falls silent, by turns: whatever else this
machine does meets both. Of each pair the rise of the 99th percentile of the gaps between a message's frames; the median
of five must be below `MOST_SECONDS`.
"""

from __future__ import annotations

import statistics
import time
from typing import Final

import uvloop
from rich.table import Table

from tests.chaos.figures import quantile
from tests.chaos.rig import ask, rig
from tests.processes import AS_SHIPPED
from tests.servers import RedisServer
from tests.upstreams.script import expected_text
from tests.wire import wire

SIBLINGS = 5
RATE = 50
TOKENS = 200
WORDS_PER_EVENT_BYTES = 3_000
"""Of a `bytes=` script."""
LOUD: Final = f"bytes=20000000 rate={1_000_000 // WORDS_PER_EVENT_BYTES}"
"""1 MB/s, for longer than anything here takes."""
SILENT: Final = "tokens=100 hang=mid keepalive=0.5"
"""It stalls in the middle."""
MOST_SECONDS = 0.020
"""Rise of the p99 gap."""
PAIRS = 5


async def gaps(url: str, name: str, neighbour: str | None) -> list[float]:
    """Gaps between the frames of each sibling, beside a neighbour on the same socket or alone. Checks every text."""
    async with wire(url) as socket:
        if neighbour is not None:
            await socket.ask(f"{name}-neighbour", ask(neighbour, f"{name}-neighbour"))
        asked = {}
        for number in range(SIBLINGS):
            message_id = f"{name}-{number}"
            asked[message_id] = await socket.ask(message_id, ask(f"tokens={TOKENS} rate={RATE}", message_id))
        came: dict[str, float] = {}
        found: list[float] = []
        while any(socket.view(message_id).end is None for message_id in asked):
            frame = await socket.recv()
            if frame["type"] == "delta" and frame["id"] in asked:
                now = time.monotonic()
                if frame["id"] in came:
                    found.append(now - came[frame["id"]])
                came[frame["id"]] = now
        for message_id, messages in asked.items():
            assert socket.view(message_id).text == expected_text(messages, "scripted")
        if neighbour is not None:
            beside = socket.view(f"{name}-neighbour")
            assert beside.text, "there was no neighbour"
            assert beside.end is None, "the neighbour had ended"
            await socket.send({"type": "cancel", "id": f"{name}-neighbour"})
            await socket.type("cancelled", f"{name}-neighbour")
    return found


async def pair(url: str, name: str, neighbour: str) -> tuple[float, float]:
    """The p99 gap alone and beside the neighbour, in seconds."""
    alone = quantile(await gaps(url, f"{name}-alone", None), 0.99)
    beside = quantile(await gaps(url, f"{name}-beside", neighbour), 0.99)
    assert alone is not None
    assert beside is not None
    return alone, beside


async def pairs(neighbour: str, count: int = PAIRS) -> list[tuple[float, float]]:
    """`count` of them at one node."""
    with RedisServer() as redis:
        async with rig(redis.url, 1, redis=AS_SHIPPED) as r:
            return [await pair(r.nodes[0].url, f"p{number}", neighbour) for number in range(count)]


def measure() -> tuple[Table, bool]:
    """The table, and whether the promise held for both."""
    table = Table("neighbour", "p99 gap alone (median)", "beside it", "rise: median, worst", "below")
    held = True
    for name, neighbour in (("1 MB/s", LOUD), ("stalled", SILENT)):
        found = uvloop.run(pairs(neighbour))
        rises = [beside - alone for alone, beside in found]
        rise = statistics.median(rises)
        table.add_row(
            name,
            f"{statistics.median(alone for alone, _ in found) * 1000:.1f} ms",
            f"{statistics.median(beside for _, beside in found) * 1000:.1f} ms",
            f"{rise * 1000:.1f} ms, {max(rises) * 1000:.1f} ms",
            f"{MOST_SECONDS * 1000:.0f} ms",
        )
        held = held and rise < MOST_SECONDS
    return table, held
