"""The ledger when nodes are killed: every attempt one row, sums as the upstream's own log has them."""

from __future__ import annotations

import signal

from tests.chaos.audit import audit_ledger
from tests.chaos.rig import MODEL, ask, read_until, rig
from tests.upstreams.script import reply_to
from tests.wire import wire


async def test_after_kills_every_attempt_has_one_row_and_the_sums_are_the_upstream_s(
    valkey_url: str, ledger_url: str
) -> None:
    asked = {f"done{n}": ask(f"tokens={20 + n} seed={n}", f"done{n}") for n in range(6)}
    asked["cut"] = ask("tokens=400 rate=80", "cut")
    async with rig(valkey_url, 3, ledger={"url": ledger_url}) as r:
        async with wire(r.nodes[0].url) as client:
            for message_id, messages in asked.items():
                await client.ask(message_id, messages)
            for message_id in asked.keys() - {"cut"}:
                await client.ended(message_id)
            await read_until(client, "cut", 200)
            r.nodes[0].signal(signal.SIGKILL)
        await r.called(asked["cut"], 2)
        await r.hurry()
        await r.settled("cut", 30.0)
        await r.nodes[0].kill()
        rows, stored = await r.all_booked(), await r.stored()
        for message_id, messages in asked.items():
            assert audit_ledger(messages, stored[message_id], rows[message_id], r.log, MODEL) == []
        assert sum(len(some) for some in rows.values()) == len(asked) + 1
        lost, whole = sorted(rows["cut"], key=lambda row: str(row["attempt"]))
        assert (lost["outcome"], lost["source"], lost["payer"]) == ("owner_lost", "estimated", "operator")
        assert (whole["outcome"], whole["source"], whole["payer"]) == ("done", "provider", "user")
        charged = [row["output_tokens"] for some in rows.values() for row in some if row["payer"] == "user"]
        assert sum(map(int, map(str, charged))) == sum(reply_to(m, MODEL).output_tokens for m in asked.values())
