"""Logs: one JSON object a line, with the logger's name, and without the values of variables in tracebacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import logging, os, structlog
from server.telemetry.logs import configure
configure(os.environ)
log = structlog.get_logger("store")
log.info("connected", id="m1")
logging.getLogger("library").warning("old %s", "style")
password = "hunter2"
try:
    raise ValueError("broken")
except ValueError as error:
    log.error("died", exc_info=error)
log.debug("hidden")
"""


def logged(**environ: str) -> str:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"], **environ}
    )
    assert done.stdout == ""
    return done.stderr


def test_json_lines() -> None:
    lines = [json.loads(line) for line in logged().splitlines()]
    assert [(line["logger"], line["level"], line["event"]) for line in lines] == [
        ("store", "info", "connected"),
        ("library", "warning", "old style"),
        ("store", "error", "died"),
    ]
    assert lines[0]["id"] == "m1"
    assert lines[0]["timestamp"].endswith("Z")
    assert lines[2]["exception"][0]["exc_value"] == "broken"


@pytest.mark.parametrize("form", ["json", "console"])
def test_tracebacks_hold_no_values(form: str) -> None:
    text = logged(TIDEWIRE_LOG_FORMAT=form)
    assert "ValueError" in text
    assert "hunter2" not in text


def test_level() -> None:
    assert "hidden" in logged(TIDEWIRE_LOG_LEVEL="debug")
    assert "connected" not in logged(TIDEWIRE_LOG_LEVEL="warning")
