"""The simulation can fail: every broken variant is caught by some seed that holds with the shipped code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_SEEDS = 2_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_mutant_is_caught() -> None:
    command = [sys.executable, "-m", "tests.simulation", "--mutants", "--seeds", str(MOST_SEEDS), "--jobs", "2"]
    environ = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
