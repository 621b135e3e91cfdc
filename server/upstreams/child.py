"""Child processes: started with their settings, waited for until ready, started again when they die.

A child reads its settings, one JSON line, from standard input, so that keys appear neither in its arguments nor in its
environment; it prints one line, `ready …`, once it can serve. Standard input then stays open: its end tells the child
that its parent is gone (`die_with_parent`), whatever killed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

from server.telemetry.tasks import TaskOwner

log = structlog.get_logger("child")

BACKOFF_SECONDS: Final = 0.2
"""Wait before the first restart; doubled with each death in a row."""
BACKOFF_SECONDS_MAX: Final = 30.0
STABLE_SECONDS: Final = 60.0
"""A child that lived so long starts a new row."""
STOP_SECONDS: Final = 5.0
"""How long a child may take to end before it is killed."""
STDERR_LINES: Final = 20

_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "SYSTEMROOT")
"""The only variables that a child inherits: no credential of another target is among them."""
_PR_SET_PDEATHSIG: Final = 1


class ChildError(Exception):
    """The child did not become ready; the text says why, with the last lines it wrote."""


class ChildProcess:
    """One child, kept alive between `start` and `stop`.

    `settings` is asked before every start; the ready line's rest is handed to `on_ready`.
    """

    def __init__(
        self,
        name: str,
        module: str,
        settings: Callable[[], Mapping[str, Any]],
        *,
        env: Mapping[str, str] | None = None,
        on_ready: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.restarts = 0
        """How often it was started again."""
        self._module = module
        self._settings = settings
        self._env = env or {}
        self._on_ready = on_ready
        self._owner = TaskOwner(f"child {name}")
        self._process: asyncio.subprocess.Process | None = None
        self._ready = asyncio.Event()
        self._changed = asyncio.Event()
        self._stopping = False
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._last_words = ""

    @property
    def pid(self) -> int | None:
        """The process id while it lives."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def is_ready(self) -> bool:
        """Whether it serves now."""
        return self._ready.is_set()

    def start(self) -> None:
        """Start it in the background. Idempotent."""
        if not len(self._owner) and not self._stopping:
            self._owner.start(self._keep_alive(), "keeper")

    async def ready(self, seconds: float) -> None:
        """Wait until it serves. Raises `ChildError` after `seconds`, or at once if it has died thrice in a row."""
        self.start()
        try:
            async with asyncio.timeout(seconds):
                while not self._ready.is_set():
                    if self._last_words and self.restarts >= 2:
                        raise ChildError(f"{self.name} does not start: {self._last_words}")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise ChildError(f"{self.name} is not ready after {seconds:g} s. {self._last_words}".strip()) from None

    async def stop(self) -> None:
        """End it, by force if it must be. Idempotent."""
        self._stopping = True
        await self._owner.close()

    async def _keep_alive(self) -> None:
        backoff = BACKOFF_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            born = loop.time()
            try:
                code = await self._live()
            except OSError as error:
                code, self._last_words = None, str(error)
            if loop.time() - born > STABLE_SECONDS:
                backoff = BACKOFF_SECONDS
            self.restarts += 1
            self._changed.set()
            log.warning("child_died", child=self.name, code=code, restart_in_seconds=backoff, said=self._last_words)
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_SECONDS_MAX)

    async def _live(self) -> int:
        """One life, from start to death; returns the exit code."""
        self._stderr.clear()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment(),
        )
        self._process = process
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._introduce(process))
                group.create_task(self._listen(process))
                return await process.wait()
        finally:
            self._ready.clear()
            self._last_words = " | ".join(self._stderr)
            await _end(process)

    def _environment(self) -> dict[str, str]:
        inherited = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        root = str(Path(__file__).resolve().parents[2])
        return {**inherited, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1", **self._env}

    async def _introduce(self, process: asyncio.subprocess.Process) -> None:
        """Hand over the settings, wait for the ready line, then swallow whatever else it prints."""
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(ConnectionError):
            process.stdin.write(orjson.dumps(dict(self._settings())) + b"\n")
            await process.stdin.drain()
        while line := await process.stdout.readline():
            word, _, rest = line.decode(errors="replace").strip().partition(" ")
            if word == "ready" and not self._ready.is_set():
                if self._on_ready is not None:
                    self._on_ready(rest)
                self._ready.set()
                self._changed.set()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Keep the last lines of standard error for the log, should it die."""
        assert process.stderr is not None
        with contextlib.suppress(ValueError):
            while line := await process.stderr.readline():
                self._stderr.append(line.decode(errors="replace").strip()[:300])


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a process politely, then by force; shielded, because it also runs while being cancelled."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except (TimeoutError, asyncio.CancelledError):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def read_settings() -> Any:
    """In the child: the settings line."""
    return orjson.loads(sys.stdin.buffer.readline())


def say_ready(rest: str = "") -> None:
    """In the child: tell the parent that it serves."""
    print(f"ready {rest}".strip(), flush=True)


def die_with_parent() -> None:
    """In the child, after `read_settings`: end at once when the parent is gone.

    Two ways, because each has a hole: the end of standard input (works everywhere), and the kernel's parent-death
    signal (Linux; also ends a child whose threads hang).
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    threading.Thread(target=_exit_at_end_of_input, name="parent-watch", daemon=True).start()


def _exit_at_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)
