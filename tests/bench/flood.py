"""`python -m tests.bench.flood`: what one client that does its worst does to the time to first token of another.

One node, Valkey and a scripted upstream, each a process of its own; the flood is a process, too, of lower priority: its
own work is not what is measured. Pairs of runs, with and without the flood, in turns first and second; of each pair the
quotient of the 99th percentiles. The median must stay below `MOST`. Exit code 1 if it does not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson
import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench.lean_socket import LeanSocket
from tests.processes import ServeProcess, serve_config, serving_processes
from tests.servers import RedisServer
from tests.upstreams.scripted import process as scripted_process

MOST: Final = 1.5
"""Largest quotient, as a median."""
PAIRS: Final = 5
SECONDS: Final = 10.0
RATE: Final = 30.0
"""Messages of the quiet user a second."""
QUIET, LOUD = "tw_quiet", "tw_loud"
JSON: Final = "tidewire.v1.json"
SOCKETS: Final = 1_000
BIG: Final = b"[" + b" " * 10_000_000 + b"]"
PINGS: Final = orjson.dumps([{"type": "ping"}] * 500)
READY: Final = "flooding"


async def greeted(url: str, token: str, on_message: Callable[[bytes], None]) -> LeanSocket:
    """A socket that has said hello."""
    socket = await LeanSocket.open(url, JSON, on_message)
    socket.send(orjson.dumps({"type": "hello", "token": token}))
    return socket


# --- the quiet user -----------------------------------------------------------------------------------------------


async def quiet(url: str, name: str, seconds: float) -> list[float]:
    """The times to first token, in seconds, sorted; each message must be answered whole."""
    asked: dict[str, float] = {}
    firsts: list[float] = []
    ended = asyncio.Event()
    open_messages: set[str] = set()
    sent: dict[str, dict[str, Any]] = {}

    def on_message(data: bytes) -> None:
        found = orjson.loads(data)
        for frame in found if isinstance(found, list) else (found,):
            if frame["type"] == "delta" and frame["id"] in asked:
                firsts.append(time.perf_counter() - asked.pop(frame["id"]))
            elif frame["type"] == "error" and frame["error"]["code"] == "store_unavailable":
                socket.send(orjson.dumps(sent[frame["id"]]))  # the machine is too busy; its time goes on
            elif frame["type"] in ("done", "failed", "cancelled", "error"):
                assert frame["type"] == "done", frame
                open_messages.discard(frame["id"])
                if not open_messages:
                    ended.set()

    socket = await greeted(url, QUIET, on_message)
    count = round(seconds * RATE)
    began = time.perf_counter()
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / RATE - time.perf_counter()))
        message_id = f"{name}-{number}"
        content = f"script tokens=10 seed={message_id}"
        frame = {"type": "send", "id": message_id, "messages": [{"role": "user", "content": content}]}
        sent[message_id] = frame
        open_messages.add(message_id)
        ended.clear()
        asked[message_id] = time.perf_counter()
        socket.send(orjson.dumps(frame))
    async with asyncio.timeout(30):
        await ended.wait()
    socket.close()
    assert len(firsts) == count
    return sorted(firsts)


# --- the loud one -------------------------------------------------------------------------------------------------


async def _written(socket: LeanSocket) -> None:
    """Until the node has taken most of what was sent, as a client in a loop would."""
    while socket.transport.get_write_buffer_size() > 1 << 20:
        if socket.closed.done():
            return
        await asyncio.sleep(0.001)


async def _again_and_again(url: str, payload: bytes) -> None:
    """Send the same for ever, over a new connection when the node closes the last."""
    while True:
        with contextlib.suppress(OSError):
            socket = await greeted(url, LOUD, lambda data: None)
            while not socket.closed.done():
                socket.send(payload)
                await _written(socket)
                await asyncio.sleep(0)


async def frames(url: str) -> None:
    """Arrays of pings over four sockets."""
    await asyncio.gather(*(_again_and_again(url, PINGS) for _ in range(4)))


async def garbage(url: str) -> None:
    """What is no frame at all."""
    await asyncio.gather(*(_again_and_again(url, b"{") for _ in range(4)))


async def big(url: str) -> None:
    """Messages of 10 MB."""
    await asyncio.gather(*(_again_and_again(url, BIG) for _ in range(4)))


async def sends(url: str) -> None:
    """Messages that the quota refuses."""
    numbers = iter(range(10**9))

    async def one() -> None:
        socket = await greeted(url, LOUD, lambda data: None)
        while True:
            asked = [
                {
                    "type": "send",
                    "id": f"l{os.getpid()}-{next(numbers)}",
                    "messages": [{"role": "user", "content": "x"}],
                }
                for _ in range(100)
            ]
            socket.send(orjson.dumps(asked))
            await _written(socket)
            await asyncio.sleep(0)

    await asyncio.gather(*(one() for _ in range(4)))


async def sockets(url: str) -> None:
    """A thousand connections, opened as fast as they come, closed, and opened again."""
    while True:
        opened = []
        for _ in range(SOCKETS):
            with contextlib.suppress(OSError):
                opened.append(await greeted(url, LOUD, lambda data: None))
        for socket in opened:
            socket.abort()


FLOODS: Final[dict[str, Callable[[str], Awaitable[None]]]] = {
    flood.__name__: flood for flood in (frames, garbage, big, sends, sockets)
}


@contextlib.asynccontextmanager
async def flooding(url: str, kind: str) -> AsyncIterator[None]:
    """The flood, as a process of low priority, while the block runs."""
    words = ["-m", "tests.bench.flood", "--flood", kind, "--url", url]
    child = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdout=asyncio.subprocess.PIPE, preexec_fn=lambda: os.nice(10)
    )
    try:
        assert child.stdout is not None
        assert READY in (await child.stdout.readline()).decode()
        await asyncio.sleep(0.5)
        assert child.returncode is None
        yield
        assert child.returncode is None, "the flood dried up"
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def _flood(kind: str, url: str) -> None:
    print(READY, flush=True)
    await FLOODS[kind](url)


# --- the pairs ----------------------------------------------------------------------------------------------------


def _config(redis_url: str, upstream: str) -> dict[str, Any]:
    keys = [
        {"name": token.removeprefix("tw_"), "sha256": hashlib.sha256(token.encode()).hexdigest(), "tier": tier}
        for token, tier in ((QUIET, "default"), (LOUD, "loud"))
    ]
    config = serve_config(
        redis_url, upstream, tiers={"default": {"concurrent_messages": 1000}, "loud": {"requests_per_minute": 1}}
    )
    config["auth"] = {"anonymous": False}
    config["auth"]["api_keys"] = keys
    return config


@dataclass(frozen=True, slots=True)
class Run:
    """One run: times to first token, sorted, in seconds; the node's share of a core."""

    firsts: list[float]
    core: float

    def percentile(self, share: float) -> float:
        """Milliseconds."""
        return self.firsts[min(len(self.firsts) - 1, int(len(self.firsts) * share))] * 1e3


