"""`python -m tests.bench replication`: what a failover forgets when the replica lagged, and what clients see of it.

Two nodes as they are shipped, a Valkey primary and its replica, a scripted upstream, each a process of its own, and
clients of the library that ask, repeat, stop and hand over. The stream from primary to replica runs through a proxy and
is held back for some seconds; then the primary is killed, the replica promoted, and the address at which the nodes find
Redis leads to it. Whatever the lag, nothing is wrong, stuck or delivered twice, what was accepted comes to its end, and
what is forgotten before that is billed once. Without a lag the replica knows every message that was accepted.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import uvloop
from redis.asyncio import Redis
from rich.table import Table

from tests.chaos.audit import stored_messages
from tests.chaos.clients import STUCK_SECONDS, Crowd
from tests.chaos.figures import Figures
from tests.chaos.proxy import Proxy, proxying
from tests.chaos.rig import Rig, rig
from tests.processes import AS_SHIPPED
from tests.servers import RedisServer
from tests.wire import eventually_true

LAGS = (0.0, 1.0, 5.0)
"""Seconds for which the replica had heard nothing when the primary was killed; 0: it kept up."""
CLIENTS = 16
BEFORE_SECONDS = 5.0
AFTER_SECONDS = 5.0
LAST_FRAMES_SECONDS = 0.2
"""In which what the nodes had said before the kill reaches the clients."""


@dataclass
class Failover:
    """What came of one. Messages by id."""

    lag: float
    figures: Figures = field(default_factory=Figures)
    accepted: set[str] = field(default_factory=set)
    """Before the kill."""
    cut_short: set[str] = field(default_factory=set)
    """Of these, forgotten while they ran."""
    ended: set[str] = field(default_factory=set)
    """Of these, forgotten after clients had seen their end."""
    again: int = 0
    """Calls upstream that were made a second time."""
    unbooked: int = 0
    """Of those that had ended: attempts that are in no ledger."""
    billed_again: int = 0
    """Of those that had ended: what was asked for once more, and is in the ledger a second time."""

    @property
    def held(self) -> bool:
        """Whether it was as promised."""
        return self.figures.passed and (self.lag > 0 or not (self.cut_short or self.ended))


async def keeps_up(replica: RedisServer) -> None:
    """Wait until it follows its primary."""
    client = Redis.from_url(replica.url)

    async def linked() -> bool:
        return bool((await client.info("replication"))["master_link_status"] == "up")

    try:
        await eventually_true(linked, 30.0)
    finally:
        await client.aclose()


async def promote(primary: RedisServer, replica: RedisServer, feed: Proxy, found: Failover, crowd: Crowd) -> None:
    """Let the replica lag, kill the primary, and count what the replica does not know."""
    if found.lag:
        for link in feed.links:
            link.black_hole()
        await asyncio.sleep(found.lag)
    primary.kill()
    for link in feed.links:
        link.cut()
    await asyncio.sleep(LAST_FRAMES_SECONDS)
    assert replica.command(b"REPLICAOF NO ONE") == b"+OK"
    found.figures.counts["failover"] += 1
    asked = [asked for asked in crowd.asked.values() if asked.accepted]
    known = await stored_messages([replica.url])
    found.accepted = {one.id for one in asked}
    found.cut_short = {one.id for one in asked if one.id not in known and one.end is None}
    found.ended = {one.id for one in asked if one.id not in known and one.end is not None}


async def fail_over(lag: float) -> Failover:
    """One failover under clients that go on."""
    found = Failover(lag)
    async with AsyncExitStack() as stack:
        serving = primary = stack.enter_context(RedisServer())
        feed = await stack.enter_async_context(proxying(lambda: [primary.port]))
        follows = ("--replicaof", "127.0.0.1", str(feed.port), "--repl-diskless-sync-delay", "0")
        replica = stack.enter_context(RedisServer(options=follows))
        await keeps_up(replica)
        front = await stack.enter_async_context(proxying(lambda: [serving.port]))
        url = f"redis://127.0.0.1:{front.port}/0"
        r = await stack.enter_async_context(rig(url, 2, [primary.url], redis=AS_SHIPPED))
        ports = [node.port for node in r.nodes]
        clients = await stack.enter_async_context(proxying(lambda: ports))
        crowd = Crowd(clients.url, clients.url, 1, found.figures)
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(crowd.worker(number)) for number in range(CLIENTS)]
            await asyncio.sleep(BEFORE_SECONDS)
            await promote(primary, replica, feed, found, crowd)
            serving, r.primaries[:] = replica, [replica.url]
            for link in front.links:
                link.cut()
            await asyncio.sleep(AFTER_SECONDS)
            crowd.stop.set()
            crowd.healed_at = time.monotonic()
            _, late = await asyncio.wait(workers, timeout=STUCK_SECONDS + 20.0)
            for worker in late:
                found.figures.problem("stuck", f"{worker.get_name()} did not come to an end")
                worker.cancel()
        await check(r, crowd, found)
    return found


async def check(r: Rig, crowd: Crowd, found: Failover) -> None:
    """Hold what the clients saw against Redis, the ledger and the upstream's log."""
    for message_id, asked in crowd.asked.items():
        if asked.accepted and asked.end is None and not asked.cancel_asked:
            found.figures.problem("lost", f"{message_id}: accepted, and nobody saw its end")
    stored, rows = await r.stored(), await r.all_booked()
    for message_id, asked in crowd.asked.items():
        message, calls = stored.get(message_id), r.log.calls(asked.messages)
        if message is None:
            if message_id in found.ended:
                found.unbooked += max(0, len(calls) - len(rows.get(message_id, ())))
            continue
        found.again += max(0, len(calls) - len(message.records))
        if len(message.payers) > 1:
            found.figures.problem("double_billed", f"{message_id}: the user pays {len(message.payers)} attempts")
        paid = [row["attempt"] for row in rows.get(message_id, ()) if row["payer"] == "user"]
        if message_id in found.ended:
            found.billed_again += max(0, len(paid) - 1)
        elif len(paid) > 1:
            found.figures.problem("double_billed", f"{message_id}: the user is booked attempts {paid}")


def measure() -> tuple[Table, bool]:
    """The table, and whether everything held."""
    table = Table("lag", "accepted", "forgotten running", "forgotten ended", "unbooked, billed again", "called again",
                  "lost, wrong, stuck, repeated, double-billed")  # fmt: skip
    held = True
    for lag in LAGS:
        found = uvloop.run(fail_over(lag))
        counts = found.figures.counts
        zeros = ("lost", "wrong", "stuck", "repeated", "double_billed")
        table.add_row(
            f"{lag:.0f} s",
            *(str(len(some)) for some in (found.accepted, found.cut_short, found.ended)),
            f"{found.unbooked}, {found.billed_again}",
            str(found.again),
            ", ".join(str(counts[kind]) for kind in zeros),
        )
        for problem in found.figures.problems[:10]:
            print(" !", problem)
        held = held and found.held
    return table, held
