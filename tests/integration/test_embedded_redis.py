"""The embedded Valkey: starts, keeps data, refuses to share its folder, and never outlives its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import redis.asyncio

from server.store.embedded import EmbeddedRedis, EmbeddedRedisError, FolderInUse

PARENT = """
import asyncio, pathlib, sys
from server.store.embedded import EmbeddedRedis
async def main():
    server = EmbeddedRedis(pathlib.Path(sys.argv[1]))
    await server.start()
    print("running", server.pid, server.url, flush=True)
    await server.wait()
asyncio.run(main())
"""


@asynccontextmanager
async def client(url: str) -> AsyncIterator[redis.asyncio.Redis]:
    connection = redis.asyncio.from_url(url)
    try:
        yield connection
    finally:
        await connection.aclose()


async def spawn_parent(folder: Path) -> tuple[asyncio.subprocess.Process, int, str]:
    """A process that runs an embedded server: itself, the server's pid and URL."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(folder), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async for line in parent.stdout:
        if line.startswith(b"running "):
            _, pid, url = line.decode().split()
            return parent, int(pid), url
    raise AssertionError("the parent ended without a server")


async def test_runs_with_the_settings_the_guarantees_rest_on(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path / "a" / "b") as server, client(server.url) as redis_client:
        settings = await redis_client.config_get("maxmemory-policy", "appendonly", "appendfsync", "port")
        assert settings == {
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "port": "0",
        }
        info = await redis_client.info("server")
        assert int(info["valkey_version"].split(".")[0]) >= 8
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


async def test_nothing_is_open_to_others_in_a_folder_that_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    async with EmbeddedRedis(tmp_path):
        for path in tmp_path.rglob("*"):
            if path.name != "server.log":
                assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755, "a folder that was there keeps its rights"


async def test_data_survives_a_restart(tmp_path: Path) -> None:
    for expected in (None, b"1", b"2"):
        async with EmbeddedRedis(tmp_path) as server, client(server.url) as redis_client:
            assert await redis_client.get("counter") == expected
            await redis_client.incr("counter")


async def test_a_folder_serves_one_server(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as first:
        with pytest.raises(FolderInUse, match="in use by another Tidewire"):
            await EmbeddedRedis(tmp_path).start()
        async with client(first.url) as redis_client:
            assert await redis_client.ping()
    async with EmbeddedRedis(tmp_path):
        pass


async def test_stop_ends_the_process_and_is_idempotent(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    await server.start()
    pid = server.pid
    assert pid is not None
    await server.stop()
    await server.stop()
    assert server.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not (tmp_path / "redis.sock").exists()


async def test_stop_reaches_a_frozen_server(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    await server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    async with asyncio.timeout(5):
        await server.stop()


async def test_wait_tells_of_a_crash_and_stale_files_do_no_harm(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    await server.start()
    async with client(server.url) as redis_client:
        await redis_client.set("kept", "yes")
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    assert await server.wait() == -signal.SIGKILL
    assert (tmp_path / "redis.sock").exists()
    await server.stop()
    (tmp_path / "redis.sock").touch()
    async with EmbeddedRedis(tmp_path) as again, client(again.url) as redis_client:
        assert await redis_client.get("kept") == b"yes"


async def test_dies_with_its_parent_and_the_next_one_takes_over(tmp_path: Path) -> None:
    parent, pid, url = await spawn_parent(tmp_path)
    async with client(url) as redis_client:
        await redis_client.set("kept", "yes")
    parent.kill()
    await parent.wait()
    async with EmbeddedRedis(tmp_path) as server, client(server.url) as redis_client:
        assert server.pid != pid
        assert await redis_client.get("kept") == b"yes"
        # In a container whose first process buries nobody, the dead one stays listed.
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def test_a_long_path_moves_the_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    async with EmbeddedRedis(folder) as server, client(server.url) as redis_client:
        assert await redis_client.ping()
        assert str(folder) not in server.url
        socket = Path(server.url.removeprefix("unix://"))
    assert not socket.parent.exists()


async def test_an_unusable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedRedisError, match=r"redis\.data_dir"):
        await EmbeddedRedis(tmp_path / "file" / "sub").start()


async def test_a_damaged_log_is_reported(tmp_path: Path) -> None:
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(EmbeddedRedisError, match="manifest"):
        await EmbeddedRedis(tmp_path).start()
    with pytest.raises(EmbeddedRedisError, match="was not started"):
        await EmbeddedRedis(tmp_path).wait()