async def run(node: ServeProcess, kind: str | None, name: str, seconds: float) -> Run:
    """One run, with a flood or without one."""
    process = psutil.Process(node.pid)

    def cpu() -> float:
        parts = [process, *process.children(recursive=True)]
        return sum(sum(part.cpu_times()[:2]) for part in parts)

    async with flooding(node.url, kind) if kind else contextlib.nullcontext():
        before, began = cpu(), time.perf_counter()
        firsts = await quiet(node.url, name, seconds)
        return Run(firsts, (cpu() - before) / (time.perf_counter() - began))


async def pairs(kind: str, count: int, seconds: float) -> list[tuple[Run, Run]]:
    """`count` pairs of runs: without the flood, with it."""
    found = []
    with RedisServer() as redis:
        async with scripted_process() as upstream, serving_processes(_config(redis.url, upstream), 1) as (node,):
            await quiet(node.url, "warm", 2.0)
            for number in range(count):
                order = [None, kind] if number % 2 == 0 else [kind, None]
                runs = {one: await run(node, one, f"{kind}-{number}-{one}", seconds) for one in order}
                found.append((runs[None], runs[kind]))
    return found


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(FLOODS), help="which of: " + ", ".join(FLOODS))
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--flood", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    wish = parser.parse_args()
    if wish.flood:
        uvloop.run(_flood(wish.flood, wish.url))
    table = Table("flood", "p50 ms without / with", "p99 ms without / with", "p99 quotient", "the node's cores")
    held = True
    for name in wish.names:
        found = uvloop.run(pairs(name, wish.pairs, wish.seconds))
        quotients = [loud.percentile(0.99) / alone.percentile(0.99) for alone, loud in found]
        for (alone, loud), quotient in zip(found, quotients, strict=True):
            both = [f"{alone.percentile(share):.1f} / {loud.percentile(share):.1f}" for share in (0.5, 0.99)]
            table.add_row(name, *both, f"{quotient:.2f}", f"{alone.core:.2f} / {loud.core:.2f}")
        median = statistics.median(quotients)
        table.add_row(f"{name}: median", "", "", f"{median:.2f} (at most {MOST})", "")
        held = held and median <= MOST
    Console().print(table)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
