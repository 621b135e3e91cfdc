"""Real `tidewire serve` processes, for tests that kill, stop and drain them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

import psutil

from server.config.sections import RedisSettings

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 60.0
STOP_SECONDS = 60.0
STALL_MS: Final = 2000
"""Silence of Redis that nodes under test bear before they refuse: a busy machine may let Redis wait for its turn."""
AS_SHIPPED: Final = {"stall_ms": RedisSettings.model_fields["stall_ms"].default}
"""The section `[redis]` for tests of what happens when Redis does fall silent."""


def toml(data: Mapping[str, Any]) -> str:
    """A configuration of tables of tables as TOML."""
    lines: list[str] = []

    def table(path: str, values: Mapping[str, Any]) -> None:
        plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
        if plain:
            lines.append(f"[{path}]")
            lines.extend(f"{key} = {_value(value)}" for key, value in plain.items())
        for key, value in values.items():
            if isinstance(value, Mapping):
                table(f"{path}.{key}", value)

    for section, values in data.items():
        table(section, values)
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return repr(value) if isinstance(value, int | float) else '"' + str(value).replace('"', '\\"') + '"'


def serve_config(redis_url: str, upstream: str, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """One scripted target behind the route `default`, anonymous, a free port; `sections` are merged in."""
    data: dict[str, Any] = {
        "server": {"port": 0},
        "redis": {"url": redis_url, "stall_ms": STALL_MS},
        "auth": {"anonymous": True},
        "targets": {"scripted": {"driver": "openai", "base_url": f"{upstream}/v1", "model": "scripted"}},
        "routes": {"default": {"targets": ["scripted"]}},
        "ledger": {"url": "sqlite:///:memory:"},
    }
    for section, values in sections.items():
        data[section] = {**data.get(section, {}), **values}
    return data


class DidNotStart(AssertionError):
    """The process ended before it served."""


class ServeProcess:
    """One `tidewire serve`, from its start to its end."""

    def __init__(self, config: Mapping[str, Any], port: int = 0, environ: Mapping[str, str] | None = None) -> None:
        self.config = config
        self.port = port
        self.environ = environ or {}
        self.process: asyncio.subprocess.Process | None = None
        self.http = ""
        self._folder = tempfile.TemporaryDirectory(prefix="tidewire-test-")
        self.log = Path(self._folder.name) / "serve.log"

    @property
    def url(self) -> str:
        """Where WebSocket clients connect."""
        return self.http.replace("http://", "ws://") + "/v1/ws"

    @property
    def pid(self) -> int:
        """Process id of the node, or of its supervisor."""
        assert self.process is not None
        return self.process.pid

    async def start(self) -> Self:
        """Start (again) and wait until requests are served. Raises `DidNotStart`."""
        path = Path(self._folder.name) / "tidewire.toml"
        path.write_text(toml(self.config))
        words = ["-m", "server", "serve", "--config", str(path), *(["--port", str(self.port)] if self.port else [])]
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *words,
                cwd=ROOT,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.environ},
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(START_SECONDS):
            while "http://" not in (line := (await self.process.stdout.readline()).decode()):
                if not line:
                    await self.process.wait()
                    raise DidNotStart(f"the server did not start:\n{self.log.read_text()[-4000:]}")
        self.http = line[line.index("http://") :].split()[0].rstrip("/.,")
        self.port = int(self.http.rsplit(":", 1)[1])
        return self

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and its children, as a machine that stops would."""
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.send_signal(number)
            os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.signal(signal.SIGKILL)
        assert self.process is not None
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM, and wait for the end of the drain; the exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(STOP_SECONDS):
            return await self.process.wait()

    async def close(self) -> None:
        """End it, whatever its state."""
        if self.process is not None and self.process.returncode is None:
            self.signal(signal.SIGCONT)
            await self.kill()
        self._folder.cleanup()


@asynccontextmanager
async def serving_processes(config: Mapping[str, Any], count: int) -> AsyncIterator[list[ServeProcess]]:
    """`count` nodes with the same configuration, each a process on its own port."""
    processes = [ServeProcess(config) for _ in range(count)]
    try:
        await asyncio.gather(*(process.start() for process in processes))
        yield processes
    finally:
        for process in processes:
            await process.close()
