"""`python -m tests.bench stop`: how long the upstream goes on after somebody pressed stop on another node.

Two nodes as they are shipped, Valkey and a scripted upstream, each a process of its own. A message runs on one node and
is stopped through the other, half of the times by a device that follows it there. The end is what the upstream's log
says: when its process saw the connection close.
"""

from __future__ import annotations

import time

import uvloop
from rich.table import Table

from tests.chaos.figures import quantile
from tests.chaos.rig import Rig, ask, read_until, rig
from tests.processes import AS_SHIPPED
from tests.servers import RedisServer
from tests.wire import Wire, wire

STOPS = 100
MOST_SECONDS = 0.25
"""From the frame to the closed connection, as a 99th percentile."""
SCRIPT = "tokens=5000 rate=100"
BEGUN_CHARACTERS = 20


async def stop_one(r: Rig, number: int, asker: Wire, other: Wire) -> float:
    """Stop a running message; seconds from the frame to what the upstream saw."""
    message_id = f"stop-{number}"
    messages = await asker.ask(message_id, ask(SCRIPT, message_id))
    await read_until(asker, message_id, BEGUN_CHARACTERS)
    if number % 2:
        await other.send({"type": "resume", "id": message_id, "after": 0})
        await read_until(other, message_id, BEGUN_CHARACTERS)
    asked = time.time()  # the clock of the upstream's log
    await other.send({"type": "cancel", "id": message_id})
    await other.type("cancelled", message_id)
    await asker.type("cancelled", message_id)
    [call] = r.log.calls(messages)
    end = await r.until_end_of(call)
    assert end["client_gone"], "it had come to its end by itself"
    return float(end["t"]) - asked


async def stops(count: int = STOPS) -> list[float]:
    """Seconds of each stop."""
    with RedisServer() as redis:
        async with (
            rig(redis.url, 2, redis=AS_SHIPPED) as r,
            wire(r.nodes[0].url) as asker,
            wire(r.nodes[1].url) as other,
        ):
            return [await stop_one(r, number, asker, other) for number in range(count)]


def measure() -> tuple[Table, bool]:
    """The table, and whether the promise held."""
    took = uvloop.run(stops())
    p50, p99 = (1000 * (quantile(took, share) or 0.0) for share in (0.5, 0.99))
    table = Table("from stop on another node to the upstream's closed connection", "p50", "p99", "at most")
    table.add_row(f"{len(took)} stops", f"{p50:.1f} ms", f"{p99:.1f} ms", f"{MOST_SECONDS * 1000:.0f} ms")
    return table, p99 <= MOST_SECONDS * 1000
