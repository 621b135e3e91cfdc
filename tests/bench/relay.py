"""CPU that a node spends per delivered token: firehose, and many streams at the pace of a model.

Everything is real and in its own process: Valkey, the scripted upstream, the node (`tidewire serve`), and the client,
which checks every character. The node's CPU time (user + system, of its process alone) is read before and after.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import psutil
from websockets.asyncio.client import ClientConnection, connect

from tests.servers import RedisServer
from tests.upstreams.scripted import process as scripted_process

MESSAGES_PER_SOCKET = 20


@dataclass(frozen=True, slots=True)
class Relay:
    """One measurement. Times in seconds, CPU in microseconds per delivered token."""

    name: str
    streams: int
    tokens: int
    wall_seconds: float
    cpu_seconds: float
    first_token_p50_ms: float
    first_token_p99_ms: float

    @property
    def cpu_us_per_token(self) -> float:
        """CPU of the node per delivered token."""
        return self.cpu_seconds / self.tokens * 1e6

    @property
    def core(self) -> float:
        """Share of one core that the node used."""
        return self.cpu_seconds / self.wall_seconds


@contextlib.asynccontextmanager
async def served(redis_url: str, upstream: str) -> AsyncIterator[tuple[str, psutil.Process]]:
    """`tidewire serve` with one scripted target; yields its WebSocket address and its process."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "tidewire.toml"
        config.write_text(
            f'[server]\nport = 0\n[redis]\nurl = "{redis_url}"\n[auth]\nanonymous = true\n'
            f'[targets.scripted]\ndriver = "openai"\nbase_url = "{upstream}/v1"\nmodel = "scripted"\n'
            '[routes.default]\ntargets = ["scripted"]\n'
        )
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "server", "serve", "--config", str(config), stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        try:
            async with asyncio.timeout(30):
                while "http://" not in (line := (await child.stdout.readline()).decode()):
                    assert line, "the server did not start"
            address = line[line.index("http://") :].split()[0].strip()
            yield address.replace("http://", "ws://") + "/v1/ws", psutil.Process(child.pid)
        finally:
            if child.returncode is None:
                child.terminate()
            await child.wait()


async def _socket(url: str, prefix: str, messages: int, script: str) -> tuple[int, list[float]]:
    """Ask for `messages` at once on one socket; delivered bytes and times to first token. Checks every hash."""
    async with connect(url, subprotocols=["tidewire.v1.json"], max_size=None, compression=None) as socket:  # type: ignore[list-item]
        await socket.send(b'{"type":"hello"}', text=True)
        await socket.recv()
        asked = time.perf_counter()
        for number in range(messages):
            content = f"{script} seed={prefix}{number}"
            frame = {"type": "send", "id": f"{prefix}-{number}", "messages": [{"role": "user", "content": content}]}
            await socket.send(orjson.dumps(frame), text=True)
        return await _collect(socket, messages, asked)


async def _collect(socket: ClientConnection, open_messages: int, asked: float) -> tuple[int, list[float]]:
    texts: dict[str, list[str]] = {}
    first: dict[str, float] = {}
    size = 0
    while open_messages:
        got = orjson.loads(await socket.recv(decode=False))
        for frame in got if isinstance(got, list) else (got,):
            kind = frame["type"]
            if kind == "delta":
                message_id = frame["id"]
                if message_id not in first:
                    first[message_id] = time.perf_counter() - asked
                texts.setdefault(message_id, []).append(frame["text"])
            elif kind == "done":
                data = "".join(texts.pop(frame["id"])).encode()
                assert hashlib.sha256(data).hexdigest() == frame["text_sha256"], "a text is wrong"
                size += len(data)
                open_messages -= 1
            elif kind in ("failed", "cancelled", "error"):
                raise AssertionError(frame)
    return size, list(first.values())


async def relay(name: str, streams: int, tokens: int, rate: int, repeats: int = 1) -> Relay:
    """Measure `repeats` rounds of `streams` at once, each of `tokens` at `rate` per second (0 = firehose)."""
    script = f"script tokens={tokens} rate={rate}"
    sockets = -(-streams // MESSAGES_PER_SOCKET)
    with RedisServer() as redis:
        async with scripted_process() as upstream, served(redis.url, upstream) as (url, node):
            await _socket(url, "warm", MESSAGES_PER_SOCKET, f"script tokens={tokens} rate=0")
            before, started = node.cpu_times(), time.perf_counter()
            firsts: list[float] = []
            for turn in range(repeats):
                done = await asyncio.gather(
                    *(_socket(url, f"{turn}{n:03}", min(MESSAGES_PER_SOCKET, streams), script) for n in range(sockets))
                )
                firsts += [seconds for _, times in done for seconds in times]
            wall, after = time.perf_counter() - started, node.cpu_times()
    firsts.sort()
    cpu = after.user + after.system - before.user - before.system
    count = repeats * sockets * min(MESSAGES_PER_SOCKET, streams)
    return Relay(
        name,
        streams,
        count * tokens,
        wall,
        cpu,
        firsts[len(firsts) // 2] * 1e3,
        firsts[int(len(firsts) * 0.99)] * 1e3,
    )
