"""`tidewire demo` as a user starts it: a process of its own, a free port, a throw-away home."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

STATIC = Path(__file__).parents[2] / "server" / "http" / "static"
STOP_SECONDS = 20.0


class Demo:
    """A running demo; `url` is where the page is."""

    url = ""

    def __init__(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="tidewire-test-page-"))
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        assert (STATIC / "index.html").is_file(), "the page is not built: `npm ci && npm run build` in web-demo"
        program = Path(sys.executable).with_name("tidewire")
        with (self._home / "log").open("w") as log:
            self._process = subprocess.Popen(
                [program, "demo", "--port", "0"],
                env=os.environ | {"XDG_DATA_HOME": str(self._home)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        # It says its address once it serves; if it ends before, so does its output.
        self.url = next((line.strip() for line in self._process.stdout if line.startswith("http")), "")
        if not self.url:
            log_text = (self._home / "log").read_text(errors="replace")
            self.__exit__()
            raise AssertionError(f"the demo did not start:\n{log_text[-4000:]}")
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is not None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
        shutil.rmtree(self._home, ignore_errors=True)
