"""The ledger when nodes are killed: every attempt one row, sums as the upstream's own log has them."""

from __future__ import annotations

import asyncio
import signal

from tests.chaos.audit import audit_ledger, unbooked
from tests.chaos.rig import MODEL, Rig, ask, read_until, rig
from tests.servers import RedisServer
from tests.upstreams.script import reply_to
from tests.wire import wire

BOOKED_SECONDS = 30.0


async def booked(r: Rig) -> dict[str, list[dict[str, object]]]:
    """The ledger, once every attempt in Redis has its row."""
    async with asyncio.timeout(BOOKED_SECONDS):
        while unbooked((await r.stored()).values(), rows := await r.booked()):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    return rows


async def test_after_kills_every_attempt_has_one_row_and_the_sums_are_the_upstream_s(
    valkey_server: RedisServer,
) -> None:
    asked = {f"done{n}": ask(f"tokens={20 + n} seed={n}", f"done{n}") for n in range(6)}
    asked["cut"] = ask("tokens=400 rate=80", "cut")
    async with rig(valkey_server.url, 3) as r:
        async with wire(r.nodes[0].url) as client:
            for message_id, messages in asked.items():
                await client.ask(message_id, messages)
            for message_id in asked.keys() - {"cut"}:
                await client.ended(message_id)
            await read_until(client, "cut", 200)
            r.nodes[0].signal(signal.SIGKILL)
        await r.settled("cut", 30.0)
        await r.nodes[0].kill()
        rows, stored = await booked(r), await r.stored()
        for message_id, messages in asked.items():
            assert audit_ledger(messages, stored[message_id], rows[message_id], r.log, MODEL) == []
        assert sum(len(some) for some in rows.values()) == len(asked) + 1
        lost, whole = sorted(rows["cut"], key=lambda row: str(row["attempt"]))
        assert (lost["outcome"], lost["source"], lost["payer"]) == ("owner_lost", "estimated", "operator")
        assert (whole["outcome"], whole["source"], whole["payer"]) == ("done", "provider", "user")
        charged = [row["output_tokens"] for some in rows.values() for row in some if row["payer"] == "user"]
        assert sum(map(int, map(str, charged))) == sum(reply_to(m, MODEL).output_tokens for m in asked.values())
