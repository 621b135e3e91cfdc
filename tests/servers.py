"""Real servers for tests: Valkey from our own package and Debian's Redis, on free ports, in throw-away folders.

    with RedisServer(VALKEY) as server:
        client = redis.asyncio.from_url(server.url)

A server can be frozen (`freeze`, `thaw`: SIGSTOP, SIGCONT), killed (`kill`) and started again on the same port with
the same data (`start`).
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from server.store.embedded import binary_path

VALKEY = "valkey"
REDIS = "redis"
REDIS_INSTALL_COMMAND = "apt-get install -y --no-install-recommends redis-server"
START_SECONDS = 10.0
LOWEST_PORT = 12_000
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_CHANCE = random.SystemRandom()
"""Not the one that tests seed."""


def redis_binary() -> str | None:
    """Debian's Redis 7, if it is installed."""
    return shutil.which("redis-server")


def free_port() -> int:
    """A TCP port that is free now, and none that an outgoing connection may get before it is used."""
    most = max(_first_ephemeral(), LOWEST_PORT + 1_000)
    while True:
        port = _CHANCE.randrange(LOWEST_PORT, most)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def _first_ephemeral() -> int:
    """The lowest port that the kernel gives to outgoing connections."""
    try:
        return int(EPHEMERAL.read_text().split()[0])
    except OSError:
        return 32_768


class RedisServer:
    """One server process. `kind`: `VALKEY` or `REDIS`; `options`: its own, as `("--cluster-enabled", "yes")`."""

    def __init__(self, kind: str = VALKEY, *, port: int | None = None, options: Sequence[str] = ()) -> None:
        self.kind = kind
        self.port = port or free_port()
        self.options = tuple(options)
        self.folder = Path(tempfile.mkdtemp(prefix="tidewire-test-redis-"))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start (again) and wait until it answers; data of an earlier run is loaded."""
        binary = str(binary_path()) if self.kind == VALKEY else redis_binary()
        assert binary is not None, f"redis-server is missing: {REDIS_INSTALL_COMMAND}"
        defaults = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        durable = ["--appendonly", "yes", "--appendfsync", "everysec", "--maxmemory-policy", "noeviction"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [binary, *defaults, *durable, *self.options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._until_ready()

    def _until_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self.command(b"PING").startswith((b"+PONG", b"-NOAUTH")):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError((self.folder / "server.log").read_text(errors="replace")[-2000:])
            time.sleep(0.005)

    def command(self, line: bytes) -> bytes:
        """Send one inline command; the first line of the answer, empty if there is none."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as sock:
            sock.sendall(line + b"\r\n")
            return sock.makefile("rb").readline().rstrip()
        return b""

    def flush(self) -> None:
        """Forget everything: data, functions and scripts."""
        for line in (b"FLUSHALL", b"SCRIPT FLUSH"):
            assert self.command(line) == b"+OK"

    def freeze(self) -> None:
        """Stop the process where it stands; its connections stay open and silent."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, without a chance to flush."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End it in order. Idempotent."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        self.thaw()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()
