"""Jobs over nodes that die, leave, or lose their store: one result and one bill an item, by the upstream's log."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

import aiohttp
import pytest

from server.jobs.worker import LEASE_SECONDS
from tests.chaos.audit import LOST, Verdict, audit_ledger
from tests.chaos.cluster import cluster
from tests.chaos.rig import MODEL, Rig, ask, rig
from tests.servers import RedisServer
from tests.upstreams.script import expected_text, reply_to

JOBS = "/v1/jobs"
PACE = "tokens=12 rate=40"
SLOWER = "tokens=12 rate=12"
LEAST_KILLS = 3
KILLS_APART = 1.5
"""Seconds from a node's return to the next kill: it has taken items by then."""


def asked(number: int, script: str = PACE) -> list[dict[str, Any]]:
    return ask(script, f"item {number}")


class Client:
    """Asks whichever node answers."""

    def __init__(self, r: Rig, http: aiohttp.ClientSession) -> None:
        self.r = r
        self.http = http

    async def get(self, path: str) -> bytes:
        while True:
            for node in self.r.nodes:
                try:
                    async with self.http.get(node.http + path) as answer:
                        if answer.status == 200:
                            return await answer.read()
                except (aiohttp.ClientError, TimeoutError):
                    continue
            await asyncio.sleep(0.1)

    async def job(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self.get(f"{JOBS}/{job}"))
        return found

    async def ended(self, job: str, seconds: float) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            while True:
                found = await self.job(job)
                if found["status"] not in ("queued", "running"):
                    return found
                await asyncio.sleep(0.2)

    async def until_done(self, job: str, count: int, seconds: float = 30.0) -> None:
        async with asyncio.timeout(seconds):
            while True:
                if (await self.job(job))["items"]["done"] >= count:
                    return
                await asyncio.sleep(0.05)

    async def submit(self, count: int, node: int = 0, script: str = PACE) -> str:
        lines = (json.dumps({"custom_id": f"c{n}", "messages": asked(n, script)}) for n in range(count))
        headers = {"Content-Type": "application/jsonl", "Idempotency-Key": "the batch"}
        async with self.http.post(self.r.nodes[node].http + JOBS, data="\n".join(lines), headers=headers) as answer:
            assert answer.status == 202, await answer.text()
            return str((await answer.json())["id"])


async def check(r: Rig, client: Client, job: str, count: int, script: str = PACE) -> dict[str, Any]:
    """Every item has one right result and one bill.

    By the upstream's log: no call that no record tells of, one that is paid an item, and the ledger's sums are its own.
    """
    found = await client.job(job)
    assert found["items"] == {"total": count, "done": count, "failed": 0, "cancelled": 0, "pending": 0}
    lines = [json.loads(line) for line in (await client.get(f"{JOBS}/{job}/results")).splitlines()]
    assert [(line["index"], line["custom_id"]) for line in lines] == [(n, f"c{n}") for n in range(count)]
    for number, line in enumerate(lines):
        text = line["response"]["body"]["choices"][0]["message"]["content"]
        assert text == expected_text(asked(number, script), MODEL), number
    stored, rows = await r.stored(), await r.all_booked()
    paid: Counter[str] = Counter()
    for number in range(count):
        message = stored[f"{job}-{number}"]
        assert r.verdict(asked(number, script), message) == Verdict(), number
        assert audit_ledger(asked(number, script), message, rows[message.id], r.log, MODEL) == []
        paid[message.id] = sum(record["payer"] == "user" for record in message.records)
    assert set(paid.values()) == {1}
    told = sum(line["response"]["body"]["usage"]["completion_tokens"] for line in lines)
    of_job = [row for some in rows.values() for row in some if row["job_id"] == job]
    charged = sum(row["output_tokens"] for row in of_job if row["payer"] == "user")
    upstream = sum(reply_to(asked(number, script), MODEL).output_tokens for number in range(count))
    assert (found["usage"]["output_tokens"], charged) == (told, told) == (upstream, upstream)
    return found


async def killed_again_and_again(r: Rig, client: Client, job: str, until: int, seed: int) -> int:
    """Kill one node, start it again, kill another, at least until so many items are done; how many kills it took."""
    chance, kills = random.Random(seed), 0
    while kills < LEAST_KILLS or (await client.job(job))["items"]["done"] < until:
        node = chance.choice(r.nodes)
        await node.kill()
        kills += 1
        await node.start()
        await asyncio.sleep(KILLS_APART)
    return kills


async def outlived(redis_url: str, count: int, concurrency: int, script: str, until: int, seed: int) -> tuple[int, int]:
    """Run a batch while nodes are killed, and check it: the number of kills, and of attempts lost with their nodes."""
    async with rig(redis_url, 3, jobs={"concurrency": concurrency}) as r, aiohttp.ClientSession() as http:
        client = Client(r, http)
        job = await client.submit(count, script=script)
        await client.until_done(job, 20)
        kills = await killed_again_and_again(r, client, job, until, seed)
        await client.ended(job, 100)
        await check(r, client, job, count, script)
        lost = sum(record["outcome"] == LOST for one in (await r.stored()).values() for record in one.records)
        print(f"{count} items, {kills} kills, {lost} attempts lost with their nodes")
        return kills, lost


async def test_a_batch_outlives_kill_after_kill(valkey_url: str) -> None:
    kills, lost = await outlived(valkey_url, 120, 4, SLOWER, until=60, seed=3)
    assert kills >= LEAST_KILLS
    assert lost >= kills


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_thousand_items_outlive_kill_after_kill(valkey_url: str) -> None:
    kills, lost = await outlived(valkey_url, 1_000, 8, SLOWER, until=950, seed=11)
    assert kills >= 5
    assert lost >= kills


async def test_a_node_that_leaves_hands_its_items_over_at_once(valkey_url: str) -> None:
    count, script = 9, "tokens=40 rate=30"
    async with rig(valkey_url, 2, jobs={"concurrency": 3}) as r, aiohttp.ClientSession() as http:
        client = Client(r, http)
        job = await client.submit(count, script=script)
        await client.until_done(job, 2)
        stopping = asyncio.get_running_loop().time()
        assert await r.nodes[0].stop() == 0
        print(f"drained in {asyncio.get_running_loop().time() - stopping:.1f} s")
        found = await client.ended(job, 40)
        assert found["status"] == "done"
        stored = await r.stored()
        assert all(len(stored[f"{job}-{n}"].records) == 1 for n in range(count)), "nothing was generated twice"
        await check(r, client, job, count, script)


@pytest.mark.slow
async def test_a_frozen_store_doubles_nothing() -> None:
    count, script = 40, "tokens=30 rate=20"
    with RedisServer() as redis:
        async with rig(redis.url, 2, jobs={"concurrency": 4}) as r, aiohttp.ClientSession() as http:
            client = Client(r, http)
            job = await client.submit(count, script=script)
            await client.until_done(job, 4)
            redis.freeze()
            await asyncio.sleep(LEASE_SECONDS + 2)  # the leases end while nobody can renew them
            redis.thaw()
            await client.ended(job, 60)
            stored = await r.stored()
            assert all(len(stored[f"{job}-{n}"].records) == 1 for n in range(count)), "nothing was generated twice"
            await check(r, client, job, count, script)


async def test_jobs_on_a_cluster() -> None:
    with cluster() as group:
        async with rig(group.url, 2, group.urls(), jobs={"concurrency": 4}) as r, aiohttp.ClientSession() as http:
            client = Client(r, http)
            job = await client.submit(20, script="tokens=5")
            await client.ended(job, 40)
            await check(r, client, job, 20, "tokens=5")
