"""`python -m tests.bench.breaker`: a target dies under load on several nodes, and comes back.

Real nodes, each a process, over one real store; two scripted upstreams, each a process, whose logs say how often each
was asked. Measured, once with a fallback behind the target and once without: how long all nodes went on asking the
dead target, how many calls it got and how many of them were probes, how many requests saw an error, and how long it
took until it was in use again.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from rich.console import Console
from rich.table import Table

from tests.processes import serve_config, serving_processes
from tests.servers import VALKEY, RedisServer
from tests.upstreams.scripted import process as scripted
from tests.wire import JSON, Wire, wire

PER_SECOND = 25.0
"""Requests per second and node."""
SOUND_SECONDS, DEAD_SECONDS, BACK_SECONDS = 3.0, 15.0, 12.0
BREAKER = {
    "window_seconds": 10.0,
    "minimum_calls": 10,
    "open_seconds": 2.0,
    "open_seconds_max": 8.0,
    "probes": 1,
    "ramp_seconds": 3.0,
}


@dataclass
class Result:
    """One run."""

    name: str
    ended: list[tuple[float, str]] = field(default_factory=list)
    """When each request ended, and how: the target that answered, or the code of its error."""
    asked: list[tuple[float, str]] = field(default_factory=list)
    """When each call reached an upstream, and which."""
    died: float = 0.0
    healed: float = 0.0

    def between(self, start: float, end: float) -> Counter[str]:
        """How the requests of a stretch of time ended."""
        return Counter(how for at, how in self.ended if start <= at < end)

    @property
    def calls_while_dead(self) -> list[float]:
        """Seconds since its death of every call that the dead target got."""
        return [at - self.died for at, target in self.asked if target == "frail" and self.died <= at < self.healed]

    @property
    def open_seconds(self) -> float:
        """From the death until the last ordinary call: those after it come one at a time, a pause apart."""
        calls = self.calls_while_dead
        ordinary = [at for at, later in itertools.pairwise([*calls, float("inf")]) if later - at > 0.5]
        return ordinary[0] if ordinary else 0.0

    @property
    def probes(self) -> int:
        """Calls after that."""
        return sum(at > self.open_seconds for at in self.calls_while_dead)

    @property
    def back_seconds(self) -> float | None:
        """From the healing until nine of ten requests of a second were answered by it again."""
        for tenth in range(int(BACK_SECONDS * 10) - 10):
            start = self.healed + tenth / 10
            counts = self.between(start, start + 1.0)
            if counts["frail"] >= 0.9 * counts.total() > 0:
                return tenth / 10
        return None


async def ask_steadily(socket: Wire, node: int, result: Result, until: float) -> None:
    """Send at a fixed rate, whatever comes back; note how each request ends."""
    loop = asyncio.get_running_loop()

    async def send() -> None:
        start = loop.time()
        for number in itertools.count():
            if time.time() >= until:
                return
            await asyncio.sleep(max(0.0, start + number / PER_SECOND - loop.time()))
            message_id = f"{node}-{number}"
            await socket.ask(message_id, f"script tokens=20 seed={message_id}")

    async with asyncio.TaskGroup() as group:
        sending = group.create_task(send())
        while not (sending.done() and time.time() > until + 1.0):
            try:
                async with asyncio.timeout(0.5):
                    frame = await socket.recv()
            except TimeoutError:
                continue
            if frame["type"] == "done":
                result.ended.append((time.time(), frame["target"]))
            elif frame["type"] in ("failed", "error"):
                result.ended.append((time.time(), frame["error"]["code"]))


async def fault(http: aiohttp.ClientSession, upstream: str, faults: str | None) -> float:
    """Let an upstream die, or heal it; when."""
    url = f"{upstream}/admin/faults"
    request = http.delete(url) if faults is None else http.put(url, data=orjson.dumps({"faults": faults}))
    async with request as answer:
        assert answer.status == 200
    return time.time()


@asynccontextmanager
async def upstreams(folder: Path) -> AsyncIterator[tuple[str, str]]:
    """The one that dies and the one that does not."""
    async with scripted(folder / "frail") as frail, scripted(folder / "sound") as sound:
        yield frail, sound


async def run(name: str, redis_url: str, nodes: int, targets: Sequence[str], faults: str) -> Result:
    """One run with these targets behind the route."""
    result = Result(name)
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        async with AsyncExitStack() as stack:
            frail, sound = await stack.enter_async_context(upstreams(folder))
            config: dict[str, Any] = serve_config(redis_url, frail, breaker=BREAKER)
            config["targets"] = {
                name: {"driver": "openai", "base_url": f"{url}/v1", "model": name, "first_token_seconds": 2.0}
                for name, url in (("frail", frail), ("sound", sound))
            }
            config["routes"] = {"default": {"targets": list(targets)}}
            served = await stack.enter_async_context(serving_processes(config, nodes))
            sockets = [await stack.enter_async_context(wire(node.url, JSON)) for node in served]
            http = await stack.enter_async_context(aiohttp.ClientSession())
            until = time.time() + SOUND_SECONDS + DEAD_SECONDS + BACK_SECONDS
            async with asyncio.TaskGroup() as group:
                for number, socket in enumerate(sockets):
                    group.create_task(ask_steadily(socket, number, result, until))
                await asyncio.sleep(SOUND_SECONDS)
                result.died = await fault(http, frail, faults)
                await asyncio.sleep(DEAD_SECONDS)
                result.healed = await fault(http, frail, None)
        for target in ("frail", "sound"):
            for line in (folder / target).read_bytes().splitlines():
                entry = orjson.loads(line)
                if entry["event"] == "start":
                    result.asked.append((entry["t"], target))
    result.asked.sort()
    return result


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=4)
    wish = parser.parse_args()
    table = Table(
        "run", "requests while dead", "saw an error", "time to open", "calls at the dead target", "probes", "back"
    )
    failed = False
    for name, targets, faults in (
        ("errors, with a fallback", ("frail", "sound"), "status=500"),
        ("errors, alone", ("frail",), "status=500"),
        ("silence, with a fallback", ("frail", "sound"), "hang=headers"),
    ):
        with RedisServer(VALKEY) as server:
            result = asyncio.run(run(name, server.url, wish.nodes, targets, faults))
        dead = result.between(result.died, result.healed)
        errors = {code: count for code, count in dead.items() if code not in ("frail", "sound")}
        back = result.back_seconds
        failed = failed or (len(targets) > 1 and bool(errors)) or back is None
        shown = ", ".join(f"{count} {code}" for code, count in sorted(errors.items())) or "0"
        table.add_row(
            name,
            str(dead.total()),
            shown,
            f"{result.open_seconds:.2f} s",
            str(len(result.calls_while_dead)),
            str(result.probes),
            "never" if back is None else f"{back:.1f} s",
        )
    Console(width=160).print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
