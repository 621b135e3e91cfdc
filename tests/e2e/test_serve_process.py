"""`tidewire serve --config` as a process: it drains on SIGTERM, keeps what it had, and shares its port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.integration.test_main_job import whole
from tests.servers import free_port
from tests.upstreams.scripted import ScriptedUpstream, serving
from tests.wire import MSGPACK, eventually, eventually_true, wire

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0
STOP_SECONDS = 20.0


@dataclass(slots=True)
class Served:
    """A server process."""

    process: asyncio.subprocess.Process
    http: str

    @property
    def url(self) -> str:
        return self.http.replace("http://", "ws://") + "/v1/ws"

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def exit_code(self) -> int:
        async with asyncio.timeout(STOP_SECONDS):
            return await self.process.wait()


def config(folder: Path, redis_url: str, upstream: str, server: str = "") -> Path:
    """A configuration with one scripted target; the embedded Redis keeps its data in `folder`."""
    path = folder / "tidewire.toml"
    path.write_text(
        f"[server]\nport = 0\ndrain_seconds = 10\n{server}\n"
        f'[redis]\nurl = "{redis_url}"\ndata_dir = "{folder}/redis"\nstall_ms = 2000\n'
        f'[auth]\nanonymous = true\n[ledger]\nurl = "sqlite:///{folder}/ledger.db"\n'
        f'[targets.scripted]\ndriver = "openai"\nbase_url = "{upstream}/v1"\nmodel = "scripted"\n'
        '[routes.default]\ntargets = ["scripted"]\n'
    )
    return path


async def start(path: Path, *more: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "server", "serve", "--config", str(path), *more,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TIDEWIRE_LOG_LEVEL": "error"},
    )  # fmt: skip


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[Served]:
    """Serve with a configuration; killed at the end if it still runs, with all its children."""
    process = await start(path)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            line = (await process.stdout.readline()).decode()
        assert "http://" in line, (line, await process.stderr.read() if process.stderr else b"")
        yield Served(process, line[line.index("http://") :].split()[0].rstrip("/").replace("localhost", "127.0.0.1"))
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in (*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)):
                one.kill()
        await process.communicate()


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    async with serving() as found:
        yield found


async def test_sigterm_drains_and_exits_with_zero(valkey_url: str, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with served(config(tmp_path, valkey_url, upstream.url)) as server, wire(server.url) as client:
        messages = await client.ask("m1", "script tokens=60 gap=0.6 unicode=1")
        await client.type("delta")
        server.terminate()
        goaway = await client.type("goaway")
        assert 0 <= goaway["reconnect_after_ms"] <= 10_000
        whole(await client.ended("m1"), messages)
        assert await client.closed() == 1012
        assert await server.exit_code() == 0
        assert upstream.count("start") == 1


async def test_a_second_signal_or_an_idle_server_does_not_wait(
    valkey_url: str, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with served(config(tmp_path, valkey_url, upstream.url)) as server, wire(server.url):
        server.terminate()
        server.terminate()
        assert await server.exit_code() == 0


async def test_what_was_finished_survives_a_restart_on_the_same_data(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    path = config(tmp_path, "embedded", upstream.url)
    async with served(path) as server, wire(server.url) as client:
        messages = await client.ask("m1", "script tokens=80 unicode=1 reasoning=4")
        first = await client.ended("m1")
        whole(first, messages)
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.terminate()
        assert await server.exit_code() == 0
        await eventually(lambda: not [child for child in family if child.is_running()])  # nothing outlives its owner
    async with served(path) as server, wire(server.url, MSGPACK) as client:
        await client.send({"type": "resume", "id": "m1"})
        again = await client.ended("m1")
        whole(again, messages)
        assert again.end == first.end
        client.views.clear()
        await client.ask("m1", messages)
        whole(await client.ended("m1"), messages)
        assert upstream.count("start") == 1
        server.terminate()
        assert await server.exit_code() == 0


async def test_two_workers_share_a_port_and_every_message(
    valkey_url: str, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with served(config(tmp_path, valkey_url, upstream.url, "workers = 2")) as server, AsyncExitStack() as stack:

        async def both_serve() -> bool:
            pids = {child.pid for child in psutil.Process(server.process.pid).children(recursive=True)}
            listening = {c.pid for pid in pids for c in _listeners(pid)}
            async with aiohttp.ClientSession() as http, http.get(f"{server.http}/readyz") as answer:
                return answer.status == 200 and len(listening) >= 2

        await eventually_true(both_serve, START_SECONDS)
        clients = [await stack.enter_async_context(wire(server.url)) for _ in range(10)]
        async with aiohttp.ClientSession() as http:  # whichever of them is asked
            for _ in range(6):
                headers = {"connection": "close"}
                async with http.get(f"{server.http}/metrics", headers=headers) as answer:
                    assert "\ntidewire_sessions 10.0\n" in await answer.text()
        content = [{"role": "user", "content": "script tokens=60 gap=0.3 unicode=1"}]
        await asyncio.gather(*(client.ask("m1", content) for client in clients))
        for client in clients:
            whole(await client.ended("m1"), content)
        assert upstream.count("start") == 1
        server.terminate()
        for client in clients:
            assert await client.closed() == 1012
        assert await server.exit_code() == 0


@dataclass(frozen=True, slots=True)
class _Listener:
    pid: int


def _listeners(pid: int) -> list[_Listener]:
    try:
        found = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return []
    return [_Listener(pid) for c in found if c.status == psutil.CONN_LISTEN][:1]


async def test_what_keeps_it_from_starting_is_told_in_one_line(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    path = config(tmp_path, f"redis://127.0.0.1:{free_port()}/0", upstream.url)
    path.write_text(path.read_text().replace("port = 0", "prot = 0"))
    process = await start(path)
    out, err = await process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert b"prot" in err
    assert b"port" in err
    assert b"Traceback" not in err


async def test_a_port_that_is_taken_is_told(valkey_url: str, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    path = config(tmp_path, valkey_url, upstream.url)
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    process = await start(path, "--port", str(port))
    _, err = await process.communicate()
    server.close()
    assert process.returncode == 2
    assert str(port).encode() in err
    assert b"Traceback" not in err
