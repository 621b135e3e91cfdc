"""A real PostgreSQL of our own for tests: its own cluster in a throw-away folder, on a free port, stopped at the end.

PostgreSQL does not run as root: then the server runs as the user `postgres` that Debian's package makes.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from tests.servers import free_port

INSTALL_COMMAND = "apt-get install -y --no-install-recommends postgresql"
START_SECONDS = 30.0
_DEBIAN = Path("/usr/lib/postgresql")


def binaries() -> Path | None:
    """The folder with `initdb` and `postgres`, of the newest version there is."""
    if (found := shutil.which("postgres")) is not None and shutil.which("initdb") is not None:
        return Path(found).resolve().parent
    versions = (
        sorted(_DEBIAN.glob("*/bin/postgres"), key=lambda path: float(path.parts[-3])) if _DEBIAN.exists() else []
    )
    return versions[-1].parent if versions else None


def missing() -> str | None:
    """Why there can be no server here; None: there can."""
    if binaries() is None:
        return f"PostgreSQL is missing; `make test` installs it, or: {INSTALL_COMMAND}"
    if os.getuid() == 0 and _user() is None:
        return "PostgreSQL does not run as root, and there is no user `postgres`: useradd --system postgres"
    return None


def _user() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return None


class PostgresServer:
    """One cluster. `url` leads into a database that `fresh` empties."""

    def __init__(self) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="tidewire-test-postgres-"))
        self.process: subprocess.Popen[bytes] | None = None
        user = _user() if os.getuid() == 0 else None
        self._as: dict[str, Any] = {}
        if user is not None:
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self.folder, user.pw_uid, user.pw_gid)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"postgresql://tidewire@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        folder = binaries()
        assert folder is not None
        data = self.folder / "data"
        init = [folder / "initdb", "--auth=trust", "--username=tidewire", "--encoding=UTF8", "--no-sync", "-D", data]
        subprocess.run(init, check=True, capture_output=True, cwd=self.folder, **self._as)
        self._command = [
            folder / "postgres", "-D", data, "-p", str(self.port), "-h", "127.0.0.1", "-k", self.folder,
            "-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=40",
        ]  # fmt: skip
        self.start()
        return self

    def start(self) -> None:
        """Start (again) and wait until it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self.folder, **self._as)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "server.log").read_text(errors="replace")[-2000:])
            time.sleep(0.02)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def fresh(self) -> None:
        """Drop everything in the database."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop at once (`SIGINT`: fast shutdown; `SIGQUIT`: as in a crash)."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
