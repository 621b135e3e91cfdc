"""`python -m tests.bench.interactive`: what a running batch does to the time to first token of people.

One node, Valkey and a scripted upstream, each a process of its own. Pairs of runs with the same load of people, one
with a batch running and one without, in turns first and second; of each pair the quotient of the 99th percentiles. The
median of five must stay below `MOST`. Exit code 1 if it does not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass

import aiohttp
import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench.load import Load, Options
from tests.bench.relay import served
from tests.servers import RedisServer
from tests.upstreams.scripted import process as scripted_process

MOST = 1.2
"""Largest quotient, as a median."""
PAIRS = 5
SECONDS = 15.0
CLIENTS = 40
RATE = 40.0
"""Messages of people a second."""
TOKENS, PACE = 30, 50.0
ITEMS = 10_000
SCRIPTS = {"paced": "script tokens=50 rate=50", "firehose": "script tokens=50 rate=0"}
"""What the items of the batch are answered with: at a model's pace, or as fast as the node can take it."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run. Milliseconds."""

    p50: float
    p99: float
    answers: int
    items: float
    """Items of the batch that ended meanwhile, a second."""


class Batch:
    """A batch that runs while the block does."""

    def __init__(self, base: str, script: str, name: str) -> None:
        self._base = base
        self._script = script
        self._name = name
        self._http = aiohttp.ClientSession()
        self.rate = 0.0

    async def __aenter__(self) -> Batch:
        lines = (
            json.dumps({"messages": [{"role": "user", "content": f"{self._script} seed={self._name}{n}"}]})
            for n in range(ITEMS)
        )
        headers = {"Content-Type": "application/jsonl"}
        async with self._http.post(f"{self._base}/v1/jobs", data="\n".join(lines), headers=headers) as answer:
            assert answer.status == 202, await answer.text()
            self._job = (await answer.json())["id"]
        await asyncio.sleep(1)  # it has begun
        self._before, self._began = await self._done(), time.monotonic()
        return self

    async def _done(self) -> int:
        async with self._http.get(f"{self._base}/v1/jobs/{self._job}") as answer:
            done: int = (await answer.json())["items"]["done"]
            return done

    async def __aexit__(self, *_: object) -> None:
        self.rate = (await self._done() - self._before) / (time.monotonic() - self._began)
        async with self._http.post(f"{self._base}/v1/jobs/{self._job}/cancel") as answer:
            assert answer.status in (200, 202)
        while True:
            async with self._http.get(f"{self._base}/v1/jobs/{self._job}") as answer:
                if (await answer.json())["status"] == "cancelled":
                    break
            await asyncio.sleep(0.1)
        await self._http.close()


async def people(url: str, seconds: float) -> tuple[float, float, int]:
    """Load of people; p50, p99 in milliseconds, and how many answers. Every answer is checked."""
    seed = os.urandom(4).hex()  # or they would be repeats of what was answered before
    load = Load(Options(url, CLIENTS, RATE, seconds, TOKENS, PACE, ramp_seconds=1.0, seed=seed))
    report = await load.run(lambda _: None)
    assert report.ok, report.as_dict()
    assert report.right == report.asked, report.as_dict()
    first = report.first_token
    return first.percentile(0.5) * 1e3, first.percentile(0.99) * 1e3, first.count


async def run(url: str, script: str | None, name: str, seconds: float) -> Run:
    """One run, with a batch of such items or without one."""
    if script is None:
        return Run(*await people(url, seconds), 0)
    batch = Batch(url.replace("ws://", "http://").removesuffix("/v1/ws"), script, name)
    async with batch:
        found = await people(url, seconds)
    return Run(*found, batch.rate)


async def pairs(script: str, count: int, seconds: float) -> list[tuple[Run, Run]]:
    """`count` pairs: without a batch, with one."""
    found = []
    with RedisServer() as redis:
        async with scripted_process() as upstream, served(redis.url, upstream) as (url, _):
            await people(url, 3.0)
            for number in range(count):
                order = [None, script] if number % 2 == 0 else [script, None]
                runs = {one: await run(url, one, f"p{number}", seconds) for one in order}
                found.append((runs[None], runs[script]))
    return found


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(SCRIPTS), help="which of: " + ", ".join(SCRIPTS))
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    wish = parser.parse_args()
    table = Table("batch", "p50 ms without / with", "p99 ms without / with", "p99 quotient", "items a second")
    held = True
    for name in wish.names:
        found = uvloop.run(pairs(SCRIPTS[name], wish.pairs, wish.seconds))
        for alone, beside in found:
            table.add_row(
                name,
                f"{alone.p50:.1f} / {beside.p50:.1f}",
                f"{alone.p99:.1f} / {beside.p99:.1f}",
                f"{beside.p99 / alone.p99:.2f}",
                f"{beside.items:.1f}",
            )
        median = statistics.median(beside.p99 / alone.p99 for alone, beside in found)
        table.add_row(f"{name}: median", "", "", f"{median:.2f} (at most {MOST})", "")
        held = held and median <= MOST
    Console().print(table)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
