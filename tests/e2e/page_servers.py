"""What the page talks to: `tidewire demo` as a user starts it, and `tidewire serve` with a scripted model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.processes import ROOT, serve_config, toml

STATIC = ROOT / "server" / "http" / "static"
STOP_SECONDS = 20.0


@contextmanager
def demo(*options: str) -> Iterator[str]:
    """The address that a `tidewire demo` in a throw-away home tells: its own Redis, its own model."""
    with _home() as home, _program([_tidewire(), "demo", "--port", "0", *options], home) as url:
        yield url


@contextmanager
def scripted() -> Iterator[tuple[str, str]]:
    """The addresses of a server and of its model, which says what the question tells it to (`tests.upstreams`)."""
    with (
        _home() as home,
        _program([sys.executable, "-m", "tests.upstreams.scripted", "--port", "0"], home) as upstream,
    ):
        config = serve_config("embedded", upstream) | {"ledger": {"url": f"sqlite:///{home / 'ledger.db'}"}}
        config["redis"]["data_dir"] = str(home / "redis")
        (home / "tidewire.toml").write_text(toml(config))
        with _program([_tidewire(), "serve", "--config", str(home / "tidewire.toml")], home) as url:
            yield url, upstream


def _tidewire() -> str:
    assert (STATIC / "index.html").is_file(), "the page is not built: `npm ci && npm run build` in web-demo"
    return str(Path(sys.executable).with_name("tidewire"))


@contextmanager
def _home() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="tidewire-test-page-"))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _program(command: Sequence[str], home: Path) -> Iterator[str]:
    """A program that prints its address on standard output once it serves; ended with SIGTERM."""
    with (home / "log").open("a+") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"XDG_DATA_HOME": str(home), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        try:
            # If it ends before it serves, so does its output.
            line = next((line for line in process.stdout if "http://" in line), "")
            assert line, f"{command} did not start:\n{(home / 'log').read_text(errors='replace')[-4000:]}"
            yield line[line.index("http://") :].split()[0].rstrip("/")
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
