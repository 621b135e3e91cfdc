"""`python -m tests.bench.interactive`: what a running batch does to the time to first token of people.

One node, Valkey and a scripted upstream, each a process of its own, and people who ask at a steady rate. A pair is one
run with a batch and one without, in slices of a few seconds by turns: whatever else this machine does meets both. Of
each pair the quotient of the 99th percentiles; the median of five must not be above `MOST`. Exit code 1 if it is, or if
the machine had too much to do to say.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import aiohttp
import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench.load import Histogram, Load, Options
from tests.bench.relay import served
from tests.servers import RedisServer
from tests.upstreams.scripted import process as scripted_process

MOST = 1.2
"""Largest quotient, as a median."""
PAIRS = 5
SECONDS = 12.0
"""Of each run."""
SLICE_SECONDS = 2.0
WARM_SECONDS = 3.0
"""Until the clients are there and have asked for the first time."""
SETTLING_SECONDS = 0.3
"""Between a batch's beginning or end and the next slice."""
CLIENTS = 40
RATE = 40.0
"""Messages of people a second."""
TOKENS, PACE = 30, 50.0
ITEMS = 500
"""Of a batch: more than a slice can do."""
SCRIPTS = {"paced": "script tokens=50 rate=50", "firehose": "script tokens=50 rate=0"}
"""What the items of the batch are answered with: at a model's pace, or as fast as the node can take it."""
LOST_SHARE = 0.01
"""Most messages that may go unanswered: at a 99th percentile it begins to be about them."""


class TooBusy(Exception):
    """The machine had too much to do: nothing can be said."""


@dataclass(slots=True)
class Run:
    """The slices of one kind in a pair."""

    slices: list[tuple[float, float]] = field(default_factory=list)
    """From when to when, on the monotonic clock."""
    seconds: list[float] = field(default_factory=list)
    """Times to first token of what was asked meanwhile."""
    items: int = 0
    """Of batches that ended meanwhile."""

    def has(self, moment: float) -> bool:
        """Whether it lies in one of the slices."""
        return any(first <= moment < last for first, last in self.slices)

    def percentile_ms(self, share: float) -> float:
        """Milliseconds that a `share` (0 … 1) stays below."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)))] * 1e3

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.items / sum(last - first for first, last in self.slices)


class Moments(Histogram):
    """Keeps when each message was asked, too."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[float, float]] = []

    def add(self, seconds: float) -> None:
        """Count one duration that ends now."""
        super().add(seconds)
        self.all.append((time.monotonic() - seconds, seconds))


class Batch:
    """A batch that runs while the block does."""

    def __init__(self, http: aiohttp.ClientSession, script: str, name: str) -> None:
        self._http = http
        self._script = script
        self._name = name

    async def __aenter__(self) -> Batch:
        lines = (
            json.dumps({"messages": [{"role": "user", "content": f"{self._script} seed={self._name}{n}"}]})
            for n in range(ITEMS)
        )
        headers = {"Content-Type": "application/jsonl"}
        async with self._http.post("/v1/jobs", data="\n".join(lines), headers=headers) as answer:
            if answer.status == 503:
                raise TooBusy(await answer.text())
            assert answer.status == 202, await answer.text()
            self._job = (await answer.json())["id"]
        while not await self.done():  # noqa: ASYNC110 - over HTTP
            await asyncio.sleep(0.1)
        return self

    async def done(self) -> int:
        """How many items are."""
        done: int = (await self._look())["items"]["done"]
        return done

    async def _look(self) -> dict[str, Any]:
        while True:
            async with self._http.get(f"/v1/jobs/{self._job}") as answer:
                if answer.status == 200:
                    found: dict[str, Any] = await answer.json()
                    return found
                assert answer.status == 503, await answer.text()  # a machine with too much to do
            await asyncio.sleep(0.1)

    async def __aexit__(self, *_: object) -> None:
        while True:
            async with self._http.post(f"/v1/jobs/{self._job}/cancel") as answer:
                if answer.status == 200:  # it has ended
                    return
            await asyncio.sleep(0.1)


async def slices(http: aiohttp.ClientSession, script: str, name: str, seconds: float) -> tuple[Run, Run]:
    """By turns without a batch and with one, `seconds` of each in all; which goes first changes, too."""
    alone, beside = Run(), Run()
    count = max(1, round(seconds / SLICE_SECONDS))
    for number, first in zip(range(count), cycle((alone, beside)), strict=False):
        for one in (first, beside if first is alone else alone):
            if one is alone:
                await one_slice(alone)
                continue
            async with Batch(http, script, f"{name}-{number}-") as batch:
                before = await batch.done()
                await one_slice(beside)
                beside.items += await batch.done() - before
    return alone, beside


async def one_slice(run: Run) -> None:
    """Let time pass, and count it for this run."""
    await asyncio.sleep(SETTLING_SECONDS)
    began = time.monotonic()
    await asyncio.sleep(SLICE_SECONDS)
    run.slices.append((began, time.monotonic()))


async def pair(url: str, script: str, name: str, seconds: float, rate: float) -> tuple[Run, Run]:
    """Two runs under one load of people. Every answer is checked."""
    seed = os.urandom(4).hex()  # or they would be repeats of what was answered before
    load = Load(Options(url, CLIENTS, rate, 100 * seconds, TOKENS, PACE, ramp_seconds=1.0, seed=seed))
    load.report.first_token = moments = Moments()
    base = url.replace("ws://", "http://").removesuffix("/v1/ws")
    async with aiohttp.ClientSession(base) as http, asyncio.TaskGroup() as group:
        asking = group.create_task(load.run())
        await asyncio.sleep(WARM_SECONDS)
        alone, beside = await slices(http, script, name, seconds)
        load.asking = False
    report = asking.result()
    assert report.ok, report.as_dict()
    if report.asked - report.right > LOST_SHARE * report.asked:
        raise TooBusy(f"{report.asked - report.right} of {report.asked} messages were refused: {report.as_dict()}")
    for asked, took in moments.all:
        for run in (alone, beside):
            if run.has(asked):
                run.seconds.append(took)
    return alone, beside


async def pairs(script: str, count: int, seconds: float, rate: float) -> list[tuple[Run, Run]]:
    """`count` pairs: without a batch, with one."""
    with RedisServer() as redis:
        async with scripted_process() as upstream, served(redis.url, upstream) as (url, _):
            await pair(url, script, "warm", SLICE_SECONDS, rate)
            return [await pair(url, script, f"p{number}", seconds, rate) for number in range(count)]


def measure(
    names: Sequence[str] = tuple(SCRIPTS), count: int = PAIRS, seconds: float = SECONDS, rate: float = RATE
) -> tuple[Table, bool]:
    """The table, and whether the promise held for all. Raises `TooBusy`."""
    table = Table("batch", "p50 ms without / with", "p99 ms without / with", "p99 quotient", "items a second")
    held = True
    for name in names:
        found = uvloop.run(pairs(SCRIPTS[name], count, seconds, rate))
        quotients = [beside.percentile_ms(0.99) / alone.percentile_ms(0.99) for alone, beside in found]
        for (alone, beside), quotient in zip(found, quotients, strict=True):
            table.add_row(
                name,
                f"{alone.percentile_ms(0.5):.1f} / {beside.percentile_ms(0.5):.1f}",
                f"{alone.percentile_ms(0.99):.1f} / {beside.percentile_ms(0.99):.1f}",
                f"{quotient:.2f}",
                f"{beside.rate:.1f}",
            )
        median = statistics.median(quotients)
        table.add_row(f"{name}: median", "", "", f"{median:.2f} (at most {MOST})", "")
        held = held and median <= MOST
    return table, held


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(SCRIPTS), help="which of: " + ", ".join(SCRIPTS))
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each run")
    parser.add_argument("--rate", type=float, default=RATE, help="messages of people a second")
    wish = parser.parse_args()
    table, held = measure(wish.names, wish.pairs, wish.seconds, wish.rate)
    Console().print(table)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
